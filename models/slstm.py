"""sLSTM of Beck et al., "xLSTM: Extended Long Short-Term Memory" (NeurIPS 2024), with its stabiliser.

    c_t = f_t c_{t-1} + i_t z_t               (8)            z_t = tanh(W_z x_t + R_z h_{t-1})       (11)
    n_t = f_t n_{t-1} + i_t                   (9)            i_t = exp(W_i x_t + R_i h_{t-1})        (12)
    h_t = o_t c_t / n_t                       (10)           f_t, o_t = sigmoid(...)                 (13), (14)
    m_t = max(log f_t + m_{t-1}, log i_t)     (15), i and f rescaled by (16) and (17)

All four gates read the last output: memory mixing, and not affine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SLSTM(nn.Module):
    """x (B, T, input_size) -> h (B, T, hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.W = nn.Linear(input_size, 4 * hidden_size)
        self.R = nn.Linear(hidden_size, 4 * hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, c, n, m = x.new_zeros(4, x.shape[0], self.hidden_size).unbind(0)
        hs = []
        for t in range(x.shape[1]):
            z, i, f, o = (self.W(x[:, t]) + self.R(h)).chunk(4, dim=-1)
            log_f = F.logsigmoid(f)
            m_new = torch.maximum(log_f + m, i)
            i, f = torch.exp(i - m_new), torch.exp(log_f + m - m_new)
            c = f * c + i * torch.tanh(z)
            n = f * n + i
            h = torch.sigmoid(o) * c / n
            m = m_new
            hs.append(h)
        return torch.stack(hs, dim=1)
