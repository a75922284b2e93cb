"""Gated linear attention: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (ICML
2024).

S_t = Diag(alpha_t) S_{t-1} + k_t^T v_t,      o_t = q_t S_t                         (3)
alpha_t = sigmoid(x_t W_1 W_2 + b)^{1/tau},   tau = 16                              (section 4.4)
y_t = (swish(x_t W_r + b_r) * LayerNorm(o_t)) W_o
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GLA(nn.Module):
    """x (B, T, width) -> (B, T, width); keys have half the width of values, as in the paper."""

    def __init__(self, width: int, heads: int, gate_rank: int = 16, tau: float = 16.0) -> None:
        super().__init__()
        self.heads, self.tau = heads, tau
        self.d_k, self.d_v = width // 2 // heads, width // heads
        self.W_q = nn.Linear(width, width // 2, bias=False)
        self.W_k = nn.Linear(width, width // 2, bias=False)
        self.W_v = nn.Linear(width, width, bias=False)
        self.W_alpha = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, width // 2))
        self.W_r = nn.Linear(width, width)
        self.W_o = nn.Linear(width, width, bias=False)
        self.norm = nn.LayerNorm(self.d_v)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        S = torch.zeros(batch, self.heads, self.d_k, self.d_v, device=x.device, dtype=x.dtype)
        o = []
        for t in range(length):
            x_t = x[:, t]
            q = self.W_q(x_t).view(batch, self.heads, self.d_k) * self.d_k**-0.5
            k = self.W_k(x_t).view(batch, self.heads, self.d_k)
            v = self.W_v(x_t).view(batch, self.heads, self.d_v)
            alpha = torch.exp(F.logsigmoid(self.W_alpha(x_t)) / self.tau).view(batch, self.heads, self.d_k)
            S = alpha[..., None] * S + k[..., None] * v[..., None, :]
            o_t = self.norm((q[..., None, :] @ S).squeeze(-2))
            o.append(self.W_o(F.silu(self.W_r(x_t)) * o_t.view(batch, -1)))
        return torch.stack(o, dim=1)
