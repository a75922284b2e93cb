"""Kimi Delta Attention: Kimi Team, "Kimi Linear: An Expressive, Efficient Attention Architecture" (2025).

    S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T,      o_t = S_t^T q_t              (1)

The delta rule with one decay for each key channel, in place of Gated DeltaNet's one for each head.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KDA(nn.Module):
    """x (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int, gate_rank: int = 4) -> None:
        super().__init__()
        self.heads, self.d = heads, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.f_proj = nn.Sequential(nn.Linear(width, gate_rank, bias=False), nn.Linear(gate_rank, width))
        self.b_proj = nn.Linear(width, heads, bias=False)
        self.g_proj = nn.Linear(width, width)
        self.norm = nn.RMSNorm(self.d, eps=1e-6)
        self.o_proj = nn.Linear(width, width, bias=False)

    def token(self, x_t: Tensor) -> tuple[Tensor, ...]:
        """x_t (B, width) -> q, k, v, alpha (B, H, d), beta (B, H)."""
        q, k, v, f = (
            y.view(-1, self.heads, self.d)
            for y in (self.q_proj(x_t), self.k_proj(x_t), self.v_proj(x_t), self.f_proj(x_t))
        )
        q, k = F.normalize(F.silu(q), dim=-1), F.normalize(F.silu(k), dim=-1)
        return q, k, F.silu(v), torch.exp(-F.softplus(f)), torch.sigmoid(self.b_proj(x_t))

    def forward(self, x: Tensor) -> Tensor:
        S = x.new_zeros(x.shape[0], self.heads, self.d, self.d)
        out = []
        for x_t in x.unbind(1):
            q, k, v, alpha, beta = self.token(x_t)
            S = S * alpha[..., None]
            S = S + torch.einsum("bhk,bhv->bhkv", beta[..., None] * k, v - (k[..., None] * S).sum(-2))
            o = torch.einsum("bhk,bhkv->bhv", q, S)
            out.append(self.norm(o).flatten(1))
        return self.o_proj(torch.sigmoid(self.g_proj(x)) * torch.stack(out, dim=1))
