"""Loops with side effects: randomness, buffers and counters, hooks, aliasing and in-place writes, things changed
between two calls.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from .entry import At, Table, btd
from .styles_calls import GatedCell
from .styles_state import D, Gates

ENTRIES = Table()


class Counting(nn.Module):
    """A gated loop with one place for something to happen at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.gates, self.w = Gates(), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + self.drive(v[:, t])
            ys.append(self.read(h))
        return torch.stack(ys, 1)

    def drive(self, v: Tensor) -> Tensor:
        """`(B, D)` in and out."""
        return v

    def read(self, h: Tensor) -> Tensor:
        """`(B, D)` in and out."""
        return h


@ENTRIES.add(btd(D), "any")
class DropoutInside(Counting):
    def drive(self, v: Tensor) -> Tensor:
        return F.dropout(v, 0.3, self.training)


@ENTRIES.add(btd(D), "any")
class DropoutOnState(Counting):
    def read(self, h: Tensor) -> Tensor:
        return F.dropout(h, 0.5, self.training)


@ENTRIES.add(btd(D), "any")
class NoiseInside(Counting):
    def drive(self, v: Tensor) -> Tensor:
        return v + 0.1 * torch.randn_like(v)


@ENTRIES.add(btd(D), "any")
class NoiseTwice(Counting):
    """Two draws at each step, one of them for the readout: their order matters."""

    def drive(self, v: Tensor) -> Tensor:
        return v * torch.bernoulli(torch.full_like(v, 0.7))

    def read(self, h: Tensor) -> Tensor:
        return h + torch.rand(h.shape, dtype=h.dtype)


@ENTRIES.add(btd(D), "any")
class Zoneout(nn.Module):
    """A random mask on the state."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            keep = torch.rand_like(h) < 0.2
            h = torch.where(keep, h, f[:, t] * h + v[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class DropoutOutside(nn.Module):
    """One mask for all steps, drawn before the loop, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.drop = GatedCell(), nn.Dropout(0.4)

    def forward(self, x: Tensor) -> Tensor:
        mask = self.drop(torch.ones_like(x[:, 0]))
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t] * mask, h)
            ys.append(h)
        return self.drop(torch.stack(ys, 1))


