"""Numbers that forward reads off tensors by `item`, and indices that are tensors of one number."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, agree, same, series, steps_of

Step = Callable[[Any, Tensor, Tensor], Tensor]
TABLE = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)


class Loop(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.a = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.register_buffer("b", torch.tensor([0.7], dtype=torch.float64))
        self.register_buffer("k", torch.tensor(2))
        self.plain = torch.tensor(0.3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.step(self, h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


STEPS: dict[str, Step] = {
    "parameter": lambda m, h, x: m.a.item() * h + m.w * x,
    "buffer": lambda m, h, x: m.b.item() * h + m.w * x,
    "integer": lambda m, h, x: m.w * h + x / m.k.item(),
    "least of the input": lambda m, h, x: m.w * h + x * x.min().item(),
    "one minus": lambda m, h, x: m.a.item() * h + (1 - m.a.item()) * m.w * x,
    "arithmetic": lambda m, h, x: m.w * h + x * (2.0 ** -m.a.item() / (m.k.item() + 1.5)),
    "of an operator": lambda m, h, x: torch.sigmoid(m.a).item() * h + m.w * x,
    "of the input": lambda m, h, x: m.w * h + x / (1 + x.detach().abs().max().item()),
    "coefficient of the input": lambda m, h, x: x.sigmoid().mean().item() * m.w * h + x,
    "alpha": lambda m, h, x: torch.add(m.w * h, x, alpha=m.a.item()),
}


@pytest.mark.parametrize("name", STEPS)
def test_linear(name: str) -> None:
    oracle = Loop(STEPS[name])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (3, 40), (1, 9)):
        same(model, oracle, series(batch, length))
    with torch.no_grad():
        for m in (model, oracle):
            m.a.mul_(1.5)
            m.b.mul_(0.5)
            m.k.add_(1)
            m.plain.mul_(2.0)
            m.w.mul_(0.9)
    for batch, length in ((2, 17), (3, 64), (1, 9)):
        same(model, oracle, series(batch, length))
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
    assert not report.obstructions
    x = series(2, 40).requires_grad_()
    assert steps_of(lambda: model(x)) < 30


def test_a_state_that_is_read() -> None:
    """Not linear: its own number is a factor."""
    oracle = Loop(lambda m, h, x: torch.tanh(h).mean().item() * h + m.w * x)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40):
        x = series(2, length)
        same(model, oracle, x)
    assert not linrec.report(model).parallel


@pytest.mark.parametrize(
    "step",
    [
        lambda m, h, x: m.plain.item() * h + m.w * x,
        lambda m, h, x: m.plain.exp().neg().exp().item() * h + m.w * x,
        lambda m, h, x: TABLE[1].item() * h + m.w * x,
    ],
)
def test_numbers_that_a_trace_takes_for_fixed(step: Step) -> None:
    """What neither inputs nor parameters go into torch computes while it traces; it may be written into later."""
    oracle = Loop(step)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for factor in (1.0, 2.0):
        for m in (model, oracle):
            m.plain.mul_(factor)
        TABLE.mul_(factor)
        agree(model(series(2, 17)), oracle(series(2, 17)))
    TABLE.mul_(0.5)
    assert [o.id for o in linrec.report(model).obstructions] == ["LR015"]


def test_a_branch_on_a_number() -> None:
    oracle = Loop(lambda m, h, x: h + x if m.a.item() > 0.5 else m.w * h + x)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for _ in range(2):
        agree(model(series(2, 17)), oracle(series(2, 17)))
        with torch.no_grad():
            for m in (model, oracle):
                m.a.add_(0.3)
    assert [o.id for o in linrec.report(model).obstructions] == ["LR015"]


class Tokens(nn.Module):
    """Stepped token by token, without a batch."""

    def __init__(self, read: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.read = read
        self.embedding = nn.Parameter(torch.randn(11, 4, dtype=torch.float64))

    def forward(self, tokens: Tensor) -> Tensor:
        h, out = torch.zeros(4, dtype=torch.float64), []
        for t in range(tokens.shape[0]):
            h = 0.9 * h + self.read(self.embedding, tokens[t])
            out.append(h)
        return torch.stack(out)


@pytest.mark.parametrize(
    "read",
    [
        lambda table, i: table[i],
        lambda table, i: table[i.item()],
        lambda table, i: table[i] * table[-1 - i],
        lambda table, i: table[:, :2][i].repeat(2),
        lambda table, i: table.T[:, i],
    ],
)
def test_an_index(read: Callable[[Tensor, Tensor], Tensor]) -> None:
    oracle = Tokens(read)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        tokens = torch.randint(0, 11, (length,))
        found = []
        for m in (model, oracle):
            m.zero_grad()
            out = m(tokens)
            out.sin().sum().backward()
            found.append((out, m.embedding.grad))
        for actual, expected in zip(*found, strict=True):
            agree(actual, expected)
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
