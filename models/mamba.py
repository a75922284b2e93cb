"""Mamba: Gu & Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023).

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t        (2a), (4) with the Euler input term of the published code
    y_t = C_t h_t + D x_t                           (2b)

with dt, B and C read from the input (algorithm 2), A real and diagonal (section 3.6): the S6 layer, and around it the
block of figure 3 with its short causal convolution and its gate.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def selective_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """u, delta (B, T, D), A (D, N), B, C (B, T, N), D (D,) -> y (B, T, D), by the loop of algorithm 2."""
    batch, length, width = u.shape
    deltaA = torch.exp(torch.einsum("bld,dn->bldn", delta, A))
    deltaB_u = torch.einsum("bld,bln,bld->bldn", delta, B, u)
    x = torch.zeros((batch, width, A.shape[1]), device=deltaA.device, dtype=deltaA.dtype)
    ys = []
    for i in range(length):
        x = deltaA[:, i] * x + deltaB_u[:, i]
        y = torch.einsum("bdn,bn->bd", x, C[:, i, :])
        ys.append(y)
    y = torch.stack(ys, dim=1)
    return y + u * D


class S6(nn.Module):
    """The selective layer alone, all of it inside the loop: x (B, T, width), h (B, width, d_state) or None -> (B, T,
    width).
    """

    def __init__(self, width: int, d_state: int = 16, dt_rank: int | None = None) -> None:
        super().__init__()
        self.d_state = d_state
        self.dt_rank = dt_rank or math.ceil(width / 16)
        self.x_proj = nn.Linear(width, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, width)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(width, 1)))
        self.D = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        A = -torch.exp(self.A_log)
        if h is None:
            h = x.new_zeros(batch, width, self.d_state)
        y = torch.zeros_like(x)
        for t in range(length):
            dt, B, C = self.x_proj(x[:, t]).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
            dt = F.softplus(self.dt_proj(dt))
            h = torch.exp(dt.unsqueeze(-1) * A) * h + (dt * x[:, t]).unsqueeze(-1) * B.unsqueeze(1)
            y[:, t] = (h @ C.unsqueeze(-1)).squeeze(-1) + self.D * x[:, t]
        return y


class MambaBlock(nn.Module):
    """Figure 3: project, convolve, SiLU, scan, gate, project; x (B, T, d_model) -> (B, T, d_model)."""

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2) -> None:
        super().__init__()
        self.d_inner, self.d_state = expand * d_model, d_state
        self.dt_rank = math.ceil(d_model / 16)
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1)
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, d_state + 1).repeat(self.d_inner, 1)))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u, gate = self.in_proj(x).chunk(2, dim=-1)
        u = self.conv1d(u.transpose(1, 2))[..., :length].transpose(1, 2)
        u = F.silu(u)
        delta, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        y = selective_scan(u, F.softplus(self.dt_proj(delta)), -torch.exp(self.A_log), B, C, self.D)
        return self.out_proj(y * F.silu(gate))
