"""Padded sequences with their lengths: what is known of them where forward is tried with fewer steps than they say."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, agree, gradients, series

Tail = Callable[[Tensor, Tensor], Tensor]


class Padded(nn.Module):
    def __init__(self, tail: Tail, freeze: bool = False) -> None:
        super().__init__()
        self.tail, self.freeze = tail, freeze
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            new = self.a * h + x[:, t]
            h = torch.where((t < lengths)[:, None], new, h) if self.freeze else new
            out.append(h)
        return self.tail(torch.stack(out, 1), lengths)


def by_gather(y: Tensor, n: Tensor) -> Tensor:
    return y.gather(1, (n - 1).view(-1, 1, 1).expand(-1, 1, WIDTH)).squeeze(1)


def by_one_hot(y: Tensor, n: Tensor) -> Tensor:
    return torch.einsum("btd,bt->bd", y, nn.functional.one_hot(n - 1, y.shape[1]).to(y))


def averaged(y: Tensor, n: Tensor) -> Tensor:
    mask = torch.arange(y.shape[1])[None] < n[:, None]
    return (y * mask[..., None]).sum(1) / n[:, None]


TAILS: dict[str, Tail] = {
    "by index": lambda y, n: y[torch.arange(y.shape[0]), n - 1],
    "by range": lambda y, n: y[range(y.shape[0]), n - 1],
    "by gather": by_gather,
    "by one hot": by_one_hot,
    "averaged": averaged,
    "last": lambda y, n: y[:, -1],
}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize("name", TAILS)
def test_the_last_valid_step(name: str, freeze: bool) -> None:
    oracle = Padded(TAILS[name], freeze)
    model = linrec.parallelize(copy.deepcopy(oracle))
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((2, 40), (3, 11), (2, 23)):
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        lengths[0] = length
        x = series(batch, length)
        agree(gradients(model, x, lengths), gradients(oracle, x, lengths))
    report: Any = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences) and not report.obstructions


def test_positions_that_are_counted_from_zero() -> None:
    class Picked(Padded):
        def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
            return super().forward(x, lengths + 1)

    oracle = Picked(TAILS["by index"])
    model = linrec.parallelize(copy.deepcopy(oracle))
    for last in ([19, 3], [0, 19], [5, 6]):
        agree(gradients(model, series(2, 20), torch.tensor(last)), gradients(oracle, series(2, 20), torch.tensor(last)))
    assert all(r.parallel for r in linrec.report(model).recurrences)
