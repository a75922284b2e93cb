"""The last state of a memory of a projected series: the series meets the impulse response first where it is data."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.lowering.dense import convolved_last, projected_last
from linrec.runtime.dispatcher import Dispatcher


class Memory(nn.Module):
    """m[t] = A m[t-1] + B (W x[t] + b) with constant A and B; returns what a head makes of the last one.

    Args:
        features: of a step of x; bias: of the projection; started: whether it starts from a learned state.
    """

    def __init__(self, features: int, bias: bool, started: bool) -> None:
        super().__init__()
        self.encoder, self.head = nn.Linear(features, 1, bias=bias), nn.Linear(5, 3)
        self.register_buffer("A", 0.4 * torch.randn(5, 5))
        self.register_buffer("B", torch.randn(5, 1))
        self.start = nn.Parameter(torch.randn(5)) if started else None

    def forward(self, x: Tensor) -> Tensor:
        m = x.new_zeros(x.shape[0], 5) if self.start is None else self.start.expand(x.shape[0], 5)
        for t in range(x.shape[1]):
            m = m @ self.A.T + self.encoder(x[:, t]) @ self.B.T
        return self.head(m)


def code(model: Any) -> str:
    dispatcher = model.__dict__["forward"]
    assert isinstance(dispatcher, Dispatcher) and dispatcher.last_plan is not None
    return str(dispatcher.last_plan.graph_module.code)


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("features", [1, 3])
def test_values_and_gradients(features: int, bias: bool, started: bool) -> None:
    torch.manual_seed(0)
    loop = Memory(features, bias, started).double()
    model = linrec.parallelize(copy.deepcopy(loop), lowering="FFT with the impulse response")
    for batch, length in ((2, 24), (1, 40), (3, 1), (4, 33)):
        for data in (True, False, True):
            x = torch.randn(batch, length, features, dtype=torch.float64).requires_grad_(not data)
            found = []
            for m in (model, loop):
                y, wanted = m(x), [*m.parameters(), *([] if data else [x])]
                found.append([y, *torch.autograd.grad(y.square().sum(), wanted)])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    assert ("projected_last" in code(model)) == (features == 1)


@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("learned", [True, False])
def test_the_operator(axis: int, data: bool, learned: bool) -> None:
    torch.manual_seed(0)
    A, B = 0.4 * torch.randn(4, 4), torch.randn(1, 4, 2)
    A.requires_grad_(learned)
    x, h0 = torch.randn(7, 3, 1).requires_grad_(not data), torch.randn(3, 4).movedim(-1, axis)
    weight, bias = torch.randn(2, 1, requires_grad=True), torch.randn(2, requires_grad=True)
    ours = projected_last(A, B, x, weight, bias, h0, axis, 7)
    theirs = convolved_last(A, B, nn.functional.linear(x, weight, bias), h0, axis, 7)
    assert ours.shape == h0.shape
    torch.testing.assert_close(ours, theirs)
    wanted = [weight, bias, *([] if data else [x]), *([A] if learned else [])]
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), wanted) for y in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_what_is_read_otherwise_as_well() -> None:
    class Both(Memory):
        def forward(self, x: Tensor) -> Tensor:
            m, u = x.new_zeros(x.shape[0], 5), self.encoder(x)
            for t in range(x.shape[1]):
                m = m @ self.A.T + u[:, t] @ self.B.T
            return self.head(m) + u.square().mean()

    torch.manual_seed(0)
    loop = Both(1, True, False).double()
    model = linrec.parallelize(copy.deepcopy(loop), lowering="FFT with the impulse response")
    for length in (24, 31):
        x = torch.randn(2, length, 1, dtype=torch.float64)
        found = [[y, *torch.autograd.grad(y.square().sum(), [*m.parameters()])] for m in (model, loop) for y in (m(x),)]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
