"""Numbers that break a parallel form: nan and inf behind masks, gates of exactly 0 and 1, products that underflow,
states that grow.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import At, Table, btd
from .styles_state import D, Gates

ENTRIES = Table()


@ENTRIES.add(btd(D), "any")
class WhereHidesNan(nn.Module):
    """The dead branch divides by zero: its gradient is NaN in the loop too, at the same places."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x > 1, torch.zeros_like(x), x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            safe = torch.where(x[:, t] == 0, x[:, t], 1 / x[:, t])
            h = self.a * h + safe.clamp(-3, 3)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class WhereHidesInfiniteState(nn.Module):
    """Masked steps hold inf and nan, and are not let in."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.where(x > 1.5, torch.inf, torch.where(x < -1.5, torch.nan, x))
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.where(torch.isfinite(x[:, t]), self.a * h + x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class InfiniteInput(nn.Module):
    """inf and nan come in, at one channel and late; nothing before them may change."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        bad = torch.arange(x.shape[1]).eq(7)[:, None] & torch.arange(D).eq(torch.tensor([1, 2, 2, 1]))
        v = v.masked_fill(bad, torch.nan)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + v[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class GatesOfZeroAndOne(nn.Module):
    """Exactly 0 forgets, exactly 1 keeps; log-space forms break on both."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        f = (self.w(x) * 2 + 0.5).clamp(0, 1)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(3, 23), At(1, 200), At(2, 3)))
class GatesThatUnderflow(nn.Module):
    """Products of gates underflow to zero within a few steps."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        f = torch.exp(-60 * torch.sigmoid(self.w(x)))
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(3, 23), At(1, 60), At(2, 3)))
class GrowingState(nn.Module):
    """|a| > 1: an unstable recurrence is still a recurrence, constant and gated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Parameter(torch.tensor([1.5, -1.3, 1.0, -1.0])), nn.Linear(D, D)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = 1 + torch.sigmoid(self.w(x))
        h, g, hs, gs = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), [], []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            g = f[:, t] * g - x[:, t]
            hs.append(h)
            gs.append(g)
        return torch.stack(hs, 1), torch.stack(gs, 1)


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(3, 23), At(1, 60), At(2, 3)))
class GrowingDenseState(nn.Module):
    """A dense transition with one eigenvalue beyond the circle, read per column so that none hides in the other's
    rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.tensor([[1.2, 0.3, 0.0], [0.0, 0.5, 0.1], [0.0, 0.0, -0.9]]))
        self.B = nn.Parameter(torch.randn(D, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        m, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            m = m @ self.A.T + x[:, t] @ self.B
            ys.append(m)
        return torch.stack(ys, 1).unbind(-1)
