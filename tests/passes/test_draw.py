"""Random numbers of a step, drawn before the loop: for the same seed the loop's numbers, and the generator in its state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import linrec
from linrec.ir.obstruction import Refused
from linrec.ir.scan import scan_nodes
from linrec.passes import DrawAhead, standard
from linrec.passes.rewrite import ScanView
from tests.capture.rolled import roll, sized

X = torch.randn(2, 9, 4, dtype=torch.float64)
Step = Callable[[Tensor, Tensor], Tensor]

DRAWN: dict[str, Step] = {
    "dropout": lambda h, x: 0.9 * h + F.dropout(x, 0.3),
    "of the state": lambda h, x: F.dropout(h, 0.3) + x,
    "all dropped": lambda h, x: 0.9 * h + F.dropout(x, 1.0) + F.dropout(x, 0.2),
    "channels": lambda h, x: 0.9 * h + F.dropout1d(x[:, :, None].expand(-1, -1, 3), 0.4).sum(-1),
    "twice": lambda h, x: F.dropout(h, 0.3) * 0.5 + F.dropout(x, 0.1) * torch.rand_like(h),
    "normal": lambda h, x: 0.9 * h + 0.1 * torch.randn_like(h) + torch.randn(2, 4, dtype=h.dtype) * x,
    "uniform": lambda h, x: 0.9 * h + torch.rand(x.shape, dtype=x.dtype) * x,
    "bernoulli": lambda h, x: torch.where(torch.bernoulli(x, 0.7).bool(), 0.9 * h, x),
    "probabilities": lambda h, x: torch.where(torch.bernoulli(torch.sigmoid(x)).bool(), 0.9 * h, x),
    "one probability": lambda h, x: 0.9 * h + x * torch.bernoulli(torch.full_like(h, 0.3)),
    "one less a probability": lambda h, x: 0.9 * h * torch.bernoulli(1 - 0.3 * torch.ones_like(h)) + x,
    "probabilities and others": lambda h, x: (
        0.9 * h + torch.bernoulli(x.cos().square()) * F.dropout(x, 0.2) + torch.bernoulli(torch.full((4,), 0.5)).to(h)
    ),
    "integers": lambda h, x: 0.9 * h + x * torch.randint(0, 3, (2, 4)),
    "not linear": lambda h, x: torch.tanh(F.dropout(h, 0.3) + x),
}

STAYS: dict[str, Step] = {
    "with probabilities": lambda h, x: 0.9 * h + torch.bernoulli(torch.sigmoid(h)),
    "with drawn probabilities": lambda h, x: 0.9 * h + torch.bernoulli(torch.rand_like(x)),
    "in place, with probabilities": lambda h, x: 0.9 * h + x * torch.empty_like(h).bernoulli_(x.cos().square()),
    "with means": lambda h, x: 0.9 * h + torch.normal(h, 1.0),
    "another order in memory": lambda h, x: 0.9 * h + F.dropout(x.T, 0.3).T,
}


def loop(step: Step) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        x = x * torch.rand_like(x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = step(h, x[:, t])
            out.append(h)
        return torch.stack(out, 1), torch.rand(3)

    return run


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_seed_gives_the_same_numbers(name: str) -> None:
    function = loop(DRAWN[name])
    rewritten = standard().run(roll(function, X).graph_module).graph_module
    for length in (5, 17):
        (x,) = sized([X], [1], length)
        results = []
        for f in (function, rewritten):
            leaf = x.clone().requires_grad_()
            torch.manual_seed(length)
            y, after = f(leaf)
            (g,) = torch.autograd.grad(y.square().sum(), leaf)
            results.append((y, after, g, torch.rand(2)))
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)


def test_a_draw_that_nobody_reads_moves_the_generator() -> None:
    def unread(h: Tensor, x: Tensor) -> Tensor:
        return 0.9 * h + x + 0 * torch.randn_like(h)

    function = loop(unread)
    rewritten = standard().run(roll(function, X).graph_module).graph_module
    found = []
    for f in (function, rewritten):
        torch.manual_seed(0)
        found.append(f(X)[1])
    assert torch.equal(*found)


@pytest.mark.parametrize("name", STAYS)
def test_what_cannot_be_drawn_ahead(name: str) -> None:
    graph_module = roll(loop(STAYS[name]), X).graph_module
    with pytest.raises(Refused, match="LR009"):
        DrawAhead().run(graph_module)


def test_the_step_gets_its_numbers() -> None:
    graph_module = roll(loop(DRAWN["twice"]), X).graph_module
    DrawAhead().run(graph_module)
    (node,) = scan_nodes(graph_module)
    view = ScanView.of(graph_module, node)
    assert len(view.xs) == 1 + 3
    assert [n.meta["val"].shape for n in view.xs[1:]] == [(2, 4)] * 3


class Counted(nn.Module):
    """Counts its calls in a buffer, in place: torch takes dropout apart then."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.drop(x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def test_dropout_beside_a_buffer_that_is_counted() -> None:
    ours, loop = linrec.parallelize(Counted()), Counted()
    for length in (30, 12, 41):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        found = []
        for m in (ours, loop):
            torch.manual_seed(length)
            found.append((m(x), torch.rand(1), m.calls))
        torch.testing.assert_close(*found)
    assert linrec.report(ours).parallel
