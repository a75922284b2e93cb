"""`python -m benchmarks.grid`: over classes of recurrences, batch sizes, lengths and widths, the algorithm that linrec
chooses beside every other one that applies, and the loop as it is written.

Each algorithm is pinned by `linrec.parallelize(model, lowering=...)` in a copy of the same loop; all take turns.
"""

from __future__ import annotations

import copy
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import linrec

LONGEST = 3.0
"""Seconds of a step from which on a variant is timed once only. One that may take as long at the next length, at which
a loop takes up to the square of the lengths' ratio, is left out there."""


class Gate(nn.Module):
    """``h[t] = a[t] h[t-1] + x[t]``, element by element."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        return [torch.rand(batch, length, self.width), torch.randn(batch, length, self.width)]

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Memory(nn.Module):
    """``m[t] = A m[t-1] + B u[t]`` with a constant matrix for each channel, as in the LMU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.order = width, 16
        self.register_buffer("A", 0.9 * torch.linalg.qr(torch.randn(self.order, self.order))[0])
        self.register_buffer("B", torch.randn(self.order))
        self.out = nn.Linear(self.order, 1)

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        return [torch.randn(batch, length, self.width)]

    def forward(self, u: Tensor) -> Tensor:
        m = u.new_zeros(u.shape[0], self.width, self.order)
        out = []
        for t in range(u.shape[1]):
            m = m @ self.A.T + u[:, t, :, None] * self.B
            out.append(self.out(m).squeeze(-1))
        return torch.stack(out, 1)


class Last(Memory):
    """The same memory, of which only the last state is read."""

    def forward(self, u: Tensor) -> Tensor:
        m = u.new_zeros(u.shape[0], self.width, self.order)
        for t in range(u.shape[1]):
            m = m @ self.A.T + u[:, t, :, None] * self.B
        return m


class Complex(nn.Module):
    """The LRU: a complex diagonal that is the same at every step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.log_r = nn.Parameter(torch.full((width,), -2.0))
        self.angle = nn.Parameter(torch.rand(width))

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        return [torch.randn(batch, length, self.width)]

    def forward(self, x: Tensor) -> Tensor:
        a = torch.polar(torch.exp(-torch.exp(self.log_r)), self.angle)
        h = torch.zeros_like(x[:, 0], dtype=a.dtype)
        out = []
        for t in range(x.shape[1]):
            h = a * h + x[:, t]
            out.append(h.real)
        return torch.stack(out, 1)


class Attention(nn.Module):
    """Gated linear attention: a decay for each key dimension, heads of 32 by 32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 32)
        self.size = width // self.heads

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        shape = (batch, length, self.heads, self.size)
        q, k, v = (torch.randn(shape) * self.size**-0.5 for _ in range(3))
        return [q, k, v, torch.sigmoid(torch.randn(shape) + 3)]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        s = q.new_zeros(q.shape[0], self.heads, self.size, self.size)
        out = []
        for t in range(q.shape[1]):
            s = g[:, t, :, :, None] * s + k[:, t, :, :, None] * v[:, t, :, None, :]
            out.append((q[:, t, :, :, None] * s).sum(2))
        return torch.stack(out, 1)


class Delta(Attention):
    """The delta rule, with one decay for each head."""

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        q, k, v, _ = super().inputs(batch, length)
        k = nn.functional.normalize(k, dim=-1)
        gates = torch.sigmoid(torch.randn(batch, length, self.heads, 2) + 2)
        return [q, k, v, gates]

    def forward(self, q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> Tensor:
        s = q.new_zeros(q.shape[0], self.heads, self.size, self.size)
        out = []
        for t in range(q.shape[1]):
            s = s * g[:, t, :, 0, None, None]
            old = (k[:, t, :, :, None] * s).sum(2)
            new = (v[:, t] - old) * g[:, t, :, 1, None]
            s = s + k[:, t, :, :, None] * new[:, :, None, :]
            out.append((q[:, t, :, :, None] * s).sum(2))
        return torch.stack(out, 1)


class Matrices(nn.Module):
    """A small matrix of its own for each step and channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.channels, self.size = max(1, width // 4), 4

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        shape = (batch, length, self.channels, self.size)
        return [torch.randn(*shape, self.size) * 0.4, torch.randn(shape)]

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            h = (a[:, t] @ h[..., None]).squeeze(-1) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Tanh(nn.Module):
    """Elman's network, which stays a loop."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.w, self.u = nn.Linear(width, width), nn.Linear(width, width)

    def inputs(self, batch: int, length: int) -> list[Tensor]:
        return [torch.randn(batch, length, self.width)]

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.w(x[:, t]) + self.u(h))
            out.append(h)
        return torch.stack(out, 1)


CLASSES: dict[str, Callable[[int], Any]] = {
    "gate": Gate,
    "memory": Memory,
    "last state": Last,
    "complex": Complex,
    "attention": Attention,
    "delta rule": Delta,
    "matrices": Matrices,
    "tanh": Tanh,
}


