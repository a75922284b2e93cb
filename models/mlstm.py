"""mLSTM of Beck et al., "xLSTM: Extended Long Short-Term Memory" (NeurIPS 2024), with its stabiliser.

    C_t = f_t C_{t-1} + i_t v_t k_t^T                                (19)
    n_t = f_t n_{t-1} + i_t k_t                                      (20)
    h_t = o_t * C_t q_t / max(|n_t^T q_t|, 1)                        (21)
    i_t = exp(i~_t), f_t = sigmoid(f~_t) or exp(f~_t)                (25), (26)
    m_t = max(log f_t + m_{t-1}, i~_t)                               (15)
    i'_t = exp(i~_t - m_t), f'_t = exp(log f_t + m_{t-1} - m_t)      (16), (17)

With i' and f' in place of i and f, C and n are scaled by exp(-m), and so is the 1 in (21).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, Tensor, Tensor]


class MLSTMCell(nn.Module):
    """x (B, width), state (C (B, H, d, d), n (B, H, d), m (B, H)) -> h (B, width), state."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.d = heads, width // heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.i, self.f = nn.Linear(width, heads), nn.Linear(width, heads)
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        C, n, m = state
        q = self.q(x).view(-1, self.heads, self.d)
        k = self.k(x).view(-1, self.heads, self.d) / self.d**0.5
        v = self.v(x).view(-1, self.heads, self.d)
        i_tilde, log_f = self.i(x), F.logsigmoid(self.f(x))

        m_new = torch.maximum(log_f + m, i_tilde)
        i = torch.exp(i_tilde - m_new).unsqueeze(-1)
        f = torch.exp(log_f + m - m_new).unsqueeze(-1)
        C = f.unsqueeze(-1) * C + i.unsqueeze(-1) * (v.unsqueeze(-1) @ k.unsqueeze(-2))
        n = f * n + i * k
        scale = torch.maximum((n * q).sum(-1).abs(), torch.exp(-m_new))
        h = (C @ q.unsqueeze(-1)).squeeze(-1) / scale.unsqueeze(-1)
        return torch.sigmoid(self.o(x)) * h.flatten(1), (C, n, m_new)


class MLSTM(nn.Module):
    """x (B, T, width) -> h (B, T, width) and the last state."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cell = MLSTMCell(width, heads)

    def initial(self, x: Tensor) -> State:
        shape = (x.shape[0], self.cell.heads, self.cell.d)
        return x.new_zeros(*shape, self.cell.d), x.new_zeros(shape), x.new_zeros(shape[:2])

    def forward(self, x: Tensor) -> tuple[Tensor, State]:
        state = self.initial(x)
        hs = []
        for t in range(x.shape[1]):
            h, state = self.cell(x[:, t], state)
            hs.append(h)
        return torch.stack(hs, dim=1), state
