"""Generalised advantage estimation: Schulman et al., "High-Dimensional Continuous Control Using Generalized Advantage
Estimation" (2016).

    delta_t = r_t + gamma V(s_{t+1}) - V(s_t)
    A_t = delta_t + gamma lambda A_{t+1}                              (16), as a recursion from the end

An episode that ends at t (done) cuts both. The loop runs backwards in time and reads V one step ahead.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GAE(nn.Module):
    """rewards (B, T), values (B, T + 1), dones (B, T) bool -> advantages (B, T)."""

    def __init__(self, gamma: float = 0.99, lam: float = 0.95) -> None:
        super().__init__()
        self.gamma, self.lam = gamma, lam

    def forward(self, rewards: Tensor, values: Tensor, dones: Tensor) -> Tensor:
        alive = 1.0 - dones.to(rewards.dtype)
        advantages = torch.zeros_like(rewards)
        advantage = torch.zeros_like(rewards[:, 0])
        for t in reversed(range(rewards.shape[1])):
            delta = rewards[:, t] + self.gamma * values[:, t + 1] * alive[:, t] - values[:, t]
            advantage = delta + self.gamma * self.lam * alive[:, t] * advantage
            advantages[:, t] = advantage
        return advantages
