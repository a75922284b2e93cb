"""Numbers that change from step to step: the refusal names them and their line, and its remedy helps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec


class Loop(nn.Module):
    def __init__(self, step: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.step(h, x[:, t], t, x.shape[1])
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize(
    ("step", "shown"),
    [
        (lambda h, x, t, T: 0.9 * h + nn.functional.elu(x, 0.5**t), "1, 0.5, 0.25"),
        (lambda h, x, t, T: h + nn.functional.hardtanh(x, 0, 1 / (t + 1)), "1, 0.5, 0.3333"),
        (lambda h, x, t, T: h + x.roll(t * t, 1), "0, 1, 4"),
        (lambda h, x, t, T: h + nn.functional.elu(x, t / T), "0, 0.1429, 0.2857"),
    ],
)
def test_the_numbers_and_their_line(step: Any, shown: str) -> None:
    model = linrec.parallelize(Loop(step))
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    torch.testing.assert_close(model(x), Loop(step)(x))
    (found,) = linrec.report(model).obstructions
    assert found.id in ("LR004", "LR013")
    assert f"({shown}, ...)" in found.explanation
    assert re.fullmatch(r"test_changing\.py:\d+", found.location)
    assert "torch.arange(T)" in found.hint


def test_other_differences_are_not_blamed_on_numbers() -> None:
    model = linrec.parallelize(Loop(lambda h, x, t, T: 0.9 * h + x if t % 2 else 0.8 * h - x))
    model(torch.randn(2, 9, 3))
    for found in linrec.report(model).obstructions:
        assert "number" not in found.explanation


class Remedy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        weights = 0.5 ** torch.arange(x.shape[1])
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t] * weights[t]
            out.append(h)
        return torch.stack(out, 1)


def test_the_remedy() -> None:
    model = linrec.parallelize(Remedy())
    for length in (9, 30):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        torch.testing.assert_close(model(x), Remedy()(x))
    assert [r.parallel for r in linrec.report(model).recurrences] == [True]
