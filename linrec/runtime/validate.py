"""Validation of each translation: a plan is run beside the original at lengths and batch sizes that were not traced, in
double precision, and must give the same values and gradients; and at every new greatest length the original must run
the operators that its short traces predict."""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from linrec.capture.decisions import first_otherwise
from linrec.capture.probe import Dims, count_calls, differentiable, resize, undone
from linrec.capture.recorders import Record
from linrec.codegen import CompiledScan
from linrec.ir.obstruction import Obstruction, Refused, refuse
from linrec.ir.results import leaves_of_result
from linrec.ops.cpu_scan import compiled_scan
from linrec.runtime.compare import close, worse
from linrec.runtime.double import as_double
from linrec.runtime.outcome import (
    copied,
    left_behind,
    outcome,
    registered_tensors,
    run_original,
    run_plan,
    run_torch_forms,
    truth_of,
)
from linrec.runtime.plan import OtherBranch, Plan, gradient_flags


def validate(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], as_given: bool = False
) -> None:
    """Compare a plan with the original, values and gradients, at two lengths (and batch sizes) that were not traced.

    In double precision throughout, where autocast casts nothing and neither do the casts that the plan has from it; a
    plan with such casts is then also run in its own precision, where it may be no worse than the original. What does
    not run in double precision is compared in its own, and by its values alone what has no gradients.

    Args:
        plan: what to compare; module: with the original; forward: its unwrapped forward; spec, leaves: of a call.
        as_given: whether inputs require gradient only where those of the call do, as forward asks for it.

    Raises:
        Refused: LR010 with what differs, or with why nothing could be compared.
    """
    tracked = plan.min_length + 2 * plan.period
    compared = 0
    failure: Exception | None = None
    needs = [isinstance(x, Tensor) and x.requires_grad for x in leaves]
    further = plan.period * -(-22 // plan.period)
    for length, batch, noise in ((tracked + plan.period, 0, 0.0), (tracked + further, 1, 0.1)):
        longer = _without_repeats(resize(leaves, plan.axis.dims, length), leaves, plan.axis.dims)
        sized = _rebatch(plan, longer, batch)
        tensors = [x for x in sized if isinstance(x, Tensor)]
        if not plan.admits(module, tensors, length):
            sized = longer
        _take_numbers(plan, module, forward, spec, sized, length)
        try:
            _compare(plan, module, forward, spec, sized, needs, noise, length, as_given)
            compared += 1
        except OtherBranch:
            continue
        except _NotComparedError as error:
            failure = error.cause
        except Refused as error:
            raise _other_operators(plan, module, forward, spec, sized, length) or error from None

    if not compared and failure is not None:
        said = f"{type(failure).__name__}: {failure}"
        raise refuse(
            "LR010",
            f"The original could not be run for a comparison, neither in double precision nor in its own: {said}.",
        )
    if not compared:
        text = "forward branches on a tensor, and goes otherwise at every length at which it could be compared."
        raise refuse("LR015", text, plan.decisions[0].location)


def _other_operators(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: list[Any], length: int
) -> Refused | None:
    """The reason where the original does not do at this length what its short traces predict: no fault of the plan."""
    with contextlib.suppress(Exception):  # whatever the user's code raises; the plan is refused anyway
        found = check_length(plan, module, forward, spec, leaves, length)
        if found is not None and found.id == "LR011":
            return refuse(found.id, found.explanation)
    return None


def _without_repeats(longer: list[Any], leaves: Sequence[Any], dims: Dims) -> list[Any]:
    """What wraps around, drawn a little towards zero: steps with the same inputs make the arguments of a running
    maximum equal, and then rounding alone decides which of them has the gradient."""
    out = list(longer)
    for leaf, sizes in dims.items():
        x = out[leaf]
        if not (x.is_floating_point() or x.is_complex()):
            continue
        for dim in sizes:
            had = leaves[leaf].shape[dim]
            if x.shape[dim] > had:
                shape = [1] * x.dim()
                shape[dim] = x.shape[dim]
                scale = torch.ones(x.shape[dim], dtype=torch.float64, device=x.device)
                scale[had:] = 1 - 1e-3 * torch.linspace(0.5, 1, x.shape[dim] - had, dtype=torch.float64)
                x = x * scale.view(shape).to(x.dtype)
        out[leaf] = x
    return out


def _rebatch(plan: Plan, leaves: list[Any], extra: int) -> list[Any]:
    """The leaves with every symbolic dimension one larger."""
    out = list(leaves)
    positions = [i for i, x in enumerate(leaves) if isinstance(x, Tensor)]
    for i, dims in zip(positions, plan.shapes, strict=True):
        for d, dim in enumerate(dims):
            if isinstance(dim, str) and extra:
                index = torch.arange(out[i].shape[d] + extra, device=out[i].device) % out[i].shape[d]
                out[i] = out[i].index_select(d, index)
    return out


def _jitter(x: Any, noise: float, generator: torch.Generator) -> Any:
    if noise and isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()):
        random = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
        return x + noise * random * (x.abs() + 0.1 * x.abs().amax() if x.numel() else x)
    return x


