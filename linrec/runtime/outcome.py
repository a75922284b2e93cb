"""One run of the original or of a plan, in double precision or its own: what it returns and leaves behind, and the
gradients of that."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import stateless
from torch.utils import _pytree as pytree

from linrec.capture.probe import apart, undone
from linrec.codegen import torch_forms
from linrec.ir import members
from linrec.ir.held import lookup, replaced
from linrec.ir.results import leaves_of_result
from linrec.ops.precision import no_autocast
from linrec.runtime.double import as_double, in_double
from linrec.runtime.plan import Plan


def _of_literals(plan: Plan) -> torch.dtype | None:
    """What the numbers are rounded to of which forward makes tensors; None where there is not one such dtype."""
    found = {s.value.dtype for s in plan.sources if s.literal}
    found |= {s.dtype for s in plan.numbers.series if s.dtype is not None} if plan.numbers is not None else set()
    found = {d.to_real() for d in found if d.is_floating_point or d.is_complex}
    return found.pop() if len(found) == 1 else None


def registered_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of a module, by all their names."""
    return [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]


def copied(x: Any) -> Any:
    """A tensor of its own, without gradient; anything else as it is."""
    return x.detach().clone() if isinstance(x, Tensor) else x


def _assigned(plan: Plan, module: nn.Module) -> dict[str, Any]:
    """What forward has assigned to attributes, as it is, and copies of the buffers that it has written, by name."""
    found: dict[str, Any] = {}
    for each in plan.attributes:
        values = leaves_of_result(lookup(module, each.qualified, each.keys))
        what = "".join([each.qualified, *(f"[{key!r}]" for key in each.keys)])
        found |= {f"attribute {what!r} ({i})": x for i, x in enumerate(values)}
    return found | {f"buffer {name!r}": copied(lookup(module, name)) for name in sorted(plan.written)}


def left_behind(plan: Plan, module: nn.Module, leaves: Sequence[Any]) -> dict[str, Any]:
    """What a call of forward, just made, has assigned to attributes and written into buffers and inputs."""
    found = {name: copied(x) for name, x in _assigned(plan, module).items()}
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    written = [what for kind, what in plan.outputs if kind == "input"]
    return found | {f"input {what} after the call": copied(tensors[what]) for what in written}


def seed_generators(seed: int) -> None:
    """Seed the generators whose states `undone` restores. A GPU that has not been used yet keeps its seed for its first
    use, and has no state to restore: `torch.manual_seed` would replace that seed."""
    if torch.cuda.is_available() and not torch.cuda.is_initialized():
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def outcome(
    run: Any,
    plan: Plan,
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: list[Any],
    state: dict[str, Tensor],
    seed: int,
    double: bool,
    gradients: bool,
) -> dict[str, Any] | Exception:
    """Values and, if wanted, gradients of one run, by name."""
    literals = _of_literals(plan)
    registered = {id(t): state[n] for n, t in registered_tensors(module)}
    if double:  # as `in_double` makes the tensors that forward makes itself
        sources = [replace(s, value=as_double(s.value)) if s.literal else s for s in plan.sources]
        plan = replace(plan, sources=sources)
    how = "watch" if run is run_original else "leave"  # a plan's kernels would make way for what watches
    with undone(module, parameters=how) as writes, torch.random.fork_rng(devices=[]):
        seed_generators(seed)
        try:
            with (
                torch.enable_grad(),
                stateless._reparametrize_module(module, dict(state)),  # which it writes into
                _attributes_copied(module, registered, double) as attributes,
                in_double(literals) if double else contextlib.nullcontext(),
            ):
                # In-place writes into inputs need non-leaf tensors; gradients are taken with respect to the leaves.
                used = [x * 1 if isinstance(x, Tensor) and x.requires_grad else x for x in leaves]
                out = run(plan, module, forward, spec, used)
                found: dict[str, Any] = {f"result {i}": x for i, x in enumerate(leaves_of_result(out))}
                found |= _assigned(plan, module)
                found |= {f"input {i} after the call": x for i, x in enumerate(used)}
                with no_autocast():  # in the block: activation checkpointing runs forward again
                    grads = _gradients(found, leaves, state | attributes) if gradients else {}
            return {n: x.clone() if writes.has(x) else x for n, x in found.items()} | grads
        except Exception as error:  # whatever the user's code raises on these inputs is its own
            return error


