"""Initial states that their owner writes into between forward and backward."""

from __future__ import annotations

import copy

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
