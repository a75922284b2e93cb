"""`make fuzz N=10000 SEED=0`: random programs through linrec, with a progress bar and a summary at the end.

What is wrong, crashed or caught by linrec's own validation is written to `out/fuzz/` as files that run by themselves; the
first of each kind is shrunk. Exit code 1 if any program was wrong or crashed.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from pathlib import Path

import hypothesis
import torch
from hypothesis import HealthCheck, Phase, Verbosity
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .check import Outcome, check
from .programs import programs
from .runnable import as_file
from .writer import Program

FAILURES = ("wrong", "crashed", "caught", "verdict")


class Fuzz:
    """One run.

    Args:
        count: how many programs Hypothesis may draw; seed: what fixes them; folder: where failures are written.
    """

    def __init__(self, count: int, seed: int, folder: Path) -> None:
        self.count, self.seed, self.folder = count, seed, folder
        self.outcomes: dict[str, tuple[Program, Outcome]] = {}
        self.console = Console()

    def run(self) -> int:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        ) as progress:
            task = progress.add_task("programs", total=self.count)

            def one(program: Program) -> None:
                self._outcome(program)
                tally = Counter(o.kind for _, o in self.outcomes.values())
                text = "  ".join(f"{kind} {tally[kind]}" for kind in ("wrong", "crashed", "caught", "missed"))
                progress.update(task, advance=1, description=text)

            self._drawn(one, [Phase.generate])
        kinds = Counter(o.kind for _, o in self.outcomes.values())
        self._summary(kinds)
        for kind in FAILURES:
            if kinds[kind]:
                self._shrunk(kind)
        return 1 if kinds["wrong"] + kinds["crashed"] else 0

    def _outcome(self, program: Program) -> Outcome:
        if program.source not in self.outcomes:
            outcome = check(program)
            self.outcomes[program.source] = (program, outcome)
            if outcome.kind in FAILURES:
                self.folder.mkdir(parents=True, exist_ok=True)
                path = self.folder / f"{outcome.kind}_{len(self.outcomes):05d}.py"
                path.write_text(as_file(program, outcome))
                self.console.print(f"{path}: {outcome.details[0] if outcome.details else ''}", markup=False)
        return self.outcomes[program.source][1]

    def _drawn(self, test: object, phases: list[Phase]) -> None:
        settings = hypothesis.settings(
            max_examples=self.count,
            deadline=None,
            database=None,
            phases=phases,
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        hypothesis.seed(self.seed)(settings(hypothesis.given(programs())(test)))()

    def _shrunk(self, kind: str) -> None:
        """Draw the same programs again (their outcomes are known), and let Hypothesis shrink the first failure."""
        smallest: list[tuple[Program, Outcome]] = []

        def fails(program: Program) -> None:
            outcome = self._outcome(program)
            if outcome.kind == kind:
                smallest[:] = [(program, outcome)]
                raise AssertionError

        try:
            self._drawn(fails, [Phase.generate, Phase.shrink])
        except AssertionError:
            path = self.folder / f"{kind}_smallest.py"
            path.write_text(as_file(*smallest[0]))
            self.console.print(f"\nThe smallest program that is {kind} ({path}):\n", markup=False)
            self.console.print(as_file(*smallest[0]), markup=False, highlight=False)

    def _summary(self, kinds: Counter[str]) -> None:
        tried = [(p, o) for p, o in self.outcomes.values() if o.kind != "invalid"]
        linear = [o for p, o in tried if p.verdict == "parallel"]
        table = Table(title=f"{len(tried)} programs, seed {self.seed}", show_header=False)
        table.add_row("rewritten fully", str(sum(o.rewritten == "fully" for _, o in tried)))
        table.add_row("rewritten in part", str(sum(o.rewritten == "partly" for _, o in tried)))
        table.add_row("left as they are", str(sum(o.rewritten == "not" for _, o in tried)))
        table.add_row("linear by construction", str(len(linear)))
        if linear:
            share = sum(o.rewritten == "fully" for o in linear) / len(linear)
            table.add_row("  of these, rewritten fully", f"{share:.1%}")
        for reason, count in sorted(Counter(r for _, o in tried for r in o.reasons).items()):
            table.add_row(f"with an obstruction {reason}", str(count))
        for kind in ("wrong", "crashed", "caught", "verdict"):
            table.add_row(kind, str(kinds[kind]))
        table.add_row("drawn, but fails or explodes as a loop", str(kinds["invalid"]))
        self.console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, default=Path("out/fuzz"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return Fuzz(options.count, options.seed, options.folder).run()


if __name__ == "__main__":
    raise SystemExit(main())
