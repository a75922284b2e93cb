"""Checks that the variants of a case agree, then times them in turns and measures their memory."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.variant import Case, JaxVariant, Sizes, Variant
from linrec.ops.buffers import buffers

SHORT = 64
"""Steps in time at which every variant is compared with the loop in double precision."""
ALLOWED = 1e-3
"""Relative error that is allowed in single precision, or four times the loop's own if that is more."""
LOOPS = 2
"""How often the loop is timed."""
WARM, IN_A_TURN = 4, 5
"""Steps of a variant in its turn that are not timed, and that are; the loop has one. It takes some steps of its own
until the caches and the memory that is free again hold what a step of training finds there."""


Clock = Callable[[], float]


class Disagreement(Exception):
    """A variant does not compute what the loop computes."""


@dataclass
class Row:
    """One variant at one length.

    Attributes:
        case, variant, length: which.
        seconds: median of a training step; None where the variant is not installed.
        ratio: median over the rounds of its time over that of linrec in the same round.
        memory: greatest number of bytes that torch held during the step beyond what it held before; None for JAX.
        error: greatest relative error of value and gradients against the loop in double precision, at a short length;
            None for what computes something else.
        first: seconds of the first call at this length, which compiles and checks.
        wanted: how many times slower than linrec this peer ought to be.
        note: why there are no figures.
    """

    case: str
    variant: str
    length: int
    seconds: float | None = None
    ratio: float | None = None
    memory: int | None = None
    error: float | None = None
    first: float | None = None
    wanted: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return asdict(self)


def run(
    case: Case,
    sizes: Sizes,
    rounds: int,
    with_loop: bool,
    clock: Clock = time.perf_counter,
    say: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Check and time the variants of a case.

    Args:
        case, sizes: what to time.
        rounds: how often each variant is timed.
        with_loop: whether to time the loop as it is written, too.
        clock: gives seconds.
        say: told what goes on.

    Raises:
        Disagreement: where two variants compute different things.
    """
    variants, missing = case.build(sizes)
    inputs, gradient = case.data(sizes)
    length = sizes["T"]
    say("comparing")
    errors = check(variants, *shortened(inputs, gradient, length))
    timed = {n: v for n, v in variants.items() if with_loop or n != "loop"}
    say("first calls")
    first = first_calls(timed, inputs, gradient)
    say("timing")
    seconds = take_turns(timed, inputs, gradient, rounds, clock)
    say("memory")
    memory = {n: peak(v, inputs, gradient) for n, v in timed.items()}
    rows = [
        Row(
            case.name,
            name,
            length,
            seconds=statistics.median(seconds[name]),
            ratio=statistics.median(s / o for s, o in zip(seconds[name], seconds["linrec"], strict=False)),
            memory=memory[name],
            error=errors.get(name),
            first=first[name],
            wanted=case.wanted.get(name),
        )
        for name in timed
    ]
    return rows + [Row(case.name, name, length, note=why) for name, why in missing.items()]


def shortened(inputs: Sequence[Tensor], gradient: Tensor | None, length: int) -> tuple[list[Tensor], Tensor | None]:
    """The first steps of the inputs, whose time is dimension 1."""
    short = [x[:, :SHORT].contiguous() if x.dim() > 1 and x.shape[1] == length else x for x in inputs]
    return short, None if gradient is None else gradient[:, :SHORT].contiguous()


def check(variants: Mapping[str, Variant], inputs: Sequence[Tensor], gradient: Tensor | None) -> dict[str, float]:
    """Compare values and gradients with the loop in double precision; each variant's relative error.

    Raises:
        Disagreement: where an error is too large.
    """
    loop = variants["loop"]
    call = copy.deepcopy(loop.call).double() if isinstance(loop.call, nn.Module) else loop.call
    exact = Variant(call, loop.static, loop.derived)
    wide = exact.collect(exact.prepare([x.double() for x in inputs], None if gradient is None else gradient.double())())
    same = {n: v for n, v in variants.items() if v.same}
    errors = {n: difference(v.collect(v.prepare(inputs, gradient)()), wide) for n, v in same.items()}
    for name, error in errors.items():
        if not error <= max(ALLOWED, 4 * errors["loop"]):
            raise Disagreement(f"{name} is off by {error:.1e}, the loop in single precision by {errors['loop']:.1e}")
    return errors


def difference(got: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The greatest relative error of some tensors, in the Euclidean norm."""
    if [x.shape for x in got] != [x.shape for x in wanted]:
        raise Disagreement(f"shapes {[tuple(x.shape) for x in got]} in place of {[tuple(x.shape) for x in wanted]}")
    return max(
        float(torch.dist(x.detach().double(), y.detach().double()) / y.detach().double().norm().clamp_min(1e-30))
        for x, y in zip(got, wanted, strict=True)
    )


def first_calls(variants: Mapping[str, Variant], inputs: Sequence[Tensor], gradient: Tensor | None) -> dict[str, float]:
    """Run every variant once at full length; seconds. All must agree there with the first peer, or with the loop.

    Raises:
        Disagreement: where one does not.
    """
    seconds, results = {}, {}
    for name, variant in variants.items():
        step = variant.prepare(inputs, gradient)
        begin = time.perf_counter()
        result = step()
        seconds[name] = time.perf_counter() - begin
        results[name] = variant.collect(result)
    reference = (
        "loop" if "loop" in results else next((n for n in results if n != "linrec" and variants[n].same), "linrec")
    )
    for name, result in results.items():
        if not variants[name].same:
            continue
        error = difference(result, results[reference])
        if not error <= 10 * ALLOWED:
            raise Disagreement(f"{name} is off by {error:.1e} from {reference} at full length")
    return seconds


def take_turns(
    variants: Mapping[str, Variant], inputs: Sequence[Tensor], gradient: Tensor | None, rounds: int, clock: Clock
) -> dict[str, list[float]]:
    """Seconds of each variant in each round. Who begins changes from round to round. A turn is some steps that are
    not timed and some that are, of which the median counts: in training, the steps before were the model's own."""
    seconds: dict[str, list[float]] = {n: [] for n in variants}
    names = list(variants)
    for name in names:
        if name != "loop":
            variants[name].prepare(inputs, gradient)()
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            if name == "loop" and k >= LOOPS:
                continue
            step = variants[name].prepare(inputs, gradient)
            took = []
            for _ in range(1 if name == "loop" else WARM + IN_A_TURN):
                begin = clock()
                result = step()
                took.append(clock() - begin)
                del result
            seconds[name].append(statistics.median(took[WARM:] or took))
    return seconds


def peak(variant: Variant, inputs: Sequence[Tensor], gradient: Tensor | None) -> int | None:
    """The greatest number of bytes that torch's allocator holds during a step, beyond what it held before."""
    if isinstance(variant, JaxVariant):
        return None
    step = variant.prepare(inputs, gradient)
    buffers.release()  # what linrec keeps from the step before counts, too
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = step()
    del result
    assert recorded.profiler is not None and recorded.profiler.kineto_results is not None
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
