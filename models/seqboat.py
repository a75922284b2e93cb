"""The exponential average of SeqBoat: Ren et al., "Sparse Modular Activation for Efficient Sequence Modeling" (NeurIPS
2023).

SeqBoat keeps the damped, multi-dimensional average of Mega (Ma et al., ICLR 2023) in front of its gated
modules:

    u_t = beta x_t,        h_t = alpha u_t + (1 - alpha delta) h_{t-1},        y_t = gamma . h_t

where beta expands each channel to `dims` numbers and gamma projects them back to one.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DampedEMA(nn.Module):
    """x (B, T, channels) -> SiLU(y + omega x) (B, T, channels); each channel has `dims` averages."""

    def __init__(self, channels: int, dims: int = 16) -> None:
        super().__init__()
        self.delta = nn.Parameter(torch.randn(channels, dims) * 0.2)
        self.alpha = nn.Parameter(torch.randn(channels, dims) * 0.2)
        self.beta = nn.Parameter(torch.randn(channels, dims) * 0.2 + 1)
        self.gamma = nn.Parameter(torch.randn(channels, dims))
        self.omega = nn.Parameter(torch.randn(channels))
        self.scale = math.sqrt(1 / dims)

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.alpha)
        decay = 1 - alpha * torch.sigmoid(self.delta)
        h = x.new_zeros(x.shape[0], *alpha.shape)
        ys = []
        for x_t in x.unbind(dim=1):
            h = torch.addcmul(alpha * self.beta * x_t.unsqueeze(-1), decay, h)
            ys.append(torch.einsum("bcn,cn->bc", h, self.gamma * self.scale))
        return F.silu(torch.stack(ys, dim=1) + self.omega * x)


class SeqBoatGate(nn.Module):
    """A layer whose gate is set by the average: x (B, T, channels) -> (B, T, channels)."""

    def __init__(self, channels: int, dims: int = 16) -> None:
        super().__init__()
        self.ema = DampedEMA(channels, dims)
        self.gate = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        context = self.ema(x)
        gate = torch.sigmoid(self.gate(context))
        return gate * F.silu(self.value(context)) + (1 - gate) * x
