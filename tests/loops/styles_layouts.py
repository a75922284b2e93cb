"""Shapes and signatures: no batch, two batch axes, images, heads, equal sizes everywhere, keyword arguments,
structured outputs.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import At, Call, Table, btd, tbd, td
from .styles_state import D, Gates

ENTRIES = Table()


@ENTRIES.add(td(D), is_function=True)
def without_batch(x: Tensor) -> Tensor:
    h, ys = torch.zeros(D, dtype=x.dtype), []
    for x_t in x:
        h = 0.5 * h + x_t
        ys.append(h)
    return torch.stack(ys)


@ENTRIES.add(td(D))
class WithoutBatchDense(nn.Module):
    """`A @ m` with `m: (N,)`, as the papers write it."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(0.4 * torch.randn(3, 3)), nn.Parameter(torch.randn(3, D))
        self.C = nn.Parameter(torch.randn(2, 3))

    def forward(self, u: Tensor) -> Tensor:
        m, ys = torch.zeros(3, dtype=u.dtype), []
        for k in range(u.shape[0]):
            m = self.A @ m + self.B @ u[k]
            ys.append(self.C @ m)
        return torch.stack(ys)


@ENTRIES.add(lambda batch, length: torch.randn(length), is_function=True)
def one_series(u: Tensor) -> Tensor:
    """A scalar series, a scalar state, a preallocated result."""
    y, s = torch.zeros_like(u), torch.zeros((), dtype=u.dtype)
    for k in range(len(u)):
        s = 0.95 * s + u[k]
        y[k] = s
    return y


@ENTRIES.add(lambda batch, length: torch.randn(batch, 3, length, D))
class HeadsBeforeTime(nn.Module):
    """`(B, H, T, D)`."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(3, 1))

    def forward(self, v: Tensor) -> Tensor:
        h, ys = torch.zeros_like(v[:, :, 0]), []
        for t in range(v.shape[2]):
            h = self.decay * h + v[:, :, t]
            ys.append(h)
        return torch.stack(ys, dim=2)


@ENTRIES.add(lambda batch, length: torch.randn(batch, length, 2, 3, 3))
class ImagesOverTime(nn.Module):
    """Video: a leaky average of convolved frames."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.GroupNorm(1, 2)

    def forward(self, video: Tensor) -> Tensor:
        average, frames = torch.zeros_like(video[:, 0]), []
        for t in range(video.size(1)):
            average = 0.75 * average + 0.25 * self.conv(video[:, t])
            frames.append(F.relu(self.norm(average)))
        return torch.stack(frames, dim=1)


EQUAL = (At(4, 4), At(12, 12), At(4, 12), At(12, 4), At(7, 7), At(3, 8))


@ENTRIES.add(btd(D), schedule=(At(12, 12), *EQUAL))
class EqualSizesBatch(nn.Module):
    """B = T at the first call, and T = D at another."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = f[:, t] * h + v[:, t]
            out[:, t] = h
        return out


@ENTRIES.add(btd(8), schedule=(At(8, 8), At(2, 23), At(8, 12), At(3, 8), At(1, 9)))
class EqualSizesWidth(nn.Module):
    """B = T = D = 8 at the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.gates = nn.Parameter(0.2 * torch.randn(8, 8)), Gates(8)

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        m, h, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            m = m @ self.A + x[:, t]
            h = f[:, t] * h + v[:, t] + m
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), schedule=(At(1, 30), At(1, 12), At(4, 30), At(2, 7)))
class FirstBatchOfOne(nn.Module):
    """B = 1 at the first call must not be taken for a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[0], D), []
        for x_t in x.unbind(1):
            h = self.a * h + x_t
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), schedule=(At(2, 0), At(2, 1), At(2, 3), At(2, 6), At(3, 40), At(1, 11)))
class FirstCallIsShort(nn.Module):
    """No step at all at first, then one, then more; the plan is wanted from there on."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, out = x.new_zeros(x.shape[0], D), torch.zeros_like(x)
        for t in range(x.shape[1]):
            h = f[:, t] * h + v[:, t]
            out[:, t] = h
        return out


