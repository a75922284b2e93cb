"""Gated DeltaNet: Yang, Kautz & Hatamizadeh, "Gated Delta Networks: Improving Mamba2 with Delta Rule" (ICLR 2025).

    S_t = S_{t-1} (alpha_t (I - beta_t k_t k_t^T)) + beta_t v_t k_t^T,      o_t = S_t q_t              (10)

The state first decays, then the value found under the key is replaced. alpha_t = exp(-exp(A_log) softplus(a_t +
dt_bias)), as in Mamba-2; convolutions before and a gated norm after (section 3.4).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def recurrent_gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """q, k (B, T, H, K), v (B, T, H, V), log decay g and beta (B, T, H) -> o (B, T, H, V), last state (B, H, K, V)."""
    q, k, v, beta, g = (x.transpose(1, 2).contiguous() for x in (q, k, v, beta, g))
    batch, heads, length, d_k = k.shape
    q = q * d_k**-0.5
    out = torch.zeros(batch, heads, length, v.shape[-1]).to(v)
    if state is None:
        state = torch.zeros(batch, heads, d_k, v.shape[-1]).to(v)
    for i in range(length):
        q_t, k_t, v_t = q[:, :, i], k[:, :, i], v[:, :, i]
        state = state * g[:, :, i].exp().unsqueeze(-1).unsqueeze(-1)
        memory = (state * k_t.unsqueeze(-1)).sum(dim=-2)
        delta = (v_t - memory) * beta[:, :, i].unsqueeze(-1)
        state = state + k_t.unsqueeze(-1) * delta.unsqueeze(-2)
        out[:, :, i] = (state * q_t.unsqueeze(-1)).sum(dim=-2)
    return out.transpose(1, 2), state


class GatedDeltaNet(nn.Module):
    """x (B, T, width), state (B, heads, d, d) or None -> (B, T, width) and the last state."""

    def __init__(self, width: int, heads: int, conv: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.conv = nn.Conv1d(3 * width, 3 * width, conv, groups=3 * width, padding=conv - 1, bias=False)
        self.ab = nn.Linear(width, 2 * heads, bias=False)
        self.gate = nn.Linear(width, width, bias=False)
        self.A_log = nn.Parameter(torch.log(torch.empty(heads).uniform_(1, 4)))
        self.dt_bias = nn.Parameter(torch.zeros(heads))
        self.norm = nn.RMSNorm(width // heads, eps=1e-6)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        length = x.shape[1]
        qkv = self.conv(self.qkv(x).transpose(1, 2))[..., :length].transpose(1, 2)
        q, k, v = (y.unflatten(-1, (self.heads, -1)) for y in F.silu(qkv).chunk(3, dim=-1))
        a, b = self.ab(x).chunk(2, dim=-1)
        g = -self.A_log.exp() * F.softplus(a + self.dt_bias)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        o, state = recurrent_gated_delta_rule(q, k, v, g, b.sigmoid(), state)
        o = self.norm(o) * F.silu(self.gate(x)).unflatten(-1, (self.heads, -1))
        return self.out(o.flatten(2)), state
