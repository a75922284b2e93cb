"""The synaptic neuron, a leaky current that drives a leaky membrane: a cascade of two linear recurrences.

    I_t = alpha I_{t-1} + W x_t,        U_t = beta U_{t-1} + I_t

The second-order leaky integrate-and-fire neuron of Eshraghian et al., "Training Spiking Neural Networks Using Lessons
From Deep Learning" (2023), without its reset.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Synaptic(nn.Module):
    """One step with its state in a dict {"syn", "mem"}, each (B, neurons)."""

    def __init__(self, neurons: int) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.full((neurons,), 2.0))
        self.beta = nn.Parameter(torch.full((neurons,), 1.5))

    def init_state(self, current: Tensor) -> dict[str, Tensor]:
        return {"syn": torch.zeros_like(current), "mem": torch.zeros_like(current)}

    def forward(self, current: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        syn = torch.sigmoid(self.alpha) * state["syn"] + current
        mem = torch.sigmoid(self.beta) * state["mem"] + syn
        return {"syn": syn, "mem": mem}


class SynapticReadout(nn.Module):
    """Spikes x (B, T, inputs) -> membrane potentials (B, T, neurons)."""

    def __init__(self, inputs: int, neurons: int) -> None:
        super().__init__()
        self.fc = nn.Linear(inputs, neurons, bias=False)
        self.neuron = Synaptic(neurons)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        record = []
        for step in range(x.size(1)):
            current = self.fc(x[:, step])
            if state is None:
                state = self.neuron.init_state(current)
            state = self.neuron(current, state)
            record.append(state["mem"])
        return torch.stack(record, dim=1)
