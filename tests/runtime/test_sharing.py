"""Layers that compute the same share one plan; layers that differ in anything that matters do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, Gated, assert_parallel, build, counted_exports, same, series


class Stack(nn.Module):
    """Layers one after the other."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


class Late(Gated):
    """Doubles its state from some step on."""

    def __init__(self, late: int) -> None:
        super().__init__()
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            h = 2 * h if t >= self.late else h
            out.append(h)
        return torch.stack(out, 1)


class Table(Gated):
    """Multiplies by a tensor that is no buffer."""

    def __init__(self, *values: float) -> None:
        super().__init__()
        self.table = [torch.tensor(values, dtype=torch.float64)]

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.table[0]


class Numbered(Gated):
    """Knows its place in the stack, which changes nothing."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index


def exports_of(stack: Callable[[], nn.Module], lengths: tuple[int, ...] = (12, 20)) -> int:
    """Check the stack at these lengths; how many traces that took."""
    model, oracle = linrec.parallelize(build(stack)), build(stack)
    with counted_exports() as exports:
        for length in lengths:
            same(model, oracle, series(2, length))
    assert_parallel(model)
    return exports[0]


@pytest.fixture(scope="module")
def one() -> int:
    """What a single layer takes."""
    return exports_of(lambda: Stack(Gated()))


def test_identical_layers(one: int) -> None:
    assert exports_of(lambda: Stack(*(Numbered(k) for k in range(4)))) == one


@pytest.mark.parametrize(
    "layers",
    [
        lambda: (Gated(torch.sigmoid), Gated(torch.tanh)),
        lambda: (Gated(scale=1.0), Gated(scale=2.0)),
    ],
    ids=["activation", "number"],
)
def test_layers_that_differ(one: int, layers: Callable[[], Any]) -> None:
    assert exports_of(lambda: Stack(*layers()), (12,)) > one


def test_layers_with_other_tensors_in_their_lists(one: int) -> None:
    """Which are looked up at every call."""
    assert exports_of(lambda: Stack(Table(1.0, 2.0, 3.0), Table(3.0, 2.0, 1.0)), (12,)) == one


def test_layers_that_differ_only_later() -> None:
    """At the short lengths of a trace the two are the same; each has to be checked at the length of the call."""
    model, oracle = (build(lambda: Stack(Late(1000), Late(30), Late(1000))) for _ in range(2))
    linrec.parallelize(model)
    with pytest.warns(UserWarning, match="LR011"):
        for length in (40, 20, 33):
            same(model, oracle, series(2, length))
    report = linrec.report(model)
    assert [each.id for each in report.obstructions] == ["LR011"]


def test_a_frozen_layer(one: int) -> None:
    """Trained and frozen layers, and one layer used twice."""

    def stack() -> nn.Module:
        shared = Gated()
        return Stack(shared, Gated().requires_grad_(False), shared)

    exports_of(stack)


def running(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = h + x[:, t]
        out.append(h / 2 if x.dtype is torch.bfloat16 else h)
    return torch.stack(out, 1)


def into_a_buffer(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), torch.zeros(x.shape)
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        out[:, t] = h
    return out


def made_anew(x: Tensor) -> Tensor:
    h, out = torch.zeros(x.shape[0], x.shape[2]), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("function", [running, into_a_buffer, made_anew])
def test_plans_are_not_shared_between_dtypes(function: Any) -> None:
    """The operators are the same, whatever they compute with."""
    kinds = [torch.int64, torch.uint8, torch.float32, torch.bfloat16, torch.float64]
    x = (4 * torch.randn(2, 24, 3)).abs()
    for first in kinds[::3]:
        model = linrec.parallelize(lambda x: function(x), when="always")
        model(x.to(first))
        for kind in kinds:
            got, expected = model(x.to(kind)), function(x.to(kind))
            assert got.dtype is expected.dtype
            torch.testing.assert_close(got, expected)


def test_plans_are_not_shared_between_default_dtypes() -> None:
    model = linrec.parallelize(lambda x: made_anew(x), when="always")
    x = torch.randn(2, 24, 3)
    for kind in (torch.float32, torch.float64, torch.float32):
        torch.set_default_dtype(kind)
        try:
            assert model(x).dtype is made_anew(x).dtype is kind
        finally:
            torch.set_default_dtype(torch.float32)