@dataclass
class Cell:
    """One point of the grid.

    Attributes:
        name, batch, length, width: which.
        chosen: the algorithm that linrec chose.
        seconds: the median of a training step, by algorithm; "chosen" has no pin, "as written" is the loop.
    """

    name: str
    batch: int
    length: int
    width: int
    chosen: str
    seconds: dict[str, float] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The fastest of all."""
        return min(self.seconds, key=lambda n: self.seconds[n])

    @property
    def ratio(self) -> float:
        """How many times as long the choice takes as the best."""
        return self.seconds["chosen"] / self.seconds[self.best]


def step(model: nn.Module, inputs: list[Tensor]) -> float:
    """Seconds of one training step."""
    for p in model.parameters():
        p.grad = None
    for x in inputs:
        x.grad = None
    begin = time.perf_counter()
    model(*inputs).square().mean().backward()
    return time.perf_counter() - begin


def variants(loop: Any) -> tuple[dict[str, nn.Module], str]:
    """The loop, the chosen form, and one form for each other algorithm that applies; and the name of the choice."""
    inputs = [x.requires_grad_() for x in loop.inputs(2, 64)]
    chosen = linrec.parallelize(copy.deepcopy(loop))
    step(chosen, inputs)
    (entry,) = [r for r in linrec.report(chosen).recurrences if r.states]
    found: dict[str, nn.Module] = {"as written": loop, "chosen": chosen}
    names = [e.name for e in entry.estimates if e.name not in ("loop", entry.lowering)]
    for name in [*names, *(["loop"] if entry.parallel else [])]:
        found[name] = linrec.parallelize(copy.deepcopy(loop), lowering=name)
        step(found[name], inputs)
    return found, entry.lowering or "loop"


def measure(models: dict[str, nn.Module], loop: Any, batch: int, length: int, rounds: int) -> dict[str, float]:
    """The medians of training steps, taken in turns; a form that takes long is timed once."""
    inputs = [x.requires_grad_() for x in loop.inputs(batch, length)]
    for model in models.values():  # a new batch size may compile
        step(model, inputs)
    seconds = {name: [step(model, inputs)] for name, model in models.items()}
    names = list(models)
    for k in range(rounds):
        for name in names[k % len(names) :] + names[: k % len(names)]:
            if seconds[name][0] < LONGEST:
                seconds[name].append(step(models[name], inputs))
    return {name: statistics.median(all_[1:] or all_) for name, all_ in seconds.items()}


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
Names = Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(CLASSES)}. All, if none is named.")]
Lengths = Annotated[str, typer.Option(help="Numbers of steps in time, with commas.")]
Batches = Annotated[str, typer.Option(help="Batch sizes, with commas.")]
Widths = Annotated[str, typer.Option(help="Widths, with commas.")]
Rounds = Annotated[int, typer.Option(help="How often each form is timed; the medians count.", min=1)]
Threads = Annotated[int, typer.Option(help="Threads of torch.", min=1)]
Out = Annotated[Path | None, typer.Option(help="Where to write the figures.")]


@app.command()
def main(
    names: Names = None,
    lengths: Lengths = "8,64,512,8192",
    batches: Batches = "1,8",
    widths: Widths = "32,256",
    rounds: Rounds = 7,
    threads: Threads = 2,
    json_: Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")] = None,
) -> None:
    """Time every algorithm that applies, at every point of a grid, beside the one that linrec chooses."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    console = Console()
    cells: list[Cell] = []
    for name in names or CLASSES:
        for width in map(int, widths.split(",")):
            loop = CLASSES[name](width)
            with console.status(f"{name}, width {width}"):
                models, chosen = variants(loop)
                for batch in map(int, batches.split(",")):
                    slow: set[str] = set()
                    steps = sorted(map(int, lengths.split(",")))
                    for length, longer in zip(steps, [*steps[1:], steps[-1]], strict=True):
                        live = {n: m for n, m in models.items() if n not in slow}
                        cell = Cell(name, batch, length, width, chosen, measure(live, loop, batch, length, rounds))
                        grown = {n: (longer / length) ** (2 if n == "as written" else 1) for n in models}
                        slow |= {n for n, s in cell.seconds.items() if s * grown[n] > LONGEST and n != "chosen"}
                        cells.append(cell)
                        if json_:
                            json_.write_text(json.dumps([asdict(c) | {"ratio": c.ratio} for c in cells], indent=1))
    console.print(_table(cells))
    ratios = sorted(c.ratio for c in cells)
    within = sum(r <= 1.15 for r in ratios)
    console.print(f"{within} of {len(cells)} within 1.15 of the best; the worst {ratios[-1]:.2f}")


def _table(cells: list[Cell]) -> Table:
    table = Table("class", "B", "T", "width", "chosen", "ms", "best", "ms", "ratio", "as written, ms")
    for c in cells:
        best = "" if c.best == "chosen" else c.best
        row = [c.name, c.batch, c.length, c.width, c.chosen, f"{1e3 * c.seconds['chosen']:.2f}", best]
        written = c.seconds.get("as written")
        row += [f"{1e3 * c.seconds[c.best]:.2f}", f"{c.ratio:.2f}", f"{1e3 * written:.1f}" if written else ""]
        table.add_row(*map(str, row), style="red" if c.ratio > 1.15 else "")
    return table


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.grid")
