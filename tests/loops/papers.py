"""Recurrences as many hands write them: attention, filters, physics, reinforcement learning, statistics, each in the
layout and style of its field.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import At, Table, btd, tbd

ENTRIES = Table()
SCHEDULE = (At(2, 17), At(3, 33), At(2, 64), At(2, 3))


def add(*args: object, **options: object) -> object:
    """`Table.add` under the schedule of this file."""
    return ENTRIES.add(*args, **{"schedule": SCHEDULE} | options)  # type: ignore[arg-type]


@add(btd(8))
class Retention(nn.Module):
    """Projections, heads and a group norm inside the time loop; one fixed decay a head."""

    def __init__(self, width: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.norm = nn.Linear(width, 3 * width, bias=False), nn.GroupNorm(heads, width)
        self.register_buffer("gamma", 1 - torch.exp(torch.linspace(math.log(1 / 32), math.log(1 / 512), heads)))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        memory, out = x.new_zeros(batch, self.heads, width // self.heads, width // self.heads), []
        for t in range(length):
            q, k, v = (z.reshape(batch, self.heads, -1) for z in self.qkv(x[:, t, :]).split(width, dim=-1))
            memory = self.gamma[None, :, None, None] * memory + k.unsqueeze(-1) @ v.unsqueeze(-2)
            out.append(self.norm((q.unsqueeze(-2) @ memory).squeeze(-2).reshape(batch, width)))
        return torch.stack(out, dim=1)


def heads_of(batch: int, length: int) -> tuple[Tensor, ...]:
    """Queries, keys (B, T, 2, 4), values (B, T, 2, 3), step sizes and log decays (B, T, 2)."""
    wide = tuple(torch.randn(batch, length, 2, d) for d in (4, 4, 3))
    return (*wide, torch.rand(batch, length, 2), -torch.rand(batch, length, 2))


@add(heads_of)
class GatedDelta(nn.Module):
    """The error first, then the update, all by einsum."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
        k = F.normalize(k, dim=-1)
        memory, out = v.new_zeros(k.shape[0], 2, 4, 3), []
        for q_t, k_t, v_t, b_t, g_t in zip(*(z.unbind(1) for z in (q, k, v, beta, g)), strict=True):
            memory = memory * g_t.exp()[..., None, None]
            error = v_t - torch.einsum("bhk,bhkv->bhv", k_t, memory)
            memory = memory + torch.einsum("bhk,bhv,bh->bhkv", k_t, error, b_t)
            out.append(torch.einsum("bhk,bhkv->bhv", q_t, memory))
        return torch.stack(out, 1), memory


class Modes(NamedTuple):
    """A complex state as two real ones."""

    re: Tensor
    im: Tensor


@add(tbd(4))
class LinearUnitInReals(nn.Module):
    """Time first, polar parameters computed in every step."""

    def __init__(self, width: int = 4, modes: int = 3) -> None:
        super().__init__()
        self.nu, self.theta = nn.Parameter(torch.rand(modes)), nn.Parameter(torch.rand(modes))
        self.read_in, self.read_out = nn.Linear(width, 2 * modes), nn.Linear(2 * modes, width)

    def cell(self, u: Tensor, s: Modes) -> tuple[Tensor, Modes]:
        radius = torch.exp(-torch.exp(self.nu))
        a, b = radius * torch.cos(self.theta), radius * torch.sin(self.theta)
        re, im = self.read_in(u).chunk(2, -1)
        s = Modes(a * s.re - b * s.im + re, a * s.im + b * s.re + im)
        return self.read_out(torch.cat(s, -1)), s

    def forward(self, x: Tensor) -> tuple[Tensor, Modes]:
        s, ys = Modes(x.new_zeros(x.size(1), 3), x.new_zeros(x.size(1), 3)), []
        for u in x:
            y, s = self.cell(u, s)
            ys.append(y)
        return torch.stack(ys), s


class Direction(nn.Module):
    """A minimal gated unit, in either direction, from a learned state."""

    def __init__(self, width: int, backwards: bool) -> None:
        super().__init__()
        self.z, self.c, self.backwards = nn.Linear(width, width), nn.Linear(width, width), backwards
        self.h0 = nn.Parameter(torch.randn(1, width))

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.h0.expand(x.size(0), -1), [x[:, 0]] * x.size(1)
        for t in range(x.size(1) - 1, -1, -1) if self.backwards else range(x.size(1)):
            h = torch.lerp(h, self.c(x[:, t]), torch.sigmoid(self.z(x[:, t])))
            out[t] = h
        return torch.stack(out, dim=1)


