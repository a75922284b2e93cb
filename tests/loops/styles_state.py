"""Where the state lives: variable, tuple, list, dict, dataclass, attribute, None at first, the output buffer, in
place, a parameter, an argument.
"""

from __future__ import annotations

from collections import deque, namedtuple
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import At, Call, Table, btd

ENTRIES = Table()
D = 4


class Gates(nn.Module):
    """A forget gate and an input for each step, `(B, T, D)` both."""

    def __init__(self, width: int = D) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gate, value = self.proj(x).chunk(2, -1)
        gate = gate.sigmoid()
        return gate, (1 - gate) * value


@ENTRIES.add(btd(D))
class StateInTuple(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]))
        out = []
        for t in range(x.shape[1]):
            s, u = state
            s = self.a * s + x[:, t]
            state = (s, self.b * u + s)
            out.append(state[1])
        return torch.stack(out, 1), state


@ENTRIES.add(btd(D))
class StateInList(nn.Module):
    """One slot of a list for each layer, stepped in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Gates() for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(x.shape[0], D) for _ in self.layers]
        out = []
        for t in range(x.shape[1]):
            y = x[:, t]
            for i, layer in enumerate(self.layers):
                f, v = layer(y)
                states[i] = f * states[i] + v
                y = torch.tanh(states[i]) + y
            out.append(y)
        return torch.stack(out, 1)


@ENTRIES.add(btd(D))
class StateInDict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        f, v = self.gates(x)
        cache = {"h": torch.zeros_like(x[:, 0]), "norm": torch.ones_like(x[:, 0])}
        ys = []
        for t in range(x.shape[1]):
            cache["h"] = f[:, t] * cache["h"] + v[:, t]
            cache["norm"] = 0.5 * cache["norm"] + 0.5 * f[:, t]
            ys.append(cache["h"] / (1 + cache["norm"]))
        return {"ys": torch.stack(ys, 1), **cache}


@dataclass
class Cache:
    """A recurrent layer's state, replaced at each step."""

    h: Tensor
    last: Tensor


@ENTRIES.add(btd(D))
class StateInDataclass(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f, v = self.gates(x)
        cache = Cache(torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]))
        ys = []
        for t in range(x.shape[1]):
            cache = replace(cache, h=f[:, t] * cache.h + v[:, t] + 0.1 * cache.last, last=x[:, t])
            ys.append(cache.h)
        return torch.stack(ys, 1), cache.last


Pair = namedtuple("Pair", ["fast", "slow"])


@ENTRIES.add(btd(D))
class StateInNamedTuple(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Pair]:
        pair = Pair(x.new_zeros(x.shape[0], D), x.new_zeros(x.shape[0], D))
        ys = []
        for x_t in x.unbind(1):
            pair = Pair(fast=0.5 * pair.fast + x_t, slow=0.99 * pair.slow + 0.01 * x_t)
            ys.append(pair.fast - pair.slow)
        return torch.stack(ys, 1), pair


@ENTRIES.add(btd(D))
class StateInAttribute(nn.Module):
    """Reset at the start of forward; what is left after it is read by others, with its gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()
        self.h = None

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        self.h = torch.zeros_like(x[:, 0])
        ys = []
        for t in range(x.shape[1]):
            self.h = f[:, t] * self.h + v[:, t]
            ys.append(self.h)
        return torch.stack(ys, 1)


class Leaky(nn.Module):
    """A stateful neuron, as spiking libraries write it."""

    def __init__(self) -> None:
        super().__init__()
        self.beta = nn.Parameter(torch.tensor(0.8))
        self.mem = None

    def reset(self) -> None:
        self.mem = None

    def forward(self, x_t: Tensor) -> Tensor:
        self.mem = x_t if self.mem is None else self.beta * self.mem + x_t
        return self.mem


@ENTRIES.add(btd(D))
class StateInSubmodules(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.second = Leaky(), nn.Linear(D, D), Leaky()

    def forward(self, x: Tensor) -> Tensor:
        self.first.reset()
        self.second.reset()
        ys = [self.second(self.mix(self.first(x[:, t]))) for t in range(x.shape[1])]
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class StateNoneAtFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def step(self, f: Tensor, v: Tensor, h: Tensor | None) -> Tensor:
        return v if h is None else f * h + v

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = None, []
        for t in range(x.shape[1]):
            h = self.step(f[:, t], v[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class StateZeroInteger(nn.Module):
    """`h = 0` at first, a tensor from the first step on."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = 0, []
        for t in range(x.shape[1]):
            h = 0.7 * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class BufferIsState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[:, 0] = x[:, 0]
        for t in range(1, x.shape[1]):
            out[:, t] = self.a * out[:, t - 1] + x[:, t]
        return out


