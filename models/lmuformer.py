"""LMUFormer of Liu, Datta, Li & Beerel, "LMUFormer: Low Complexity Yet Powerful Spiking Model With Legendre Memory
Units" (ICLR 2024).

Section 4: a convolutional patch embedding, blocks of an LMU token mixer (eq. 18-20 of Chilkuri & Eliasmith 2021) and a
convolutional channel mixer, and a head. Layer normalisation stands where the paper has batch normalisation, so that the
rows of a batch stay independent, and the convolutions are causal, so that the model can stream.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lmu import delay_network


class CausalConv(nn.Module):
    """Convolution over time that sees only the past: (B, T, in_channels) -> (B, T, out_channels)."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int) -> None:
        super().__init__()
        self.kernel = kernel
        self.conv = nn.Conv1d(in_channels, out_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x.transpose(1, 2), (self.kernel - 1, 0))).transpose(1, 2)


class LMUMixer(nn.Module):
    """One memory a channel, read together with the input: (B, T, width) -> (B, T, width)."""

    A: Tensor
    B: Tensor

    def __init__(self, width: int, order: int, theta: float) -> None:
        super().__init__()
        self.W_u = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.W_o = nn.Linear(width * (order + 1), width)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b.squeeze(1))

    def forward(self, x: Tensor) -> Tensor:
        u = F.relu(self.norm(self.W_u(x)))
        m = None
        outputs = []
        for x_t, u_t in zip(x.unbind(1), u.unbind(1), strict=True):
            drive = torch.outer(u_t.flatten(), self.B).unflatten(0, u_t.shape)
            m = drive if m is None else F.linear(m, self.A) + drive
            outputs.append(self.W_o(torch.cat([m.flatten(1), x_t], dim=-1)))
        return F.relu(torch.stack(outputs, dim=1))


class LMUFormer(nn.Module):
    """x (B, T, input_size) -> logits after each step (B, T, classes)."""

    def __init__(
        self, input_size: int, width: int, classes: int, depth: int = 1, order: int = 8, theta: float = 16.0
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(CausalConv(input_size, width, 3), nn.LayerNorm(width), nn.ReLU())
        self.mixers = nn.ModuleList(LMUMixer(width, order, theta) for _ in range(depth))
        self.channels = nn.ModuleList(
            nn.Sequential(CausalConv(width, 2 * width, 1), nn.ReLU(), CausalConv(2 * width, width, 1))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for mixer, channel in zip(self.mixers, self.channels, strict=True):
            x = x + mixer(x)
            x = x + channel(x)
        return self.head(x)
