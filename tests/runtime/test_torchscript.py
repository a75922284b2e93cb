"""Loops, and steps of loops, that are functions of TorchScript."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, same, series


@torch.jit.script  # type: ignore[untyped-decorator]
def scan(x: Tensor, a: Tensor) -> Tensor:
    state = torch.zeros_like(x[:, 0])
    outputs = torch.empty_like(x)
    for t in range(x.shape[1]):
        state = state * a + x[:, t]
        outputs[:, t] = state
    return outputs


@torch.jit.script  # type: ignore[untyped-decorator]
def step(h: Tensor, x: Tensor, a: Tensor) -> Tensor:
    return h * a + x


class Whole(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = scan(x, torch.sigmoid(self.a))
        return found


class Steps(Whole):
    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = step(h, x[:, t], torch.sigmoid(self.a))
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [Whole, Steps])
def test_functions_of_torchscript(kind: Any) -> None:
    oracle = kind()
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 17, 60, 9):
        x = series(2, length)
        same(model, oracle, x)
    assert linrec.report(model).parallel


class Cell(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(-1, 1, WIDTH, dtype=torch.float64))

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return h * torch.sigmoid(self.a) + x


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = torch.jit.script(Cell())

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("example", [None, series(2, 20)])
def test_modules_of_torchscript_stay_and_are_named(example: Tensor | None) -> None:
    oracle = Scripted()
    model = linrec.parallelize(copy.deepcopy(oracle), example, when="always")
    same(model, oracle, series(2, 17))
    (problem,) = linrec.report(model).obstructions
    assert problem.id == "LR002" and "'cell'" in str(problem)
    (problem,) = linrec.explain(oracle, series(2, 17)).obstructions
    assert problem.id == "LR002"
