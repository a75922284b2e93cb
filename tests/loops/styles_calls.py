"""How the step is reached: cell modules, nested cells, methods, callbacks, partials, local functions; layers stepped,
stacked or both ways.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Table, btd
from .styles_state import D, Gates

ENTRIES = Table()


class GatedCell(nn.Module):
    """`(x_t, h) -> h`, gates from the input only."""

    def __init__(self, width_in: int = D, width: int = D) -> None:
        super().__init__()
        self.gate, self.value = nn.Linear(width_in, width), nn.Linear(width_in, width)

    def forward(self, x_t: Tensor, h: Tensor) -> Tensor:
        return torch.lerp(h, self.value(x_t), torch.sigmoid(self.gate(x_t)))


@ENTRIES.add(btd(D))
class CellModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = GatedCell(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class CellInCell(nn.Module):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.norm = GatedCell(), nn.LayerNorm(D)

        def forward(self, x_t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
            h = self.inner(self.norm(x_t), state[0])
            count = state[1] + 1
            return h / count, (h, count)

    def __init__(self) -> None:
        super().__init__()
        self.cell = self.Outer()

    def forward(self, x: Tensor) -> Tensor:
        state, ys = (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0, :1])), []
        for x_t in x.unbind(1):
            y, state = self.cell(x_t, state)
            ys.append(y)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class StepMethod(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.in_proj, self.a, self.out_proj = nn.Linear(D, 3), nn.Parameter(torch.rand(3)), nn.Linear(3, D)

    def step(self, x_t: Tensor, *, state: Tensor) -> tuple[Tensor, Tensor]:
        """One token, as it is called in generation too."""
        state = torch.addcmul(self.in_proj(x_t), self.a, state)
        return F.silu(self.out_proj(state)), state

    def forward(self, x: Tensor) -> Tensor:
        state, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            y, state = self.step(x[:, t], state=state)
            ys.append(y)
        return torch.stack(ys, 1)


def scan(update: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], init: Tensor, xs: Tensor) -> tuple[Tensor, Tensor]:
    """`lax.scan` as people write it in PyTorch; time first."""
    carry, ys = init, []
    for x in xs:
        carry, y = update(carry, x)
        ys.append(y)
    return carry, torch.stack(ys)


@ENTRIES.add(btd(D))
class Callback(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        def update(h: Tensor, x_t: Tensor) -> tuple[Tensor, Tensor]:
            f, v = self.gates(x_t)
            h = f * h + v
            return h, h + x_t

        return scan(update, torch.zeros_like(x[:, 0]), x.transpose(0, 1))[1].transpose(0, 1)


@ENTRIES.add(btd(D))
class LambdaStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))
        self.update = lambda a, h, x_t: a * h + x_t

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(self.a, h, x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class PartialStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.b = nn.Parameter(0.4 * torch.randn(3, 3)), nn.Parameter(torch.randn(3))

    @staticmethod
    def advance(A: Tensor, b: Tensor, m: Tensor, u_t: Tensor) -> Tensor:
        """`m: (B, D, 3)`, `u_t: (B, D)`."""
        return torch.einsum("ij,bdj->bdi", A, m) + torch.einsum("i,bd->bdi", b, u_t)

    def forward(self, x: Tensor) -> Tensor:
        advance = functools.partial(self.advance, self.A, self.b)
        m, ys = x.new_zeros(*x[:, 0].shape, 3), []
        for t in range(x.shape[1]):
            m = advance(m, x[:, t])
            ys.append(m[..., 0])
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class TwoLayersInOneLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = GatedCell(), GatedCell()

    def forward(self, x: Tensor) -> Tensor:
        h1, h2, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h1 = self.first(x[:, t], h1)
            h2 = self.second(F.relu(h1), h2)
            ys.append(h2)
        return torch.stack(ys, 1)


class OneLayer(nn.Module):
    """A residual block around a loop of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.norm = GatedCell(), nn.LayerNorm(D)

    def forward(self, x: Tensor, reverse: bool = False) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        steps = range(x.shape[1])
        for t in reversed(steps) if reverse else steps:
            h = self.cell(self.norm(x[:, t]), h)
            ys.append(h)
        return x + torch.stack(ys[::-1] if reverse else ys, 1)


