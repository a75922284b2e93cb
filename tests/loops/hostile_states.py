"""State updates that are not affine in the state, some of them nearly so; and other recurrences over several states
that are easily confused.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Table, btd
from .styles_state import D, Gates

ENTRIES = Table()


class Loop(nn.Module):
    """`h = update(h, x_t)` with a weight, a bias, gates and a decay at hand; every state is an output."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.gates, self.a = nn.Linear(D, D), Gates(), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(h, x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        """`(B, D)` both."""
        raise NotImplementedError


@ENTRIES.add(btd(D), "sequential", obstruction="torch.tanh")
class Elman(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.w(h) + x)


@ENTRIES.add(btd(D), "sequential", obstruction="self.cell(")
class Gru(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[0], 3), []
        for x_t in x.unbind(1):
            h = self.cell(x_t, h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential", obstruction="")
class Lstm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(D + 3, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, c, ys = x.new_zeros(x.shape[0], 3), x.new_zeros(x.shape[0], 3), []
        for x_t in x.unbind(1):
            i, f, g, o = self.proj(torch.cat([x_t, h], -1)).chunk(4, -1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            ys.append(h)
        return torch.stack(ys, 1), (h, c)


@ENTRIES.add(btd(D), "sequential", obstruction="torch.tanh")
class CoupledLmu(nn.Module):
    """The LMU of 2019: h -> u -> m -> h."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", 0.3 * torch.randn(3, 3))
        self.register_buffer("b", torch.randn(3))
        self.ex, self.eh, self.em = nn.Linear(D, 1), nn.Linear(D, 1), nn.Linear(3, 1)
        self.wx, self.wh, self.wm = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(3, D)

    def forward(self, x: Tensor) -> Tensor:
        h, m, ys = torch.zeros_like(x[:, 0]), x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            u = self.ex(x[:, t]) + self.eh(h) + self.em(m)
            m = m @ self.A.T + u * self.b
            h = torch.tanh(self.wx(x[:, t]) + self.wh(h) + self.wm(m))
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential", obstruction="clamp")
class Clamped(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return (self.a * h + x).clamp(-1.0, 1.0)


@ENTRIES.add(btd(D), "sequential", obstruction="relu")
class Rectified(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return F.relu(self.a * h + x)


@ENTRIES.add(btd(D), "sequential")
class Normalised(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        h = self.a * h + x
        return h / h.norm(dim=-1, keepdim=True).clamp_min(1e-6)


@ENTRIES.add(btd(D), "sequential")
class LayerNormalised(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return F.layer_norm(self.a * h + x, (D,))


@ENTRIES.add(btd(D), "sequential")
class Softmaxed(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.softmax(self.w(h) + x, -1)


@ENTRIES.add(btd(D), "sequential")
class Rounded(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.round(0.9 * h + x, decimals=1)


@ENTRIES.add(btd(D), "sequential", rtol=1e-6)
class StraightThrough(Loop):
    """Rounds forward, is the identity backward: affine for gradients only."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        h = self.a * h + x
        return h + ((h * 8).round() / 8 - h).detach()


@ENTRIES.add(btd(D), "sequential")
class HalfPrecisionRoundTrip(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h.half().to(x.dtype) + x


@ENTRIES.add(btd(D), "sequential")
class SinglePrecisionState(nn.Module):
    """The state is stored in float32 at each step and promoted to float64 when it is read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros(x.shape[0], D, dtype=torch.float32), []
        for t in range(x.shape[1]):
            new = self.a * h + x[:, t]
            h = new.float()
            ys.append(new)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", rtol=1e-6)
class SinglePrecisionBuffer(nn.Module):
    """Only what is stored is rounded; and the buffer's dtype is what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), torch.zeros(x.shape, dtype=torch.float32)
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            out[:, t] = h
        return out


@ENTRIES.add(btd(D), "sequential")
class StateIsInteger(nn.Module):
    """A counter in integers, with a division that truncates."""

    def forward(self, x: Tensor) -> Tensor:
        count, ys = torch.zeros(x.shape[0], D, dtype=torch.long), []
        for t in range(x.shape[1]):
            count = (count * 3) // 2 + (x[:, t] > 0).long()
            ys.append(count)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class StateIsCount(nn.Module):
    """Affine over integers: what comes out must stay int64."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        count, ys = torch.zeros(x.shape[0], D, dtype=torch.long), []
        for t in range(x.shape[1]):
            count = count + (x[:, t] > 0)
            ys.append(x[:, t] / count.clamp(min=1))
        return torch.stack(ys, 1), count


@ENTRIES.add(btd(D), "any")
class StateIsBool(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen, ys = torch.zeros(x.shape[0], D, dtype=torch.bool), []
        for t in range(x.shape[1]):
            seen = seen | (x[:, t] > 1)
            ys.append(x[:, t].masked_fill(seen, 0.0))
        return torch.stack(ys, 1), seen


@ENTRIES.add(btd(D), "any")
class StateIsIntegerDecayed(nn.Module):
    """int64 times a float is a float from the second step on."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros(x.shape[0], D, dtype=torch.long), []
        for t in range(x.shape[1]):
            h = h * 0.5 + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential", obstruction="torch.sigmoid")
class GateReadsState(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        z = torch.sigmoid(self.w(h) + x)
        return (1 - z) * h + z * x


@ENTRIES.add(btd(D), "sequential", obstruction="torch.sigmoid")
class GateReadsOtherState(nn.Module):
    """Two states, each affine in itself, each gated by the other."""

    def forward(self, x: Tensor) -> Tensor:
        g, h, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            g, h = torch.sigmoid(h) * g + x_t, 0.9 * h + 0.1 * g
            ys.append(torch.cat([g, h], -1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential")
class Squared(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h - 0.1 * h * h + 0.1 * x


@ENTRIES.add(btd(D), "sequential")
class SquareOfSum(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.1 * (h + x).pow(2)


@ENTRIES.add(btd(D), "any")
class ProductOfTwoStates(nn.Module):
    """A decay that is itself a state: affine once the first is solved."""

    def forward(self, x: Tensor) -> Tensor:
        decay, h, ys = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            decay = 0.9 * decay + 0.1 * torch.sigmoid(x_t)
            h = decay * h + x_t
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential")
class ProductOfTwoStatesCoupled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        g, h, ys = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            g, h = 0.9 * g + 0.01 * h, 0.3 * g * h + x_t
            ys.append(g * h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential", obstruction="abs")
class Absolute(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h.abs() + x


@ENTRIES.add(btd(D), "sequential")
class LeakySlope(Loop):
    """`where` on the state's own sign."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.where(h > 0, h, 0.1 * h) * self.a + x


@ENTRIES.add(btd(D), "sequential")
class SpikeAndReset(nn.Module):
    """A leaky neuron with a threshold."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        v, spikes = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v = 0.9 * v + x[:, t]
            spike = (v > 1.0).to(v.dtype)
            v = v * (1 - spike)
            spikes.append(spike)
        return torch.stack(spikes, 1), v


@ENTRIES.add(btd(D), "sequential")
class PhaseWraps(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return (h + self.a * x) % 1.0


@ENTRIES.add(btd(D), "sequential")
class Sorted(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.sort(0.5 * h + x, dim=-1).values


@ENTRIES.add(btd(D), "any")
class RunningMaximum(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return torch.maximum(0.9 * h, x)


@ENTRIES.add(btd(D), "any")
class RunningArgmax(nn.Module):
    """Values, and where they were."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        best, place = x[:, 0], torch.zeros(x.shape[0], D, dtype=torch.long)
        for t in range(1, x.shape[1]):
            place = torch.where(x[:, t] > best, t, place)
            best = torch.maximum(best, x[:, t])
        return best, place


@ENTRIES.add(btd(D), "any")
class MeanOverBatchOfState(Loop):
    """Affine, but it mixes the batch: the same at every batch size only if the size is not a constant."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.5 * h + 0.3 * h.mean(0, keepdim=True) + x / x.shape[0]


@ENTRIES.add(btd(D), "any", carries_over=True)
class BatchNormalisedState(Loop):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.norm(self.a * h + x)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, -2 * x + 1]))
