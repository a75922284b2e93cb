"""Loops whose number of steps is an argument or an attribute."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import counted_exports

D = 3


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64))
        self.n_steps = 20

    def forward(self, x: Tensor, n: int | None = None) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(self.n_steps if n is None else n):
            h = self.a * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Outer(nn.Module):
    """Tells its loop how long the input is."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.inner, self.how = Counted(), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "argument":
            return self.inner(x, x.shape[1])
        self.inner.n_steps = x.shape[1]
        return self.inner(x)


def series(length: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, length, D, dtype=torch.float64, generator=torch.Generator().manual_seed(length))


def gradients(call: Callable[[Tensor], Tensor], model: Any, x: Tensor) -> list[Any]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = call(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in model.parameters())]


def same(fast: Any, loop: Any, length: int, *rest: Any, batch: int = 2) -> None:
    x = series(length, batch)
    torch.testing.assert_close(
        gradients(lambda y: fast(y, *rest), fast, x), gradients(lambda y: loop(y, *rest), loop, x)
    )


def test_an_attribute() -> None:
    loop = Counted()
    fast = linrec.parallelize(copy.deepcopy(loop), strict=True)
    for _ in range(2):
        same(fast, loop, 20)
    same(fast, loop, 20, batch=3)
    with counted_exports() as exports:
        same(fast, loop, 20)
    assert not exports[0]
    assert linrec.report(fast).parallel
    assert fast.n_steps == 20


def test_other_inputs_than_the_attribute_says() -> None:
    """More than the steps that are taken, at first or later."""
    loop = Counted()
    for lengths in ((20, 30, 20), (30, 20, 30)):
        fast = linrec.parallelize(copy.deepcopy(loop))
        for length in lengths:
            same(fast, loop, length)
        with pytest.raises(IndexError):
            fast(series(10))
    for m in (fast, loop):
        m.n_steps = 30
    same(fast, loop, 30)
    same(fast, loop, 40)


def test_an_argument() -> None:
    loop = Counted()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length, n in ((25, 25), (25, 18), (18, 18), (25, 25)):
        same(fast, loop, length, n)
    assert linrec.report(fast).parallel


@pytest.mark.parametrize("how", ["argument", "attribute"])
def test_a_module_that_says_so(how: str) -> None:
    loop = Outer(how)
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (20, 31, 12, 20):
        same(fast, loop, length)
    assert linrec.report(fast).parallel, linrec.report(fast)


def test_numbers_in_a_tensor() -> None:
    """Then the reason is given, with the line, and `strict` raises."""

    def forward(x: Tensor, lengths: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(int(lengths.max())):
            h = 0.5 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    x, lengths = series(20), torch.tensor([20, 7])
    fast = linrec.parallelize(forward)
    torch.testing.assert_close(fast(x, lengths), forward(x, lengths))
    (problem,) = linrec.report(fast).obstructions
    assert problem.id == "LR015"
    assert problem.location.startswith("test_step_counts.py:")
    with pytest.raises(linrec.NotParallelizable, match="LR015"):
        linrec.parallelize(forward, strict=True)(x, lengths)


@pytest.mark.parametrize("steps", [5, 10, 16, 17])
def test_few_steps(steps: int) -> None:
    """Longer inputs than the call's run, and no longer: the number of steps is the attribute's."""

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n_steps = steps

        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(self.n_steps):
                h = 0.5 * h + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

    model = linrec.parallelize(Fixed())
    x = torch.randn(2, steps, 3)
    torch.testing.assert_close(model(x), Fixed()(x))
    assert linrec.report(model).parallel
