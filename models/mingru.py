"""minGRU and minLSTM of Feng et al., "Were RNNs All We Needed?" (2024), sections 3.1.3 and 3.2.4.

minGRU:   h_t = (1 - z_t) h_{t-1} + z_t h~_t                   z_t = sigmoid(W_z x_t), h~_t = W_h x_t
minLSTM:  h_t = f'_t h_{t-1} + i'_t h~_t                       f' = f / (f + i), i' = i / (f + i), gates from x_t alone
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MinGRU(nn.Module):
    """x (B, T, input_size), h (B, hidden_size) or None -> (B, T, hidden_size); without h, h_1 is z_1 h~_1."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_z = nn.Linear(input_size, hidden_size)
        self.linear_h = nn.Linear(input_size, hidden_size)

    def step(self, x_t: Tensor, h_prev: Tensor | None) -> Tensor:
        z_t = torch.sigmoid(self.linear_z(x_t))
        h_tilde = self.linear_h(x_t)
        if h_prev is None:
            return z_t * h_tilde
        return (1 - z_t) * h_prev + z_t * h_tilde

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        out = []
        for t in range(x.size(1)):
            h = self.step(x[:, t, :], h)
            out.append(h)
        return torch.stack(out, 1)


class MinLSTM(nn.Module):
    """x (B, T, input_size), h_0 (B, hidden_size) -> (B, T, hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear_f = nn.Linear(input_size, hidden_size)
        self.linear_i = nn.Linear(input_size, hidden_size)
        self.linear_h = nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor, h_0: Tensor) -> Tensor:
        h, t = h_0, 0
        hs = []
        while t < x.size(1):
            f = torch.sigmoid(self.linear_f(x[:, t]))
            i = torch.sigmoid(self.linear_i(x[:, t]))
            f_prime, i_prime = f / (f + i), i / (f + i)
            h = f_prime * h + i_prime * self.linear_h(x[:, t])
            hs.append(h)
            t += 1
        return torch.stack(hs, dim=1)
