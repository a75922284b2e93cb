"""HGRN2: Qin et al., "HGRN2: Gated Linear RNNs with State Expansion" (COLM 2024).

    H_t = Diag(f_t) H_{t-1} + (1 - f_t) (outer) i_t,        y_t = o_t^T H_t

The input gate is tied to the forget gate, which has a lower bound; the outer product expands the state of HGRN.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HGRN2(nn.Module):
    """x (B, T, width) -> (B, T, width) and the last state (B, heads, expand, width / heads)."""

    def __init__(self, width: int, expand: int = 128, lower_bound: float = 0.2) -> None:
        super().__init__()
        self.heads, self.expand, self.lower_bound = width // expand, expand, lower_bound
        self.o = nn.Linear(width, width)
        self.f = nn.Linear(width, width)
        self.i = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        def heads(y: Tensor) -> Tensor:
            return y.reshape(*y.shape[:-1], self.heads, -1)

        o = heads(torch.sigmoid(self.o(x)))
        f = heads(self.lower_bound + (1 - self.lower_bound) * torch.sigmoid(self.f(x)))
        i = heads(self.i(x))
        if state is None:
            state = torch.zeros_like(f[:, 0, :, :, None] * i[:, 0, :, None, :])
        ys = torch.empty_like(i)
        for t in range(x.shape[1]):
            f_t = f[:, t].unsqueeze(-1)
            state = f_t * state + (1 - f_t) * i[:, t].unsqueeze(-2)
            ys[:, t] = torch.einsum("bhk,bhkv->bhv", o[:, t], state)
        return self.out(self.norm(ys.flatten(-2))), state
