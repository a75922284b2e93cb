"""Shows what was measured: a table, a JSON file, and times over the number of steps on logarithmic axes."""

from __future__ import annotations

import importlib
import json
import math
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from benchmarks.cases import CASES
from benchmarks.measure import Row


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def cells(row: Row) -> list[str]:
    """A row's variant, milliseconds, ratio, wanted ratio, memory, error."""
    if row.seconds is None or row.ratio is None:
        return [row.variant, row.note, "", "", "", ""]
    memory = "" if row.memory is None else f"{row.memory / 2**20:.3g}"
    wanted = "" if row.wanted is None else f"{row.wanted:g}"
    error = "" if row.error is None else f"{row.error:.0e}"
    return [row.variant, _time(row.seconds), f"{row.ratio:.2f}", wanted, memory, error]


COLUMNS = ("variant", "ms", "over linrec", "wanted", "MiB", "error")


def table(rows: Sequence[Row]) -> Table:
    """All rows, case by case."""
    shown = Table(title="training step: forward and backward")
    shown.add_column("case")
    for column in COLUMNS:
        shown.add_column(column, justify="left" if column == "variant" else "right")
    previous = None
    for row in rows:
        begin = (row.case, row.length) != previous
        if begin and previous is not None:
            shown.add_section()
        shown.add_row(f"{row.case}, T = {row.length}" if begin else "", *cells(row))
        previous = row.case, row.length
    return shown


def markdown(rows: Sequence[Row]) -> str:
    """The same for a page of the documentation."""
    lines = ["| case | " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 1)]
    previous = None
    for row in rows:
        title = CASES[row.case].title
        sizes = ", ".join(f"{k} = {v}" for k, v in (CASES[row.case].sizes | {"T": row.length}).items())
        first = f"{title} ({sizes})" if (row.case, row.length) != previous else ""
        lines.append("| " + " | ".join([first, *cells(row)]) + " |")
        previous = row.case, row.length
    return "\n".join(lines) + "\n"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = next((x.partition(":")[2].strip() for x in _cpuinfo() if x.startswith("model name")), platform.processor())
    return {"processor": model, "threads": torch.get_num_threads(), "torch": torch.__version__, "date": _today()}


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []


def _today() -> str:
    import datetime

    return datetime.date.today().isoformat()


def write(rows: Sequence[Row], path: Path) -> None:
    """Write a JSON file."""
    content = {"machine": machine(), "exponents": exponents(rows), "rows": [row.as_dict() for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def exponents(rows: Sequence[Row]) -> dict[str, float]:
    """For each variant of each case that was timed at three lengths or more: p of seconds ~ T^p, by least squares over
    the longer half of the lengths."""
    found = {}
    for case, variant in dict.fromkeys((r.case, r.variant) for r in rows):
        points = [
            (math.log(r.length), math.log(r.seconds))
            for r in rows
            if (r.case, r.variant) == (case, variant) and r.seconds is not None
        ]
        points = sorted(points)[len(points) // 2 - 1 :] if len(points) > 2 else []
        if len(points) > 1:
            x, y = (sum(v) / len(points) for v in zip(*points, strict=True))
            found[f"{case}: {variant}"] = sum((a - x) * (b - y) for a, b in points) / sum(
                (a - x) ** 2 for a, _ in points
            )
    return found


def draw(rows: Sequence[Row], path: Path) -> None:
    """Times over the number of steps in time.

    Raises:
        ModuleNotFoundError: where matplotlib is not installed.
    """
    matplotlib = importlib.import_module("matplotlib")
    matplotlib.use("Agg")
    pyplot = importlib.import_module("matplotlib.pyplot")
    names = list(dict.fromkeys(r.case for r in rows))
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, grid = pyplot.subplots(lines, columns, figsize=(4.5 * columns, 3.5 * lines), squeeze=False)
    for axes in grid.flat[len(names) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, names, strict=False):
        for variant in dict.fromkeys(r.variant for r in rows if r.case == name and r.seconds is not None):
            points = sorted((r.length, r.seconds) for r in rows if (r.case, r.variant) == (name, variant) and r.seconds)
            axes.plot(*zip(*points, strict=True), "o-", label=variant, markersize=3)
        axes.set(xscale="log", yscale="log", xlabel="steps in time", ylabel="seconds", title=name)
        axes.grid(alpha=0.3, which="both")
        axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
