"""Initial states that their owner writes into between forward and backward."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch import Tensor, nn

import linrec


class Peaks(nn.Module):
    """A running maximum that decays, and a mean; neither loop keeps the states that it starts from."""

    def forward(self, x: Tensor, m: Tensor, h: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            m = torch.maximum(m - 0.1, x[:, t])
            h = 0.9 * h + x[:, t]
            out.append(m * h)
        return torch.stack(out, 1), m, h


class Stateful(nn.Module):
    """Writes the states that come out over those that went in."""

    def __init__(self, views: bool) -> None:
        super().__init__()
        self.before, self.peaks, self.views = nn.Linear(3, 3), Peaks(), views
        self.register_buffer("m", torch.zeros(2, 3))
        self.register_buffer("h", torch.zeros(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        m, h = (self.m.view(2, 3)[:], self.h.t().t()) if self.views else (self.m, self.h)
        y, m, h = self.peaks(self.before(x), m, h)
        with torch.no_grad():
            self.m.copy_(m)
            self.h.copy_(h)
        return y


@pytest.mark.parametrize("forms", ["kernels", "torch"])
@pytest.mark.parametrize("views", [False, True])
def test_states_written_by_their_owner(views: bool, forms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if forms == "torch":
        monkeypatch.setenv("LINREC_CODEGEN", "off")
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    torch.manual_seed(0)
    loop = Stateful(views).double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (9, 14, 30):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        found = []
        for model in (fast, loop):
            model.zero_grad()
            y = model(x)
            y.square().sum().backward()
            found.append([y.detach(), model.m.clone(), model.h.clone(), *(p.grad for p in model.parameters())])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert linrec.report(fast).parallel
    assert not linrec.report(fast).obstructions


def test_written_after_a_module_of_its_own() -> None:
    """The caller owns the state and the module itself is what was parallelised."""
    torch.manual_seed(0)
    loop = Peaks()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (9, 14):
        x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
        found = []
        for model in (fast, loop):
            m, h = torch.zeros(2, 3, dtype=torch.float64), torch.ones(2, 3, dtype=torch.float64)
            y, m_last, h_last = model(x, m, h)
            m.copy_(m_last.detach())
            h.zero_()
            found.append([y, *torch.autograd.grad(y.square().sum() + h_last.sum(), x)])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


class Memory(nn.Module):
    """A constant matrix, of which all states or only the last one is read."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.last = last
        self.register_buffer("A", 0.4 * torch.randn(3, 3))

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            h = h @ self.A + x[:, t]
            out.append(h)
        return (h if self.last else torch.stack(out, 1)), h


class Retention(nn.Module):
    """A matrix state that is only read by a product."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(3, 9)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.map(x).chunk(3, -1)
        out = []
        for t in range(x.shape[1]):
            h = 0.9 * h + k[:, t, :, None] * v[:, t, None, :]
            out.append((q[:, t, None] @ h).squeeze(1))
        return torch.stack(out, 1), h


class Delta(Retention):
    """The delta rule."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = torch.tanh(self.map(x)).chunk(3, -1)
        out = []
        for t in range(x.shape[1]):
            h = h + 0.3 * k[:, t, :, None] * (v[:, t] - (k[:, t, None] @ h).squeeze(1))[:, None, :]
            out.append((q[:, t, None] @ h).squeeze(1))
        return torch.stack(out, 1), h


class Total(nn.Module):
    """A running sum."""

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            h = h + x[:, t]
            out.append(h)
        return torch.stack(out, 1), h


EVERY = {
    "memory": (lambda: Memory(False), (3,)),
    "last": (lambda: Memory(True), (3,)),
    "retention": (Retention, (3, 3)),
    "delta": (Delta, (3, 3)),
    "total": (Total, (3,)),
}


@pytest.mark.parametrize("forms", ["kernels", "torch"])
@pytest.mark.parametrize("kind", list(EVERY))
def test_every_kind_of_algorithm(kind: str, forms: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a loop becomes, the caller may write into the state that it has given, where the loop lets him."""
    if forms == "torch":
        monkeypatch.setenv("LINREC_CODEGEN", "off")
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    torch.manual_seed(0)
    make, shape = EVERY[kind]
    loop = make().double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (9, 30):
        x = torch.randn(2, length, 3, dtype=torch.float64, requires_grad=True)
        first = torch.randn(2, *shape, dtype=torch.float64)
        found = []
        for model, writes in ((fast, True), (loop, False)):
            h = first.clone()
            y, last = model(x, h)
            if writes:
                h.zero_()
            found.append([y, *torch.autograd.grad(y.square().sum() + last.sum(), [x, *model.parameters()])])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)
    assert linrec.report(fast).parallel


class Decay(nn.Module):
    """A loop whose derivatives need its states, and no number of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.a) * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Residual(nn.Module):
    """Adds what comes out to what went in, in place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(3, 3), nn.ModuleList([Decay(), Decay()])

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for layer in self.layers:
            x += layer(x)
        return x


def test_residuals_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    torch.manual_seed(0)
    loop = Residual().double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (9, 14):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        for model in (fast, loop):
            model.zero_grad()
            model(x).square().sum().backward()
        for mine, theirs in zip(fast.parameters(), loop.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    assert linrec.report(fast).parallel


def test_an_input_that_is_not_needed_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """And a second derivative, which would need it, says what has happened to it."""
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    layer = linrec.parallelize(Decay().double())
    leaf = torch.randn(2, 9, 3, dtype=torch.float64, requires_grad=True)
    layer(leaf)
    x = leaf * 1
    seen = weakref.ref(x)
    loss = layer(x).sum()
    del x
    loss.backward()
    assert seen() is None
    x = leaf * 1
    loss = layer(x).square().sum()
    x.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(loss, leaf, create_graph=True)
