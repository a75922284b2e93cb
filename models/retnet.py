"""RetNet: Sun et al., "Retentive Network: A Successor to Transformer for Large Language Models" (2023).

    S_n = gamma S_{n-1} + K_n^T V_n,        Retention(X_n) = Q_n S_n              (6), the recurrent form

with queries and keys rotated by their position (5), one gamma = 1 - 2^{-5-head} for each head, a group norm over the
heads and a swish gate (8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def rotate(x: Tensor, angle: Tensor) -> Tensor:
    """x (B, T, H, d), angle (T, d/2): each neighbouring pair turned by the angle of its position."""
    even, odd = x[..., 0::2], x[..., 1::2]
    sin, cos = angle.sin()[:, None, :], angle.cos()[:, None, :]
    return torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)


class MultiScaleRetention(nn.Module):
    """x (B, T, width) -> (B, T, width); keys and values are width/heads wide, which must be even."""

    gamma: Tensor
    theta: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.d = heads, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.g = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.norm = nn.GroupNorm(heads, width, affine=False)
        self.register_buffer("gamma", 1 - 2.0 ** (-5 - torch.arange(heads)))
        self.register_buffer("theta", 10000 ** -torch.linspace(0, 1, self.d // 2))

    def recurrent_retention(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """q, k, v (B, H, d), past (B, H, d, d) -> the read (B, H, d) and the new state."""
        state = self.gamma[:, None, None] * past + k.unsqueeze(-1) * v.unsqueeze(-2)
        return torch.sum(q.unsqueeze(-1) * state, dim=-2), state

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = (batch, length, self.heads, self.d)
        angle = torch.arange(length, device=x.device, dtype=x.dtype)[:, None] * self.theta
        q = rotate(self.q(x).view(heads), angle)
        k = rotate(self.k(x).view(heads) * self.d**-0.5, angle)
        v = self.v(x).view(heads)

        state = x.new_zeros(batch, self.heads, self.d, self.d)
        outs = []
        for n in range(length):
            out, state = self.recurrent_retention(q[:, n], k[:, n], v[:, n], state)
            outs.append(self.norm(out.reshape(batch, width)))
        return self.out(F.silu(self.g(x)) * torch.stack(outs, dim=1))
