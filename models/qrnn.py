"""The quasi-recurrent network of Bradbury, Merity, Xiong & Socher (ICLR 2017): gates by convolution, then a pooling
over time.

Z = tanh(W_z * X), F = sigmoid(W_f * X), O = sigmoid(W_o * X), I = sigmoid(W_i * X)      (1), masked to be causal
f:    h_t = f_t h_{t-1} + (1 - f_t) z_t                                     (3)
fo:   c_t = f_t c_{t-1} + (1 - f_t) z_t,   h_t = o_t c_t                    (4)
ifo:  c_t = f_t c_{t-1} + i_t z_t,         h_t = o_t c_t                    (5)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def f_pool(z: Tensor, f: Tensor) -> Tensor:
    h = torch.zeros_like(z[:, 0])
    hs = torch.empty_like(z)
    for t in range(z.size(1)):
        h = f[:, t] * h + (1 - f[:, t]) * z[:, t]
        hs[:, t] = h
    return hs


def fo_pool(z: Tensor, f: Tensor, o: Tensor) -> Tensor:
    c = torch.zeros_like(z[:, 0])
    hs = []
    for z_t, f_t, o_t in zip(z.unbind(1), f.unbind(1), o.unbind(1), strict=True):
        c = f_t * c + (1 - f_t) * z_t
        hs.append((o_t * c).unsqueeze(1))
    return torch.cat(hs, dim=1)


def ifo_pool(z: Tensor, f: Tensor, o: Tensor, i: Tensor) -> Tensor:
    c = torch.zeros_like(z[:, :1])
    h = z[:, :0]
    for t in range(z.size(1)):
        now = slice(t, t + 1)
        c = f[:, now] * c + i[:, now] * z[:, now]
        h = torch.cat([h, o[:, now] * c], dim=1)
    return h


class QRNN(nn.Module):
    """One layer; `pooling` is "f", "fo" or "ifo": x (B, T, input_size) -> h (B, T, hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int, pooling: str = "fo", window: int = 2) -> None:
        super().__init__()
        if pooling not in ("f", "fo", "ifo"):
            raise ValueError(f"pooling must be 'f', 'fo' or 'ifo', not {pooling!r}")
        self.pooling, self.window = pooling, window
        self.conv = nn.Conv1d(input_size, hidden_size * (len(pooling) + 1), window)

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(x.transpose(1, 2), (self.window - 1, 0))
        gates = self.conv(padded).transpose(1, 2).chunk(len(self.pooling) + 1, dim=-1)
        z, f, *rest = torch.tanh(gates[0]), *(torch.sigmoid(g) for g in gates[1:])
        if self.pooling == "f":
            return f_pool(z, f)
        if self.pooling == "fo":
            return fo_pool(z, f, *rest)
        return ifo_pool(z, f, *rest)
