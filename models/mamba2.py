"""Mamba-2: Dao & Gu, "Transformers are SSMs: Generalized Models and Efficient Algorithms Through Structured State Space
Duality" (2024).

    h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T,        y_t = h_t C_t + D x_t

The decay is one number for each head (section 3.1: A a scalar times the identity), the state of a head is a matrix (P,
N), and B and C are shared by the heads. Around it the block of section 7.1: all projections in parallel, convolution of
(x, B, C), a gated norm.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mamba2(nn.Module):
    """u (B, T, d_model) -> (B, T, d_model)."""

    def __init__(
        self, d_model: int, d_state: int = 128, headdim: int = 64, d_conv: int = 4, expand: int = 2, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.d_inner, self.d_state, self.headdim = expand * d_model, d_state, headdim
        self.nheads = self.d_inner // headdim
        self.eps = eps
        conv_dim = self.d_inner + 2 * d_state
        self.in_proj = nn.Linear(d_model, self.d_inner + conv_dim + self.nheads, bias=False)
        self.conv1d = nn.Conv1d(conv_dim, conv_dim, d_conv, groups=conv_dim, padding=d_conv - 1)
        self.dt_bias = nn.Parameter(torch.randn(self.nheads))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.nheads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.nheads))
        self.norm_weight = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=False)

    def step(self, cache: dict[str, Tensor], x: Tensor, B: Tensor, C: Tensor, dt: Tensor) -> Tensor:
        """x (B, heads, P), B, C (B, N), dt (B, heads) -> y (B, heads, P); the state is replaced in the cache."""
        dA = torch.exp(dt * -torch.exp(self.A_log))
        dBx = torch.einsum("bh,bn,bhp->bhpn", dt, B, x)
        cache["ssm"] = cache["ssm"] * dA[:, :, None, None] + dBx
        y = torch.einsum("bhpn,bn->bhp", cache["ssm"], C)
        return y + self.D[:, None] * x

    def forward(self, u: Tensor) -> Tensor:
        batch, length, _ = u.shape
        z, xBC, dt = self.in_proj(u).split([self.d_inner, self.d_inner + 2 * self.d_state, self.nheads], dim=-1)
        xBC = F.silu(self.conv1d(xBC.transpose(1, 2))[:, :, :length].transpose(1, 2))
        x, B, C = xBC.split([self.d_inner, self.d_state, self.d_state], dim=-1)
        dt = F.softplus(dt + self.dt_bias)
        x = x.view(batch, length, self.nheads, self.headdim)

        cache = {"ssm": u.new_zeros(batch, self.nheads, self.headdim, self.d_state)}
        y = torch.stack([self.step(cache, x[:, t], B[:, t], C[:, t], dt[:, t]) for t in range(length)], dim=1)
        y = y.flatten(2) * F.silu(z)
        y = y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + self.eps) * self.norm_weight
        return self.out_proj(y)