@ENTRIES.add(btd(D))
class BufferIsStateInPlace(nn.Module):
    """The input's copy is updated where it stands, reading its own previous row."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h = v.clone()
        for t in range(1, x.shape[1]):
            h[:, t] += f[:, t].detach() * h[:, t - 1].clone()
        return h


@ENTRIES.add(btd(D))
class BufferOneLonger(nn.Module):
    """A buffer of T + 1 rows whose first is the initial state."""

    def __init__(self) -> None:
        super().__init__()
        self.h0, self.a = nn.Parameter(torch.randn(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        states = x.new_zeros(x.shape[0], x.shape[1] + 1, D)
        states[:, 0] = self.h0
        for t in range(x.shape[1]):
            states[:, t + 1] = self.a * states[:, t].clone() + x[:, t]
        return states[:, 1:]


@ENTRIES.add(btd(D))
class HistoryList(nn.Module):
    """The list of outputs is also the memory."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        hist = [torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1]):
            hist.append(f[:, t] * hist[-1] + v[:, t])
        return torch.stack(hist[1:], 1)


@ENTRIES.add(btd(D), "any")
class HistoryTwoBack(nn.Module):
    """AR(2) through a list."""

    def __init__(self) -> None:
        super().__init__()
        self.p, self.q = nn.Parameter(torch.rand(D)), nn.Parameter(0.3 * torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        hist = [torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1]):
            hist.append(self.p * hist[-1] - self.q * hist[-2] + x[:, t])
        return torch.stack(hist[2:], 1)


@ENTRIES.add(btd(D), "any")
class HistoryDeque(nn.Module):
    """The same through a queue that forgets."""

    def forward(self, x: Tensor) -> Tensor:
        past = deque([x.new_zeros(x.shape[0], D)] * 2, maxlen=2)
        ys = []
        for x_t in x.unbind(1):
            past.append(0.5 * past[1] - 0.3 * past[0] + x_t)
            ys.append(past[-1])
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class InPlaceMulAdd(nn.Module):
    """`mul_` and `add_` on one tensor, cloned when it is stored; the gates need no gradient of what was overwritten."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("a", torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        ys = []
        for t in range(x.shape[1]):
            h.mul_(self.a).add_(x[:, t])
            ys.append(h.clone())
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class AugmentedAssignment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        total = x.new_zeros(x.shape[0], D)
        ys = []
        for t in range(x.shape[1]):
            h *= 0.8
            h += self.mix(x[:, t])
            total = total + h
            ys.append(total / 3)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class InPlaceIntoRows(nn.Module):
    """Two channels of one state tensor written separately."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 2, D)
        ys = []
        for t in range(x.shape[1]):
            h = h.clone()
            h[:, 0] = 0.9 * h[:, 0] + x[:, t]
            h[:, 1] = 0.5 * h[:, 1] + 0.5 * x[:, t]
            ys.append(h.flatten(1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class InitialFromParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h0, self.gates = nn.Parameter(torch.randn(D)), Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = self.h0.expand(x.shape[0], -1), []
        for t in range(x.shape[1]):
            h = f[:, t] * h + v[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class InitialFromInput(nn.Module):
    """The first state is a function of the whole sequence, so not of the first step alone."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.a = nn.Linear(D, D), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.tanh(self.start(x.mean(1))), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


def maybe_state(batch: int, length: int) -> Call:
    """With an initial state at even batch sizes, without at odd ones."""
    kwargs = {"h0": torch.randn(batch, D)} if batch % 2 == 0 else {}
    return Call((torch.randn(batch, length, D),), kwargs)


@ENTRIES.add(maybe_state, schedule=(At(2, 12), At(3, 14), At(4, 23), At(1, 9), At(2, 3), At(5, 30)))
class InitialOptional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor, h0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        f, v = self.gates(x)
        h = torch.zeros_like(x[:, 0]) if h0 is None else h0
        ys = []
        for t in range(x.shape[1]):
            h = f[:, t] * h + v[:, t]
            ys.append(h)
        return torch.stack(ys, 1), h


@ENTRIES.add(lambda batch, length: (torch.randn(batch, length, D), (torch.randn(batch, D), torch.randn(batch, D))))
class InitialTuple(nn.Module):
    """`(output, state)` out for `(input, state)` in, as torch's own recurrent layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        ys = []
        for x_t in x.unbind(1):
            state = (self.a * state[0] + x_t, 0.3 * state[1] - x_t)
            ys.append(torch.cat(state, -1))
        return torch.stack(ys, 1), state


@ENTRIES.add(btd(D))
class PackedState(nn.Module):
    """Two states in one tensor, cut and joined at each step."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        packed, ys = x.new_zeros(x.shape[0], 2 * D), []
        for t in range(x.shape[1]):
            s, u = packed.chunk(2, dim=-1)
            s = self.a * s + x[:, t]
            u = self.b * u + s
            packed = torch.cat([s, u], dim=-1)
            ys.append(u)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class LastStateOnly(nn.Module):
    """A dense memory of which only the end is read."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B, self.head = nn.Parameter(0.4 * torch.randn(6, 6)), nn.Linear(D, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        m = torch.zeros(x.size(0), 6, device=x.device, dtype=x.dtype)
        for t in range(x.size(1)):
            m = F.linear(m, self.A) + self.B(x[:, t])
        return self.head(m)


@ENTRIES.add(btd(D))
class StateThroughView(nn.Module):
    """The state is `(B, D)`, updated as `(B, 2, D / 2)`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(2, D // 2))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            h = (self.a * h.view(-1, 2, D // 2)).reshape(-1, D) + x_t
            ys.append(h)
        return torch.stack(ys, 1)
