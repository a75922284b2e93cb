"""What forward makes itself: first states of which it asks a gradient, counters, numbers off tensors, sizes as factors,
and steps that activation checkpointing runs again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import linrec

from .samples import same


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(3, 3, dtype=torch.float64)
        self.register_buffer("average", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def first(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, 0])

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        return 0.9 * h + self.w(x)

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.first(x), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


class Asked(Leaky):
    def first(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], 3, dtype=x.dtype).requires_grad_()


class Assigned(Leaky):
    def first(self, x: Tensor) -> Tensor:
        h = torch.full((x.shape[0], 3), 0.1, dtype=x.dtype)
        h.requires_grad = True
        return h


class Detached(Leaky):
    def first(self, x: Tensor) -> Tensor:
        h = self.average.detach()  # a tensor of its own, in memory that was there
        h.requires_grad = True
        return h


class Differentiated(Leaky):
    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(x.shape[0], 3, dtype=x.dtype).requires_grad_()
        h, out = h0, []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            out.append(h)
        y = torch.stack(out, 1)
        (g,) = torch.autograd.grad(y.sum(), h0, create_graph=True)
        return y + g[:, None]


class Counting(Leaky):
    def forward(self, x: Tensor) -> Tensor:
        out = []
        for t in range(x.shape[1]):
            a = self.w(x[:, t])
            with torch.no_grad():
                self.count += 1
                self.average += (a.mean(0) - self.average) / self.count
            out.append(a - self.average)
        return torch.stack(out, 1)


class Checkpointed(Leaky):
    def forward(self, x: Tensor) -> Tensor:
        h, out = self.first(x), []
        for t in range(x.shape[1]):
            h = checkpoint(self.step, x[:, t], h, use_reentrant=False)
            out.append(h)
        return torch.stack(out, 1)


class Learning(Leaky):
    """An inner model that a step of gradient descent improves at every step: its loss is a mean over the batch."""

    def forward(self, x: Tensor) -> Tensor:
        inner, out = torch.eye(3, dtype=x.dtype).requires_grad_(), []
        for t in range(x.shape[1]):
            loss = ((x[:, t] @ inner - self.w(x[:, t])) ** 2).mean()
            (g,) = torch.autograd.grad(loss, inner, create_graph=True)
            inner = inner - 0.1 * g
            out.append(x[:, t] @ inner)
        return torch.stack(out, 1)


@pytest.mark.parametrize("kind", [Asked, Assigned, Detached, Differentiated, Counting, Checkpointed, Learning])
def test_rewritten(kind: type[Leaky]) -> None:
    oracle = kind()
    model = linrec.parallelize(copy.deepcopy(oracle))
    generator = torch.Generator().manual_seed(0)
    for batch, length in ((2, 20), (3, 11), (2, 41)):
        same(model, oracle, torch.randn(batch, length, 3, dtype=torch.float64, generator=generator))
    report = linrec.report(model)
    assert not report.obstructions
    assert all(r.parallel for r in report.recurrences)
    assert torch.equal(model.count, oracle.count)


class Shown(Leaky):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """The first state is a result as well, and may be asked for its gradient."""
        h0 = torch.zeros(x.shape[0], 3, dtype=x.dtype).requires_grad_()
        h, out = h0, []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1), h0


class Measured(Leaky):
    def forward(self, x: Tensor) -> tuple[Tensor, float]:  # type: ignore[override]
        h, out, size = self.first(x), [], 0.0
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            size += h.norm().item()
            out.append(h)
        return torch.stack(out, 1), size


def test_a_first_state_that_is_shown() -> None:
    oracle = Shown()
    model = linrec.parallelize(copy.deepcopy(oracle))
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    for _ in range(2):
        (y, h0), (expected, theirs) = model(x), oracle(x)
        y.sum().backward()
        expected.sum().backward()
        assert torch.equal(h0.grad, theirs.grad)
    assert [o.id for o in linrec.report(model).obstructions] == ["LR013"]


def test_a_number_off_a_tensor_as_a_result() -> None:
    oracle = Measured()
    model = linrec.parallelize(copy.deepcopy(oracle))
    x = torch.randn(2, 20, 3, dtype=torch.float64)
    assert model(x)[1] == oracle(x)[1]
    (problem,) = linrec.report(model).obstructions
    assert problem.id == "LR015"
    assert "outside" in problem.hint


class Particular(Leaky):
    """Runs in no gradient mode, and in no precision, but its caller's."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype is not torch.float32 or x.shape[1] not in (4, 6, 7, 5, 40, 11):
            raise RuntimeError("what is this?")
        return super().forward(x)


def test_what_cannot_be_compared_is_not_used() -> None:
    oracle = Particular().float()
    model = linrec.parallelize(copy.deepcopy(oracle))
    x = torch.randn(2, 40, 3)
    assert torch.equal(model(x), oracle(x))
    problems = linrec.report(model).obstructions
    assert [o.id for o in problems] == ["LR010"]
    assert "what is this?" in problems[0].explanation


class Single(Leaky):
    def forward(self, x: Tensor) -> Tensor:
        assert x.dtype is torch.float32
        return super().forward(x)


def test_what_runs_in_its_own_precision_only_is_compared_in_it() -> None:
    oracle = Single().float()
    model = linrec.parallelize(copy.deepcopy(oracle))
    x = torch.randn(2, 40, 3)
    torch.testing.assert_close(model(x), oracle(x))
    assert linrec.report(model).parallel
