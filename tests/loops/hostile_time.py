"""Loops that are not the same at every step or every length: branches on t, early stops, strides, lags, floats and
shapes that follow T.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .entry import At, Table, btd
from .styles_state import D

ENTRIES = Table()
LONG = (At(2, 12), At(3, 23), At(1, 60), At(2, 110), At(2, 9), At(2, 3), At(2, 1), At(3, 55))
"""Well beyond what is traced, up and then down again."""


class Decaying(nn.Module):
    """`h = a(t) h + x`; subclasses say what depends on t."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(h, x[:, t], t, x.shape[1])
            ys.append(h)
        return torch.stack(ys, 1)

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        """`(B, D)` both."""
        raise NotImplementedError


@ENTRIES.add(btd(D), "any")
class BranchAtThree(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + (self.b if t == 3 else x)


@ENTRIES.add(btd(D), "any")
class BranchAtZero(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.b * x if t == 0 else self.a * h + x


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BranchFromFifty(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return (self.b if t >= 50 else self.a) * h + x


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BranchAtHundredExactly(Decaying):
    """The same operators either way: only a value tells."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * (5.0 if t == 100 else 1.0)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class ParameterSwitchesLate(Decaying):
    """The same operators and the same values up to a sign that only gradients and outputs after t = 40 see."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * (self.a if t < 40 else self.b)


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(3, 23), At(1, 60)))
class GradientSwitchesLate(Decaying):
    """The forward values never change; after t = 30 the input's gradient stops."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + (x if t < 30 else x.detach())


@ENTRIES.add(btd(D), "any")
class BranchOnParity(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x if t % 2 else self.b * h - x


@ENTRIES.add(btd(D), "any")
class BranchOnParityOfInput(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + (x if t % 2 else self.b)


@ENTRIES.add(btd(D), "any")
class BranchAtLast(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        h = self.a * h + x
        return torch.tanh(h) if t == length - 1 else h


@ENTRIES.add(btd(D), "any")
class BranchAtHalf(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return (self.a if t < length // 2 else self.b) * h + x


@ENTRIES.add(btd(D), "any", schedule=LONG)
class ResetEverySixteen(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        if t and t % 16 == 0:
            h = torch.zeros_like(h)
        return self.a * h + x


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BranchOnLength(Decaying):
    """Another recurrence altogether for long inputs."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return torch.tanh(self.a * h + x) if length > 20 else self.a * h + x


@ENTRIES.add(btd(D), "any")
class DividedByLength(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x / length


@ENTRIES.add(btd(D), "any")
class FloatOfLength(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return (1 - 1.0 / length) * h + x / math.sqrt(length)


@ENTRIES.add(btd(D), "any")
class FractionOfTime(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return (t / length) * h + x


@ENTRIES.add(btd(D), "any")
class PowerOfRemainingTime(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * 0.9 ** (length - t)


@ENTRIES.add(btd(D), "any")
class SquareOfTime(Decaying):
    """1, 4, 9: consecutive differences that are not constant."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * (t * t) / 100


@ENTRIES.add(btd(D), "any")
class SineOfTime(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * math.sin(t)


@ENTRIES.add(btd(D), "any")
class FloorOfTime(Decaying):
    """Constant for four steps, then one more."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x * (t // 4)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class SaturatingTime(Decaying):
    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        return self.a * h + x / min(t + 1, 15)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class TableOfCoefficients(Decaying):
    """A Python list in turn, of a period longer than what is traced."""

    def update(self, h: Tensor, x: Tensor, t: int, length: int) -> Tensor:
        coefficients = [0.9] * 20 + [0.1] * 3
        return coefficients[t % len(coefficients)] * h + x
