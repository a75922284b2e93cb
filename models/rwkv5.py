"""RWKV-5 (Eagle): Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (COLM 2024),
section 4.1.

    wkv_t = Diag(u) k_t^T v_t + s_{t-1},      s_t = Diag(w) s_{t-1} + k_t^T v_t,      w = exp(-exp(omega))
    o_t = concat(SiLU(g_t) * LayerNorm(r_t wkv_t)) W_o

Matrix states with a constant decay for each channel; the read is of the old state, with a bonus u for the current
token. The token shift keeps the previous input as a state of the loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Eagle(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.d = heads, width // heads
        self.mu = nn.Parameter(torch.rand(4, width))
        self.r, self.k, self.v, self.g = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.omega = nn.Parameter(torch.linspace(-3.0, 1.0, width).view(heads, self.d, 1))
        self.u = nn.Parameter(torch.randn(heads, self.d, 1) * 0.5)
        self.norm = nn.GroupNorm(heads, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        w = torch.exp(-torch.exp(self.omega))
        previous = torch.zeros_like(x[:, 0])
        s = x.new_zeros(batch, self.heads, self.d, self.d)
        out = []
        for t in range(length):
            now = x[:, t]
            xr, xk, xv, xg = (previous + mu * (now - previous) for mu in self.mu)
            previous = now
            r = self.r(xr).view(batch, self.heads, 1, self.d)
            k = self.k(xk).view(batch, self.heads, self.d, 1)
            v = self.v(xv).view(batch, self.heads, 1, self.d)
            kv = k @ v
            y = (r @ (self.u * kv + s)).reshape(batch, width)
            s = w * s + kv
            out.append(self.out(F.silu(self.g(xg)) * self.norm(y)))
        return torch.stack(out, dim=1)