@add(btd(4))
class BothDirections(nn.Module):
    """Two layers, both directions, layer norm before and the residual after."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        pair = [nn.ModuleList([Direction(width, False), Direction(width, True)]) for _ in range(2)]
        self.layers, self.mix = nn.ModuleList(pair), nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        for (ahead, back), mix in zip(self.layers, self.mix, strict=True):  # type: ignore[misc]
            y = self.norm(x)
            x = x + mix(torch.cat([ahead(y), back(y)], dim=-1))
        return x


def episodes(batch: int, length: int) -> tuple[Tensor, ...]:
    """Rewards, values, dones (T, B) and the value after the last step (B)."""
    return (torch.randn(length, batch), torch.randn(length, batch), torch.rand(length, batch) < 0.2, torch.randn(batch))


@add(episodes, is_function=True)
def advantages(rewards: Tensor, values: Tensor, dones: Tensor, last_value: Tensor) -> tuple[Tensor, Tensor]:
    """Backwards in time, into a buffer, the first step (the last one) different."""
    result, last = torch.zeros_like(rewards), 0
    for t in reversed(range(rewards.shape[0])):
        alive = 1.0 - dones[t].to(rewards.dtype)
        following = last_value if t == rewards.shape[0] - 1 else values[t + 1]
        delta = rewards[t] + 0.99 * following * alive - values[t]
        result[t] = last = delta + 0.99 * 0.95 * alive * last
    return result, result + values


@add(lambda batch, length: (torch.randn(length, batch, 4), torch.rand(length, batch) < 0.2))
class ResetToLearned(nn.Module):
    """An episode that ends sets the state to a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.drive, self.gate, self.h0 = nn.Linear(4, 4), nn.Linear(4, 4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor, done: Tensor) -> Tensor:
        h, out = self.h0.expand(x.shape[1], -1), []
        for o, d in zip(x, done, strict=True):
            a = torch.sigmoid(self.gate(o))
            h = a * torch.where(d.unsqueeze(-1), self.h0, h) + torch.sqrt(1 - a**2) * self.drive(o)
            out.append(h)
        return torch.stack(out)


@add(lambda batch, length: torch.randn(batch, length))
class Biquad(nn.Module):
    """Direct form II: the delay line is a list of two."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.Parameter(0.3 * torch.randn(5))

    def forward(self, x: Tensor) -> Tensor:
        w, y = [torch.zeros_like(x[:, 0]) for _ in range(2)], []
        for now in x.t():
            first = now - self.c[3] * w[0] - self.c[4] * w[1]
            y.append(self.c[0] * first + self.c[1] * w[0] + self.c[2] * w[1])
            w = [first, w[0]]
        return torch.stack(y).t()


@add(btd(3))
class RungeKutta(nn.Module):
    """Four stages of a linear system, the initial state among the results."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B, self.dt = nn.Parameter(0.3 * torch.randn(3, 3)), nn.Parameter(torch.randn(3, 3)), 0.1

    def f(self, h: Tensor, u: Tensor) -> Tensor:
        return h @ self.A.T + u @ self.B.T

    def forward(self, u: Tensor) -> Tensor:
        h, dt = torch.zeros_like(u[:, 0]), self.dt
        out = [h]
        for t in range(u.shape[1]):
            k1 = self.f(h, u[:, t])
            k2 = self.f(h + 0.5 * dt * k1, u[:, t])
            k3 = self.f(h + 0.5 * dt * k2, u[:, t])
            h = h + dt / 6 * (k1 + 2 * k2 + 2 * k3 + self.f(h + dt * k3, u[:, t]))
            out.append(h)
        return torch.stack(out, 1)


