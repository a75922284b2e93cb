"""Comba: Hu et al., "Comba: Improving Bilinear RNNs with Closed-loop Control" (2025), section 3.

    S_t = S_{t-1} (alpha_t - b~_t k_t k_t^T) + b_t v_t k_t^T,      o_t = S_t (q_t - d k_t)

A scalar plus low rank: state feedback with its own strength b~_t = b * b_t, and output feedback d, which corrects the
query.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Comba(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj = nn.Linear(width, 3 * width, bias=False)
        self.gates = nn.Linear(width, 2 * heads)
        self.feedback = nn.Parameter(torch.zeros(heads, 1))
        self.d = nn.Parameter(torch.full((heads, 1), 0.02))
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = (y.view(batch, length, self.heads, -1) for y in F.silu(self.in_proj(x)).split(width, dim=-1))
        k = F.normalize(k, dim=-1)
        q = F.normalize(q, dim=-1) - self.d * k
        decay, strength = self.gates(x).split(self.heads, dim=-1)
        alpha, b = torch.exp(-F.softplus(decay)), torch.sigmoid(strength)
        b_tilde = torch.sigmoid(self.feedback) * b.unsqueeze(-1)

        state = [x.new_zeros(batch, self.heads, width // self.heads, width // self.heads)]
        reads = []
        for t in range(length):
            S = state.pop()
            recalled = S @ k[:, t].unsqueeze(-1)
            S = alpha[:, t, :, None, None] * S - b_tilde[:, t, :, :, None] * recalled @ k[:, t].unsqueeze(-2)
            S = S + b[:, t, :, None, None] * v[:, t].unsqueeze(-1) @ k[:, t].unsqueeze(-2)
            state.append(S)
            reads.append((S @ q[:, t].unsqueeze(-1)).squeeze(-1))
        return self.out(torch.stack(reads, dim=1).flatten(2))
