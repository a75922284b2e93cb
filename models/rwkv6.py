"""RWKV-6 (Finch): Peng et al., "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (COLM 2024),
section 4.2.

    wkv_t = Diag(u) k_t^T v_t + s_{t-1},      s_t = Diag(w_t) s_{t-1} + k_t^T v_t
    w_t = exp(-exp(lora(ddlerp(x_t, x_{t-1}))))

RWKV-5 with a decay, and a mix of the current and the last input, that the data decide: ddlerp and lora of section 4.2.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoRA(nn.Module):
    """lambda + tanh(x A) B: (..., width) -> (..., out)."""

    def __init__(self, width: int, rank: int, out: int) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.randn(width, rank) / width)
        self.B = nn.Parameter(torch.randn(rank, out) / rank)
        self.base = nn.Parameter(torch.rand(out) - 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.base + torch.tanh(x @ self.A) @ self.B


class Finch(nn.Module):
    """x (B, T, width), s (B, heads, d, d) or None -> (B, T, width)."""

    def __init__(self, width: int, heads: int, rank: int = 4) -> None:
        super().__init__()
        self.heads, self.d = heads, width // heads
        self.mu_x = nn.Parameter(torch.rand(width))
        self.mix = nn.ModuleList(LoRA(width, rank, width) for _ in range(5))
        self.projections = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay = LoRA(width, rank, width)
        self.u = nn.Parameter(torch.randn(heads, self.d) * 0.5)
        self.norm = nn.GroupNorm(heads, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        batch, length, width = x.shape
        last = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        lerped = x + (last - x) * self.mu_x
        mixed = [x + (last - x) * mix(lerped) for mix in self.mix]
        r, k, v, g = (p(m) for p, m in zip(self.projections, mixed[:4], strict=True))
        w = torch.exp(-torch.exp(self.decay(mixed[4])))
        r, k, v, w = (y.view(batch, length, self.heads, self.d) for y in (r, k, v, w))

        if s is None:
            s = x.new_zeros(batch, self.heads, self.d, self.d)
        y = torch.empty_like(v)
        for t in range(length):
            bonus = torch.sum(r[:, t] * self.u * k[:, t], dim=-1, keepdim=True) * v[:, t]
            y[:, t] = torch.einsum("bhk,bhkv->bhv", r[:, t], s) + bonus
            s = w[:, t].unsqueeze(-1) * s + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        y = self.norm(y.reshape(batch * length, width)).view(batch, length, width)
        return self.out(F.silu(g) * y)
