"""JRT-RNN: Arora et al., "Just Read Twice: Closing the Recall Gap for Recurrent Language Models" (2024), section 4.

A prefix of M tokens is read without a mask by an encoder; its keys and values start the state of causal linear
attention:

    S_0 = sum_{j<=M} phi(k^e_j) v^e_j^T,    z_0 = sum_{j<=M} phi(k^e_j)
    S_i = S_{i-1} + phi(k_i) v_i^T,         z_i = z_{i-1} + phi(k_i),        y_i = phi(q_i) S_i / phi(q_i) z_i
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class JRTAttention(nn.Module):
    """x (B, T, width), prefix (B, M, width) -> (B, T, width)."""

    def __init__(self, width: int, feature: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, feature, bias=False)
        self.k = nn.Linear(width, feature, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.k_encoder = nn.Linear(width, feature, bias=False)
        self.v_encoder = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, prefix: Tensor) -> Tensor:
        k_prefix, v_prefix = F.elu(self.k_encoder(prefix)) + 1, self.v_encoder(prefix)
        S = torch.einsum("bmf,bmd->bfd", k_prefix, v_prefix)
        z = k_prefix.sum(dim=1)

        q, k, v = F.elu(self.q(x)) + 1, F.elu(self.k(x)) + 1, self.v(x)
        y = torch.zeros_like(v)
        for i in range(x.shape[1]):
            S = torch.baddbmm(S, k[:, i].unsqueeze(2), v[:, i].unsqueeze(1))
            z = z + k[:, i]
            read = torch.bmm(q[:, i].unsqueeze(1), S).squeeze(1)
            y[:, i] = read / (q[:, i] * z).sum(-1, keepdim=True)
        return self.out(y)