@ENTRIES.add(btd(D))
class TwoLoopsInTurn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        for a in (self.a, self.b):
            h, ys = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = a * h + x[:, t]
                ys.append(h)
            x = torch.tanh(torch.stack(ys, 1))
        return x


@ENTRIES.add(btd(D))
class StackedLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(OneLayer(), nn.Linear(D, D), OneLayer(), OneLayer())

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@ENTRIES.add(btd(D))
class BidirectionalLayers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ahead, self.back = OneLayer(), OneLayer()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.ahead(x), self.back(x, reverse=True)], -1)


@ENTRIES.add(btd(D))
class BidirectionalInOneLoop(nn.Module):
    """One loop walks both ends at once."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        ahead, back = torch.zeros_like(x), torch.zeros_like(x)
        h, g = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        for t in range(length):
            h = self.a * h + x[:, t]
            g = self.b * g + x[:, length - 1 - t]
            ahead[:, t] = h
            back[:, length - 1 - t] = g
        return ahead + back


@ENTRIES.add(btd(D))
class SharedLayerTwice(nn.Module):
    """The same module, called on two inputs in one forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = OneLayer()

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).flip(1))


@ENTRIES.add(btd(D))
class InnerLoopOverHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(2))

    def forward(self, x: Tensor) -> Tensor:
        heads = x.view(x.shape[0], x.shape[1], 2, D // 2)
        states, ys = [torch.zeros_like(heads[:, 0, 0]) for _ in range(2)], []
        for t in range(x.shape[1]):
            for head in range(2):
                states[head] = self.decay[head] * states[head] + heads[:, t, head]
            ys.append(torch.cat(states, -1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class InnerLoopOverOrders(nn.Module):
    """A chain of leaky integrators of constant depth."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(3, D))

    def forward(self, x: Tensor) -> Tensor:
        state, ys = [torch.zeros_like(x[:, 0])] * 3, []
        for x_t in x.unbind(1):
            level, new = x_t, []
            for order in range(3):
                level = self.decay[order] * state[order] + (1 - self.decay[order]) * level
                new.append(level)
            state = new
            ys.append(level)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class SubstepsOfOneStep(nn.Module):
    """An integrator takes three small steps for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            for _ in range(3):
                h = h + 0.1 * (x[:, t] - self.rate * h)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class ConstantConditions(nn.Module):
    """Options tested at every step, the same at each."""

    def __init__(self, bias: bool = True, activation: str = "tanh") -> None:
        super().__init__()
        self.weight, self.a = nn.Parameter(torch.randn(D, D)), nn.Parameter(torch.rand(D))
        self.bias = nn.Parameter(torch.randn(D)) if bias else None
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            u = x[:, t] @ self.weight.t()
            if self.bias is not None:
                u = u + self.bias
            h = self.a * h + u
            if not self.training:
                h = h * 1.0
            ys.append(getattr(torch, self.activation)(h) if self.activation else h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), is_function=True)
def function_of_input(x: Tensor) -> Tensor:
    """No module at all."""
    h, ys = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.9 * h + 0.1 * x[:, t]
        ys.append(h)
    return torch.stack(ys, 1)


def decay_inputs(batch: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Input, decay and initial state."""
    return torch.randn(batch, length, D), torch.rand(batch, length, D), torch.randn(batch, D)


@ENTRIES.add(decay_inputs, is_function=True)
def function_of_gates(x: Tensor, decay: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """A reference implementation, as they stand beside kernels."""
    out = torch.empty_like(x)
    for i in range(x.size(1)):
        h = decay[:, i] * h + x[:, i]
        out[:, i] = h
    return out, h
