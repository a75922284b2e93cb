"""Every step of the tables against the sequential loop: values and all gradients, at lengths around the segments between
checkpoints and at batch sizes with one set of kernels."""

from __future__ import annotations

import pytest
import torch

from linrec.codegen import launch, supported, toolchain
from tests.lowering.recurrences import Case

from .harness import build, call, check, draw, gradients, leaves
from .steps import ALL, STEPS


@pytest.mark.parametrize("case", ALL, ids=repr)
def test_as_the_loop(case: Case) -> None:
    fast, loop = build(case)
    assert supported(fast.step, fast.carries, fast.xs) is None
    for length, batch in ((17, 5), (1, 5), (2, 1), (3, 2), (20, 17)):
        check(case, fast, loop, draw(case, length, batch, seed=length))


@pytest.mark.parametrize("case", STEPS, ids=repr)
def test_states_from_checkpoints(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_NEAR", 1)  # the shortest segments and blocks
    fast, loop = build(case)
    for length in (64, 65):
        check(case, fast, loop, draw(case, length, seed=length), 1e-7)
    if case.name in ("mamba", "gru", "wide"):
        check(case, fast, loop, draw(case, 300), 1e-7)


@pytest.mark.parametrize("case", STEPS, ids=repr)
@pytest.mark.parametrize("threads", [1, 2])
def test_many_blocks_of_lanes(case: Case, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_NEAR", 1)  # blocks of one vector
    monkeypatch.setattr(launch, "_PARALLEL", 0)
    monkeypatch.setattr(launch.cpu_threads, "thread_count", lambda: threads)
    monkeypatch.setattr(toolchain, "vector_bytes", lambda: 16)
    fast, loop = build(case)
    check(case, fast, loop, draw(case, 9, batch=5), 1e-8)


@pytest.mark.parametrize("case", STEPS, ids=repr)
def test_single_precision(case: Case) -> None:
    fast, loop = build(case)
    lower = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    inputs = [x.to(lower.get(x.dtype, x.dtype)) for x in draw(case, 9)]
    if any("float64" in str(n.kwargs) or "float64" in str(n.args) for n in fast.step.graph.nodes):
        pytest.skip("the step computes in float64 itself")
    check(case, fast, loop, inputs, 2e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["mamba", "gated_delta_rule", "gru", "wide", "elman", "shared_by_lanes", "retention"])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """The states are kept in float32: nearer than the loop to what float64 gives for the same numbers."""
    case = next(c for c in STEPS if c.name == name)
    fast, loop = build(case)
    rounded = [x.to(dtype) for x in draw(case, 33)]
    exact, mine, theirs = leaves([x.double() for x in rounded]), leaves(rounded), leaves(rounded)
    results = [call(s, 33, own) for s, own in ((loop, exact), (fast, mine), (loop, theirs))]
    assert fast.reason is None and all(a.dtype == b.dtype for a, b in zip(results[1], results[2], strict=True))
    changes = [gradients(r, own) for r, own in zip(results, (exact, mine, theirs), strict=True)]
    for group in (results, changes):
        for right, ours, loops in zip(*group, strict=True):
            assert error(ours, right) <= max(1.5 * error(loops, right), 4 * torch.finfo(dtype).eps)


def error(x: torch.Tensor, right: torch.Tensor) -> float:
    return ((x.double() - right).norm() / right.norm()).item()


@pytest.mark.parametrize(
    ("name", "kept", "group"),
    [
        ("retention", False, "change"),
        ("retention_with_gates", True, "change"),
        ("read_by_constants", True, "change"),
        ("read_by_a_large_constant", True, "factor"),
    ],
)
def test_what_needs_no_later_derivative_is_made_forward_in_time(name: str, kept: bool, group: str) -> None:
    case = next(c for c in STEPS if c.name == name)
    scan, _ = build(case)
    inputs = leaves(draw(case, 5))
    gradients(call(scan, 5, inputs), inputs)
    (made,) = scan._kernels.values()
    assert made is not None
    for found in made[0]._adjoints.values():
        assert group in {n[0] for n in found.ahead} and found.keeps_states == kept


@pytest.mark.parametrize("case", ALL, ids=repr)
def test_inputs_written_before_the_backward_pass(case: Case) -> None:
    """An input that the derivatives do not need may change; one that they need is missed."""
    fast, _ = build(case)
    inputs = draw(case, 11)
    expected = None
    for written in (None, *range(len(inputs))):
        own = [x.clone() for x in inputs]
        wanted = leaves(own)
        got = call(fast, 11, wanted)
        if written is not None:
            with torch.no_grad():
                wanted[written].detach().zero_()
        try:
            found = gradients(got, wanted)
        except RuntimeError as error:
            assert "modified by an inplace operation" in str(error) and written is not None
            continue
        if expected is None:
            expected = found
        for a, b in zip(found, expected, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert fast.reason is None, fast.reason
