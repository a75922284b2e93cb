"""Heavy-ball momentum over a given series of gradients: Polyak, "Some methods of speeding up the convergence of
iteration methods" (1964).

    v_t = mu v_{t-1} + g_t,        w_t = w_{t-1} - lr v_t

The velocity reads only itself and the weights read the velocity. Written with the in-place updates of an optimiser.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HeavyBall(nn.Module):
    """gradients (B, T, D), w0 (B, D) -> the trajectory of weights (B, T, D)."""

    def __init__(self, lr: float = 0.1, mu: float = 0.9) -> None:
        super().__init__()
        self.lr, self.mu = lr, mu

    def forward(self, gradients: Tensor, w0: Tensor) -> Tensor:
        w = w0.clone()
        v = torch.zeros_like(w0)
        trajectory = torch.empty_like(gradients)
        for t in range(gradients.shape[1]):
            v.mul_(self.mu).add_(gradients[:, t])
            w.sub_(v, alpha=self.lr)
            trajectory[:, t] = w
        return trajectory
