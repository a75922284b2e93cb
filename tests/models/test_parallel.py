"""Every case study through `linrec.parallelize`: the verdict that its sample states, and the loop's values and gradients
at lengths on both sides of a chunk's end and batch sizes that the compiler has not seen.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import linrec
from models.registry import SAMPLES, Sample

LENGTHS = (1, 2, 3, 63, 64, 65, 300) if os.environ.get("LINREC_LOOPS_FULL") else (1, 3, 65)


def outcome(module: nn.Module, inputs: list[Tensor], twice: bool = False) -> list[Tensor]:
    """Results, gradients, and with `twice` the gradients of the gradients' norm."""
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    results = [y for y in tree_leaves(module(*given)) if isinstance(y, Tensor)]
    generator = torch.Generator().manual_seed(2)
    loss: Any = 0.0
    for y in results:
        if y.is_floating_point() or y.is_complex():
            weight = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            loss = loss + ((torch.view_as_real(y) ** 2).sum(-1) * weight if y.is_complex() else y * weight).sum()
    sources = [x for x in given if x.requires_grad] + list(module.parameters())
    first = torch.autograd.grad(loss, sources, allow_unused=True, create_graph=twice)
    found = [*results, *_filled(first, sources)]
    norm = sum(g.abs().pow(2).sum() for g in first if g is not None) if twice else None
    if isinstance(norm, Tensor) and norm.requires_grad:  # not where the gradient is the same for all inputs
        found += _filled(torch.autograd.grad(norm, sources, allow_unused=True), sources)
    return found


def _filled(gradients: Any, sources: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(s) if g is None else g for g, s in zip(gradients, sources, strict=True)]


def agree(sample: Sample, model: nn.Module, oracle: nn.Module, batch: int, length: int, twice: bool = False) -> None:
    inputs = list(sample.inputs(batch, length, torch.float64))
    actual, expected = outcome(model, inputs, twice), outcome(oracle, inputs, twice)
    largest = [b.detach().abs().max().item() if b.numel() else 0.0 for b in expected]
    for k, (a, b) in enumerate(zip(actual, expected, strict=True)):
        scale = max(1e-6, 1e-5 * max(largest), largest[k])  # what cancels is the rounding of what is large
        torch.testing.assert_close(
            a, b, rtol=1e-8, atol=1e-8 * scale, msg=lambda m, k=k: f"{sample.name} at ({batch}, {length}), {k}: {m}"
        )


def verdict(report: linrec.Report) -> str:
    """What can leave the loop, in a sample's words."""
    states = [entry for entry in report.recurrences if entry.states]
    parallel = [entry.parallel for entry in states or report.recurrences]
    return "sequential" if not any(parallel) else "parallel" if all(parallel) else "partial"


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_parallel_as_the_loop(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    model, oracle = linrec.parallelize(sample.factory()), sample.factory()
    agree(sample, model, oracle, 2, 12)
    report = linrec.report(model)
    assert verdict(report) == sample.expect, str(report)
    for k, length in enumerate(LENGTHS):
        agree(sample, model, oracle, 1 + k % 3, length)
    agree(sample, model, oracle, 3, 9, twice=True)
    monkeypatch.setenv("LINREC_CODEGEN", "off")  # the torch forms, which run wherever a kernel cannot
    agree(sample, model, oracle, 2, 70)
