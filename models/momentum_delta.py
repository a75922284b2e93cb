"""The delta rule with momentum: Titans (Behrouz, Zhong & Mirrokni 2024) with a linear memory, its surprise carried from
step to step.

    S_t = eta_t S_{t-1} - theta_t grad || M_{t-1} k_t - v_t ||^2
    M_t = (1 - alpha_t) M_{t-1} + S_t,        y_t = M_t q_t

The surprise S reads the memory M and the memory reads the surprise: two matrices, one recurrence, a rank-one coupling.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Memory(NamedTuple):
    """The surprise S and the weights M, each (B, d, d)."""

    S: Tensor
    M: Tensor


class MomentumDelta(nn.Module):
    """x (B, T, width), memory or None -> (B, T, d) and the last memory."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.d = d
        self.qkv = nn.Linear(width, 3 * d, bias=False)
        self.rates = nn.Linear(width, 3)

    def update(self, memory: Memory, k: Tensor, v: Tensor, rates: Tensor) -> Memory:
        eta, theta, alpha = rates[:, :, None, None].unbind(1)
        surprise = (memory.M @ k.unsqueeze(-1) - v.unsqueeze(-1)) @ k.unsqueeze(-2)
        S = eta * memory.S - theta * 2 * surprise
        return Memory(S=S, M=(1 - alpha) * memory.M + S)

    def forward(self, x: Tensor, memory: Memory | None = None) -> tuple[Tensor, Memory]:
        if memory is None:
            zeros = x.new_zeros(x.shape[0], self.d, self.d)
            memory = Memory(zeros, zeros)
        ys = []
        for x_t in x.unbind(1):
            q, k, v = self.qkv(x_t).chunk(3, dim=-1)
            memory = self.update(memory, F.normalize(k, dim=-1), v, torch.sigmoid(self.rates(x_t)))
            ys.append((memory.M @ q.unsqueeze(-1)).squeeze(-1))
        return torch.stack(ys, dim=1), memory
