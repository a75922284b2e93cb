"""Attention with bounded-memory control: Peng et al., "ABC: Attention with Bounded-memory Control" (ACL 2022).

    K_t = K_{t-1} + phi_t (outer) k_t,      V_t = V_{t-1} + phi_t (outer) v_t,      o_t = V_t^T softmax(K_t q_t)

with the learned control of ABC_MLP, phi_t = exp(W x_t), normalised for each slot by the sum of phi over what has been
seen.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class ABC(nn.Module):
    """x (B, T, width) -> (B, T, width), one head with `slots` slots."""

    def __init__(self, width: int, slots: int = 32) -> None:
        super().__init__()
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.control = nn.Linear(width, slots, bias=False)
        self.scale = width**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.query(x) * self.scale, self.key(x), self.value(x)
        phi = torch.exp(self.control(x))
        state = None
        outputs = []
        for q_t, k_t, v_t, phi_t in zip(q.unbind(1), k.unbind(1), v.unbind(1), phi.unbind(1), strict=True):
            new = (
                torch.einsum("bm,bd->bmd", phi_t, k_t),
                torch.einsum("bm,bd->bmd", phi_t, v_t),
                phi_t.unsqueeze(-1),
            )
            state = new if state is None else tuple(old + add for old, add in zip(state, new, strict=True))
            keys, values, total = state
            weights = torch.softmax(torch.einsum("bmd,bd->bm", keys / total, q_t), dim=-1)
            outputs.append(torch.einsum("bm,bmd->bd", weights, values / total))
        return torch.stack(outputs, dim=1)
