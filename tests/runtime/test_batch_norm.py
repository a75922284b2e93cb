"""Normalisation by the batch within a step: it goes to all steps, and its running averages are recurrences."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

WIDTH = 4
Step = Callable[[Any, Tensor, Tensor], tuple[Tensor, Tensor]]


def of_the_input(m: Any, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = 0.9 * h + m.norm(m.drive(x))
    return h, h


def of_the_state(m: Any, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = 0.9 * h + x
    return h, m.norm(h)


def within(m: Any, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.tanh(m.norm(m.drive(h)) + x)
    return h, h


def of_images(m: Any, h: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = 0.9 * h + m.pixels(x.view(-1, 2, 2, 1)).view(-1, WIDTH)
    return h, h


class Normed(nn.Module):
    def __init__(self, step: Step, **kwargs: Any) -> None:
        super().__init__()
        self.step = step
        self.norm = nn.BatchNorm1d(WIDTH, **kwargs)
        self.pixels = nn.BatchNorm2d(2)
        self.drive = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h, y = self.step(self, h, x[:, t])
            out.append(y)
        return torch.stack(out, 1)


CASES: dict[str, tuple[Step, dict[str, Any], bool]] = {
    "input": (of_the_input, {}, True),
    "input, no weights": (of_the_input, {"affine": False}, True),
    "input, no averages": (of_the_input, {"track_running_stats": False}, True),
    "output": (of_the_state, {"momentum": 0.3}, True),
    "input, frozen": (of_the_input, {}, True),
    "output, no averages": (of_the_state, {"track_running_stats": False, "affine": False}, True),
    "within": (within, {}, False),
    "within, frozen": (within, {}, False),
    "images, frozen": (of_images, {}, True),
    "images": (of_images, {}, True),
}


@pytest.mark.parametrize("name", CASES)
def test_normalisation_in_a_step(name: str) -> None:
    step, kwargs, parallel = CASES[name]
    oracle = Normed(step, **kwargs).double()
    if name.endswith("frozen"):
        oracle.norm.eval(), oracle.pixels.eval()
        for each in (oracle.norm, oracle.pixels):
            torch.nn.init.uniform_(each.running_var, 0.5, 2.0)
    ours = linrec.parallelize(copy.deepcopy(oracle))
    for batch, length in ((5, 30), (3, 13), (5, 30)):
        x = torch.randn(batch, length, WIDTH, dtype=torch.float64)
        found = []
        for model in (ours, oracle):
            leaf = x.clone().requires_grad_()
            y = model(leaf)
            weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
            used = [p for p in model.parameters() if p.requires_grad]
            grads = torch.autograd.grad(y, [leaf, *used], weights, allow_unused=True, materialize_grads=True)
            found.append([y.detach(), *grads, *(b.clone() for b in model.buffers())])
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-9)
    report = linrec.report(ours)
    assert report.parallel is parallel, report
    x = torch.randn(4, 21, WIDTH, dtype=torch.float64)
    ours.eval(), oracle.eval()
    torch.testing.assert_close(ours(x), oracle(x))  # by averages that are the same but for rounding
