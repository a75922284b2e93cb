"""Causal linear attention: Katharopoulos et al., "Transformers are RNNs" (ICML 2020).

    s_0 = 0, z_0 = 0                                                 (16), (17)
    s_i = s_{i-1} + phi(k_i) v_i^T                                   (18)
    z_i = z_{i-1} + phi(k_i)                                         (19)
    y_i = phi(q_i)^T s_i / (phi(q_i)^T z_i)                          (20)

with phi(x) = elu(x) + 1 (7). Also as the outer-product "fast weight" memory without a normaliser (Schmidhuber 1992).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearAttention(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` heads."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        d = width // self.heads
        q = F.elu(self.query(x).view(batch, length, self.heads, d)) + 1
        k = F.elu(self.key(x).view(batch, length, self.heads, d)) + 1
        v = self.value(x).view(batch, length, self.heads, d)

        s = x.new_zeros(batch, self.heads, d, d)
        z = x.new_zeros(batch, self.heads, d)
        ys = []
        for i in range(length):
            s = s + torch.einsum("bhk,bhv->bhkv", k[:, i], v[:, i])
            z = z + k[:, i]
            numerator = torch.einsum("bhk,bhkv->bhv", q[:, i], s)
            denominator = torch.einsum("bhk,bhk->bh", q[:, i], z)
            ys.append(numerator / denominator.unsqueeze(-1))
        return self.out(torch.stack(ys, dim=1).flatten(2))


class FastWeights(nn.Module):
    """One head, no normaliser: W_t = W_{t-1} + v_t k_t^T, y_t = W_t q_t; x (B, T, width), W (B, d, d) -> (B, T, d) and
    W.
    """

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.slow = nn.Linear(width, 3 * d, bias=False)

    def forward(self, x: Tensor, W: Tensor) -> tuple[Tensor, Tensor]:
        ys = []
        for x_t in x.unbind(1):
            q, k, v = self.slow(x_t).chunk(3, dim=-1)
            W = W + v.unsqueeze(2) * k.unsqueeze(1)
            ys.append((W @ q.unsqueeze(2)).squeeze(2))
        return torch.stack(ys, dim=1), W
