"""Recurrences with more than one step of memory: autoregression of order p (Yule 1927), a two-pole resonator, coupled
oscillators.

AR(p):      h_t = phi_1 h_{t-1} + ... + phi_p h_{t-p} + x_t
resonator:  h_t = 2 r cos(w) h_{t-1} - r^2 h_{t-2} + x_t                  a pole pair r exp(+-i w)
LinOSS:     z_t = z_{t-1} + dt (-A y_{t-1} + B u_t),  y_t = y_{t-1} + dt z_t
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class AR(nn.Module):
    """x (B, T, D) -> h (B, T, D); the list of all h is the history."""

    def __init__(self, order: int) -> None:
        super().__init__()
        self.phi = nn.Parameter(0.5 ** torch.arange(1.0, order + 1) * torch.randn(order))

    def forward(self, x: Tensor) -> Tensor:
        order = len(self.phi)
        h = [torch.zeros_like(x[:, 0]) for _ in range(order)]
        for t in range(x.shape[1]):
            h.append(sum((self.phi[i] * h[-1 - i] for i in range(order)), x[:, t]))
        return torch.stack(h[order:], dim=1)


class Resonator(nn.Module):
    """A filter bank: x (B, T) -> h (B, T, filters), one damped oscillation each."""

    def __init__(self, filters: int) -> None:
        super().__init__()
        self.radius = nn.Parameter(torch.linspace(1.0, 3.0, filters))
        self.frequency = nn.Parameter(torch.linspace(0.1, math.pi / 2, filters))

    def forward(self, x: Tensor) -> Tensor:
        r = torch.sigmoid(self.radius)
        p, q = 2 * r * torch.cos(self.frequency), r**2
        h1 = h2 = x.new_zeros(x.shape[0], r.shape[0])
        out = []
        for x_t in x.split(1, dim=1):
            h = p * h1 - q * h2 + x_t
            h2 = h1
            h1 = h
            out.append(h)
        return torch.stack(out, dim=1)


class LinOSS(nn.Module):
    """Rusch & Rus, "Oscillatory State-Space Models" (2024), section 3: u (B, T, width) -> (B, T, width).

    "IM" takes the new position in the force, "IMEX" the old one (and conserves energy); A >= 0 is diagonal.
    """

    def __init__(self, width: int, modes: int, scheme: str = "IM") -> None:
        super().__init__()
        if scheme not in ("IM", "IMEX"):
            raise ValueError(f"scheme must be 'IM' or 'IMEX', not {scheme!r}")
        self.scheme = scheme
        self.A_diag = nn.Parameter(torch.rand(modes) + 0.1)
        self.steps = nn.Parameter(torch.randn(modes))
        self.B = nn.Linear(width, modes, bias=False)
        self.C = nn.Linear(modes, width, bias=False)
        self.D = nn.Parameter(torch.randn(width))

    def forward(self, u: Tensor) -> Tensor:
        A = torch.relu(self.A_diag)
        dt = torch.sigmoid(self.steps)
        y = z = u.new_zeros(u.shape[0], A.shape[0])
        outputs = []
        for t in range(u.shape[1]):
            force = -A * y + self.B(u[:, t])
            z = z + dt * force
            if self.scheme == "IM":
                z = z / (1 + dt**2 * A)
            y = y + dt * z
            outputs.append(self.C(y) + self.D * u[:, t])
        return torch.stack(outputs, dim=1)
