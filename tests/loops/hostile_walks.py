"""Walks over time that stop early, skip, reach back, follow the lengths of the data, or walk over something else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .entry import At, Table, bt, btd, tbd
from .hostile_time import LONG
from .styles_state import D, Gates

ENTRIES = Table()


@ENTRIES.add(btd(D), "any", schedule=LONG)
class StepsAreCapped(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(min(x.shape[1], 20)):
            h = 0.9 * h + x[:, t]
        return h


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BreakAfterTen(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            if t > 14:
                break
            h = 0.9 * h + x[:, t]
            out[:, t] = h
        return out


@ENTRIES.add(btd(D), "any")
class BreakTwoBeforeTheEnd(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            if t >= x.shape[1] - 2:
                break
            h = 0.9 * h + x[:, t]
            out[:, t] = h
        return out


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BreakOnData(nn.Module):
    """Stops when a value is large, which it seldom is."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            if h.abs().max() > 3.5:
                break
        return h


@ENTRIES.add(btd(D), "any")
class BranchOnData(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + (x[:, t] if x[:, t].sum() > 0 else 0)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class ContinueOnSomeSteps(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            if t % 5 == 4:
                continue
            h = 0.9 * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class EverySecondStep(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(0, x.shape[1], 2):
            h = 0.9 * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class EverySecondOutput(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), [x[:, 0]]
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            if t % 2:
                ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class BlocksOfFour(nn.Module):
    """A clockwork: the slow state moves once in four steps, and the last block may be short."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        slow, ys = torch.zeros_like(x[:, 0]), []
        for block in x.split(4, dim=1):
            fast = slow
            for x_t in block.unbind(1):
                fast = 0.5 * fast + x_t
                ys.append(fast)
            slow = self.a * slow + fast
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class SkipsTheLast(nn.Module):
    """T - 1 steps, as in teacher forcing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, errors = torch.zeros_like(x[:, 0]), [x[:, 0]]
        for t in range(x.shape[1] - 1):
            h = 0.8 * h + 0.2 * x[:, t]
            errors.append(x[:, t + 1] - h)
        return torch.stack(errors, 1), h


@ENTRIES.add(btd(D), "any")
class FirstHalfThenSecond(nn.Module):
    """An encoder over one half, a decoder over the other."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[1] // 2
        h, ys = torch.zeros_like(x[:, 0]), [x[:, 0]]
        for t in range(half):
            h = 0.9 * h + x[:, t]
        for t in range(half, x.shape[1]):
            h = 0.5 * h - x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class LagOfTwelve(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + (x[:, t - 12] if t >= 12 else x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class LagOfNineInHistory(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        hist = [torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1]):
            old = hist[-9] if len(hist) >= 9 else hist[0]
            hist.append(0.5 * hist[-1] + 0.3 * old + x[:, t])
        return torch.stack(hist, 1)


@ENTRIES.add(btd(D), "any")
class NegativeIndexWraps(nn.Module):
    """`x[:, t - 2]` from t = 0: Python wraps to the end of the sequence."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + (x[:, t - 2] if x.shape[1] > 2 else x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class RingBuffer(nn.Module):
    """Reads and writes slot t mod 11."""

    def forward(self, x: Tensor) -> Tensor:
        slots, ys = [torch.zeros_like(x[:, 0]) for _ in range(11)], []
        for t in range(x.shape[1]):
            slots[t % 11] = 0.5 * slots[t % 11] + x[:, t]
            ys.append(slots[t % 11])
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class PositionsOfLength(nn.Module):
    """`arange(T)` and `linspace(0, 1, T)` made outside, read inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        position = torch.arange(length, dtype=x.dtype)
        phase = torch.linspace(0, 1, length, dtype=x.dtype)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(length):
            h = self.a * h + x[:, t] * torch.cos(position[t]) + phase[t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class TensorTimeIndex(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in torch.arange(x.shape[1]):
            h = 0.9 * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class ShuffledOrder(nn.Module):
    """The steps in an order that depends on T and is not an affine function of the step."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys, length = torch.zeros_like(x[:, 0]), [], x.shape[1]
        for k in range(length):
            h = 0.9 * h + x[:, (k * 7) % length]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(3, 23), At(2, 9), At(2, 3)))
class WidthOfLength(nn.Module):
    """T is a width, of parameters and of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.rand(30))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        decay = self.table[:length]
        h, ys = x.new_zeros(x.shape[0], length), []
        for t in range(length):
            h = decay * h + x[:, t, :1]
            ys.append(h)
        return torch.stack(ys, 1)


def lengths(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """`(B, T, D)` and `(B,)`, the longest no longer than T."""
    return torch.randn(batch, length, D), torch.randint(1, max(length, 2), (batch,))


@ENTRIES.add(lengths, "any", schedule=(At(2, 12), At(3, 23), At(1, 9), At(2, 3)))
class UpToLongest(nn.Module):
    """`range(lengths.max())`."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(int(lengths.max())):
            h = torch.where((t < lengths)[:, None], 0.9 * h + x[:, t], h)
            out[:, t] = h
        return out


@ENTRIES.add(lengths, "any")
class LengthsAsMask(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            active = (t < lengths).to(x.dtype).unsqueeze(1)
            h = active * (0.9 * h + x[:, t]) + (1 - active) * h
            ys.append(h * active)
        return torch.stack(ys, 1)


@ENTRIES.add(tbd(D), "any")
class LoopOverBatch(nn.Module):
    """A carry from one example to the next; T is a width."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for b in range(x.shape[1]):
            h = 0.9 * h + x[:, b]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class LoopOverBatchWithoutCarry(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.cumsum(x[b], 0) * x[b].mean() for b in range(x.shape[0])])


@ENTRIES.add(btd(D), "any")
class LoopOverFeatures(nn.Module):
    """Constant in T: no time loop here."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[..., 0]), []
        for d in range(x.shape[-1]):
            h = 0.9 * h + x[..., d]
            ys.append(h)
        return torch.stack(ys, -1)


@ENTRIES.add(btd(D), "any")
class LoopOverLayersOfConstantLength(nn.Module):
    """Twelve repeated blocks, as many as T at the first call, and no time loop."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(D, D) for _ in range(12))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + 0.1 * layer(x)
        return x


@ENTRIES.add(btd(D), "any")
class Recursion(nn.Module):
    def rest(self, x: Tensor, h: Tensor, t: int) -> list[Tensor]:
        if t == x.shape[1]:
            return []
        h = 0.9 * h + x[:, t]
        return [h, *self.rest(x, h, t + 1)]

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(self.rest(x, torch.zeros_like(x[:, 0]), 0), 1)


@ENTRIES.add(btd(D), "any")
class Generator(nn.Module):
    def states(self, x: Tensor) -> Iterator[Tensor]:
        h = torch.zeros_like(x[:, 0])
        for x_t in x.unbind(1):
            h = 0.9 * h + x_t
            yield h

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(list(self.states(x)), 1)


@ENTRIES.add(btd(D), "any")
class InsideTryExcept(nn.Module):
    """Walks until an IndexError tells the end."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys, t = torch.zeros_like(x[:, 0]), [], 0
        while True:
            try:
                h = 0.9 * h + x[:, t]
            except IndexError:
                break
            ys.append(h)
            t += 1
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class DoublingSteps(nn.Module):
    """Hillis-Steele by hand: log T steps, with strides that double."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, h = self.gates(x)
        stride = 1
        while stride < x.shape[1]:
            h = torch.cat([h[:, :stride], h[:, stride:] + f[:, stride:] * h[:, :-stride]], 1)
            f = torch.cat([f[:, :stride], f[:, stride:] * f[:, :-stride]], 1)
            stride *= 2
        return h


@ENTRIES.add(bt, "any")
class TwoDimensionalTable(nn.Module):
    """Edit-distance like: `(t, d)` both walked, over a table of constant width."""

    def forward(self, x: Tensor) -> Tensor:
        row = [torch.zeros_like(x[:, 0]) for _ in range(4)]
        for t in range(x.shape[1]):
            new = [x[:, t]]
            for j in range(1, 4):
                new.append(0.5 * row[j] + 0.2 * new[j - 1] + 0.1 * row[j - 1])
            row = new
        return torch.stack(row, 1)
