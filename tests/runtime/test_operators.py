"""Operators that strangers' loops use in ways of their own: masks under sums, triangular systems, numbers written into
parts of a state, lookups and paddings in steps that are not linear."""

from __future__ import annotations

import collections
import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import linrec

from .samples import same

WIDTH = 4
Step = Callable[[Any, Tensor, Tensor], Tensor]


class Loop(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def drawn(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.rand(*shape, dtype=torch.float64, generator=generator) - 0.5)

        self.step = step
        self.a, self.w, self.table = drawn(WIDTH), drawn(WIDTH, WIDTH), drawn(WIDTH, 7)
        self.m = nn.Parameter(drawn(WIDTH, WIDTH).detach() * 0.3 + torch.eye(WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.step(self, h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def series(batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator)


def report(step: Step) -> Any:
    oracle = Loop(step)
    model = linrec.parallelize(copy.deepcopy(oracle))
    for batch, length in ((2, 20), (3, 11), (2, 41)):
        same(model, oracle, series(batch, length))
    return linrec.report(model)


def chosen(m: Any, h: Tensor, x: Tensor) -> Tensor:
    return torch.where(x > 0, 0.3 * h, h - x)


def written(index: Any, value: Any) -> Step:
    def step(m: Any, h: Tensor, x: Tensor) -> Tensor:
        h = 0.9 * h + x
        h[index] = value
        return h

    return step


def zeroed(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = 0.9 * h + x
    h[:, 1].zero_()
    return h


def triangular(upper: bool, left: bool = True, unit: bool = False) -> Step:
    def step(m: Any, h: Tensor, x: Tensor) -> Tensor:
        matrix = m.m if left else m.m + 0.1 * torch.tanh(x).unsqueeze(-1)
        right = h.unsqueeze(-1 if left else -2)
        solved = torch.linalg.solve_triangular(matrix, right, upper=upper, left=left, unitriangular=unit)
        return 0.5 * solved.squeeze(-1 if left else -2) + x

    return step


LINEAR: dict[str, Step] = {
    "mask under a product": lambda m, h, x: chosen(m, h, x) @ m.w + x,
    "mask under a running sum": lambda m, h, x: 0.3 * chosen(m, h, x).cumsum(-1) + x,
    "mask under a sum": lambda m, h, x: m.a * h + 0.2 * chosen(m, h, x).sum(-1, keepdim=True),
    "mask of another axis": lambda m, h, x: (
        torch.where(x[:, :1] > 0, h, -h) @ m.w + chosen(m, h, x).masked_fill(x > 1, 1.0)
    ),
    "sum of a mask": lambda m, h, x: m.a * h + 0.1 * torch.where(x > 0, h, 0.0).sum(-1, keepdim=True) + x,
    "infinity behind a mask": lambda m, h, x: torch.where(x > 0, h, float("inf")).masked_fill(x <= 0, 0.0) @ m.w + x,
    "number written": written((slice(None), 0), 0.0),
    "number written into a slice": written((slice(None), slice(1, 3)), 1.5),
    "zeros written": zeroed,
    "lower triangle": triangular(False),
    "upper triangle": triangular(True),
    "upper triangle with ones": triangular(True, unit=True),
    "triangle on the right, by the input": triangular(False, left=False),
    "factor": lambda m, h, x: (
        0.5
        * torch.cholesky_solve(h.unsqueeze(-1), torch.linalg.cholesky(m.m @ m.m.T + torch.diag_embed(x * x))).squeeze(
            -1
        )
        + x
    ),
}


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str) -> None:
    found = report(LINEAR[name])
    assert [r.parallel for r in found.recurrences] == [True] and not found.obstructions


COMPILED: dict[str, Step] = {
    "lookup": lambda m, h, x: torch.tanh(h) + m.table[:, x[0, 0].abs().long() % 7],
    "lookup by a part": lambda m, h, x: (
        torch.tanh(h @ m.w) + m.table.index_select(1, x[:1, 0].abs().long() % 7).squeeze(1)
    ),
    "padding": lambda m, h, x: torch.logaddexp(h, F.pad(h[:, :-1], (1, 0), value=-30.0)) * 0.5 + x,
    "padding on both sides": lambda m, h, x: torch.tanh(F.pad(h[:, 1:-1], (1, 1), value=0.5)) + x,
}


@pytest.mark.parametrize("name", COMPILED)
def test_what_is_not_linear_is_compiled_all_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from linrec.codegen import scan

    found = []

    def translate(*args: Any, real: Any = scan.__dict__["translate"]) -> Any:
        found.append("refused")
        drafts = real(*args)
        found[-1] = "compiled"
        return drafts

    monkeypatch.setattr(scan, "translate", translate)
    entries = report(COMPILED[name])
    assert not entries.obstructions and found and found[-1] == "compiled"


def queue(count: int, read: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        past, out = x.new_zeros(x.shape[0], count, WIDTH), []
        for t in range(x.shape[1]):
            past = torch.cat([past[:, 1:], (0.5 * past[:, 0] + x[:, t]).unsqueeze(1)], 1)
            out.append(read(past))
        return torch.stack(out, 1)

    return forward


def deque(read: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        past, out = collections.deque([torch.zeros_like(x[:, 0])] * 4, maxlen=4), []
        for t in range(x.shape[1]):
            past.append(0.5 * past[0] + 0.2 * past[-1] + x[:, t])
            out.append(read(past))
        return torch.stack(out, 1)

    return forward


QUEUES: dict[str, Callable[[Tensor], Tensor]] = {
    "queue of 2": queue(2, lambda past: past[:, -1]),
    "queue of 3": queue(3, lambda past: past[:, -1]),
    "queue of 8": queue(8, lambda past: past.mean(1)),
    "deque, the last": deque(lambda past: past[-1]),
    "deque, its sum": deque(sum),
    "deque, stacked": deque(lambda past: torch.stack(list(past), 1).mean(1)),
}


@pytest.mark.parametrize("name", QUEUES)
def test_queues_of_states(name: str) -> None:
    model = linrec.parallelize(QUEUES[name], when="always")
    for batch, length in ((2, 40), (3, 24), (2, 61)):
        found = []
        for function in (model, QUEUES[name]):
            x = series(batch, length).requires_grad_()
            y = function(x)
            found.append((y, *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), x)))
        torch.testing.assert_close(found[0], found[1], rtol=1e-8, atol=1e-9)
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences) and not report.obstructions
