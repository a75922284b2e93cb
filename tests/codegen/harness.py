"""Compares a compiled scan with the sequential one: values and all gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from linrec.codegen import CompiledScan
from linrec.ir.scan import Scan
from tests.analysis.graphs import BATCH, traced
from tests.lowering.recurrences import Case


def build(case: Case) -> tuple[CompiledScan, Scan]:
    """A step as a compiled and as a sequential scan."""
    torch.manual_seed(0)
    tensors = draw(case, 3)
    first, last = len(case.states), len(case.states) + len(case.xs)
    single = [x[0] if first <= i < last else x for i, x in enumerate(tensors)]
    graph = traced(case.step, *single)
    scan = Scan(graph, len(case.states), len(case.xs))
    return CompiledScan(graph, len(case.states), len(case.xs), scan), scan


def draw(case: Case, length: int, batch: int = BATCH, seed: int = 0) -> list[Tensor]:
    """Inputs of the step, the per-step ones with a leading dimension of steps."""
    torch.manual_seed(seed)
    return [
        *(s.draw(batch=batch) for s in case.states),
        *(x.draw(length, batch=batch) for x in case.xs),
        *(w.draw(batch=batch) for w in case.consts),
    ]


def sizes(graph: fx.GraphModule, inputs: Sequence[Tensor], carries: int, xs: int) -> list[int]:
    """The sizes that the step takes as numbers, behind its tensors."""
    holders = [n for n in graph.graph.nodes if n.op == "placeholder"]
    found = []
    for holder in holders:
        if "size" in holder.meta:
            of, dim = holder.meta["size"]
            at = holders.index(of)
            found.append(inputs[at].shape[dim + (carries <= at < carries + xs)])
    return found


def call(scan: CompiledScan | Scan, length: int, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
    """Run either of the two."""
    first, last = scan.carries, scan.carries + scan.xs
    numbers = sizes(scan.step, inputs, scan.carries, scan.xs)
    return tuple(scan(length, inputs[:first], inputs[first:last], [*inputs[last:], *numbers]))


def leaves(inputs: Sequence[Tensor]) -> list[Tensor]:
    """The inputs with gradients where there can be any."""
    return [x.detach().requires_grad_(x.is_floating_point() or x.is_complex()) for x in inputs]


def gradients(results: Sequence[Tensor], inputs: Sequence[Tensor], seed: int = 1) -> list[Tensor | None]:
    """The derivatives of a random function of the results."""
    torch.manual_seed(seed)
    moving = [r for r in results if r.is_floating_point() or r.is_complex()]
    wide = [torch.complex128 if r.is_complex() else torch.float64 for r in moving]
    weights = [torch.randn(r.shape, dtype=d).to(r.dtype) for r, d in zip(moving, wide, strict=True)]
    pairs = [(r, w) for r, w in zip(moving, weights, strict=True) if r.requires_grad]
    wanted = [x for x in inputs if x.requires_grad]
    if not pairs or not wanted:
        return []
    return list(torch.autograd.grad([r for r, _ in pairs], wanted, [w for _, w in pairs], allow_unused=True))


def compare(case: Case, got: Sequence[Any], expected: Sequence[Any], like: Sequence[Tensor], tolerance: float) -> None:
    """Hold results or gradients against each other; a gradient that is missing is zero."""
    assert len(got) == len(expected)
    for k, (a, b) in enumerate(zip(got, expected, strict=True)):
        a, b = (torch.zeros_like(like[k]) if x is None else x.detach() for x in (a, b))
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda m, k=k: f"{case.name} {k}: {m}"
        )


def check(case: Case, fast: CompiledScan, loop: Scan, inputs: Sequence[Tensor], tolerance: float = 1e-9) -> None:
    """Values and gradients of both."""
    length = next((x.shape[0] for x in inputs[loop.carries : loop.carries + loop.xs]), 6)
    mine, theirs = leaves(inputs), leaves(inputs)
    got, expected = call(fast, length, mine), call(loop, length, theirs)
    assert fast.reason is None, fast.reason
    assert [x.requires_grad for x in got] == [x.requires_grad for x in expected]
    compare(case, got, expected, expected, tolerance)
    wanted = [x for x in mine if x.requires_grad]
    compare(case, gradients(got, mine), gradients(expected, theirs), wanted, tolerance)
    with torch.no_grad():
        compare(case, call(fast, length, mine), expected, expected, tolerance)
