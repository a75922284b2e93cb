"""Aaren: Feng et al., "Attention as an RNN" (2024), section 3: softmax attention for one query, token by token.

    m_k = max(m_{k-1}, s_k),    s_k = <q, k_k>
    a_k = a_{k-1} e^{m_{k-1}-m_k} + v_k e^{s_k-m_k},    c_k = c_{k-1} e^{m_{k-1}-m_k} + e^{s_k-m_k},    o_k = a_k / c_k

The query is a learned vector, not a token. This is the online softmax (Milakov & Gimelshein 2018) with values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Aaren(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` learned queries."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(heads, width // heads))
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        k = self.key(x).view(batch, length, self.heads, -1)
        v = self.value(x).view(batch, length, self.heads, -1)
        s = (k * self.query).sum(dim=-1, keepdim=True) * self.query.shape[-1] ** -0.5

        m, c, a = s[:, 0], torch.ones_like(s[:, 0]), v[:, 0]
        outputs = [a / c]
        for t in range(1, length):
            m_new = torch.maximum(m, s[:, t])
            old, new = torch.exp(m - m_new), torch.exp(s[:, t] - m_new)
            a = a * old + v[:, t] * new
            c = c * old + new
            m = m_new
            outputs.append(a / c)
        return torch.stack(outputs, dim=1).flatten(2)
