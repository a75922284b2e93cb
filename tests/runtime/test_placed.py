"""States that are written at positions that data give: a memory of slots, a table of rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

SLOTS, WIDTH = 5, 3
Write = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def put(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    h[rows, i] = x
    return h


def put_more(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    h[rows, i] += x
    return h


def put_mixture(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    h = 0.9 * h
    h[rows, i] = 0.5 * h[rows, i] - (1 - x) * h[rows, i] / 3 + x
    return h


def put_gated(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    old = h[rows, i]
    h = h.clone()
    h[rows, i] = (1 - x.sigmoid()) * old + x
    return h


def put_in_place(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    h[rows, i] = x
    return h


def moved_average(h: Tensor, rows: Tensor, i: Tensor, x: Tensor) -> Tensor:
    where = i[:, None, None].expand(-1, 1, WIDTH)
    return h.scatter(1, where, torch.lerp(h.gather(1, where), x[:, None], torch.sigmoid(x[:, None])))


def spread(i: Tensor) -> Tensor:
    return i[:, None, None].expand(-1, 1, WIDTH)


WRITES: dict[str, Write] = {
    "put": put,
    "put more": put_more,
    "put a mixture": put_mixture,
    "put gated, through a copy": put_gated,
    "put in place": put_in_place,
    "put functionally": lambda h, rows, i, x: (0.9 * h).index_put((rows, i), x),
    "accumulate": lambda h, rows, i, x: (0.9 * h).index_put((rows, i), x, accumulate=True),
    "one number": lambda h, rows, i, x: (0.9 * h + x[:, None]).index_put((rows, i), torch.zeros((), dtype=x.dtype)),
    "one row": lambda h, rows, i, x: (h + x[:, None]).index_put((rows, i), x[0]),
    "from the end": lambda h, rows, i, x: (0.9 * h).index_put((rows, i - SLOTS), x),
    "narrow integers": lambda h, rows, i, x: (0.9 * h).index_put((rows, i.int().long()), x),
    "scatter": lambda h, rows, i, x: (0.9 * h).scatter(1, spread(i), x[:, None]),
    "scatter a number": lambda h, rows, i, x: (0.9 * h + x[:, None]).scatter(1, spread(i), 0.5),
    "moved average": moved_average,
}
"""All of them linear in the memory `h` (B, SLOTS, WIDTH), which is written at `i` (B,)."""


class Memory(nn.Module):
    """Reads the memory before or after it is written."""

    def __init__(self, write: Write, first: bool, nonlinear: bool = False) -> None:
        super().__init__()
        self.write, self.first, self.nonlinear = write, first, nonlinear
        self.w = nn.Parameter(torch.linspace(0.5, 1.0, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], SLOTS, WIDTH), []
        rows = torch.arange(x.shape[0])
        for t in range(x.shape[1]):
            if self.first:
                out.append(h.sum(1) if self.nonlinear else h[rows, where[:, t]] + h.sum(1))
            h = self.write(torch.tanh(h) if self.nonlinear else h, rows, where[:, t], self.w * x[:, t])
            if not self.first:
                out.append(h[rows, where[:, t]] - h.mean(1))
        return torch.stack(out, 1)


def results(model: nn.Module, x: Tensor, where: Tensor) -> tuple[Tensor, ...]:
    """The output, and the gradients of the input and the parameters."""
    x = x.clone().requires_grad_()
    y = model(x, where)
    wanted = [x, *model.parameters()]
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)
    grads = torch.autograd.grad(y, wanted, weights, allow_unused=True, materialize_grads=True)
    return y.detach(), *grads


def agreed(ours: nn.Module, theirs: nn.Module, sizes: tuple[tuple[int, int], ...] = ((2, 30), (3, 41), (6, 17))) -> Any:
    for batch, length in sizes:
        x = torch.randn(batch, length, WIDTH, dtype=torch.float64)
        where = torch.randint(0, SLOTS, (batch, length))
        found, wanted = (results(m, x, where) for m in (ours, theirs))
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    return linrec.report(ours)


@pytest.mark.parametrize("first", [True, False], ids=["read first", "written first"])
@pytest.mark.parametrize("name", WRITES)
def test_a_memory_of_slots(name: str, first: bool) -> None:
    report = agreed(linrec.parallelize(Memory(WRITES[name], first)), Memory(WRITES[name], first))
    assert [r.parallel for r in report.recurrences] == [True], report


@pytest.mark.parametrize("name", ["put", "put functionally", "scatter"])
def test_a_step_that_is_not_linear(name: str) -> None:
    ours = linrec.parallelize(Memory(WRITES[name], True, True))
    agreed(ours, Memory(WRITES[name], True, True))
    inner = [n.target for n in linrec.graph(ours).graph.nodes if n.op == "call_module"]
    assert inner == ["recurrence_0"]  # in a kernel, with what chooses the slots for all steps in front of it


def test_a_position_that_is_read_twice() -> None:
    """`where[:, t]` is another view each time."""

    def loop(memory: Tensor, where: Tensor, x: Tensor) -> Tensor:
        rows, out, memory = torch.arange(memory.shape[0]), [], memory.clone()
        for t in range(x.shape[1]):
            memory[rows, where[:, t]] = 0.5 * memory[rows, where[:, t]] + x[:, t]
            out.append(memory.sum(1))
        return torch.stack(out, 1)

    ours = linrec.parallelize(loop)
    for batch, length in ((2, 30), (3, 41)):
        memory, x = torch.randn(batch, SLOTS, WIDTH), torch.randn(batch, length, WIDTH)
        where = torch.randint(0, SLOTS, (batch, length))
        torch.testing.assert_close(ours(memory, where, x), loop(memory, where, x))
    assert linrec.report(ours).parallel


class Heads(nn.Module):
    """Every head of every row writes one slot of its own."""

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        batch, _, heads, width = x.shape
        h, out = x.new_zeros(batch, heads, SLOTS, width), []
        rows, columns = torch.arange(batch)[:, None], torch.arange(heads)
        for t in range(x.shape[1]):
            h = 0.9 * h
            h[rows, columns, where[:, t]] = x[:, t]
            out.append(h.sum(2))
        return torch.stack(out, 1)


def test_heads() -> None:
    ours, theirs = linrec.parallelize(Heads()), Heads()
    for batch, length in ((2, 30), (3, 41)):
        x, where = (
            torch.randn(batch, length, 4, WIDTH, dtype=torch.float64),
            torch.randint(0, SLOTS, (batch, length, 4)),
        )
        torch.testing.assert_close(ours(x, where), theirs(x, where), rtol=1e-10, atol=1e-10)
    assert linrec.report(ours).parallel


class Twice(nn.Module):
    """Two positions a row: where they are the same, who knows which write is the last."""

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], SLOTS, WIDTH), []
        rows = torch.arange(x.shape[0])[:, None]
        for t in range(x.shape[1] - 1):
            h = (0.9 * h).index_put((rows, where[:, t : t + 2]), x[:, t : t + 2])
            out.append(h.sum(1))
        return torch.stack(out, 1)


def test_positions_that_may_meet_are_left_alone() -> None:
    ours, theirs = linrec.parallelize(Twice()), Twice()
    x, where = torch.randn(2, 30, WIDTH, dtype=torch.float64), torch.randint(0, SLOTS, (2, 30))
    torch.testing.assert_close(ours(x, where), theirs(x, where), rtol=0, atol=0)
    assert not linrec.report(ours).parallel


@pytest.mark.parametrize("name", ["put", "scatter"])
def test_positions_out_of_range_raise(name: str) -> None:
    ours = linrec.parallelize(Memory(WRITES[name], False))
    x, where = torch.randn(2, 30, WIDTH, dtype=torch.float64), torch.randint(0, SLOTS, (2, 30))
    ours(x, where)
    assert linrec.report(ours).parallel
    where[1, 20] = SLOTS
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        ours(x, where)
    where[1, 20] = 0
    ours(x, where)


def test_one_position_for_all_rows() -> None:
    class Shared(nn.Module):
        def forward(self, x: Tensor, where: Tensor) -> Tensor:
            h, out = x.new_zeros(x.shape[0], SLOTS, WIDTH), []
            for t in range(x.shape[1]):
                h = (0.9 * h).index_put((torch.tensor([0, 1]), where[:1, t]), x[0, t])
                h = h.index_copy(1, where[0, t : t + 1], x[:, t : t + 1])
                out.append(h.sum(1))
            return torch.stack(out, 1)

    ours, theirs = linrec.parallelize(Shared()), Shared()
    x, where = torch.randn(2, 30, WIDTH, dtype=torch.float64), torch.randint(0, SLOTS, (2, 30))
    torch.testing.assert_close(ours(x, where), theirs(x, where), rtol=1e-10, atol=1e-10)