@ENTRIES.add(btd(D), "any")
class RandomInitialState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = GatedCell()

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.randn(x.shape[0], D, dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", carries_over=True)
class CountsSteps(Counting):
    """A Python integer."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def drive(self, v: Tensor) -> Tensor:
        self.count += 1
        return v


@ENTRIES.add(btd(D), "any", carries_over=True)
class CountsCalls(Counting):
    """Once for each forward, and the count is used."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) / self.calls


@ENTRIES.add(btd(D), "any", carries_over=True)
class CountsInBuffer(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def drive(self, v: Tensor) -> Tensor:
        self.count += 1
        return v


@ENTRIES.add(btd(D), "any", carries_over=True)
class RunningStatistics(Counting):
    """A buffer that is averaged at each step and used by it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(D))

    def drive(self, v: Tensor) -> Tensor:
        if self.training:
            self.mean.lerp_(v.detach().mean(0), 0.1)
        return v - self.mean


@ENTRIES.add(btd(D), "any", carries_over=True)
class RunningStatisticsReplaced(Counting):
    """The buffer is assigned anew."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(D))

    def read(self, h: Tensor) -> Tensor:
        self.scale = 0.9 * self.scale + 0.1 * h.detach().abs().mean(0)
        return h / self.scale


@ENTRIES.add(btd(D), "any", carries_over=True, schedule=(At(2, 12), At(3, 23), At(4, 9), At(2, 3)))
class BatchNormInside(Counting):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def drive(self, v: Tensor) -> Tensor:
        return self.norm(v)


@ENTRIES.add(btd(D), "any", carries_over=True, schedule=(At(2, 12), At(3, 23), At(4, 9), At(2, 3)))
class BatchNormBefore(nn.Module):
    """Outside the loop, once for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.cell = nn.BatchNorm1d(D), GatedCell()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", carries_over=True)
class StateKeptBetweenCalls(nn.Module):
    """Stateful training: the last state, detached, starts the next call of the same batch size."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.h = GatedCell(), None

    def forward(self, x: Tensor) -> Tensor:
        h = self.h if self.h is not None and self.h.shape[0] == x.shape[0] else torch.zeros_like(x[:, 0])
        ys = []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        self.h = h.detach()
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", carries_over=True)
class LogsValues(Counting):
    """`item()` in the step, kept in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[float] = []

    def read(self, h: Tensor) -> Tensor:
        self.log.append(float(h.detach().mean()))
        return h


@ENTRIES.add(btd(D), "any", carries_over=True)
class KeepsIntermediates(Counting):
    """A list of tensors as an attribute, cleared at the start."""

    def forward(self, x: Tensor) -> Tensor:
        self.kept: list[Tensor] = []
        self.inner = {"first": x[:, 0] * 2}
        return super().forward(x)

    def read(self, h: Tensor) -> Tensor:
        self.kept.append(torch.tanh(h))
        return h


class Hooked(nn.Module):
    """A cell with hooks of its own, put there by somebody else."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.calls = GatedCell(), 0

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", carries_over=True)
class ForwardHookCounts(Hooked):
    def __init__(self) -> None:
        super().__init__()
        self.cell.gate.register_forward_hook(self.count)

    def count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.calls += 1


@ENTRIES.add(btd(D), "any")
class ForwardHookReplaces(Hooked):
    """The hook rewrites the cell's output."""

    def __init__(self) -> None:
        super().__init__()
        self.cell.register_forward_hook(lambda module, args, output: output * 0.5)


@ENTRIES.add(btd(D), "any")
class ForwardPreHookReplaces(Hooked):
    def __init__(self) -> None:
        super().__init__()
        self.cell.register_forward_pre_hook(lambda module, args: (args[0] + 1, args[1]))


@ENTRIES.add(btd(D), "any")
class BackwardHookReplaces(Hooked):
    def __init__(self) -> None:
        super().__init__()
        self.cell.value.register_full_backward_hook(lambda module, inputs, outputs: (inputs[0] * 2,))


@ENTRIES.add(btd(D), "any")
class ParameterHook(Hooked):
    """A hook on a parameter sees its whole gradient, once."""

    def __init__(self) -> None:
        super().__init__()
        self.cell.value.weight.register_hook(lambda gradient: gradient.clamp(-0.1, 0.1))


def later(action: Any) -> Any:
    """Something done to the module before the second, third and fourth call."""
    return (At(2, 12), At(3, 23, before=action), At(1, 9, before=action), At(2, 30, before=action), At(2, 3))


def count_calls(module: Hooked) -> None:
    """One hook more on the cell, which only counts."""
    module.cell.register_forward_hook(lambda cell, args, output: setattr(module, "calls", module.calls + 1))


def shift_gate(module: Hooked) -> None:
    """One hook more inside the cell, which changes what it gives."""
    module.cell.gate.register_forward_hook(lambda gate, args, output: output + 1)


ENTRIES.put(
    "hook-added-later-counts", Hooked, btd(D), "any", file=__file__, schedule=later(count_calls), carries_over=True
)
ENTRIES.put("hook-added-later-replaces", Hooked, btd(D), "any", file=__file__, schedule=later(shift_gate))


@ENTRIES.add(btd(D), "any")
class WeightNormInside(nn.Module):
    """A parametrised weight, computed anew at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = GatedCell()
        parametrizations.weight_norm(self.cell.value)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class StableDecayParametrised(nn.Module):
    """`a` is a property of a parametrisation, read at each step."""

    class Stable(nn.Module):
        def forward(self, raw: Tensor) -> Tensor:
            return torch.sigmoid(raw)

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(D))
        parametrize.register_parametrization(self, "a", self.Stable())

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", carries_over=True)
class SpectralNormInside(nn.Module):
    """Each read of the weight moves a buffer: T power iterations a call."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = parametrizations.spectral_norm(nn.Linear(D, D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + self.w(x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


class Closure(nn.Module):
    """A tensor that is no parameter and no buffer, held by a closure."""

    def __init__(self) -> None:
        super().__init__()
        decay = torch.rand(D, dtype=torch.float64).requires_grad_()
        self.captured = [decay]
        self.update = lambda h, x_t: decay * h + x_t

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(h, x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


def grow_captured(module: Closure) -> None:
    """In place, as an optimiser would."""
    with torch.no_grad():
        module.captured[0].mul_(0.7)


ENTRIES.put("closure-over-tensor", Closure, btd(D), "any", file=__file__)
ENTRIES.put("closure-changed-later", Closure, btd(D), "any", file=__file__, schedule=later(grow_captured))
