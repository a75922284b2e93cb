"""The Kalman filter (Kalman 1960): x_t = A x_{t-1} + noise of covariance Q, y_t = C x_t + noise of covariance R.

    m_t = (I - K_t C) A m_{t-1} + K_t y_t
    P = A P_{t-1} A^T + Q,    K_t = P C^T (C P C^T + R)^{-1},    P_t = (I - K_t C) P

For given gains K the mean is affine, with a dense transition that varies. The covariance reads only itself, in a
Riccati recursion, and is not affine.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class FilterMean(nn.Module):
    """y (B, T, p), gains K (B, T, n, p), m (B, n) or None -> means (B, T, n)."""

    def __init__(self, n: int, p: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.95 * torch.linalg.qr(torch.randn(n, n)).Q)
        self.C = nn.Parameter(torch.randn(p, n) / math.sqrt(n))

    def forward(self, y: Tensor, gains: Tensor, m: Tensor | None = None) -> Tensor:
        if m is None:
            m = y.new_zeros(y.shape[0], self.A.shape[0])
        means = []
        for t in range(y.shape[1]):
            predicted = m @ self.A.T
            innovation = y[:, t] - predicted @ self.C.T
            m = predicted + torch.einsum("bnp,bp->bn", gains[:, t], innovation)
            means.append(m)
        return torch.stack(means, dim=1)


class KalmanFilter(nn.Module):
    """The whole filter, Q and R diagonal and learned: y (B, T, p) -> means (B, T, n)."""

    def __init__(self, n: int, p: int) -> None:
        super().__init__()
        self.A = nn.Parameter(0.95 * torch.linalg.qr(torch.randn(n, n)).Q)
        self.C = nn.Parameter(torch.randn(p, n) / math.sqrt(n))
        self.log_q = nn.Parameter(torch.zeros(n))
        self.log_r = nn.Parameter(torch.zeros(p))

    def forward(self, y: Tensor) -> Tensor:
        A, C = self.A, self.C
        Q, R = torch.diag(self.log_q.exp()), torch.diag(self.log_r.exp())
        m, P = y.new_zeros(y.shape[0], A.shape[0]), torch.eye(A.shape[0], dtype=y.dtype, device=y.device)
        means = []
        for y_t in y.unbind(1):
            m, P = m @ A.T, A @ P @ A.T + Q
            K = torch.linalg.solve(C @ P @ C.T + R, C @ P).T
            m = m + (y_t - m @ C.T) @ K.T
            P = P - K @ C @ P
            means.append(m)
        return torch.stack(means, dim=1)
