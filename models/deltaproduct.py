"""DeltaProduct: Siems et al., "DeltaProduct: Improving State-Tracking in Linear RNNs via Householder Products" (2025),
section 3.

n steps of the delta rule for each token, so that the transition is a product of n Householder-like matrices:

    H_{i,0} = H_{i-1},    H_{i,j} = (I - beta_ij k_ij k_ij^T) H_{i,j-1} + beta_ij k_ij v_ij^T,    H_i = H_{i,n}
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DeltaProduct(nn.Module):
    """x (B, T, width) -> (B, T, width), one head with `householders` factors a token."""

    def __init__(self, width: int, d: int, householders: int = 2) -> None:
        super().__init__()
        self.d = d
        self.query = nn.Linear(width, d, bias=False)
        self.keys = nn.ModuleList(nn.Linear(width, d, bias=False) for _ in range(householders))
        self.values = nn.ModuleList(nn.Linear(width, d, bias=False) for _ in range(householders))
        self.betas = nn.ModuleList(nn.Linear(width, 1) for _ in range(householders))
        self.out = nn.Linear(d, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        H = x.new_zeros(x.shape[0], self.d, self.d)
        outputs = []
        for i in range(x.shape[1]):
            x_i = x[:, i]
            for key, value, beta in zip(self.keys, self.values, self.betas, strict=True):
                k = F.normalize(F.silu(key(x_i)), dim=-1).unsqueeze(1)
                b = 2 * torch.sigmoid(beta(x_i)).unsqueeze(1)
                H = H - b * k.mT @ (k @ H) + b * k.mT @ value(x_i).unsqueeze(1)
            outputs.append(self.out((self.query(x_i).unsqueeze(1) @ H).squeeze(1)))
        return torch.stack(outputs, dim=1)
