"""Memory blocks of feedforward sequential memory networks: Zhang et al., "Feedforward Sequential Memory Networks"
(2015), eq. 2.

    h~_t = sum_{i=0}^{N-1} a_i * h_{t-i}

A finite impulse response: nothing is fed back. Written once by indexing backwards, and once as the block of MossFormer2
(Zhao et al. 2024) between two projections with a skip, where a buffer that shifts by one each step holds the past.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FSMN(nn.Module):
    """h (B, T, D) -> h~ (B, T, D) with the last `order` steps in memory."""

    def __init__(self, channels: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.a = nn.Parameter(torch.randn(order, channels) / order)

    def forward(self, h: Tensor) -> Tensor:
        out = []
        for t in range(h.shape[1]):
            memory = self.a[0] * h[:, t]
            for i in range(1, self.order):
                if t - i >= 0:
                    memory = memory + self.a[i] * h[:, t - i]
            out.append(memory)
        return torch.stack(out, dim=1)


class CompactFSMN(nn.Module):
    """x (B, T, D) -> x + p + memory(p) with p a projection of relu(W x): (B, T, D)."""

    def __init__(self, channels: int, hidden: int, order: int) -> None:
        super().__init__()
        self.order = order
        self.linear = nn.Linear(channels, hidden)
        self.project = nn.Linear(hidden, channels, bias=False)
        self.taps = nn.Parameter(torch.randn(order, channels) / order)

    def forward(self, x: Tensor) -> Tensor:
        p = self.project(F.relu(self.linear(x)))
        past = x.new_zeros(x.shape[0], self.order, x.shape[2])
        out = torch.empty_like(x)
        for t in range(x.shape[1]):
            past = torch.cat([p[:, t : t + 1], past[:, :-1]], dim=1)
            out[:, t] = x[:, t] + p[:, t] + (self.taps * past).sum(dim=1)
        return out
