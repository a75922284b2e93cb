"""DSS of Gupta, Gu & Berant, "Diagonal State Spaces are as Effective as Structured State Spaces" (NeurIPS 2022).

The recurrent view of DSS_EXP (section 3): with Lambda = -exp(Lambda_re) + i Lambda_im shared by all channels, and a
step for each,

    x_k = exp(Lambda dt) x_{k-1} + Lambda^{-1} (exp(Lambda dt) - 1) u_k,      y_k = Re(w x_k)

Channels first and time last, as in the code of the S4 family: (B, H, L).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DSS(nn.Module):
    """u (B, channels, L) -> (B, channels, L): the state space, a skip, GELU and a mixing layer."""

    def __init__(self, channels: int, n: int = 64, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        self.Lambda_re = nn.Parameter(torch.full((n,), math.log(0.5)))
        self.Lambda_im = nn.Parameter(math.pi * torch.arange(n, dtype=torch.get_default_dtype()))
        self.log_dt = nn.Parameter(torch.empty(channels, 1).uniform_(math.log(dt_min), math.log(dt_max)))
        self.W = nn.Parameter(torch.randn(channels, n, 2) / math.sqrt(n))
        self.D = nn.Parameter(torch.randn(channels))
        self.output_linear = nn.Conv1d(channels, channels, 1)

    def forward(self, u: Tensor) -> Tensor:
        Lambda = torch.complex(-self.Lambda_re.exp(), self.Lambda_im)
        w = torch.view_as_complex(self.W)
        dA = torch.exp(self.log_dt.exp() * Lambda)
        dB = (dA - 1) / Lambda

        batch, _, length = u.shape
        x = u.new_zeros((batch, *dA.shape), dtype=dA.dtype)
        y = []
        for k in range(length):
            x = dA * x + dB * u[:, :, k].unsqueeze(-1)
            y.append(torch.einsum("hn,bhn->bh", w, x).real)
        out = torch.stack(y, dim=-1) + self.D.unsqueeze(-1) * u
        return self.output_linear(F.gelu(out))
