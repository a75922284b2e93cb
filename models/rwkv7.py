"""RWKV-7 (Goose): Peng et al., "RWKV-7 Goose with Expressive Dynamic State Evolution" (2025), section 4.

    S_t = S_{t-1} (Diag(w_t) - kappa_t^T (a_t * kappa_t)) + v_t^T k~_t,      y_t = S_t r_t + (r_t (rho * k~_t)^T) v_t

A decay for each channel plus rank one: the removal key kappa has unit length, a is the in-context learning rate, w lies
between exp(-e^{-1/2}) and 1, and the replacement key is k~ = k (1 + (a - 1) xi).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Goose(nn.Module):
    """x (B, T, width) -> (B, T, width), with `heads` heads; the token shift and the value residual are left out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.r, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.w, self.a = nn.Linear(width, width), nn.Linear(width, width)
        self.removal = nn.Parameter(torch.ones(width) * 0.85)
        self.xi = nn.Parameter(torch.rand(width))
        self.rho = nn.Parameter(torch.randn(heads, width // heads) * 0.5)
        self.norm = nn.GroupNorm(heads, width)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        r, k, v = self.r(x), self.k(x), self.v(x)
        w = torch.exp(-math.exp(-0.5) * torch.sigmoid(self.w(x)))
        a = torch.sigmoid(self.a(x))
        kappa = F.normalize((k * self.removal).unflatten(-1, (self.heads, -1)), dim=-1)
        k = k * (1 + (a - 1) * self.xi)
        r, k, v, w, a = (y.unflatten(-1, (self.heads, -1)) for y in (r, k, v, w, a))

        n = width // self.heads
        S = torch.zeros(batch, self.heads, n, n, dtype=x.dtype, device=x.device)
        out = []
        for t in range(length):
            S = (
                S * w[:, t, :, None, :]
                + (S @ -kappa[:, t, :, :, None]) @ (kappa[:, t] * a[:, t])[:, :, None, :]
                + v[:, t, :, :, None] @ k[:, t, :, None, :]
            )
            out.append((S @ r[:, t, :, :, None]).flatten(1))
        y = self.norm(torch.cat(out, dim=0).view(length * batch, width)).view(length, batch, width).transpose(0, 1)
        bonus = (r * self.rho * k).sum(dim=-1, keepdim=True) * v
        return self.out(y + bonus.flatten(2))