def _compare(
    plan: Plan,
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: list[Any],
    needs: list[bool],
    noise: float,
    length: int,
    as_given: bool,
) -> None:
    generator = torch.Generator().manual_seed(length)
    state = {n: _jitter(p.detach(), noise, generator) for n, p in module.named_parameters(remove_duplicate=False)}
    state |= {n: b.detach() for n, b in module.named_buffers(remove_duplicate=False)}
    inputs = [_jitter(x.detach(), noise, generator) if isinstance(x, Tensor) else x for x in leaves]
    seed = int(torch.randint(2**31, (), generator=generator))

    def ran(run: Any, every: bool = True, double: bool = True, gradients: bool = True) -> dict[str, Any] | Exception:
        mine = [as_double(x) if double else copied(x) for x in inputs]
        own = {n: as_double(t) if double else copied(t) for n, t in state.items()}
        for n, p in module.named_parameters(remove_duplicate=False):
            own[n].requires_grad_(p.requires_grad)
        tied: dict[int, Tensor] = {}
        for n, t in registered_tensors(module):
            own[n] = tied.setdefault(id(t), own[n])
        for x, needed in zip(mine, needs, strict=True):
            if isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex()) and (every or needed):
                x.requires_grad_()
        with compiled_scan.off() if run is run_torch_forms else contextlib.nullcontext():
            return outcome(run, plan, module, forward, spec, mine, own, seed, double, gradients)

    # Some operators have no derivative by all that they take, some programs run in one precision only, and where
    # forward writes over what backward needs there are values alone.
    ways: tuple[dict[str, bool], ...] = (
        {},
        {"every": False},
        {"every": False, "double": False},
        {"every": False, "gradients": False},
    )
    for how in ways[as_given:]:
        reference = ran(run_original, **how)
        if not isinstance(reference, Exception):
            break
    if isinstance(reference, Exception):
        raise _NotComparedError(reference)
    compiled = any(isinstance(m, CompiledScan) for m in plan.graph_module.modules())
    runs = [run_plan, *([run_torch_forms] if compiled else [])]
    for run in runs:
        _agree(reference, ran(run, **how), length, _IN_ITS_OWN if "double" in how else 1e-7)
    if plan.mixed and "double" not in how:
        own = how | {"double": False}
        loop = ran(run_original, **own)
        if isinstance(loop, Exception):
            return
        for run in runs:
            _no_worse(reference, loop, ran(run, **own), length)


