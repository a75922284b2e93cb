"""Exponential averages and leaky integrators: one scalar decay per channel, the smallest linear time-invariant
recurrence.

Simple exponential smoothing, h_t = b h_{t-1} + (1 - b) x_t (Brown 1959); the same forwards and backwards; the leaky
integrator of echo state networks (Jaeger et al. 2007) without its nonlinearity; and the leaky integrate-and-fire neuron
of Eshraghian et al., "Training Spiking Neural Networks Using Lessons From Deep Learning" (2023), without its reset.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class EMA(nn.Module):
    """h_t = b h_{t-1} + (1 - b) x_t from h_0 = 0: x (B, T, D) -> h (B, T, D)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.linspace(-1.0, 3.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        b = torch.sigmoid(self.logit)
        h = [torch.zeros_like(x[:, 0])]
        for t in range(x.shape[1]):
            h.append(b * h[-1] + (1 - b) * x[:, t])
        return torch.stack(h[1:], dim=1)


class Smoother(nn.Module):
    """Zero-phase smoothing, an average forwards and then one backwards over its result: x (B, T, D) -> y (B, T, D).

    Both start at the sample that they meet first, so a constant passes unchanged. Not causal.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.linspace(-1.0, 1.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        alpha = torch.sigmoid(self.logit)
        length = x.shape[1]
        forward = torch.empty_like(x)
        h = x[:, 0]
        for t in range(length):
            h = torch.lerp(h, x[:, t], alpha)
            forward[:, t] = h
        backward = torch.empty_like(x)
        h = forward[:, -1]
        for t in reversed(range(length)):
            h = torch.lerp(h, forward[:, t], alpha)
            backward[:, t] = h
        return backward


class LeakyIntegrator(nn.Module):
    """s_t = (1 - leak) s_{t-1} + W x_t, time first: x (T, B, input_size) -> s (T, B, hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int, leak: float = 0.3) -> None:
        super().__init__()
        self.leak = leak
        self.W = nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        s = torch.zeros(x.shape[1], self.W.out_features, dtype=x.dtype, device=x.device)
        trace = torch.zeros(x.shape[0], *s.shape, dtype=x.dtype, device=x.device)
        for t, x_t in enumerate(x):
            s = (1 - self.leak) * s + self.W(x_t)
            trace[t] = s
        return trace


class LeakyNeuron(nn.Module):
    """U_t = beta U_{t-1} + W x_t, a spike where U_t > threshold, no reset: x (B, T, input_size) -> spikes (B, T,
    neurons).

    The step has the derivative of a sigmoid. The membrane potential stays on the module as `mem`, as spiking libraries
    do.
    """

    mem: Tensor

    def __init__(self, input_size: int, neurons: int, threshold: float = 0.5, slope: float = 5.0) -> None:
        super().__init__()
        self.fc = nn.Linear(input_size, neurons)
        self.beta = nn.Parameter(torch.full((neurons,), 0.9))
        self.threshold, self.slope = threshold, slope

    def fire(self, potential: Tensor) -> Tensor:
        soft = torch.sigmoid(self.slope * (potential - self.threshold))
        hard = (potential > self.threshold).to(potential.dtype)
        return (hard - soft).detach() + soft

    def forward(self, x: Tensor) -> Tensor:
        self.mem = x.new_zeros(x.shape[0], self.fc.out_features)
        spikes = []
        for t in range(x.shape[1]):
            self.mem = self.beta.clamp(0, 1) * self.mem + self.fc(x[:, t])
            spikes.append(self.fire(self.mem))
        return torch.stack(spikes, dim=1)
