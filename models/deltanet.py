"""The delta rule: Schlag, Irie & Schmidhuber, "Linear Transformers Are Secretly Fast Weight Programmers" (ICML 2021),
and DeltaNet, Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (NeurIPS 2024).

    S_t = S_{t-1} - beta_t (S_{t-1} k_t - v_t) k_t^T = S_{t-1} (I - beta_t k_t k_t^T) + beta_t v_t k_t^T
    o_t = S_t q_t

with keys and queries of unit length. beta in (0, 1); in (0, 2) the transition has eigenvalues in [-1, 1]: Grazzi et
al., "Unlocking State-Tracking in Linear RNNs Through Negative Eigenvalues" (ICLR 2025).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeltaNet(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` heads."""

    def __init__(self, width: int, heads: int, negative_eigenvalues: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.beta_max = 2.0 if negative_eigenvalues else 1.0
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, width, bias=False)
        self.b = nn.Linear(width, heads)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        shape = (batch, length, self.heads, width // self.heads)
        q = F.normalize(F.silu(self.q(x)).view(shape), dim=-1)
        k = F.normalize(F.silu(self.k(x)).view(shape), dim=-1)
        v = F.silu(self.v(x)).view(shape)
        beta = self.beta_max * torch.sigmoid(self.b(x))

        S = x.new_zeros(batch, self.heads, shape[-1], shape[-1])
        o = torch.empty_like(v)
        for t in range(length):
            k_t, beta_t = k[:, t], beta[:, t, :, None]
            v_old = torch.einsum("bhvk,bhk->bhv", S, k_t)
            S = S + torch.einsum("bhv,bhk->bhvk", beta_t * (v[:, t] - v_old), k_t)
            o[:, t] = torch.einsum("bhvk,bhk->bhv", S, q[:, t])
        return self.out(o.reshape(batch, length, width))


class HouseholderDeltaNet(nn.Module):
    """One head, by the product with the Householder matrix as it is written: q, k, v (B, T, d), beta (B, T) -> (B, T,
    d).
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> Tensor:
        k = F.normalize(k, dim=-1)
        eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
        S = torch.zeros_like(v[:, 0, :, None] * k[:, 0, None, :])
        outputs = []
        for t in range(q.shape[1]):
            strength = 2 * torch.sigmoid(beta[:, t, None, None])
            H = eye - strength * k[:, t, :, None] * k[:, t, None, :]
            S = S @ H + strength * v[:, t, :, None] * k[:, t, None, :]
            outputs.append((S @ q[:, t, :, None])[..., 0])
        return torch.stack(outputs, dim=1)