class _NotComparedError(Exception):
    """The original does not run on made-up inputs, for a cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__()
        self.cause = cause


_IN_ITS_OWN = 1e-3
"""How far results may be apart, of their largest value, where the program runs in no other precision than its own."""


def _agree(reference: dict[str, Any], ours: dict[str, Any] | Exception, length: int, tolerance: float = 1e-7) -> None:
    if isinstance(ours, OtherBranch):
        raise ours
    if isinstance(ours, Exception):
        raise refuse("LR010", f"At length {length} the rewritten graph fails: {type(ours).__name__}: {ours}.")
    for what, a in reference.items():
        b = ours.get(what)
        if not close(a, b, tolerance):
            raise refuse("LR010", f"At length {length} the {what} of the rewritten graph differs{_by(a, b)}.")


def _no_worse(truth: dict[str, Any], loop: dict[str, Any], ours: dict[str, Any] | Exception, length: int) -> None:
    if isinstance(ours, OtherBranch):
        raise ours
    if isinstance(ours, Exception):
        raise refuse("LR010", f"At length {length} the rewritten graph fails: {type(ours).__name__}: {ours}.")
    grads = [g for what, g in truth.items() if what.startswith("gradient of") and isinstance(g, Tensor) and g.numel()]
    sizes = [float(g.detach().abs().max()) for g in grads]
    largest = max((size for size in sizes if math.isfinite(size)), default=0.0)
    for what, a in loop.items():
        summed = largest if what.startswith("gradient of") else 0.0
        problem = worse(truth.get(what), a, ours.get(what), summed)
        if problem:
            raise refuse("LR010", f"At length {length} the {what} of the rewritten graph {problem}.")


def _by(a: Any, b: Any) -> str:
    if isinstance(a, Tensor) and isinstance(b, Tensor) and a.shape == b.shape and a.dtype == b.dtype:
        if a.dtype is torch.bool:
            return ""
        return f" by {(a - b).abs().max().item():.3g} (largest value {a.abs().max().item():.3g})" if a.numel() else ""
    return ""


def _counted(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], length: int
) -> tuple[Record, Counter[Any]]:
    """A run of the original, and its calls by function, constant numbers and gradient mode."""
    left = functools.partial(left_behind, plan, module, leaves)
    found = count_calls(module, forward, spec, leaves, plan.numbers is not None, left)
    first = first_otherwise(plan.decisions, found.decisions) if plan.decisions else None
    if first is not None:
        raise OtherBranch(first.otherwise)
    counts: Counter[Any] = found.calls
    if plan.reads_numbers:
        counts = Counter()
        for key, count in found.calls.items():
            name, floats, grad = cast(tuple[str, tuple[float, ...], bool], key)
            counts[name, len(floats), grad] += count
    elif plan.numbers is not None:
        counts = plan.numbers.counted(found.log, length)
    return found, counts + found.order


def _take_numbers(plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], length: int) -> None:
    """Let a plan know the numbers that Python computes at a length.

    Raises:
        Refused: LR011 where the original does not run as its short traces predict.
    """
    if plan.numbers is None:
        return
    try:
        log = count_calls(module, forward, spec, leaves, True).log
    except Exception:  # the user's code takes no such sizes: nothing can be compared at them
        return
    if not plan.numbers.take(log, length):
        text = f"At length {length} operators are not given the numbers that their short runs predict."
        raise refuse("LR011", text)


_LOOSE = {torch.float64: 1e-6, torch.complex128: 1e-6, torch.float32: 2e-3, torch.complex64: 2e-3}


def check_length(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], length: int
) -> Obstruction | None:
    """Run the original at this length, without a backward pass, and compare its operators, the gradient mode that each
    runs in, and its values with the plan.

    Short traces cannot see a branch on a later step, or a cap on the number of steps.

    Raises:
        OtherBranch: the original takes other branches on tensors than those of the plan.
    """
    # What has a gradient tells steps apart that have the same values: it is looked at where it goes in the call.
    flags = (torch.is_grad_enabled(), gradient_flags(module, [x for x in leaves if isinstance(x, Tensor)]))
    known = plan.signature_counts is not None and plan.signature_counts[3] == flags
    if not known:
        _count_short_runs(plan, module, forward, spec, leaves, flags)
    copies = {id(x): x.detach() for x in leaves if isinstance(x, Tensor)}  # of one tensor that comes twice, one
    plain = [copies.get(id(x), x) for x in leaves]
    found, actual = _counted(plan, module, forward, spec, differentiable(plain, leaves), length)
    problem = _other_calls(plan, actual, length)
    # What was counted may be of another batch size, whose numbers operators are given, or of another state.
    if problem is not None and known:
        _count_short_runs(plan, module, forward, spec, leaves, flags)
        problem = _other_calls(plan, actual, length)
    if problem is not None:
        return problem
    if plan.numbers is not None and not plan.numbers.take(found.log, length):
        text = f"at length {length} operators are not given the numbers that their short runs predict."
        return Obstruction("LR011", "", text)
    # Nothing may watch torch's operators here: kernels would make way for it.
    with torch.no_grad(), undone(module, leaves, parameters="leave"), torch.random.fork_rng(devices=[]):
        try:
            ours = plan.run(module, [x for x in leaves if isinstance(x, Tensor)])
            left = left_behind(plan, module, leaves)
        except Exception as error:  # a plan that cannot run must not take the model with it
            return Obstruction("LR010", "", f"at length {length} the rewritten graph fails: {error}.")
        truth = truth_of(module, forward, spec, plain) if plan.mixed else None
    results = [leaves_of_result(x) for x in (found.output, ours)]
    if plan.mixed:
        for i, (a, b) in enumerate(zip(*results, strict=True)):
            wrong = worse(truth[i], a, b) if truth is not None else None
            if wrong:
                return Obstruction("LR010", "", f"at length {length} result {i} {wrong}.")
        return None
    theirs, own = ({f"result {i}": x for i, x in enumerate(each)} for each in results)
    unsure = False
    for what, a in (theirs | found.left).items():
        b = (own | left).get(what)
        if not isinstance(a, Tensor) or not isinstance(b, Tensor):
            continue
        if a.dtype in _LOOSE and not close(a.to(b.dtype), b, _LOOSE[a.dtype]):
            return Obstruction("LR010", "", f"at length {length} {what} differs{_by(a, b)}.")
        # Whole numbers and truth values may turn on a rounding, and half precision is nothing else.
        unsure |= a.dtype not in _LOOSE and not (a.shape == b.shape and torch.equal(a, b.to(a.dtype)))
    return _differs_in_double(plan, module, forward, spec, leaves, length) if unsure else None


def _count_short_runs(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], flags: Any
) -> None:
    """Let a plan know what short runs call."""
    first, second = plan.min_length, plan.min_length + 2 * plan.period
    sized = [differentiable(resize(leaves, plan.axis.dims, n), leaves) for n in (first, second)]
    counts = [_counted(plan, module, forward, spec, x, n)[1] for n, x in zip((first, second), sized, strict=True)]
    plan.signature_counts = (first, counts[0], counts[1], flags)


def _other_calls(plan: Plan, actual: Counter[Any], length: int) -> Obstruction | None:
    """What a run at a length calls otherwise than its short runs predict."""
    assert plan.signature_counts is not None
    first, one, two, _ = plan.signature_counts
    expected: Counter[Any] = Counter()
    for key in one | two:
        expected[key] = one[key] + (two[key] - one[key]) * (length - first) // (2 * plan.period)
    for key in expected.keys() | actual.keys():
        if expected[key] != actual[key]:
            mode = " without gradient" if torch.is_grad_enabled() and not key[2] else ""
            text = f"at length {length} '{key[0]}' runs {actual[key]} times{mode} where {expected[key]} were expected."
            return Obstruction("LR011", "", text)
    return None


def _differs_in_double(
    plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], length: int
) -> Obstruction | None:
    """Whether a plan differs from the original where both run in double precision."""
    state = {n: t.detach() for n, t in registered_tensors(module)}

    def ran(run: Any) -> dict[str, Any] | Exception:
        inputs = [as_double(x.detach()) if isinstance(x, Tensor) else x for x in leaves]
        own = {n: as_double(t) for n, t in state.items()}
        return outcome(run, plan, module, forward, spec, inputs, own, length, True, False)

    reference = ran(run_original)
    if isinstance(reference, Exception):
        return None
    try:
        _agree(reference, ran(run_plan), length)
    except Refused as refused:
        return refused.obstruction
    return None
