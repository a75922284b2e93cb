"""The classical recurrent networks as loops: Elman 1990, LSTM (Hochreiter & Schmidhuber 1997; Gers et al. 2000), GRU
(Cho et al. 2014).

Their states go through nonlinearities and into gates: not affine. What the input alone decides is nevertheless the same
in all steps. The last model is mixed: the structurally constrained network of Mikolov et al., "Learning Longer Memory
in Recurrent Neural Networks" (2014), where a bank of leaky averages, which is affine, feeds a sigmoid network, which is
not, in one loop.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Elman(nn.Module):
    """h_t = tanh(W x_t + U h_{t-1} + b): x (B, T, input_size), h (B, hidden_size) or None -> (B, T, hidden_size)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.W = nn.Linear(input_size, hidden_size)
        self.U = nn.Linear(hidden_size, hidden_size, bias=False)

    def forward(self, x: Tensor, h: Tensor | None = None) -> Tensor:
        if h is None:
            h = x.new_zeros(x.size(0), self.U.in_features)
        hs = []
        for t in range(x.size(1)):
            h = torch.tanh(self.W(x[:, t]) + self.U(h))
            hs.append(h)
        return torch.stack(hs, dim=1)


class GRU(nn.Module):
    """The gated recurrent unit, with the reset gate after the product as in cuDNN, time first: x (T, B, D) -> h (T, B,
    H).
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.ih = nn.Linear(input_size, 3 * hidden_size)
        self.hh = nn.Linear(hidden_size, 3 * hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(1), self.hidden_size)
        out = x.new_empty(x.size(0), x.size(1), self.hidden_size)
        for t, x_t in enumerate(x.unbind(0)):
            r_x, z_x, n_x = self.ih(x_t).chunk(3, dim=-1)
            r_h, z_h, n_h = self.hh(h).chunk(3, dim=-1)
            r = torch.sigmoid(r_x + r_h)
            z = torch.sigmoid(z_x + z_h)
            n = torch.tanh(n_x + r * n_h)
            h = (1 - z) * n + z * h
            out[t] = h
        return out


class LSTM(nn.Module):
    """The long short-term memory with forget gates: x (B, T, D) -> h (B, T, H) and the last (h, c)."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(input_size, hidden_size)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        hs = []
        for x_t in x.unbind(1):
            state = self.cell(x_t, state)
            hs.append(state[0])
        assert state is not None
        return torch.stack(hs, dim=1), state


class ContextRNN(nn.Module):
    """s_t = a s_{t-1} + (1 - a) B x_t; h_t = sigmoid(P s_t + A x_t + R h_{t-1}); y_t = U h_t + V s_t.

    x (B, T, input_size) -> y (B, T, output_size). The slow context s reads only itself.
    """

    def __init__(self, input_size: int, context_size: int, hidden_size: int, output_size: int, a: float = 0.95) -> None:
        super().__init__()
        self.a = a
        self.B = nn.Linear(input_size, context_size, bias=False)
        self.P = nn.Linear(context_size, hidden_size, bias=False)
        self.A = nn.Linear(input_size, hidden_size)
        self.R = nn.Linear(hidden_size, hidden_size, bias=False)
        self.U = nn.Linear(hidden_size, output_size)
        self.V = nn.Linear(context_size, output_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        s = x.new_zeros(x.size(0), self.B.out_features)
        h = x.new_zeros(x.size(0), self.R.in_features)
        ys = []
        for t in range(x.size(1)):
            s = self.a * s + (1 - self.a) * self.B(x[:, t])
            h = torch.sigmoid(self.P(s) + self.A(x[:, t]) + self.R(h))
            ys.append(self.U(h) + self.V(s))
        return torch.stack(ys, dim=1)
