"""S5 of Smith, Warrington & Linderman, "Simplified State Space Layers for Sequence Modeling" (ICLR 2023).

One multi-input multi-output system with a diagonal state (section 3), discretised by zero-order hold:

    x_k = exp(Lambda dt) x_{k-1} + Lambda^{-1} (exp(Lambda dt) - 1) B u_k,        y_k = 2 Re(C x_k) + D u_k

with Lambda, B and C started from the diagonalised normal part of HiPPO-LegS, one of each conjugate pair kept.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def hippo_normal(order: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (order/2,) with positive imaginary part and their eigenvectors (order, order/2) of HiPPO-N."""
    q = torch.sqrt(torch.arange(order, dtype=torch.float64) + 0.5)
    lower = torch.tril(torch.outer(q, q), diagonal=-1)
    skew = lower.T - lower
    imag, vectors = torch.linalg.eigh(-1j * skew)
    return torch.complex(torch.full_like(imag, -0.5), imag)[order // 2 :], vectors[:, order // 2 :]


def as_parameter(z: Tensor) -> nn.Parameter:
    """A complex tensor as a real parameter with a last axis (re, im), in the default dtype."""
    return nn.Parameter(torch.view_as_real(z.resolve_conj()).to(torch.get_default_dtype()).clone())


class S5(nn.Module):
    """u (B, T, width) -> y (B, T, width); with `bidirectional` a second scan runs from the end, and y reads both."""

    def __init__(
        self, width: int, order: int, bidirectional: bool = False, dt_min: float = 0.001, dt_max: float = 0.1
    ) -> None:
        super().__init__()
        lam, vectors = hippo_normal(order)
        inverse = vectors.conj().T
        directions = 2 if bidirectional else 1
        B = torch.randn(order, width, dtype=torch.float64) / math.sqrt(width)
        C = torch.randn(directions, width, order, dtype=torch.float64) / math.sqrt(order)
        self.bidirectional = bidirectional
        self.Lambda = as_parameter(lam)
        self.B = as_parameter(inverse @ B.to(inverse.dtype))
        self.C = as_parameter(C.to(vectors.dtype) @ vectors)
        self.D = nn.Parameter(torch.randn(width))
        self.log_dt = nn.Parameter(torch.empty(order // 2).uniform_(math.log(dt_min), math.log(dt_max)))

    def forward(self, u: Tensor) -> Tensor:
        lam, C = torch.view_as_complex(self.Lambda), torch.view_as_complex(self.C)
        lam_bar = torch.exp(lam * self.log_dt.exp())
        B_bar = ((lam_bar - 1) / lam).unsqueeze(-1) * torch.view_as_complex(self.B)
        Bu = u.to(B_bar.dtype) @ B_bar.mT

        xs = [torch.zeros_like(Bu[:, 0])]
        for k in range(u.shape[1]):
            xs.append(lam_bar * xs[-1] + Bu[:, k])
        y = 2 * (torch.stack(xs[1:], dim=1) @ C[0].mT).real
        if self.bidirectional:
            xs = [torch.zeros_like(Bu[:, 0])]
            for k in range(u.shape[1] - 1, -1, -1):
                xs.insert(0, lam_bar * xs[0] + Bu[:, k])
            y = y + 2 * (torch.stack(xs[:-1], dim=1) @ C[1].mT).real
        return y + self.D * u
