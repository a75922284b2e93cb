"""ConvS5 of Smith et al., "Convolutional State Space Models for Long-Range Spatiotemporal Modeling" (NeurIPS 2023),
section 3.

    X_k = A_bar X_{k-1} + B_bar * U_k,        Y_k = 2 Re(C * X_k) + D U_k

The state kernel is pointwise and diagonalised as in S5, so each mode of each pixel decays by itself; B and C are
convolutions over the frame. Zero-order hold: A_bar = exp(Lambda dt), B_bar = Lambda^{-1} (A_bar - 1) B.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.s5 import hippo_normal


class ConvS5(nn.Module):
    """U (B, T, channels, height, width) -> Y of the same shape."""

    def __init__(self, channels: int, order: int, kernel: int = 3, dt_min: float = 0.01, dt_max: float = 0.5) -> None:
        super().__init__()
        lam, _ = hippo_normal(order)
        modes, dtype = order // 2, torch.get_default_dtype()
        self.log_re = nn.Parameter(torch.log(-lam.real).to(dtype))
        self.im = nn.Parameter(lam.imag.to(dtype))
        self.log_dt = nn.Parameter(torch.empty(modes).uniform_(math.log(dt_min), math.log(dt_max)))
        fan = math.sqrt(channels * kernel**2)
        self.B = nn.Parameter(torch.randn(2, modes, channels, kernel, kernel) / fan)
        self.C = nn.Parameter(torch.randn(2, channels, modes, kernel, kernel) / math.sqrt(modes * kernel**2))
        self.D = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, U: Tensor) -> Tensor:
        lam = torch.complex(-self.log_re.exp(), self.im)
        A = torch.exp(lam * self.log_dt.exp())[:, None, None]
        scale = (A - 1) / lam[:, None, None]
        pad = self.B.shape[-1] // 2
        X = None
        frames = []
        for U_k in U.unbind(1):
            drive = torch.complex(F.conv2d(U_k, self.B[0], padding=pad), F.conv2d(U_k, self.B[1], padding=pad))
            X = scale * drive if X is None else A * X + scale * drive
            Y = F.conv2d(X.real, self.C[0], padding=pad) - F.conv2d(X.imag, self.C[1], padding=pad)
            frames.append(2 * Y + self.D * U_k)
        return torch.stack(frames, dim=1)
