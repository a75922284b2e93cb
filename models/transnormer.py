"""TransNormerLLM: Qin et al., "TransNormerLLM: A Faster and Better Large Language Model with Improved TransNormer"
(2023).

Lightning attention in its recurrent (inference) form, with gated linear attention around it (section 3):

    kv_t = lambda kv_{t-1} + k_t v_t^T,    o_t = q_t kv_t,    O = (SRMSNorm(o) * U) W_o

lambda = exp(-8 h/H (1 - l/L)) for head h of H in layer l of L; q and k go through swish.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def simple_rms_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    """Root-mean-square norm over the last axis, without weights."""
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


class NormAttention(nn.Module):
    """x (B, T, width) -> (B, T, width), as layer `layer` of `layers`."""

    decay: Tensor

    def __init__(self, width: int, heads: int, layer: int = 0, layers: int = 8) -> None:
        super().__init__()
        self.heads = heads
        self.qkvu = nn.Linear(width, 4 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        slope = 8 * torch.arange(1, heads + 1) / heads * (1 - layer / layers)
        self.register_buffer("decay", torch.exp(-slope).view(heads, 1, 1))

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, u = self.qkvu(x).chunk(4, dim=-1)
        q, k, v = self.split_heads(F.silu(q)), self.split_heads(F.silu(k)), self.split_heads(v)

        kv = torch.zeros(*q.shape[:2], q.shape[-1], v.shape[-1], dtype=x.dtype, device=x.device)
        output = []
        for i in range(x.shape[1]):
            kv = self.decay * kv + torch.einsum("... n d, ... n e -> ... d e", k[:, :, i : i + 1], v[:, :, i : i + 1])
            output.append(torch.einsum("... n e, ... e d -> ... n d", q[:, :, i : i + 1], kv))
        o = torch.concat(output, dim=-2).transpose(1, 2).flatten(2)
        return self.out(simple_rms_norm(o) * u)
