"""The gallery: every case study through `linrec.parallelize`, with the class that its sample states, what the compiler
found, how far its values and gradients are from the loop's, and how much faster a training step is.

    python -m models                 every model, training steps of 1024 time steps
    python -m models mamba gla       some of them
    python -m models --length 256 --markdown gallery.md
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import linrec
from models.registry import SAMPLES, Sample

COLUMNS = ("model", "class", "lowering", "difference", "loop", "parallel", "times faster")


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m models", description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("names", nargs="*", help="models; all of them if none is given")
    parser.add_argument("--length", type=int, default=1024, help="time steps of a training step")
    parser.add_argument("--batch", type=int, default=2, help="batch size")
    parser.add_argument(
        "--repeats", type=int, default=3, help="timed pairs of steps; the median of their ratios counts"
    )
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    options = parser.parse_args(arguments)
    known = {sample.name: sample for sample in SAMPLES}
    unknown = [name for name in options.names if name not in known]
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}; there are {', '.join(known)}")
    chosen = [known[name] for name in options.names] or list(SAMPLES)
    console = Console()
    rows = [
        row(sample, options.batch, options.length, options.repeats)
        for sample in track(chosen, "models", console=console, disable=not console.is_terminal)
    ]
    table = Table(*COLUMNS, title=f"a training step, B={options.batch}, T={options.length}, float32")
    for each in rows:
        table.add_row(*each)
    console.print(table)
    ratios = [float(each[-1]) for each in rows if each[-1] != "-"]
    if ratios:
        console.print(f"median: {statistics.median(ratios):.1f} times, least: {min(ratios):.1f}")
    if options.markdown:
        lines = [" | ".join(COLUMNS), " | ".join("---" for _ in COLUMNS), *(" | ".join(each) for each in rows)]
        options.markdown.write_text("".join(f"| {line} |\n" for line in lines))


def row(sample: Sample, batch: int, length: int, repeats: int) -> tuple[str, ...]:
    """One line of the table."""
    loop, model = sample.factory(), linrec.parallelize(sample.factory())
    short = sample.inputs(2, 24, torch.float32)
    difference = max(_distance(a, b) for a, b in zip(step(model, short), step(loop, short), strict=True))
    report = linrec.report(model)
    states = [entry for entry in report.recurrences if entry.states]
    lowerings = dict.fromkeys(entry.lowering if entry.parallel else "loop" for entry in states)
    inputs = sample.inputs(batch, length, torch.float32)
    step(model, inputs)
    pairs = [(_seconds(lambda: step(loop, inputs)), _seconds(lambda: step(model, inputs))) for _ in range(repeats)]
    slow, fast = (statistics.median(x) for x in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    found = ", ".join(lowerings) or "left as it is"
    return (sample.name, sample.klass, found, f"{difference:.0e}", _text(slow), _text(fast), f"{ratio:.1f}")


def step(module: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """The results and gradients of one training step."""
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    results = [y for y in tree_leaves(module(*given)) if isinstance(y, Tensor)]
    loss: Any = sum(y.abs().pow(2).mean() for y in results if y.is_floating_point() or y.is_complex())
    sources = [x for x in given if x.requires_grad] + list(module.parameters())
    gradients = torch.autograd.grad(loss, sources, allow_unused=True)
    return [*(y.detach() for y in results), *(g for g in gradients if g is not None)]


def _distance(a: Tensor, b: Tensor) -> float:
    scale = max(b.abs().max().item(), 1e-12) if b.numel() else 1.0
    return (a - b).abs().max().item() / scale if b.numel() else 0.0


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _text(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
