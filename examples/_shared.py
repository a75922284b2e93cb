"""What the examples share: a training loop that keeps the time, the picture of two runs, the facts printed at the end.

The examples train two copies of a model on the same batches: one as it is, for a few steps, and one after
`linrec.parallelize(model)`, for all of them.
"""

from __future__ import annotations

import importlib.util
import json
import math
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

PROVIDED_BY = {
    "rich": "linrec",
    "matplotlib": "linrec[plot]",
    "transformers": "linrec[transformers]",
    "accelerate": "accelerate",
    "sklearn": "scikit-learn",
}
"""Module -> what to install for it."""


def require(*modules: str) -> None:
    """Leave with one line that says what to install if a module is not there."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(f'"{PROVIDED_BY[name]}"' for name in missing)
        raise SystemExit(f"This example needs {' and '.join(missing)}: pip install {packages}")


@dataclass
class Run:
    """The loss and the seconds of each step of a training run."""

    name: str
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def clock(self) -> list[float]:
        """Seconds from the start of the run to the end of each step, steps of the other run left out."""
        return list(accumulate(self.seconds))


@contextmanager
def progress_bar() -> Iterator[Any]:
    """A rich progress bar whose tasks show their loss and seconds a step."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:>10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]}  {task.fields[pace]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as progress:
        yield progress


class Trainer:
    """Adam with a cosine schedule of `steps` steps; `loss_at(model, k)` is the model's loss on batch k."""

    def __init__(
        self, name: str, model: nn.Module, loss_at: Callable[[nn.Module, int], Tensor], steps: int, rate: float
    ) -> None:
        self.run, self.model, self.loss_at = Run(name), model.train(), loss_at
        self.optimiser = torch.optim.Adam(model.parameters(), lr=rate)
        self.decay = torch.optim.lr_scheduler.LambdaLR(
            self.optimiser, lambda k: 0.5 * (1 + math.cos(math.pi * k / steps))
        )

    def step(self, k: int) -> None:
        begin = time.perf_counter()
        self.optimiser.zero_grad()
        loss = self.loss_at(self.model, k)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimiser.step()
        self.decay.step()
        self.run.losses.append(loss.item())
        self.run.seconds.append(time.perf_counter() - begin)


def train_both(
    loop_model: nn.Module,
    parallel_model: nn.Module,
    loss_at: Callable[[nn.Module, int], Tensor],
    *,
    loop_steps: int,
    steps: int,
    rate: float,
) -> tuple[Run, Run]:
    """Train two copies of a model, the first for `loop_steps` steps and the second for `steps`, on the same batches.

    While both run they take turns, step by step. One after the other would compare two minutes of the machine: on busy
    cores an unchanged step was seen to take anything from 1 to 11 times its usual time, for many steps on end.
    """
    loop = Trainer("loop", loop_model, loss_at, steps, rate)
    parallel = Trainer("parallel", parallel_model, loss_at, steps, rate)
    with progress_bar() as progress:
        tasks = [
            (trainer, count, progress.add_task(trainer.run.name, total=count, loss="...", pace=""))
            for trainer, count in ((loop, loop_steps), (parallel, steps))
        ]
        for k in range(steps):
            for trainer, count, task in tasks:
                if k < count:
                    trainer.step(k)
                    run = trainer.run
                    pace = f"{run.seconds[-1]:.3g} s"
                    progress.update(task, advance=1, loss=f"{run.losses[-1]:.4g}", pace=pace)
    return loop.run, parallel.run


def plot_losses(loop: Run, parallel: Run, title: str, path: Path) -> None:
    """Draw both losses against wall-clock time, compilation included, on logarithmic axes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for run, style in ((loop, "o-"), (parallel, "-")):
        label = f"{run.name}: {len(run.losses)} steps, {statistics.median(run.seconds):.3g} s each"
        axes.plot(run.clock, run.losses, style, label=label)
    axes.set(xscale="log", yscale="log", xlabel="wall-clock seconds", ylabel="training loss", title=title)
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def conclude(
    loop: Run, parallel: Run, report: Any, *, title: str, folder: Path, stem: str, facts: dict[str, Any]
) -> None:
    """Print the report and what was measured; write `stem`.png and, with `facts`, `stem`.json to `folder`.

    The step is measured where both runs took turns, without the first (compilation; memory touched for the first time).
    """
    both = len(loop.seconds)
    loop_steps, parallel_steps = loop.seconds[1:], parallel.seconds[1:both]
    ratios = [a / b for a, b in zip(loop_steps, parallel_steps, strict=True)]
    results = {
        "loop_step_s": statistics.median(loop_steps),
        "parallel_step_s": statistics.median(parallel_steps),
        "parallel_first_step_s": parallel.seconds[0],
        "speed_up": statistics.median(ratios),
        "speed_up_range": [min(ratios), max(ratios)],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(loop.losses, parallel.losses[:both], strict=True)),
        "recurrences": len(report.recurrences),
        "recurrences_parallel": sum(recurrence.parallel for recurrence in report.recurrences),
        "left_as_they_are": [str(obstruction) for obstruction in report.obstructions],
        "threads": torch.get_num_threads(),
        **facts,
    }
    folder.mkdir(parents=True, exist_ok=True)
    picture = (folder / f"{stem}.png").resolve()
    plot_losses(loop, parallel, title, picture)
    numbers = picture.with_suffix(".json")
    runs = {run.name: {"losses": run.losses, "seconds": run.seconds} for run in (loop, parallel)}
    numbers.write_text(json.dumps({"title": title, **results, "runs": runs}, indent=1), encoding="utf-8")

    # A plan that was found can still be turned down at run time: these are then times of the original, and must say so.
    caution = "; but see above: the original ran in places" if report.obstructions else ""
    print(report)
    print()
    print(f"recurrences      {results['recurrences_parallel']} of {results['recurrences']} parallel{caution}")
    print(
        f"loop step        {results['loop_step_s']:.3g} s, median of {len(ratios)} (the first: {loop.seconds[0]:.3g} s)"
    )
    print(
        f"parallel step    {results['parallel_step_s']:.3g} s (the first, which compiles: {parallel.seconds[0]:.3g} s)"
    )
    print(f"speed-up         {results['speed_up']:.1f} times, median ratio ({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"loss difference  {results['largest_loss_difference']:.1e} at most, over the {both} steps of both")
    print(f"numbers          {numbers}")
    print(f"picture          {picture}")
