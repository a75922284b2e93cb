"""Gated slot attention: Zhang et al., "Gated Slot Attention for Efficient Linear-Time Sequence Modeling" (NeurIPS
2024), section 3.

    K_t = Diag(alpha_t) K_{t-1} + (1 - alpha_t) (outer) k_t
    V_t = Diag(alpha_t) V_{t-1} + (1 - alpha_t) (outer) v_t
    o_t = V_t^T softmax(K_t q_t)

m slots, each a gated average of keys and of values; a softmax over the slots lies between the two.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GSA(nn.Module):
    """x (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, heads: int, slots: int = 64, damping: float = 8.0) -> None:
        super().__init__()
        self.heads, self.slots, self.damping = heads, slots, damping
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.W_alpha = nn.Linear(width, heads * slots)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, width = x.shape
        d = width // self.heads
        K = x.new_zeros(batch, self.heads, self.slots, d)
        V = x.new_zeros(batch, self.heads, self.slots, d)
        outputs = []
        for x_t in x.unbind(1):
            q, k, v = (F.silu(y).view(batch, self.heads, 1, d) for y in self.qkv(x_t).chunk(3, dim=-1))
            alpha = torch.sigmoid(self.W_alpha(x_t)).view(batch, self.heads, self.slots, 1) ** (1 / self.damping)
            K = alpha * K + (1 - alpha) * k
            V = alpha * V + (1 - alpha) * v
            weights = torch.softmax(K @ q.mT, dim=-2)
            outputs.append((weights.mT @ V).reshape(batch, width))
        return self.out(self.norm(F.silu(torch.stack(outputs, dim=1))))