def _gradients(found: dict[str, Any], leaves: list[Any], state: dict[str, Tensor]) -> dict[str, Any]:
    total: Any = 0.0
    for i, x in enumerate(found.values()):
        if isinstance(x, Tensor) and x.requires_grad:
            # Of its own for each: whether a result that has no derivative says so must not change the others' weights.
            generator = torch.Generator().manual_seed(i)
            weight = torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.device)
            total = total + (
                (x.real * weight).sum() + (x.imag * weight).sum() if x.is_complex() else (x * weight).sum()
            )
    if not isinstance(total, Tensor):
        return {}
    named = {f"input {i}": x for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.requires_grad}
    named |= {f"parameter or state {n!r}": p for n, p in state.items() if p.requires_grad}
    grads = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {
        f"gradient of {n}": torch.zeros_like(x) if g is None else g
        for (n, x), g in zip(named.items(), grads, strict=True)
    }


@contextlib.contextmanager
def _attributes_copied(module: nn.Module, registered: dict[int, Tensor], double: bool) -> Iterator[dict[str, Tensor]]:
    """Other tensors in the place of those that modules hold as plain attributes, or in containers, for the time of the
    block (`undone` restores them): leaves, in double precision or their own.

    Args:
        registered: what stands for a parameter or a buffer, by its id, which attributes may hold, too.

    Yields:
        those that require gradient, by name.
    """
    copies = dict(registered)
    found: dict[str, Tensor] = {}

    def replaced_by(name: str, x: Tensor) -> Tensor:
        if id(x) not in copies:
            if not double and not x.requires_grad:
                return x
            copies[id(x)] = (as_double(x) if double else x.detach().clone()).requires_grad_(x.requires_grad)
            if x.requires_grad:
                found[f"{name} ({len(found)})"] = copies[id(x)]
        return copies[id(x)]

    for path, sub in members.named_modules(module):
        for name, value in list(sub.__dict__.items()):
            if name not in ("_parameters", "_buffers", "_modules"):
                new = replaced(value, functools.partial(replaced_by, f"{path}.{name}" if path else name))
                if new is not value:
                    sub.__dict__[name] = new
    yield found


def run_original(plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: list[Any]) -> Any:
    """What forward returns."""
    args, kwargs = pytree.tree_unflatten(leaves, spec)
    return forward(*args, **kwargs)


def run_plan(plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: list[Any]) -> Any:
    """What the plan returns."""
    return plan.run(module, [x for x in leaves if isinstance(x, Tensor)])


def run_torch_forms(plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: list[Any]) -> Any:
    """What runs where a kernel cannot: on other devices, under function transforms, for second derivatives."""
    with torch_forms():
        return run_plan(plan, module, forward, spec, leaves)


def truth_of(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> list[Any] | None:
    """The results of the original in double precision, or None where it does not run in it."""
    state = {n: as_double(t) for n, t in [*module.named_parameters(), *module.named_buffers()]}
    registered = {id(t): state[n] for n, t in [*module.named_parameters(), *module.named_buffers()]}
    mine = [as_double(x) for x in leaves]
    args, kwargs = pytree.tree_unflatten(mine, spec)
    try:
        with (
            undone(module, leaves) as writes,
            torch.random.fork_rng(devices=[]),
            stateless._reparametrize_module(module, state, tie_weights=True),
            _attributes_copied(module, registered, True),
            in_double(),
        ):
            return leaves_of_result(apart(forward(*args, **kwargs), mine, writes))
    except Exception:  # what the user's code raises in another precision is no fault of the plan
        return None
