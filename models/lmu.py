"""The Legendre Memory Unit of Chilkuri & Eliasmith, "Parallelizing Legendre Memory Unit Training" (ICML 2021).

    u_t = f1(U_x x_t + b_u)                     (18)
    m_t = A m_{t-1} + B u_t                     (19)
    o_t = f2(W_m m_t + W_x x_t + b_o)           (20)

A and B are those of the Legendre delay network (Voelker et al. 2019, eq. 1-2), discretised by zero-order hold with dt =
1. They are constants: the memory is linear and time-invariant, and only the encoder and the readout are learned.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def legendre_matrices(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """Continuous-time A (order, order) and B (order, 1) of a sliding window of `theta` steps, in float64.

    A_ij = (2i+1)/theta (-1 if i < j else (-1)^{i-j+1}), B_i = (2i+1)(-1)^i/theta.
    """
    i = torch.arange(order, dtype=torch.float64).unsqueeze(1)
    j = i.T
    scale = (2 * i + 1) / theta
    sign = torch.where((i - j) % 2 == 0, -1.0, 1.0)
    a = scale * torch.where(i < j, -torch.ones_like(sign), sign)
    b = scale * torch.where(i % 2 == 0, 1.0, -1.0)
    return a, b


def zero_order_hold(a: Tensor, b: Tensor, dt: float = 1.0) -> tuple[Tensor, Tensor]:
    """Discretise dx/dt = a x + b u, with u held over each step, by one matrix exponential.

    exp(dt [[a, b], [0, 0]]) = [[A, B], [0, I]]; unlike a^{-1} (A - I) b it needs no inverse of `a`.
    """
    order, inputs = b.shape
    joint = a.new_zeros(order + inputs, order + inputs)
    joint[:order, :order] = a * dt
    joint[:order, order:] = b * dt
    joint = torch.linalg.matrix_exp(joint)
    return joint[:order, :order], joint[:order, order:]


def delay_network(order: int, theta: float) -> tuple[Tensor, Tensor]:
    """Discrete A (order, order) and B (order, 1) of the delay network, in the default dtype."""
    a, b = zero_order_hold(*legendre_matrices(order, theta))
    dtype = torch.get_default_dtype()
    return a.to(dtype), b.to(dtype)


class LMU(nn.Module):
    """Eq. 18-20 with one scalar-input memory: x (B, T, input_size) -> o (B, T, hidden_size)."""

    A: Tensor
    B: Tensor

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        order: int,
        theta: float,
        f1: Callable[[Tensor], Tensor] = torch.tanh,
        f2: Callable[[Tensor], Tensor] = torch.tanh,
    ) -> None:
        super().__init__()
        self.order = order
        self.f1, self.f2 = f1, f2
        self.encoder = nn.Linear(input_size, 1)
        self.W_m = nn.Linear(order, hidden_size, bias=False)
        self.W_x = nn.Linear(input_size, hidden_size)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b)

    def forward(self, x: Tensor) -> Tensor:
        m = torch.zeros(x.size(0), self.order, dtype=x.dtype, device=x.device)
        outputs = []
        for t in range(x.size(1)):
            x_t = x[:, t]
            u = self.f1(self.encoder(x_t))
            m = F.linear(m, self.A) + F.linear(u, self.B)
            outputs.append(self.f2(self.W_m(m) + self.W_x(x_t)))
        return torch.stack(outputs, dim=1)


class VectorLMU(nn.Module):
    """Eq. 18-20 with a vector u_t, each of its channels with a memory of its own.

    x (B, T, input_size), m0 (B, channels, order) or None -> o (B, T, hidden_size) and the last memory (B, channels,
    order).
    """

    A: Tensor
    B: Tensor

    def __init__(self, input_size: int, hidden_size: int, channels: int, order: int, theta: float) -> None:
        super().__init__()
        self.channels, self.order, self.hidden_size = channels, order, hidden_size
        self.encoder = nn.Linear(input_size, channels)
        self.W_m = nn.Linear(channels * order, hidden_size, bias=False)
        self.W_x = nn.Linear(input_size, hidden_size)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b.squeeze(1))

    def forward(self, x: Tensor, m0: Tensor | None = None) -> tuple[Tensor, Tensor]:
        batch, length, _ = x.shape
        m = x.new_zeros(batch, self.channels, self.order) if m0 is None else m0
        u = self.encoder(x)
        out = x.new_empty(batch, length, self.hidden_size)
        for t in range(length):
            m = torch.einsum("ij,bcj->bci", self.A, m) + u[:, t, :, None] * self.B
            out[:, t] = F.relu(self.W_m(m.flatten(1)) + self.W_x(x[:, t]))
        return out, m


class LMUStep(nn.Module):
    """One step of eq. 18-20 for a vector u: x (B, input_size), m (B, channels, order) -> o (B, hidden_size), m."""

    A: Tensor
    B: Tensor

    def __init__(self, input_size: int, hidden_size: int, channels: int, order: int, theta: float) -> None:
        super().__init__()
        self.shape = (channels, order)
        self.encoder = nn.Linear(input_size, channels)
        self.W_m = nn.Linear(channels * order, hidden_size, bias=False)
        self.W_x = nn.Linear(input_size, hidden_size)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b)

    def forward(self, x: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        u = self.encoder(x).unsqueeze(-1)
        m = m @ self.A.T + u @ self.B.T
        o = torch.tanh(self.W_m(m.reshape(m.shape[0], -1)) + self.W_x(x))
        return o, m


class StackedLMU(nn.Module):
    """Several layers stepped inside one time loop, then a linear layer: x (B, T, input_size) -> (B, T, output_size)."""

    def __init__(
        self, input_size: int, hidden_size: int, output_size: int, layers: int, channels: int, order: int, theta: float
    ) -> None:
        super().__init__()
        sizes = [input_size] + [hidden_size] * (layers - 1)
        self.layers = nn.ModuleList(LMUStep(size, hidden_size, channels, order, theta) for size in sizes)
        self.head = nn.Linear(hidden_size, output_size)

    def forward(self, x: Tensor) -> Tensor:
        memories = [x.new_zeros(x.shape[0], *layer.shape) for layer in self.layers]
        outputs = []
        for t in range(x.shape[1]):
            o = x[:, t]
            for i, layer in enumerate(self.layers):
                o, memories[i] = layer(o, memories[i])
            outputs.append(self.head(o))
        return torch.stack(outputs, dim=1)


class PixelClassifier(nn.Module):
    """The psMNIST model of section 4.1: one memory over all pixels, and only its last state is read.

    pixels (B, T, 1) -> logits (B, classes). With T = 784 and the default sizes it has about 166,000 parameters.
    """

    A: Tensor
    B: Tensor

    def __init__(self, hidden_size: int = 346, order: int = 468, theta: float = 784.0, classes: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Linear(1, 1)
        self.W_m = nn.Linear(order, hidden_size, bias=False)
        self.W_x = nn.Linear(1, hidden_size)
        self.head = nn.Linear(hidden_size, classes)
        a, b = delay_network(order, theta)
        self.register_buffer("A", a)
        self.register_buffer("B", b)

    def forward(self, pixels: Tensor) -> Tensor:
        m = pixels.new_zeros(pixels.shape[0], self.A.shape[0])
        for x in pixels.unbind(dim=1):
            m = m @ self.A.T + self.encoder(x) @ self.B.T
        o = F.relu(self.W_m(m) + self.W_x(pixels[:, -1]))
        return self.head(o)