@add(btd(3))
class ExponentialOfTheStepSize(nn.Module):
    """Irregular sampling: a matrix exponential of each step's own length."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.dt = nn.Parameter(0.3 * torch.randn(3, 3)), nn.Linear(3, 1)

    def forward(self, u: Tensor) -> Tensor:
        h, out = torch.zeros_like(u[:, 0]), []
        for t in range(u.shape[1]):
            dt = F.softplus(self.dt(u[:, t]))
            h = torch.bmm(torch.linalg.matrix_exp(self.A * dt.unsqueeze(-1)), h.unsqueeze(-1)).squeeze(-1) + u[:, t]
            out.append(h)
        return torch.stack(out, 1)


@add(btd(4))
class PlasticTrace(nn.Module):
    """A Hebbian trace between each step's activity and the last one's."""

    def __init__(self) -> None:
        super().__init__()
        self.eta, self.w, self.alpha = (nn.Parameter(0.3 * torch.randn(s)) for s in ((), (4, 4), (4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        trace, before, ys = x.new_zeros(x.shape[0], 4, 4), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            now = torch.tanh(x[:, t])
            ys.append(torch.tanh(torch.bmm(before.unsqueeze(1), self.w + self.alpha * trace).squeeze(1) + x[:, t]))
            trace = (1 - self.eta) * trace + self.eta * torch.bmm(before.unsqueeze(2), now.unsqueeze(1))
            before = now
        return torch.stack(ys, 1)


@add(btd(2), "partial")
class KalmanFilter(nn.Module):
    """The covariance stays a loop; the mean, given its gains, does not."""

    def __init__(self) -> None:
        super().__init__()
        self.F, self.H = nn.Parameter(0.9 * torch.eye(2)), nn.Parameter(torch.eye(2) + 0.1)
        self.q, self.r = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x, eye = z.new_zeros(z.shape[0], 2), torch.eye(2, dtype=z.dtype)
        P, out = eye, []
        for t in range(z.shape[1]):
            x, P = x @ self.F.T, self.F @ P @ self.F.T + torch.diag(self.q.exp())
            S = self.H @ P @ self.H.T + torch.diag(self.r.exp())
            K = P @ self.H.T @ torch.inverse(S)
            x, P = x + (z[:, t] - x @ self.H.T) @ K.T, (eye - K @ self.H) @ P
            out.append(x)
        return torch.stack(out, 1), P


@add(btd(2))
class PredictedCovariance(nn.Module):
    """Lyapunov's recursion: the state is multiplied from both sides."""

    def __init__(self) -> None:
        super().__init__()
        self.F, self.q = nn.Parameter(0.5 * torch.randn(2, 2)), nn.Linear(2, 2)

    def forward(self, z: Tensor) -> Tensor:
        P, out = z.new_zeros(z.shape[0], 2, 2), []
        for t in range(z.shape[1]):
            P = self.F @ P @ self.F.transpose(0, 1) + torch.diag_embed(F.softplus(self.q(z[:, t])))
            out.append(torch.diagonal(P, dim1=-2, dim2=-1))
        return torch.stack(out, 1)


@add(btd(4))
class Welford(nn.Module):
    """Running mean and variance: the number of the step divides."""

    def forward(self, x: Tensor) -> Tensor:
        mean, total, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for count, now in enumerate(x.unbind(1), start=1):
            delta = now - mean
            mean = mean + delta / count
            total = total + delta * (now - mean)
            ys.append(total / count)
        return torch.stack(ys, 1)


@add(btd(4))
class WindowedAttention(nn.Module):
    """A cache of the last three keys and values; the softmax reads no state that it feeds."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        keys = values = x.new_zeros(x.size(0), 3, 4)
        ys = []
        for t in range(x.size(1)):
            now = x[:, t : t + 1]
            keys = torch.cat([keys[:, 1:], self.k(now)], 1)
            values = torch.cat([values[:, 1:], self.v(now)], 1)
            ys.append(torch.softmax(self.q(now) @ keys.mT / 2, -1) @ values)
        return torch.cat(ys, 1)


@add(btd(4))
class RoutedExperts(nn.Module):
    """Each step's transition is the expert that its input picks."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.route = nn.Parameter(0.3 * torch.randn(3, 4, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.size(1)):
            h = torch.einsum("bi,bij->bj", h, self.experts[self.route(x[:, t]).argmax(-1)]) + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@add(lambda batch, length: (torch.randn(batch, length, 4), torch.randint(1, length + 1, (batch,))))
class PaddedBatch(nn.Module):
    """The number of the step is compared with each row's length."""

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.size(1)):
            alive = (t < lengths).unsqueeze(1).to(x.dtype)
            h = alive * (0.8 * h + x[:, t]) + (1 - alive) * h
            ys.append(h * alive)
        return torch.stack(ys, 1), h


@add(btd(4))
class TimescaleBanks(nn.Module):
    """A dict of states, rebuilt by a comprehension at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = {"fast": 0.5, "slow": 0.99}
        self.banks, self.choice = nn.ModuleDict({k: nn.Linear(4, 4) for k in self.rates}), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dict[str, object]:
        state, out = {k: x.new_zeros(x.shape[0], 4) for k in self.banks}, []
        for now in x.transpose(0, 1):
            state = {k: self.rates[k] * state[k] + (1 - self.rates[k]) * f(now) for k, f in self.banks.items()}
            weight = self.choice(now).softmax(-1)
            out.append(sum(weight[:, i : i + 1] * h for i, h in enumerate(state.values())))
        return {"y": torch.stack(out, 1), "state": state}
