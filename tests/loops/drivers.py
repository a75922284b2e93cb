"""Ways of walking over time and of collecting what the steps give, crossed with the classes of cells.py.

A driver takes a cell and `x: (B, T, WIDTH)` (or the layout that its table row names) and returns `(B, T, WIDTH)` or
what it says. One cell is paired with each driver in turn; with LINREC_LOOPS_FULL=1 in the environment it is every cell.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .cells import CELLS, WIDTH
from .entry import Inputs, Table, bdt, btd, tbd

Driver = Callable[[Any, Tensor], Any]
DRIVERS: list[tuple[Driver, Inputs]] = []


def driver(inputs: Inputs) -> Callable[[Driver], Driver]:
    """Put a driver in the table with the layout of its input."""

    def register(function: Driver) -> Driver:
        DRIVERS.append((function, inputs))
        return function

    return register


@driver(btd(WIDTH))
def range_stack(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, dim=1)


@driver(btd(WIDTH))
def reversed_insert(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in reversed(range(x.size(1))):
        state, y = cell.step(state, x[:, t, :])
        out.insert(0, y)
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def reversed_then_flipped_list(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in range(x.size(1) - 1, -1, -1):
        state, y = cell.step(state, x[:, t])
        out += [y]
    out.reverse()
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def flipped_input(cell: Any, x: Tensor) -> Tensor:
    x = x.flip(1)
    state, out = cell.begin(x[:, 0]), []
    for t in range(x.size(1)):
        state, y = cell.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, 1).flip(1)


@driver(btd(WIDTH))
def while_loop(cell: Any, x: Tensor) -> Tensor:
    state, out, t = cell.begin(x[:, 0]), [], 0
    while t < x.shape[1]:
        state, y = cell.step(state, x[:, t])
        out.append(y)
        t += 1
    return torch.stack(out, dim=-2)


@driver(tbd(WIDTH))
def iterate_tensor(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[0]), []
    for x_t in x:
        state, y = cell.step(state, x_t)
        out.append(y)
    return torch.stack(out)


@driver(btd(WIDTH))
def iterate_transposed(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for x_t in x.transpose(0, 1):
        state, y = cell.step(state, x_t)
        out.append(y)
    return torch.stack(out).transpose(0, 1)


@driver(btd(WIDTH))
def unbind(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for x_t in x.unbind(dim=1):
        state, y = cell.step(state, x_t)
        out.append(y)
    return torch.stack(out, dim=1)


@driver(btd(WIDTH))
def split_and_cat(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for piece in torch.split(x, 1, dim=1):
        state, y = cell.step(state, piece.squeeze(1))
        out.append(y.unsqueeze(1))
    return torch.cat(out, dim=1)


@driver(btd(WIDTH))
def chunked(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for piece in x.chunk(x.size(1), dim=1):
        state, y = cell.step(state, piece[:, 0])
        out.append(y[:, None])
    return torch.cat(out, 1)


@driver(btd(WIDTH))
def enumerated_into_buffer(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), torch.zeros_like(x)
    for t, x_t in enumerate(x.unbind(1)):
        state, out[:, t] = cell.step(state, x_t)
    return out


@driver(btd(WIDTH, 2))
def zipped(cell: Any, x: Tensor, skip: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for x_t, skip_t in zip(x.unbind(1), skip.unbind(1)):
        state, y = cell.step(state, x_t)
        out.append(y * skip_t)
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def growing_cat(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), x.new_zeros(x.shape[0], 0, WIDTH)
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out = torch.cat([out, y.unsqueeze(1)], dim=1)
    return out


@driver(btd(WIDTH))
def growing_cat_from_none(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), None
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out = y[:, None] if out is None else torch.cat((out, y[:, None]), 1)
    return out


@driver(btd(WIDTH))
def empty_buffer(cell: Any, x: Tensor) -> Tensor:
    state = cell.begin(x[:, 0])
    out = torch.empty(x.shape[0], x.shape[1], WIDTH, dtype=x.dtype, device=x.device)
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out[:, t, :] = y
    return out


@driver(tbd(WIDTH))
def time_first_buffer(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[0]), torch.empty_like(x)
    for t in range(len(x)):
        state, y = cell.step(state, x[t])
        out[t] = y
    return out


@driver(btd(WIDTH))
def buffer_by_copy(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), x.new_empty(x.shape)
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out[:, t].copy_(y)
    return out


@driver(btd(WIDTH))
def four_dimensional_buffer(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), x.new_zeros(x.shape[0], 2, x.shape[1], WIDTH)
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out[:, 0, t] = y
        out[:, 1, t, :] = -y
    return out


@driver(btd(WIDTH))
def slices(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t : t + 1].squeeze(1))
        out.append(y.unsqueeze(1))
    return torch.cat(out, dim=1)


@driver(btd(WIDTH))
def narrow_and_select(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x.select(1, 0)), []
    for t in range(x.shape[1]):
        state, y = cell.step(state, x.narrow(1, t, 1).flatten(1))
        out.append(y + x.select(1, t))
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def first_step_apart(cell: Any, x: Tensor) -> Tensor:
    state, y = cell.step(cell.begin(x[:, 0]), x[:, 0])
    out = [y]
    for t in range(1, x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def offset_by_one(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in range(1, x.shape[1] + 1):
        state, y = cell.step(state, x[:, t - 1])
        out.append(y)
    return torch.stack(out, 1)


@driver(btd(WIDTH))
def negative_indices(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[:, 0]), []
    for t in range(-x.shape[1], 0):
        state, y = cell.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, 1)


@driver(bdt(WIDTH))
def time_last(cell: Any, x: Tensor) -> Tensor:
    state, out = cell.begin(x[..., 0]), []
    for t in range(x.shape[-1]):
        state, y = cell.step(state, x[..., t])
        out.append(y)
    return torch.stack(out, dim=-1)


@driver(btd(WIDTH))
def last_output_only(cell: Any, x: Tensor) -> Tensor:
    state, y = cell.begin(x[:, 0]), None
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
    return y


@driver(btd(WIDTH))
def outputs_and_final_state(cell: Any, x: Tensor) -> tuple[Tensor, Any]:
    state, out = cell.begin(x[:, 0]), []
    for t in range(x.shape[1]):
        state, y = cell.step(state, x[:, t])
        out.append(y)
    return torch.stack(out, 1), state


@driver(btd(WIDTH))
def reduced(cell: Any, x: Tensor) -> Tensor:
    def fold(carry: tuple[Any, list[Tensor]], x_t: Tensor) -> tuple[Any, list[Tensor]]:
        state, y = cell.step(carry[0], x_t)
        return state, [*carry[1], y]

    return torch.stack(functools.reduce(fold, x.unbind(1), (cell.begin(x[:, 0]), []))[1], 1)


@driver(btd(WIDTH))
def accumulated(cell: Any, x: Tensor) -> Tensor:
    steps = itertools.accumulate(
        x.unbind(1), lambda carry, x_t: cell.step(carry[0], x_t), initial=(cell.begin(x[:, 0]), None)
    )
    return torch.stack([y for _, y in steps if y is not None], 1)


@driver(btd(WIDTH))
def queue_of_inputs(cell: Any, x: Tensor) -> Tensor:
    state, out, waiting = cell.begin(x[:, 0]), deque(), list(x.unbind(1))
    while waiting:
        state, y = cell.step(state, waiting.pop(0))
        out.append(y)
    return torch.stack(tuple(out), 1)


@driver(btd(WIDTH))
def iterator_and_stack_last(cell: Any, x: Tensor) -> Tensor:
    state, out, inputs = cell.begin(x[:, 0]), {}, iter(x.unbind(1))
    for t in range(x.shape[1]):
        state, out[t] = cell.step(state, next(inputs))
    return torch.stack([out[t] for t in sorted(out)], dim=-1).transpose(1, 2)


class Driven(nn.Module):
    """A cell and a driver of it, as one model."""

    def __init__(self, drive: Driver, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell
        self.drive = drive

    def forward(self, *xs: Tensor) -> Any:
        return self.drive(self.cell, *xs)


def crossed() -> Table:
    """Each driver with one cell in turn (or with all of them), so that every class meets several ways of writing."""
    table, names, full = Table(), list(CELLS), bool(os.environ.get("LINREC_LOOPS_FULL"))
    for index, (drive, inputs) in enumerate(DRIVERS):
        for turn in range(len(names)) if full else (3 * index + index // len(names),):
            cell = CELLS[names[turn % len(names)]]
            table.put(
                f"{drive.__name__}-{cell.__name__}".replace("_", "-"),
                functools.partial(lambda drive, cell: Driven(drive, cell()), drive, cell),
                inputs,
                file=__file__,
            )
    return table


ENTRIES = crossed()
