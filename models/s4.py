"""S4 in its recurrent view with a dense, learned A: Gu, Goel & Re, "Efficiently Modeling Long Sequences ..." (ICLR
2022).

    x_k = A_bar x_{k-1} + B_bar u_k,     y_k = C x_k                                                  (3)
    A_bar = (I - dt/2 A)^{-1} (I + dt/2 A),     B_bar = (I - dt/2 A)^{-1} dt B

from the HiPPO matrix of eq. 2; A, B, C and dt are learned, so the discretisation is part of the forward pass.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lssl import bilinear, hippo_legs


class S4(nn.Module):
    """Single-input single-output models, one a channel, then GELU and a mixing layer: u (B, T, channels) -> the same
    shape.
    """

    def __init__(self, channels: int, order: int = 64, dt_min: float = 0.001, dt_max: float = 0.1) -> None:
        super().__init__()
        a, b = hippo_legs(order)
        dtype = torch.get_default_dtype()
        self.A = nn.Parameter(a.to(dtype).repeat(channels, 1, 1))
        self.B = nn.Parameter(b.to(dtype).repeat(channels, 1))
        self.C = nn.Parameter(torch.randn(channels, order) / math.sqrt(order))
        self.D = nn.Parameter(torch.randn(channels))
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(dt_min), math.log(dt_max)))
        self.mix = nn.Linear(channels, channels)

    def forward(self, u: Tensor) -> Tensor:
        A, B = bilinear(self.A, self.B, self.log_dt.exp())
        x = torch.zeros(u.shape[0], *B.shape, dtype=u.dtype, device=u.device)
        ys = []
        for u_k in u.split(1, dim=1):
            u_k = u_k.squeeze(1).unsqueeze(-1)
            x = torch.matmul(A, x.unsqueeze(-1)).squeeze(-1) + B * u_k
            ys.append(torch.einsum("hn,bhn->bh", self.C, x))
        y = torch.stack(ys, dim=1) + self.D * u
        return self.mix(F.gelu(y))
