"""States read and written at positions: shift registers moved in place, by roll, cat, pad and index lists, permuted
states, graphs of edges, constants made anew at every step.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .entry import Table, btd
from .styles_state import D

ENTRIES = Table()


@ENTRIES.add(btd(1))
class RegisterMovedInPlace(nn.Module):
    """`buffer[:, 1:] = buffer[:, :-1]`, then the newest in front."""

    def __init__(self, order: int = 3) -> None:
        super().__init__()
        self.w = nn.Parameter(0.2 * torch.randn(order))

    def forward(self, e: Tensor) -> tuple[Tensor, Tensor]:
        buffer, ys = e.new_zeros(e.shape[0], self.w.shape[0]), []
        for t in range(e.shape[1]):
            y = buffer @ self.w + e[:, t, 0]
            buffer = buffer.clone()
            buffer[:, 1:] = buffer[:, :-1].clone()
            buffer[:, 0] = y
            ys.append(y)
        return torch.stack(ys, 1), buffer


@ENTRIES.add(btd(D))
class PermutedByList(nn.Module):
    """The list becomes a tensor of its own at every step."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h[:, [2, 0, -1, 1]] + x[:, t] * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=x.dtype)
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(lambda batch, length: (torch.randn(batch, length, D), torch.randint(0, D, (batch, length, D))))
class GatheredByInput(nn.Module):
    """Every step and every row of the batch reads the state elsewhere."""

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * torch.gather(h, 1, positions[:, t]) + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class DiffusionOverEdges(nn.Module):
    """Messages along the edges of a graph, two of which end in one node."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("source", torch.tensor([0, 1, 2, 3, 0]))
        self.register_buffer("target", torch.tensor([1, 2, 3, 0, 2]))
        self.w = nn.Parameter(0.3 * torch.rand(5))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            arriving = torch.zeros_like(h).index_add(1, self.target, h.index_select(1, self.source) * self.w)
            h = 0.5 * h + 0.5 * arriving + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(lambda batch, length: (torch.randn(batch, length, D), torch.randint(0, D, (batch, length))))
class WrittenToSlots(nn.Module):
    """Each token is added to the memory slot that it names; all slots decay."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor, slots: Tensor) -> Tensor:
        memory, ys = x.new_zeros(x.shape[0], D, D), []
        for t in range(x.shape[1]):
            where = slots[:, t].view(-1, 1, 1).expand(x.shape[0], 1, D)
            memory = (self.decay * memory).scatter_add(1, where, x[:, t].unsqueeze(1))
            ys.append(memory.sum(-1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "sequential", obstruction="gather")
class PositionsReadTheState(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * torch.gather(h, 1, h.argsort(1)) + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)
