"""Results that are lists, with an item for each step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import linrec
from linrec.capture.listed import ItemOf, Items, Slot

WIDTH = 3


class Lists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)

    def states(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.w(x[:, t])
            out.append(h)
        return out, h

    def forward(self, x: Tensor) -> Any:
        return self.states(x)[0]


class AndLast(Lists):
    def forward(self, x: Tensor) -> Any:
        return self.states(x)


class Tuples(Lists):
    def forward(self, x: Tensor) -> Any:
        return tuple(self.states(x)[0])


class Pairs(Lists):
    def forward(self, x: Tensor) -> Any:
        h, c, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0, :1]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.w(x[:, t])
            c = 0.5 * c + h.sum(-1, keepdim=True)
            out.append((h, {"c": c}))
        return {"all": out, "first": out[0][0], "last": out[-1][1]["c"]}


class WithFirst(Lists):
    def forward(self, x: Tensor) -> Any:
        """One item more than there are steps."""
        h = torch.zeros_like(x[:, 0])
        out = [h]
        for t in range(x.shape[1]):
            h = 0.9 * h + self.w(x[:, t])
            out.append(h)
        return torch.stack(out[1:], 1), out


class Some(Lists):
    def forward(self, x: Tensor) -> Any:
        """Lists that do not grow, beside one that does."""
        out, h = self.states(x)
        return out, [h, h + 1, h + 2, h + 3, h + 4, h + 5], []


def series(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(100 * batch + length)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator)


def observed(model: nn.Module, x: Tensor) -> tuple[Any, list[Tensor]]:
    x = x.clone().requires_grad_()
    out = model(x)
    leaves, spec = pytree.tree_flatten(out)
    total = sum((k + 1) * y.square().sum() for k, y in enumerate(leaves))
    return spec, [*leaves, *torch.autograd.grad(total, [x, *model.parameters()])]


@pytest.mark.parametrize("kind", [Lists, AndLast, Tuples, Pairs, WithFirst, Some])
def test_lists(kind: type[Lists]) -> None:
    oracle = kind()
    model = linrec.parallelize(copy.deepcopy(oracle))
    for batch, length in ((2, 20), (3, 11), (2, 41), (2, 7), (2, 6)):
        (spec, found), (expected_spec, expected) = (
            observed(model, series(batch, length)),
            observed(oracle, series(batch, length)),
        )
        assert spec == expected_spec
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    report = linrec.report(model)
    assert report.parallel and not report.obstructions


def test_items_are_tensors_of_their_own() -> None:
    oracle = AndLast()
    model = linrec.parallelize(copy.deepcopy(oracle))
    model(series(2, 20))
    results = []
    for each in (model, oracle):
        out, last = each(series(2, 20))
        assert out[-1] is last
        assert all(y.is_contiguous() for y in out)
        out[3].mul_(2)
        last.add_(1)
        results.append([*out, last])
        total = sum(y.square().sum() for y in out)
        (gradient,) = torch.autograd.grad(total, each.w.bias)
        results[-1].append(gradient)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_a_caller_that_stacks() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Lists()

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack(self.inner(x), 1).tanh()

    oracle = Outer()
    model = linrec.parallelize(copy.deepcopy(oracle))
    for batch, length in ((2, 20), (3, 11)):
        x = series(batch, length)
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-10, atol=1e-10)
    assert linrec.report(model).parallel


def test_marks_are_told_apart() -> None:
    spec = pytree.tree_flatten(torch.zeros(1))[1]
    marks = [Slot(0), Slot(1), Items(list, spec, [0]), Items(tuple, spec, [0]), Items(list, spec, [0, 1])]
    marks += [ItemOf(0, 0, 0), ItemOf(0, -1, 0), ItemOf(0, 0, 1), ItemOf(1, 0, 0)]
    for k, mark in enumerate(marks):
        assert [mark == other for other in marks] == [k == j for j in range(len(marks))]
        assert mark != k
    assert len(set(marks)) == len(marks)
