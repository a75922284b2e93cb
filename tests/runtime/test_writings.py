"""Ways of writing a loop that were refused, or kept in Python, without need."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Variable

import linrec
from linrec.codegen import CompiledScan

D = 3


class Model(nn.Module):
    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run = run
        self.drive, self.gates = nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.cell = nn.LSTMCell(D, D)
        self.u, self.gain = nn.Parameter(torch.rand(2 * D)), nn.Parameter(torch.tensor(0.4))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _lstm(m: Any, x: Tensor, *, last: str = "") -> Any:
    h = c = x.new_zeros(x.shape[0], D)
    out = []
    for t in range(x.shape[1]):
        h, c = m.cell(x[:, t], (h, c))
        out.append(h)
    y = torch.stack(out, 1)
    return (y, h) if last == "h" else (y, c) if last == "c" else y


def _repeated(how: str) -> Callable[[Any, Tensor], Tensor]:
    def run(m: Any, x: Tensor) -> Tensor:
        g, h, out = m.gates(x), x.new_zeros(x.shape[0], D), []
        for t in range(x.shape[1]):
            twice = h.repeat(1, 2) if how == "repeat" else h.tile(2)
            r, z = torch.sigmoid(g[:, t] + twice * m.u).chunk(2, 1)
            h = (1 - z) * h + z * r
            out.append(h)
        return torch.stack(out, 1)

    return run


def _repeated_new(m: Any, x: Tensor) -> Tensor:
    h, out = x.new_zeros(x.shape[0], D), []
    for t in range(x.shape[1]):
        h = torch.tanh(
            m.drive(x[:, t]) + 0.5 * h + h.repeat(2, 1, 1)[0].roll(1, -1) * h.unsqueeze(1).repeat(1, D, 1)[:, 0]
        )
        out.append(h)
    return torch.stack(out, 1)


def _into(make: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def run(m: Any, x: Tensor) -> Tensor:
        a, u = torch.sigmoid(m.drive(x)), m.drive(x)
        h, c = make(x), x.new_zeros(x.shape[0], D)
        for t in range(x.shape[1]):
            c = a[:, t] * c + u[:, t]
            h[:, t] = c
        return h

    return run


def _literals(m: Any, x: Tensor) -> Tensor:
    transition = torch.zeros(D, D)
    transition[0, 0], transition[0, 1], transition[2, 2] = 0.99, 0.1, -0.7
    h = torch.zeros(x.shape[0], D)
    h[:, 0] = 9.99
    out = []
    for t in range(x.shape[1]):
        h = h @ transition + m.drive(x[:, t])
        out.append(h)
    return torch.stack(out, 1)


def _in_place(m: Any, x: Tensor) -> Tensor:
    """A wave on a line, with slices of both fields updated in place (Yee)."""
    e, b, out = torch.zeros(x.shape[0], 6), torch.zeros(x.shape[0], 5), []
    for t in range(x.shape[1]):
        b += 0.4 * (e[:, 1:] - e[:, :-1])
        e[:, 1:-1] += 0.4 * (b[:, 1:] - b[:, :-1])
        e[:, 2] += m.gain * x[:, t, 0]
        out.append(e[:, 3].clone())
    return torch.stack(out, 1)


def _built(m: Any, x: Tensor) -> Tensor:
    """A matrix that every step fills anew."""
    h, out = torch.zeros(x.shape[0], D), []
    for t in range(x.shape[1]):
        a = torch.zeros(x.shape[0], D, D)
        a[:, 0, 0] = torch.sigmoid(x[:, t, 0])
        a[:, 1, 0:2] = 0.3 * x[:, t, 1:]
        a[:, 2, 2] = 0.5
        h = (a @ h.unsqueeze(-1)).squeeze(-1) + m.drive(x[:, t])
        out.append(h)
    return torch.stack(out, 1)


WAYS: dict[str, tuple[Callable[[Any, Tensor], Any], bool]] = {
    "LSTM cell, outputs": (_lstm, False),
    "LSTM cell, last output": (lambda m, x: _lstm(m, x, last="h"), False),
    "LSTM cell, last state": (lambda m, x: _lstm(m, x, last="c"), False),
    "repeat": (_repeated("repeat"), False),
    "tile": (_repeated("tile"), False),
    "repeat along new dimensions": (_repeated_new, False),
    "Variable": (_into(lambda x: Variable(torch.zeros(x.shape))), True),
    "data.new": (_into(lambda x: Variable(x.data.new(*x.shape))), True),
    "detach": (_into(lambda x: torch.zeros(x.shape).detach()), True),
    "data": (_into(lambda x: torch.zeros_like(x).data), True),
    "numbers by index": (_literals, True),
    "slices of states": (_in_place, True),
    "a matrix by index": (_built, True),
}


def gradients(model: Any, x: Tensor) -> list[Any]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    out = model(x)
    leaves = out if isinstance(out, tuple) else (out,)
    sum((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum() for y in leaves).backward()  # type: ignore[union-attr]
    return [*(y.detach() for y in leaves), x.grad, *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("name", WAYS)
def test_ways_of_writing(name: str) -> None:
    run, linear = WAYS[name]
    torch.manual_seed(0)
    loop = Model(run)
    fast = linrec.parallelize(copy.deepcopy(loop))
    for batch, length in ((2, 12), (3, 33), (1, 7)):
        x = torch.randn(batch, length, D)
        for a, b in zip(gradients(fast, x), gradients(loop, x), strict=True):
            torch.testing.assert_close(a, b, rtol=2e-5, atol=2e-5)
    report = linrec.report(fast)
    assert report.recurrences, report
    if linear:
        assert report.parallel, report
    else:
        assert any(isinstance(part, CompiledScan) for part in linrec.graph(fast).modules()), report
