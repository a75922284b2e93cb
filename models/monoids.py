"""Running reductions, h_t = h_{t-1} o x_t for an associative o: sum, product, maximum, log-sum-exp, and a maximum that
decays.

The parallel prefix of any associative operation is due to Ladner & Fischer, "Parallel Prefix Computation" (1980); the
decaying maximum is the peak follower of audio limiters, m_t = max(gamma m_{t-1}, |x_t|). The cumulative sum that is kept
positive, s_t = max(s_{t-1} + x_t - k, 0), is that of Page, "Continuous Inspection Schemes" (1954).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningSum(nn.Module):
    """x (B, T, D) -> (B, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros_like(x[:, 0])
        sums = []
        for x_t in x.unbind(1):
            total = total + x_t
            sums.append(total)
        return torch.stack(sums, dim=1)


class RunningProduct(nn.Module):
    """x (B, T, D) -> (B, T, D)."""

    def forward(self, x: Tensor) -> Tensor:
        product = torch.ones_like(x[:, 0])
        out = torch.empty_like(x)
        for t in range(x.shape[1]):
            product = product * x[:, t]
            out[:, t] = product
        return out


class RunningMax(nn.Module):
    """x (B, T, D) -> (B, T, D); starts at the first x."""

    def forward(self, x: Tensor) -> Tensor:
        best = [x[:, 0]]
        for t in range(1, x.shape[1]):
            best.append(torch.maximum(best[-1], x[:, t]))
        return torch.stack(best, dim=1)


class RunningLogSumExp(nn.Module):
    """x (B, T, D) -> (B, T, D); starts at minus infinity, its neutral element."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.full_like(x[:, 0], float("-inf"))
        out = []
        for t in range(x.shape[1]):
            h = torch.logaddexp(h, x[:, t])
            out.append(h)
        return torch.stack(out, dim=1)


class PeakFollower(nn.Module):
    """The decaying maximum of |x|: x (B, T, D) -> (B, T, D), with a learned decay between 0 and 1 for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.linspace(2.0, 4.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        gamma = torch.sigmoid(self.logit)
        m = torch.zeros_like(x[:, 0])
        peaks = []
        for x_t in x.unbind(1):
            m = torch.max(gamma * m, x_t.abs())
            peaks.append(m)
        return torch.stack(peaks, dim=1)


class Cusum(nn.Module):
    """Sums since the last time that the sum was zero: x (B, T, D) -> (B, T, D), with a learned allowance."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.allowance = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        s = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            s = torch.relu(s + x[:, t] - self.allowance)
            out.append(s)
        return torch.stack(out, dim=1)
