"""The coupled LMU of Voelker, Kajic & Eliasmith, "Legendre Memory Units" (NeurIPS 2019).

    u_t = e_x . x_t + e_h . h_{t-1} + e_m . m_{t-1}           (7)
    m_t = A m_{t-1} + B u_t                                   (4)
    h_t = tanh(W_x x_t + W_h h_{t-1} + W_m m_t)               (6)

The memory reads the hidden state and the hidden state reads the memory, so memory and tanh are one recurrence: not
affine.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.lmu import delay_network

State = tuple[Tensor, Tensor]


class LMUCell(nn.Module):
    """One step: x (B, input_size), state (h (B, hidden_size), m (B, order)) -> the next state."""

    A: Tensor
    B: Tensor

    def __init__(self, input_size: int, hidden_size: int, order: int, theta: float) -> None:
        super().__init__()
        self.e_x = nn.Linear(input_size, 1, bias=False)
        self.e_h = nn.Linear(hidden_size, 1, bias=False)
        self.e_m = nn.Linear(order, 1, bias=False)
        self.W_x = nn.Linear(input_size, hidden_size, bias=False)
        self.W_h = nn.Linear(hidden_size, hidden_size, bias=False)
        self.W_m = nn.Linear(order, hidden_size, bias=False)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b)

    def forward(self, x: Tensor, state: State) -> State:
        h, m = state
        u = self.e_x(x) + self.e_h(h) + self.e_m(m)
        m = m @ self.A.T + u @ self.B.T
        h = torch.tanh(self.W_x(x) + self.W_h(h) + self.W_m(m))
        return h, m


class CoupledLMU(nn.Module):
    """x (B, T, input_size) -> h (B, T, hidden_size) and the last state."""

    def __init__(self, input_size: int, hidden_size: int, order: int, theta: float) -> None:
        super().__init__()
        self.hidden_size, self.order = hidden_size, order
        self.cell = LMUCell(input_size, hidden_size, order, theta)

    def forward(self, x: Tensor, state: State | None = None) -> tuple[Tensor, State]:
        if state is None:
            state = (x.new_zeros(x.size(0), self.hidden_size), x.new_zeros(x.size(0), self.order))
        hidden = []
        for t in range(x.size(1)):
            state = self.cell(x[:, t, :], state)
            hidden.append(state[0])
        return torch.stack(hidden, dim=1), state
