"""Training steps of a model, before and after `parallelize`, timed over the number of steps in time."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from rich.table import Table
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.api import parallelize, report
from linrec.capture.probe import resize
from linrec.ir.results import leaves_of_result


@dataclass(frozen=True)
class Row:
    """Seconds of a training step at one length; `first` is the call that compiles or checks."""

    length: int
    before: float
    after: float
    first: float
    parallel: bool

    def as_dict(self) -> dict[str, Any]:
        """The row as plain data."""
        return {
            "length": self.length,
            "before_s": self.before,
            "after_s": self.after,
            "first_s": self.first,
            "speed_up": self.before / self.after,
            "parallel": self.parallel,
        }


def time_dims(leaves: Sequence[Any]) -> dict[int, dict[int, int]]:
    """Time is dimension 1 of every input that has one of the size that the first has."""
    sizes = [x.shape[1] for x in leaves if isinstance(x, Tensor) and x.dim() > 1]
    if not sizes:
        raise ValueError("no input has a second dimension; time is taken to be dimension 1")
    return {i: {1: 0} for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim() > 1 and x.shape[1] == sizes[0]}


def measure(
    model: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    lengths: Sequence[int],
    repeat: int,
    quiet: bool = False,
) -> list[Row]:
    """Time the model as it is and a parallelised copy of it, taking turns.

    Args:
        model: a module, or a function of tensors.
        args, kwargs: one call; the time dimension of its tensors is replaced by each of `lengths`.
        repeat: the median of this many steps counts.

    Raises:
        ValueError: where no result of the model can be differentiated.
    """
    original = model
    parallel = parallelize(copy.deepcopy(model).train() if isinstance(model, nn.Module) else model)
    if isinstance(original, nn.Module):
        original = original.train()
    leaves, spec = pytree.tree_flatten((args, kwargs))
    dims = time_dims(leaves)
    rows = []
    with Progress(disable=quiet, transient=True) as progress:
        task = progress.add_task("timing", total=len(lengths) * (repeat + 1))
        for length in lengths:
            resized = resize(leaves, dims, length)
            first, before, after = 0.0, [], []
            for k in range(repeat + 1):
                progress.update(task, description=f"T = {length}")
                seconds = [_step(m, resized, spec) for m in (original, parallel)]
                if k == 0:
                    first = seconds[1]
                else:
                    before.append(seconds[0])
                    after.append(seconds[1])
                progress.advance(task)
            found = report(parallel)
            rows.append(Row(length, statistics.median(before), statistics.median(after), first, found.done > 0))
    return rows


def _step(model: Any, leaves: Sequence[Any], spec: Any) -> float:
    fresh = [x.detach().clone().requires_grad_(x.is_floating_point()) if isinstance(x, Tensor) else x for x in leaves]
    args, kwargs = pytree.tree_unflatten(fresh, spec)
    begin = time.perf_counter()
    results = [x for x in leaves_of_result(_plain(model(*args, **kwargs))) if isinstance(x, Tensor)]
    terms = [x.real.square().mean() for x in results if x.requires_grad and (x.is_floating_point() or x.is_complex())]
    if not terms:
        raise ValueError("no result of the model can be differentiated")
    torch.stack([t.to(terms[0].dtype) for t in terms]).sum().backward()
    seconds = time.perf_counter() - begin
    for parameter in model.parameters() if isinstance(model, nn.Module) else ():
        parameter.grad = None
    return seconds


def _plain(result: Any) -> Any:
    return list(result.values()) if isinstance(result, Mapping) else result


def table(rows: Sequence[Row]) -> Table:
    """The times as a table."""
    shown = Table(title="seconds of a training step (median)")
    for column in ("T", "before", "after", "speed-up", "first call"):
        shown.add_column(column, justify="right")
    for row in rows:
        ratio = f"{row.before / row.after:.1f}" if row.parallel else "stays a loop"
        shown.add_row(str(row.length), f"{row.before:.4g}", f"{row.after:.4g}", ratio, f"{row.first:.3g}")
    return shown


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Both times over the number of steps, on logarithmic axes.

    Raises:
        ModuleNotFoundError: where matplotlib is not installed.
    """
    import importlib

    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    figure, axes = pyplot.subplots(figsize=(6, 4))
    steps = [row.length for row in rows]
    axes.plot(steps, [row.before for row in rows], "o-", label="as written")
    axes.plot(steps, [row.after for row in rows], "o-", label="parallelised")
    axes.set(xscale="log", yscale="log", xlabel="steps in time", ylabel="seconds of a training step", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
