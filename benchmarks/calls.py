"""`python -m benchmarks.calls`: what calls cost besides the computation.

First calls, which compile and check, each in a process of its own, with an empty cache of kernels and again with what
that has left there; and the time of later calls over that of the rewritten graph alone.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import linrec
from benchmarks.variant import Unavailable
from linrec.runtime.dispatcher import Dispatcher
from models.lmu import LMU
from models.mingru import MinGRU

Step = Callable[[nn.Module], Tensor]
"""A call of a model, and its loss."""


def _min_gru() -> tuple[nn.Module, Step]:
    x = torch.randn(4, 256, 64)
    return MinGRU(64, 64), lambda model: model(x).square().mean()


def _lmu() -> tuple[nn.Module, Step]:
    x = torch.randn(8, 256, 64)
    return LMU(64, 64, 64, 64), lambda model: model(x).square().mean()


def _mamba() -> tuple[nn.Module, Step]:
    try:
        from transformers import MambaConfig, MambaForCausalLM
    except ImportError as error:
        raise Unavailable(str(error)) from None
    config = MambaConfig(hidden_size=256, num_hidden_layers=24, vocab_size=1000, use_cache=False)
    tokens = torch.randint(0, 1000, (2, 200))
    return MambaForCausalLM(config), lambda model: model(input_ids=tokens, labels=tokens, use_cache=False).loss


CASES: dict[str, tuple[str, Callable[[], tuple[nn.Module, Step]]]] = {
    "mingru": ("minGRU (B = 4, T = 256, 64 units)", _min_gru),
    "lmu": ("LMU (B = 8, T = 256, order 64, 64 units)", _lmu),
    "mamba": ("transformers' Mamba, 24 layers, with labels (B = 2, T = 200, D = 256)", _mamba),
}


def first_calls(name: str, threads: int) -> dict[str, float]:
    """Seconds of the first training step of a model, and of later ones, in this process."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model, step = CASES[name][1]()
    linrec.parallelize(model.train())

    def timed() -> float:
        start = time.perf_counter()
        step(model).backward()  # type: ignore[no-untyped-call]
        return time.perf_counter() - start

    first = timed()
    timed()
    later = statistics.median(timed() for _ in range(5))
    full = all(r.parallel for r in linrec.report(model).recurrences)
    return {"first": first, "later": later, "parallel": float(full)}


class Gate(nn.Module):
    """``h[t] = a[t] h[t-1] + x[t]`` with ``a[t] = sigmoid(W x[t] + b)``: as small as a model may be."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.sigmoid(self.gate(x))
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def overhead(rounds: int, calls: int = 400, width: int = 16, length: int = 32) -> dict[str, tuple[float, float]]:
    """Microseconds of a call of a small model, and of its rewritten graph with the same values, on one thread.

    Returns:
        for calls with and without gradient: (whole call, graph alone), medians of rounds in which they take turns.
    """
    torch.set_num_threads(1)
    model = linrec.parallelize(Gate(width), when="always")
    x = torch.randn(1, length, width)
    found: dict[str, tuple[float, float]] = {}
    for name, gradient in (("with gradient", True), ("without gradient", False)):
        with torch.set_grad_enabled(gradient):
            for _ in range(3):
                model(x)
            dispatcher = model.__dict__["forward"]
            assert isinstance(dispatcher, Dispatcher) and dispatcher.last_plan is not None
            plan = dispatcher.last_plan
            values = plan.values(model, [x], length)
            graph = functools.partial(plan.graph_module.forward, *values)
            times = _turns([functools.partial(model, x), graph], rounds, calls)
            found[name] = (times[0], times[1])
    return found


def _turns(functions: Sequence[Callable[[], Any]], rounds: int, calls: int) -> list[float]:
    """The median over the rounds of the microseconds that each function takes."""
    times: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            own.append((time.perf_counter() - start) / calls * 1e6)
    return [statistics.median(own) for own in times]


def _in_a_process(name: str, threads: int, cache: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.calls", name, "--here", "--threads", str(threads)]
    environment = {**os.environ, "LINREC_CACHE_DIR": str(cache)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise Unavailable(done.stderr.strip().splitlines()[-1])
    found: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Names = Annotated[list[str] | None, typer.Argument(help=f"Whose first calls: {', '.join(CASES)}.")]
Threads = Annotated[int, typer.Option(help="Threads of torch for first calls.", min=1)]
Rounds = Annotated[int, typer.Option(help="How often the small call is timed; the medians count.", min=1)]
Out = Annotated[Path | None, typer.Option("--json", help="Where to write the figures.")]
Repeats = Annotated[int, typer.Option(help="How many processes start with a filled cache; the median counts.", min=1)]
Here = Annotated[bool, typer.Option("--here", help="Time one first call in this process, and print it as JSON.")]


@app.command()
def main(
    names: Names = None,
    threads: Threads = 2,
    rounds: Rounds = 25,
    repeats: Repeats = 3,
    json_file: Out = None,
    here: Here = False,
) -> None:
    """Time first calls, and what later ones cost besides the computation."""
    for name in names or ():
        if name not in CASES:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(CASES)}.")
    if here:
        for name in names or ():
            print(json.dumps(first_calls(name, threads)))
        return
    console, found = Console(), {}
    table = Table(
        "model", "first step ever, s", "first step, s", "later ones, s", "first over later, s", title="First calls"
    )
    for name in names or CASES:
        with tempfile.TemporaryDirectory() as cache:
            try:
                ever = _in_a_process(name, threads, Path(cache))
                filled = [_in_a_process(name, threads, Path(cache)) for _ in range(repeats)]
            except Unavailable as error:
                table.add_row(CASES[name][0], str(error), "", "", "")
                continue
        first, later = (statistics.median(each[key] for each in filled) for key in ("first", "later"))
        note = "" if all(each["parallel"] for each in filled) else " (not all parallel)"
        table.add_row(
            CASES[name][0] + note, f"{ever['first']:.2f}", f"{first:.2f}", f"{later:.3f}", f"{first - later:.2f}"
        )
        found[name] = {"ever": ever, "filled": filled}
    console.print(table)
    small = overhead(rounds)
    table = Table("call of a gate (B = 1, T = 32, D = 16)", "call, us", "graph, us", "over it, us", title="Later calls")
    for name, (whole, graph) in small.items():
        table.add_row(name, f"{whole:.0f}", f"{graph:.0f}", f"{whole - graph:.0f}")
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"first calls": found, "later calls": small}, indent=2) + "\n")


if __name__ == "__main__":
    app()
