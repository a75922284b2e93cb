"""MesaNet: von Oswald et al., "MesaNet: Sequence Modeling by Locally Optimal Test-Time Training" (2025), section 2.

    G_t = gamma_t G_{t-1} + beta_t v_t k_t^T,      H_t = gamma_t H_{t-1} + beta_t k_t k_t^T
    o_t = G_t (H_t + Lambda)^{-1} q_t

The read solves a regularised least-squares problem over all that has been seen; both states are linear recurrences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MesaLayer(nn.Module):
    """x (B, T, width) -> (B, T, width), one head of size d."""

    def __init__(self, width: int, d: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, d, bias=False)
        self.k = nn.Linear(width, d, bias=False)
        self.v = nn.Linear(width, d, bias=False)
        self.gates = nn.Linear(width, 2)
        self.ridge = nn.Parameter(torch.zeros(d))
        self.out = nn.Linear(d, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.normalize(F.silu(self.q(x)), dim=-1), F.normalize(F.silu(self.k(x)), dim=-1)
        v = self.v(x)
        gamma, beta = torch.sigmoid(self.gates(x)).unsqueeze(-1).unbind(2)
        ridge = torch.diag(F.softplus(self.ridge) + 0.25)

        G = H = x.new_zeros(x.shape[0], q.shape[-1], q.shape[-1])
        o = []
        for t in range(x.shape[1]):
            decay, weighted_key = gamma[:, t, :, None], (beta[:, t] * k[:, t]).unsqueeze(-2)
            G = decay * G + v[:, t].unsqueeze(-1) * weighted_key
            H = decay * H + k[:, t].unsqueeze(-1) * weighted_key
            q_star = torch.linalg.solve(H + ridge, q[:, t])
            o.append((G @ q_star.unsqueeze(-1)).squeeze(-1))
        return self.out(torch.stack(o, dim=1))
