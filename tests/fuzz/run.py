"""`make fuzz N=10000 SEED=0`: random programs through linrec, with a progress bar and a summary at the end.

What is wrong, crashed, caught by linrec's own validation or missed is written to `out/fuzz/` as files that run by
themselves; the first of each kind is shrunk. Exit code 1 if any program was wrong or crashed.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import time
import warnings
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .check import Outcome, check
from .choices import drawn, shrunk
from .runnable import as_file
from .writer import Program

FAILURES = ("wrong", "crashed", "caught", "verdict", "missed")
RENEWED = 300
"""Programs after which a process is replaced: torch remembers something of each of them."""


def _work(pipe: Connection, seed: int) -> None:
    """Check the programs whose numbers come in; send back what came of them."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    # Half a million objects are there before the first program, and tracing makes many more that die at once.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)
    while (number := pipe.recv()) is not None:
        start = time.perf_counter()
        outcome = check(drawn(seed, number)[0])
        pipe.send((number, outcome, time.perf_counter() - start))


class _Worker:
    """A process that checks one program after the other; it may die of one of them."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.number = -1
        self._start()

    def _start(self) -> None:
        self.pipe, other = multiprocessing.Pipe()
        self.process = multiprocessing.get_context("fork").Process(target=_work, args=(other, self.seed), daemon=True)
        self.process.start()
        other.close()
        self.done = 0

    def give(self, number: int) -> None:
        if self.done >= RENEWED:
            self.stop()
            self._start()
        self.number = number
        self.pipe.send(number)

    def take(self) -> tuple[int, Outcome, float]:
        self.done += 1
        try:
            result: tuple[int, Outcome, float] = self.pipe.recv()
        except EOFError:
            self.process.join()
            result = (self.number, Outcome("crashed", details=[f"the process ended ({self.process.exitcode})"]), 0.0)
            self._start()
        return result

    def stop(self) -> None:
        self.pipe.send(None)
        self.process.join(5)


class Fuzz:
    """One run.

    Args:
        count: how many programs; seed: what fixes them; minutes: when to stop before; jobs: how many processes;
        folder: where failures are written, and a line for every program.
    """

    def __init__(self, count: int, seed: int, minutes: float, jobs: int, folder: Path) -> None:
        self.count, self.seed, self.jobs, self.folder = count, seed, jobs, folder
        self.end = time.monotonic() + 60 * minutes
        self.outcomes: dict[int, tuple[Program, Outcome]] = {}
        self.console = Console()
        self.seconds = 0.0

    def run(self) -> int:
        self.folder.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with (
            (self.folder / "programs.jsonl").open("w") as log,
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self.console,
            ) as progress,
        ):
            task = progress.add_task("programs", total=self.count)
            for number, outcome, seconds in self._checked():
                self._note(number, outcome, seconds, log)
                tally = Counter(o.kind for _, o in self.outcomes.values())
                text = "  ".join(f"{kind} {tally[kind]}" for kind in ("wrong", "crashed", "caught", "missed"))
                progress.update(task, advance=1, description=text)
        self.seconds = time.monotonic() - start
        kinds = Counter(o.kind for _, o in self.outcomes.values())
        self._summary(kinds)
        for kind in FAILURES:
            if kinds[kind]:
                self._shrunk(kind)
        return 1 if kinds["wrong"] + kinds["crashed"] else 0

    def _checked(self) -> Any:
        """(number, outcome, seconds) of every program, as they come."""
        workers = [_Worker(self.seed) for _ in range(self.jobs)]
        numbers = iter(range(self.count))
        busy: dict[Any, _Worker] = {}
        idle = workers
        while True:
            for worker in idle:
                number = next(numbers, None) if time.monotonic() < self.end else None
                if number is not None:
                    worker.give(number)
                    busy[worker.pipe] = worker
            if not busy:
                break
            idle = []
            for pipe in wait(list(busy)):
                worker = busy.pop(pipe)
                yield worker.take()
                idle.append(worker)
        for worker in workers:
            worker.stop()

    def _note(self, number: int, outcome: Outcome, seconds: float, log: Any) -> None:
        program = drawn(self.seed, number)[0]
        self.outcomes[number] = (program, outcome)
        line = {"number": number, "kind": outcome.kind, "rewritten": outcome.rewritten, "expected": program.verdict}
        log.write(json.dumps(line | {"reasons": outcome.reasons, "seconds": round(seconds, 2)}) + "\n")
        log.flush()
        if outcome.kind in FAILURES:
            path = self.folder / f"{outcome.kind}_{number:05d}.py"
            path.write_text(as_file(program, outcome))
            self.console.print(f"{path}: {outcome.details[0] if outcome.details else ''}", markup=False)

    def _shrunk(self, kind: str) -> None:
        """The first failure of a kind, made smaller (in this process: one that ends it is not)."""
        number = min(n for n, (_, o) in self.outcomes.items() if o.kind == kind)
        if self.outcomes[number][1].details[:1] and self.outcomes[number][1].details[0].startswith("the process ended"):
            return
        found = {drawn(self.seed, number)[0].source: self.outcomes[number][1]}

        def fails(program: Program) -> bool:
            outcome = check(program)
            found[program.source] = outcome
            return outcome.kind == kind

        program = shrunk(drawn(self.seed, number)[1], fails)[0]
        path = self.folder / f"{kind}_smallest.py"
        path.write_text(as_file(program, found.get(program.source) or check(program)))
        self.console.print(f"\nThe smallest program that is {kind} ({path}):\n", markup=False)
        self.console.print(path.read_text(), markup=False, highlight=False)

    def _summary(self, kinds: Counter[str]) -> None:
        tried = [(p, o) for p, o in self.outcomes.values() if o.kind != "invalid"]
        linear = [o for p, o in tried if p.verdict == "parallel"]
        table = Table(title=f"{len(tried)} programs, seed {self.seed}", show_header=False)
        table.add_row("programs a minute", f"{60 * len(self.outcomes) / max(self.seconds, 1e-9):.1f}")
        table.add_row("rewritten fully", str(sum(o.rewritten == "fully" for _, o in tried)))
        table.add_row("rewritten in part", str(sum(o.rewritten == "partly" for _, o in tried)))
        table.add_row("left as they are", str(sum(o.rewritten == "not" for _, o in tried)))
        table.add_row("linear by construction", str(len(linear)))
        if linear:
            share = sum(o.rewritten == "fully" for o in linear) / len(linear)
            table.add_row("  of these, rewritten fully", f"{share:.1%}")
        for reason, count in sorted(Counter(r for _, o in tried for r in o.reasons).items()):
            table.add_row(f"with an obstruction {reason}", str(count))
        for kind in FAILURES:
            table.add_row(kind, str(kinds[kind]))
        table.add_row("drawn, but fails or explodes as a loop", str(kinds["invalid"]))
        self.console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many, whatever the count")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--folder", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return Fuzz(options.count, options.seed, options.minutes, options.jobs, options.folder).run()


if __name__ == "__main__":
    raise SystemExit(main())
