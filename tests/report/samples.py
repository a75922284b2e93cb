"""Loops whose reports the tests read: each with the names that a reader expects in its formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """A function of tensors, its inputs, and its formulas, one for each state in the report's order."""

    function: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    equations: tuple[str, ...]

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", type(self.function).__name__)


G = torch.Generator().manual_seed(0)
X = torch.randn(2, 12, 4, generator=G)
K, V = torch.randn(2, 12, 2, 5, generator=G), torch.randn(2, 12, 2, 3, generator=G)
B = torch.rand(2, 12, 2, generator=G)
CASES: list[Case] = []


def case(*equations: str, inputs: tuple[Tensor, ...] = (X,)) -> Callable[..., Callable[..., Tensor]]:
    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        CASES.append(Case(function, inputs, equations))
        return function

    return register


@case("h[t] = 0.9 h[t-1] + 0.1 x[t]")
def constants(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + 0.1 * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@case("h[t] = (1 - z[t]) h[t-1] + z[t] x[t]")
def named_gate(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        z = torch.sigmoid(x[:, t])
        h = (1 - z) * h + z * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


@case("h[t] = sigmoid(x[t]) h[t-1] + tanh(x[t])")
def unnamed_gate(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.sigmoid(x[:, t]) * h + F.tanh(x[:, t])
        out.append(h)
    return torch.stack(out, 1)


@case("h[t] = a[t] h[t-1] + b[t]")
def one_name_for_all(x: Tensor) -> Tensor:
    """The drive and the gate are steps on the way to h, under its name: they get letters."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        g = h
        h = torch.tanh(x[:, t]).sqrt().mul(0.5).add(1)
        g = h * g
        h = torch.exp(x[:, t]).cos().mul(0.5).add(1)
        h = g + h
        out.append(h)
    return torch.stack(out, 1)


@case("total[t] = total[t-1] + x[t]")
def augmented(x: Tensor) -> Tensor:
    total, out = torch.zeros_like(x[:, 0]), []
    for x_t in x.unbind(1):
        total = total + x_t
        out.append(total)
    return torch.stack(out, 1)


@case("S[t] = (I - beta[t] k[t] k[t]^T) S[t-1] + beta[t] k[t] v[t]^T", inputs=(K, V, B))
def delta_rule(k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
    S, out = torch.zeros(2, 2, 5, 3), []
    for t in range(k.shape[1]):
        k_t, v_t, beta_t = k[:, t], v[:, t], beta[:, t, :, None]
        old = torch.einsum("bhkv,bhk->bhv", S, k_t)
        S = S + torch.einsum("bhk,bhv->bhkv", k_t, beta_t * (v_t - old))
        out.append(S.sum(-2))
    return torch.stack(out, 1)


@case("re[t] = c[t] re[t-1] - s[t] im[t-1] + x[t]", "im[t] = s[t] re[t-1] + c[t] im[t-1]")
def rotation(x: Tensor) -> Tensor:
    re = im = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        c, s = torch.cos(x[:, t]), torch.sin(x[:, t])
        re, im = c * re - s * im + x[:, t], s * re + c * im
        out.append(re)
    return torch.stack(out, 1)


@case("m[t] = max(m[t-1] + f[t], x[t])")
def stabiliser(x: Tensor) -> Tensor:
    m, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        f = F.logsigmoid(x[:, t])
        m_new = torch.maximum(m + f, x[:, t])
        m = m_new
        out.append(m)
    return torch.stack(out, 1)


@case("h[t] = [not done[t]] gamma h[t-1] + x[t]", inputs=(X, X > 1))
def resets(x: Tensor, done: Tensor) -> Tensor:
    h, gamma, out = torch.zeros_like(x[:, 0]), torch.tensor(0.5), []
    for t in range(x.shape[1]):
        h = torch.where(done[:, t], 0.0, gamma * h) + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


class Memory(nn.Module):
    """m = A m + B u, as a module whose cell is a method."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(0.3 * torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        self.decay = nn.Parameter(torch.rand(4))

    def step(self, m: Tensor, u: Tensor) -> Tensor:
        m = m @ self.A.T + u
        return m

    def forward(self, x: Tensor) -> Tensor:
        m, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            m = self.step(m, x[:, t])
            out.append(m)
        return torch.stack(out, 1)


class Decay(Memory):
    """A state in an attribute, a parameter behind a function."""

    def forward(self, x: Tensor) -> Tensor:
        self.h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            self.h = torch.exp(-self.decay) * self.h + x[:, t]
            out.append(self.h)
        return torch.stack(out, 1)


CASES.append(Case(Memory(), (X,), ("m[t] = A m[t-1] + x[t]",)))
CASES.append(Case(Decay(), (X,), ("h[t] = exp(-decay) h[t-1] + x[t]",)))


@case("h[t] = tanh(w h[t-1] + x[t])")
def elman(x: Tensor) -> Tensor:
    h, w, out = torch.zeros_like(x[:, 0]), torch.tensor(0.5), []
    for t in range(x.shape[1]):
        h = torch.tanh(w * h + x[:, t])
        out.append(h)
    return torch.stack(out, 1)
