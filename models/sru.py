"""The Simple Recurrent Unit of Lei et al., "Simple Recurrent Units for Highly Parallelizable Recurrence" (EMNLP 2018).

    f_t = sigmoid(W_f x_t + v_f c_{t-1} + b_f)             (1)
    c_t = f_t c_{t-1} + (1 - f_t) W x_t                    (2)
    r_t = sigmoid(W_r x_t + v_r c_{t-1} + b_r)             (3)
    h_t = r_t c_t + (1 - r_t) x_t                          (4)

The gates read the state, so c is not affine. Its first version (arXiv 1709.02755v1) had gates from x_t alone; there it
is.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class SRU(nn.Module):
    """x (B, T, width), c (B, width) or None -> h (B, T, width) and the last c; `state_in_gates=False` is the first
    version.
    """

    def __init__(self, width: int, state_in_gates: bool = True) -> None:
        super().__init__()
        self.W = nn.Linear(width, width, bias=False)
        self.W_f = nn.Linear(width, width)
        self.W_r = nn.Linear(width, width)
        self.state_in_gates = state_in_gates
        if state_in_gates:
            self.v_f = nn.Parameter(torch.randn(width))
            self.v_r = nn.Parameter(torch.randn(width))

    def gates(self, x: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        f, r = self.W_f(x), self.W_r(x)
        if self.state_in_gates:
            f = f + self.v_f * c
            r = r + self.v_r * c
        return torch.sigmoid(f), torch.sigmoid(r)

    def forward(self, x: Tensor, c: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if c is None:
            c = torch.zeros_like(x.select(1, 0))
        hs = []
        for t in range(x.size(1)):
            x_t = x.select(1, t)
            f, r = self.gates(x_t, c)
            c = f * c + (1 - f) * self.W(x_t)
            hs.append(r * c + (1 - r) * x_t)
        return torch.stack(hs, dim=1), c
