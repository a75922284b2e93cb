"""S4D of Gu, Gupta, Goel & Re, "On the Parameterization and Initialization of Diagonal State Space Models" (NeurIPS
2022).

Each of the H channels has its own state of N/2 complex modes (one of each conjugate pair), discretised by zero-order
hold:

    x_k = exp(dt A) x_{k-1} + A^{-1} (exp(dt A) - 1) B u_k,      y_k = 2 Re(C x_k) + D u_k

with B = 1 and A as in S4D-Inv, A_n = -1/2 + i N/pi (N/(2n+1) - 1) (eq. 8), or S4D-Lin, A_n = -1/2 + i pi n (eq. 9).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class S4D(nn.Module):
    """u (B, T, channels) -> y (B, T, channels); a bank of `channels` independent diagonal state-space models."""

    def __init__(
        self, channels: int, d_state: int = 64, init: str = "lin", dt_min: float = 0.001, dt_max: float = 0.1
    ) -> None:
        super().__init__()
        modes = d_state // 2
        n = torch.arange(modes)
        if init == "lin":
            imag = math.pi * n
        elif init == "inv":
            imag = d_state / math.pi * (d_state / (2 * n + 1) - 1)
        else:
            raise ValueError(f"init must be 'lin' or 'inv', not {init!r}")
        log_dt = torch.rand(channels) * (math.log(dt_max) - math.log(dt_min)) + math.log(dt_min)
        self.log_dt = nn.Parameter(log_dt)
        self.log_A_real = nn.Parameter(torch.full((channels, modes), math.log(0.5)))
        self.A_imag = nn.Parameter(imag.to(torch.get_default_dtype()).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, modes, 2) * math.sqrt(0.5))
        self.D = nn.Parameter(torch.randn(channels))

    def forward(self, u: Tensor) -> Tensor:
        dt = self.log_dt.exp().unsqueeze(-1)
        A = torch.complex(-self.log_A_real.exp(), self.A_imag)
        A_bar = torch.exp(dt * A)
        B_bar = (A_bar - 1) / A
        C = torch.view_as_complex(self.C)

        x = torch.zeros(u.size(0), *A.shape, dtype=A.dtype, device=u.device)
        ys = []
        for u_k in u.unbind(1):
            x = A_bar * x + B_bar * u_k.unsqueeze(-1)
            y = 2 * (C * x).sum(-1).real
            ys.append(y + self.D * u_k)
        return torch.stack(ys, dim=1)
