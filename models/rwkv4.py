"""RWKV-4: Peng et al., "RWKV: Reinventing RNNs for the Transformer Era" (EMNLP Findings 2023), time mixing in its
stable form.

    wkv_t = (sum_{i<t} e^{-(t-1-i)w + k_i} v_i + e^{u+k_t} v_t) / (sum_{i<t} e^{-(t-1-i)w + k_i} + e^{u+k_t})

by a running numerator a, denominator b and largest exponent p (appendix on the numerically stable recurrence):

    q = max(p, u + k):       wkv = (e^{p-q} a + e^{u+k-q} v) / (e^{p-q} b + e^{u+k-q})
    q = max(p - w, k):       a = e^{p-w-q} a + e^{k-q} v,   b = e^{p-w-q} b + e^{k-q},   p = q
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def wkv(w: Tensor, u: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Decay w > 0 and bonus u (D,), k, v (B, T, D) -> (B, T, D)."""
    a = torch.zeros_like(k[:, 0])
    b = torch.zeros_like(k[:, 0])
    p = torch.full_like(k[:, 0], -1e38)
    output = torch.zeros_like(v)
    for t in range(k.shape[1]):
        kt, vt = k[:, t], v[:, t]
        q = torch.maximum(p, u + kt)
        e1, e2 = torch.exp(p - q), torch.exp(u + kt - q)
        output[:, t] = (e1 * a + e2 * vt) / (e1 * b + e2)
        q = torch.maximum(p - w, kt)
        e1, e2 = torch.exp(p - w - q), torch.exp(kt - q)
        a, b, p = e1 * a + e2 * vt, e1 * b + e2, q
    return output


class RWKV4TimeMix(nn.Module):
    """x (B, T, width) -> (B, T, width): token shift, keys, values and receptance, wkv, output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix_k, self.mix_v, self.mix_r = (nn.Parameter(torch.rand(width)) for _ in range(3))
        self.decay = nn.Parameter(torch.linspace(-3.0, 1.0, width))
        self.first = nn.Parameter(torch.randn(width) * 0.5)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.receptance = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)
        self.time_shift = nn.ZeroPad2d((0, 0, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.time_shift(x)
        k = self.key(torch.lerp(shifted, x, self.mix_k))
        v = self.value(torch.lerp(shifted, x, self.mix_v))
        r = torch.sigmoid(self.receptance(torch.lerp(shifted, x, self.mix_r)))
        return self.output(r * wkv(torch.exp(self.decay), self.first, k, v))
