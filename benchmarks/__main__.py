"""The command: ``python -m benchmarks [case...]``."""

from __future__ import annotations

import enum
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from benchmarks import show
from benchmarks.cases import CASES
from benchmarks.measure import Disagreement, Row, run


class Clock(str, enum.Enum):
    """What time is measured."""

    WALL = "wall"
    CPU = "cpu"


_CLOCKS = {Clock.WALL: time.perf_counter, Clock.CPU: time.process_time}

Names = Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(CASES)}. All, if none is named.")]
Lengths = Annotated[str, typer.Option(help="Numbers of steps in time, with commas; each case's own if there are none.")]
Rounds = Annotated[int, typer.Option(help="How often each variant is timed; the medians count.", min=1)]
WithLoop = Annotated[bool, typer.Option("--loop/--no-loop", help="Whether to time the loop as it is written.")]
LoopUpTo = Annotated[int, typer.Option(help="The greatest number of steps at which the loop is timed.")]
Threads = Annotated[int, typer.Option(help="Threads of torch.", min=1)]
Which = Annotated[
    Clock, typer.Option(help="Seconds of the clock, or of the processor: for one thread on a machine that others use.")
]
Out = Annotated[Path | None, typer.Option(help="Where to write the figures.")]
Plot = Annotated[Path | None, typer.Option(help="Where to draw times over the number of steps (needs matplotlib).")]
Page = Annotated[Path | None, typer.Option(help="Where to write the table as Markdown.")]
Small = Annotated[bool, typer.Option(help="Tiny sizes: only to see that everything runs.")]


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Names = None,
    lengths: Lengths = "",
    rounds: Rounds = 15,
    loop: WithLoop = True,
    loop_up_to: LoopUpTo = 2048,
    threads: Threads = 2,
    clock: Which = Clock.WALL,
    json: Out = None,
    plot: Plot = None,
    markdown: Page = None,
    tiny: Small = False,
) -> None:
    """Time training steps of unchanged loops, of linrec's form of them, and of forms written by hand."""
    torch.set_num_threads(threads)
    console = Console()
    unknown = [n for n in names or () if n not in CASES]
    if unknown:
        raise typer.BadParameter(f"no case is called {', '.join(unknown)}; there are {', '.join(CASES)}")
    rows: list[Row] = []
    failed = False
    for name in names or CASES:
        case = CASES[name]
        sizes = case.tiny if tiny else case.sizes
        for length in [int(x) for x in lengths.split(",") if x] or [sizes["T"]]:
            with console.status(f"{name}, T = {length}") as status:

                def say(what: str, label: str = f"{name}, T = {length}") -> None:
                    status.update(f"{label}: {what}")

                try:
                    rows += run(case, sizes | {"T": length}, rounds, loop and length <= loop_up_to, _CLOCKS[clock], say)
                except Disagreement as problem:
                    failed = True
                    console.print(f"[red]{name}, T = {length}: {problem}[/red]")
        # After each case, so that a run that is stopped leaves what it has found.
        if json:
            show.write(rows, json)
        if markdown:
            markdown.write_text(show.markdown(rows), encoding="utf-8")
    console.print(show.table(rows))
    for label, power in show.exponents(rows).items():
        console.print(f"{label}: time ~ T^{power:.2f}")
    if plot:
        show.draw(rows, plot)
    if failed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks")
