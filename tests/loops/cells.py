"""One step of each class of recurrence: `begin(x_t) -> state` and `step(state, x_t) -> (state, y_t)`, `x_t` of shape
`(B, WIDTH)`.

The ways of driving a loop (drivers.py) are crossed with these; `y_t` is always `(B, WIDTH)` and real.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH = 4


class Ema(nn.Module):
    """LTI scalar, with Python floats."""

    def begin(self, x_t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        h = 0.9 * h + (1 - 0.9) * x_t
        return h, h


class LmuVector(nn.Module):
    """LTI dense: one memory for the whole input vector, linear readout."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(0.4 * torch.randn(5, 5))
        self.B = nn.Linear(WIDTH, 5)
        self.C = nn.Linear(5, WIDTH)

    def begin(self, x_t: Tensor) -> Tensor:
        return x_t.new_zeros(x_t.shape[0], 5)

    def step(self, m: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        m = F.linear(m, self.A) + self.B(x_t)
        return m, self.C(m)


class LmuChannels(nn.Module):
    """LTI dense: a memory `(B, WIDTH, order)` for each channel, one constant matrix held in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("A", 0.3 * torch.randn(3, 3))
        self.register_buffer("b", torch.randn(3))
        self.c = nn.Parameter(torch.randn(WIDTH, 3))

    def begin(self, x_t: Tensor) -> Tensor:
        return x_t.new_zeros(*x_t.shape, 3)

    def step(self, m: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        m = m @ self.A.T + x_t.unsqueeze(-1) * self.b
        return m, torch.tanh((m * self.c).sum(-1))


class DiagonalReal(nn.Module):
    """LTI diagonal; the decay is computed from its parameter at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.randn(WIDTH))

    def begin(self, x_t: Tensor) -> Tensor:
        return x_t.new_zeros(x_t.shape)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.exp(-F.softplus(self.log_decay))
        h = a * h + x_t
        return h, F.gelu(h)


class DiagonalComplex(nn.Module):
    """LTI diagonal, complex; the real part of a complex readout."""

    def __init__(self) -> None:
        super().__init__()
        self.nu, self.theta = nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(3))
        self.B = nn.Parameter(torch.randn(WIDTH, 3, 2))
        self.C = nn.Parameter(torch.randn(3, WIDTH, 2))

    def begin(self, x_t: Tensor) -> Tensor:
        return torch.zeros(x_t.shape[0], 3, dtype=x_t.dtype.to_complex(), device=x_t.device)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        pole = torch.polar(torch.exp(-torch.exp(self.nu)), self.theta)
        h = pole * h + x_t.to(h.dtype) @ torch.view_as_complex(self.B)
        return h, (h @ torch.view_as_complex(self.C)).real


class MinGru(nn.Module):
    """Diagonal, gated by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.candidate = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def begin(self, x_t: Tensor) -> Tensor:
        return torch.zeros(x_t.shape[0], WIDTH, dtype=x_t.dtype, device=x_t.device)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        z = torch.sigmoid(self.gate(x_t))
        h = (1 - z) * h + z * self.candidate(x_t)
        return h, h


class Qrnn(nn.Module):
    """Diagonal with an output gate, all gates from one projection."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(WIDTH, 3 * WIDTH)

    def begin(self, x_t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    def step(self, c: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        z, f, o = self.proj(x_t).chunk(3, dim=-1)
        f = f.sigmoid()
        c = f * c + (1 - f) * z.tanh()
        return c, o.sigmoid() * c


class RgLru(nn.Module):
    """Diagonal with the RG-LRU's normalisation, `a = exp(-8 softplus(L) r)`."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrence, self.input = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.lam = nn.Parameter(torch.randn(WIDTH))

    def begin(self, x_t: Tensor) -> Tensor:
        return torch.zeros_like(x_t)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        log_a = -8.0 * F.softplus(self.lam) * torch.sigmoid(self.recurrence(x_t))
        h = log_a.exp() * h + torch.sqrt(1 - torch.exp(2 * log_a)) * (torch.sigmoid(self.input(x_t)) * x_t)
        return h, h


class MambaLike(nn.Module):
    """Diagonal over `(B, WIDTH, N)`, contracted with an input-dependent readout, and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.randn(WIDTH, 3))
        self.D = nn.Parameter(torch.ones(WIDTH))
        self.dt, self.bc = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 6, bias=False)

    def begin(self, x_t: Tensor) -> Tensor:
        return x_t.new_zeros(x_t.shape[0], WIDTH, 3)

    def step(self, h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
        delta = F.softplus(self.dt(x_t))
        b, c = self.bc(x_t).split([3, 3], dim=-1)
        h = torch.exp(delta.unsqueeze(-1) * -torch.exp(self.A_log)) * h + (delta * x_t).unsqueeze(-1) * b.unsqueeze(1)
        return h, (h @ c.unsqueeze(-1)).squeeze(-1) + self.D * x_t


class CascadeTwo(nn.Module):
    """A synaptic current that feeds a membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.alpha, self.beta = nn.Parameter(torch.rand(WIDTH)), nn.Parameter(torch.rand(WIDTH))

    def begin(self, x_t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(x_t), torch.zeros_like(x_t)

    def step(self, state: tuple[Tensor, Tensor], x_t: Tensor) -> tuple[tuple[Tensor, Tensor], Tensor]:
        current, membrane = state
        current = self.alpha * current + x_t
        membrane = self.beta * membrane + current
        return (current, membrane), membrane


class CascadeThree(nn.Module):
    """Dense LTI into gated diagonal into a plain running sum that reads the old state of the one before."""

    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(0.4 * torch.randn(WIDTH, WIDTH))
        self.gate = nn.Linear(WIDTH, WIDTH)

    def begin(self, x_t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return torch.zeros_like(x_t), torch.zeros_like(x_t), torch.zeros_like(x_t)

    def step(self, state: tuple[Tensor, Tensor, Tensor], x_t: Tensor) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        m, h, s = state
        f = torch.sigmoid(self.gate(x_t))
        m = m @ self.A + x_t
        s = s + h
        h = f * h + (1 - f) * m
        return (m, h, s), 0.1 * s + h


CELLS: dict[str, type[nn.Module]] = {
    cell.__name__: cell
    for cell in (
        Ema,
        LmuVector,
        LmuChannels,
        DiagonalReal,
        DiagonalComplex,
        MinGru,
        Qrnn,
        RgLru,
        MambaLike,
        CascadeTwo,
        CascadeThree,
    )
}
