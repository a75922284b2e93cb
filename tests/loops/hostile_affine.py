"""Recurrences that are affine, or that have no state at all, in forms that are easily confused with simpler ones."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Table, btd, tbd
from .hostile_states import Loop
from .styles_state import D

ENTRIES = Table()


@ENTRIES.add(btd(D), "any")
class TwoStatesFromOneTensor(nn.Module):
    """Both start as the same tensor and go different ways."""

    def forward(self, x: Tensor) -> Tensor:
        start = x.mean(1)
        g, h, ys = start, start, []
        for t in range(x.shape[1]):
            g = 0.9 * g + x[:, t]
            h = 0.2 * h - x[:, t]
            ys.append(g * h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class TwoStatesSwapped(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, h, ys = x.new_zeros(x.shape[0], D), x.new_ones(x.shape[0], D), []
        for t in range(x.shape[1]):
            g, h = h, g
            h = 0.5 * h + x[:, t]
            ys.append(g - h)
        return torch.stack(ys, 1), g, h


@ENTRIES.add(btd(D), "any")
class ThreeStatesRotated(nn.Module):
    """A delay line of three, and one state that copies another's old value."""

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        a = b = c = torch.zeros_like(x[:, 0])
        ys = []
        for t in range(x.shape[1]):
            a, b, c = 0.5 * c + x[:, t], a, b
            ys.append(a + 2 * b + 3 * c)
        return torch.stack(ys, 1), a, b, c


@ENTRIES.add(btd(D), "any")
class ConjugatedState(nn.Module):
    """Linear over the reals only."""

    def __init__(self) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.randn(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        pole = 0.5 * torch.view_as_complex(self.pole)
        h, ys = torch.zeros(x.shape[0], D, dtype=pole.dtype), []
        for t in range(x.shape[1]):
            h = pole * h.conj() + x[:, t]
            ys.append(torch.view_as_real(h.resolve_conj()))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class RealPartOfState(nn.Module):
    """The imaginary part is dropped at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.randn(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        pole = 0.5 * torch.view_as_complex(self.pole)
        h, ys = torch.zeros(x.shape[0], D, dtype=pole.dtype), []
        for t in range(x.shape[1]):
            new = pole * h + 1j * x[:, t]
            ys.append(new.imag)
            h = new.real + 0.5j * new
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class FlippedState(Loop):
    """Affine with a permutation of the state's axis."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h.flip(-1) + torch.roll(h, 1, -1) * 0.3 + x


@ENTRIES.add(btd(D), "any")
class CenteredState(Loop):
    """Affine: the mean over the state's axis is subtracted."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        h = self.a * h + x
        return h - h.mean(-1, keepdim=True)


@ENTRIES.add(btd(D), "any")
class CumulativeOverState(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.2 * h.cumsum(-1) + x


@ENTRIES.add(btd(D), "any")
class StateMovesOneSlot(nn.Module):
    """A shift register in a tensor: `cat([x_t, window[:-1]])`."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        window, ys = x.new_zeros(x.shape[0], 5, D), []
        for t in range(x.shape[1]):
            window = torch.cat([x[:, t : t + 1], window[:, :-1]], 1)
            ys.append(torch.einsum("k,bkd->bd", self.taps, window))
        return torch.stack(ys, 1)


@ENTRIES.add(tbd(D), "any")
class AttentionOverHistory(nn.Module):
    """The state grows: it is the whole past."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(D, 3 * D)

    def forward(self, x: Tensor) -> Tensor:
        keys, values, ys = [], [], []
        for x_t in x:
            q, k, v = self.qkv(x_t).chunk(3, -1)
            keys.append(k)
            values.append(v)
            scores = torch.softmax((torch.stack(keys) * q).sum(-1), 0)
            ys.append((scores.unsqueeze(-1) * torch.stack(values)).sum(0))
        return torch.stack(ys)


@ENTRIES.add(tbd(D), "any")
class TwoGrowingLoops(nn.Module):
    """`s <= t`, quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        ys = []
        for t in range(x.shape[0]):
            total = torch.zeros_like(x[0])
            for s in range(t + 1):
                total = self.a * total + x[s] * x[t]
            ys.append(total)
        return torch.stack(ys)