def queries(batch: int, length: int) -> Call:
    """Keyword arguments, one of them time-first, one without time, one no tensor."""
    return Call(
        (torch.randn(batch, length, D),),
        {"delta": torch.rand(length, batch, D), "scale": torch.rand(D), "reverse": False, "name": "first"},
    )


@ENTRIES.add(queries)
class KeywordArguments(nn.Module):
    def forward(self, x: Tensor, *, delta: Tensor, scale: Tensor, reverse: bool, name: str) -> OrderedDict[str, Tensor]:
        h, ys = torch.zeros_like(x[:, 0]), []
        steps = range(x.shape[1])
        for t in reversed(steps) if reverse else steps:
            h = torch.exp(-delta[t]) * h + scale * x[:, t]
            ys.append(h)
        return OrderedDict([(name, torch.stack(ys, 1)), ("last", h)])


@dataclass
class Result:
    """What a library's model returns."""

    states: Tensor
    last: Tensor | None = None


@ENTRIES.add(btd(D))
class DataclassOut(nn.Module):
    """Defined here, unknown to pytree."""

    def __init__(self) -> None:
        super().__init__()
        self.mixer = self.Mixer()

    class Mixer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gates = Gates()

        def forward(self, x: Tensor) -> Result:
            f, v = self.gates(x)
            h, ys = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = f[:, t] * h + v[:, t]
                ys.append(h)
            return Result(torch.stack(ys, 1), h)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        result = self.mixer(x)
        return result.states * 2, result.last


@ENTRIES.add(btd(D))
class MixedOutputs(nn.Module):
    """Tensors, None, a string, a number, the input itself, nested."""

    def forward(self, x: Tensor) -> tuple[object, ...]:
        h, ys = torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            h = 0.5 * h + x_t
            ys.append(h)
        return torch.stack(ys, 1), None, {"kind": "ema", "width": D, "x": x}, [h, (h, x[:, -1])]


@ENTRIES.add(btd(D), "any")
class ListOut(nn.Module):
    """The list of outputs itself, T tensors."""

    def forward(self, x: Tensor) -> list[Tensor]:
        h, ys = torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            h = 0.5 * h + x_t
            ys.append(h)
        return ys


@ENTRIES.add(btd(D))
class LoopInTheMiddle(nn.Module):
    """A convolution over time and attention around the loop: T is everywhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gates, self.qkv = nn.Conv1d(D, D, 3, padding=2), Gates(), nn.Linear(D, 3 * D)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        x = self.conv(x.transpose(1, 2))[..., :length].transpose(1, 2)
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(length):
            h = f[:, t] * h + v[:, t]
            ys.append(h)
        q, k, v = self.qkv(torch.stack(ys, 1)).chunk(3, -1)
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)
        return torch.softmax(q @ k.mT / D**0.5 + mask, -1) @ v + x


def ragged_time(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """Two sequences of different lengths: the loop is over the first, the second is only averaged."""
    return torch.randn(length, batch, D), torch.randn(batch, length + 5, D)


@ENTRIES.add(ragged_time)
class TwoSequences(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        h, ys = torch.tanh(context.mean(1)), []
        for x_t in x:
            h = self.a * h + x_t
            ys.append(h)
        return torch.stack(ys)


@ENTRIES.add(tbd(D), dtype=torch.complex128)
class ComplexInput(nn.Module):
    """A complex series in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.tensor([0.5 + 0.5j, -0.3j, 0.9 + 0.1j, 1j]))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[0]), []
        for x_t in x:
            h = self.pole * h + x_t
            ys.append(h)
        return torch.stack(ys)


@ENTRIES.add(btd(D), "any")
class ComplexAsTwoReals(nn.Module):
    """A rotation of two real states: affine, a block of two."""

    def __init__(self) -> None:
        super().__init__()
        self.angle, self.decay = nn.Parameter(torch.randn(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        re, im, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        cos, sin = self.decay * torch.cos(self.angle), self.decay * torch.sin(self.angle)
        for x_t in x.unbind(1):
            re, im = cos * re - sin * im + x_t, sin * re + cos * im
            ys.append(re)
        return torch.stack(ys, 1), im
