"""HGRN: Qin, Yang & Zhong, "Hierarchically Gated Recurrent Neural Network for Sequence Modeling" (NeurIPS 2023),
section 3.

f_t = gamma_k + (1 - gamma_k) sigmoid(W_mu x_t)              gamma_k: lower bound of layer k, from a cumulative softmax
h_t = f_t exp(i theta) h_{t-1} + (1 - f_t) c_t               c_t complex
o_t = W_o LayerNorm(g_t * [Re h_t, Im h_t])
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class HGRU(nn.Module):
    """One layer: x (B, T, width), lower bound (width,) -> (B, T, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.re = nn.Linear(width, width)
        self.im = nn.Linear(width, width)
        self.forget = nn.Linear(width, width)
        self.gate = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(2 * width)
        self.out = nn.Linear(2 * width, width)
        self.theta = nn.Parameter(torch.linspace(0.0, 1.0, width))

    def forward(self, x: Tensor, lower_bound: Tensor) -> Tensor:
        f = lower_bound + (1 - lower_bound) * torch.sigmoid(self.forget(x))
        c = torch.complex(F.silu(self.re(x)), F.silu(self.im(x)))
        rotation = torch.polar(torch.ones_like(self.theta), self.theta)
        h = torch.zeros_like(c[:, 0])
        hs = []
        for f_t, c_t in zip(f.unbind(1), c.unbind(1), strict=True):
            h = f_t * rotation * h + (1 - f_t) * c_t
            hs.append(h)
        h = torch.stack(hs, dim=1)
        features = torch.cat([h.real, h.imag], dim=-1)
        return self.out(self.norm(F.silu(self.gate(x)) * features))


class HGRN(nn.Module):
    """Layers whose forget gates have rising lower bounds: x (B, T, width) -> (B, T, width)."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(HGRU(width) for _ in range(depth))
        self.gamma = nn.Parameter(torch.randn(depth, width))

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.gamma, dim=0)
        bounds = torch.cumsum(share, dim=0) - share[0]
        for layer, bound in zip(self.layers, bounds.unbind(0), strict=True):
            x = x + layer(x, bound)
        return x
