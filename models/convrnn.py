"""A convolutional recurrent network with a linear state: H_t = K * H_{t-1} + W * X_t, read through a nonlinearity.

The recurrence of convolutional RNNs (Shi et al. 2015, "Convolutional LSTM Network", without its gates) with the
nonlinearity moved from the state to the read, as in Smith et al. 2023, "Convolutional State Space Models". The
border is circular or zero.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearConvRNN(nn.Module):
    """frames X (B, T, in_channels, height, width) -> (B, T, channels, height, width); `padding` is "circular" or
    "zeros".
    """

    def __init__(self, in_channels: int, channels: int, kernel: int = 3, padding: str = "circular") -> None:
        super().__init__()
        self.channels = channels
        self.input = nn.Conv2d(in_channels, channels, kernel, padding=kernel // 2, padding_mode=padding)
        self.hidden = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, padding_mode=padding, bias=False)
        nn.init.normal_(self.hidden.weight, std=0.5 / (kernel * channels))

    def forward(self, frames: Tensor) -> Tensor:
        batch, length, _, height, width = frames.shape
        H = frames.new_zeros(batch, self.channels, height, width)
        out = []
        for t in range(length):
            H = self.hidden(H) + self.input(frames[:, t])
            out.append(F.gelu(H))
        return torch.stack(out, dim=1)


class DepthwiseConvRNN(nn.Module):
    """The same in one dimension with a kernel for each channel: x (B, T, channels, size) -> (B, T, channels, size)."""

    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, 1, kernel) / (2 * kernel))

    def forward(self, x: Tensor) -> Tensor:
        channels, _, size = self.kernel.shape
        h = torch.zeros_like(x[:, 0])
        hs = []
        for x_t in x.unbind(1):
            wrapped = F.pad(h, (size // 2, size // 2), mode="circular")
            h = F.conv1d(wrapped, self.kernel, groups=channels) + x_t
            hs.append(h)
        return torch.stack(hs, dim=1)
