"""`make mutate`: breaks linrec in one place at a time, and looks for the test that fails.

Every mutant lives in a fork of this process, in which the tests are collected already. The tests that run the changed
function are tried, the quickest first; then the whole programs that run it, with validation on, none of whose results may
be wrong. Which test runs which function is measured once and kept in `out/mutation/`. Exit code 1 if a mutant survives
that is not known to be equivalent, or if a wrong result passed validation.
"""

from __future__ import annotations

import argparse
import cProfile
import hashlib
import json
import os
import random
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import CodeType
from typing import Any

import pytest
import torch
from _pytest.runner import runtestprotocol
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from .equivalent import why_equivalent
from .mutants import GUARD, ROOT, Mutant, all_mutants, key
from .whole import Whole, programs, trace_once

TESTS = ("analysis", "lowering", "ops", "passes", "codegen", "capture", "runtime")
BUDGET, LIMIT = 20.0, 90.0
"""Seconds of tests for one mutant, as they took when measured; and after which a mutant counts as one that never ends."""

SURVIVED, KILLED, WITHOUT_EFFECT = 0, 1, 2


class Coverage:
    """How long each test takes, and which functions of linrec it runs; kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def measure(self, name: str, version: str, run: Callable[[], bool]) -> None:
        """Run something once, unless it was measured at this version."""
        if self.known.get(name, {}).get("version") == version:
            return
        profile, start = cProfile.Profile(), time.process_time()
        try:
            passed = profile.runcall(run)
        except ValueError:  # a test that profiles, too
            passed = False
        codes = {e.code for e in profile.getstats() if isinstance(e.code, CodeType)}
        ran = sorted({_name(c) for c in codes if c.co_filename.startswith(str(ROOT / "linrec"))})
        seconds = time.process_time() - start
        self.known[name] = {"version": version, "seconds": seconds, "passed": passed, "ran": ran}

    def save(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(self.known))

    def running(self, mutant: Mutant, names: list[str], budget: float) -> list[str]:
        """Those that run a mutant's function, as many as take `budget` seconds."""
        wanted = None if mutant.codes is None else {":".join(map(str, k)) for k in mutant.codes()}
        found, spent = [], 0.0
        for name in self._by_variety(names):
            entry = self.known[name]
            if not entry["passed"] or (wanted is not None and not wanted & set(entry["ran"])):
                continue
            if wanted is None and mutant.function.split(".")[1] not in name:
                continue
            spent += entry["seconds"]
            if spent > budget and found:
                break
            found.append(name)
        return found

    def _by_variety(self, names: list[str]) -> list[str]:
        """The quickest case of every test first, then the next ones: what everything runs is run by very many."""
        place: dict[str, tuple[int, float]] = {}
        cases: Counter[str] = Counter()
        for name in sorted(names, key=lambda n: self.known[n]["seconds"]):
            test = name.partition("[")[0]
            place[name] = (cases[test] // 4, self.known[name]["seconds"])
            cases[test] += 1
        return sorted(names, key=place.__getitem__)


def _name(code: CodeType) -> str:
    return ":".join(map(str, key(code)))


def in_a_fork(work: Callable[[], tuple[int, str]], limit: float) -> tuple[int, str]:
    """What `work` returns in a process of its own; a process that dies or takes too long was killed by its mutant."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        try:
            result = work()
        except BaseException as error:
            result = (KILLED, f"{type(error).__name__}: {error}"[:300])
        os.write(writer, json.dumps(result).encode())
        os._exit(0)
    os.close(writer)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.02)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return tuple(json.loads(text)) if text else (KILLED, "never ends, or ends the process")


class Check:
    """A pytest plugin that runs mutants in place of the tests."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.console = Console()
        self.results: list[dict[str, Any]] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        items = {item.nodeid: item for item in session.items}
        wholes = {f"whole program {w.name}": w for w in programs()}
        coverage = Coverage(Path("out/mutation/coverage.json"))
        trace_once()
        mutants = self._chosen()
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self.console,
        ) as progress:
            if not self.options.programs or all(m.file.startswith(GUARD) for m in mutants):
                wholes = {}
            self._measure(coverage, items, wholes, progress)
            task = progress.add_task("mutants", total=len(mutants))
            results = Path("out/mutation/results.json")
            for mutant in mutants:
                self.results.append(self._try(mutant, coverage, items, wholes))
                tally = Counter(r["outcome"] for r in self.results)
                text = "  ".join(f"{kind} {tally[kind]}" for kind in ("killed", "equivalent", "survived"))
                progress.update(task, advance=1, description=text)
                results.write_text(json.dumps(self.results, indent=1))
        self._report()
        return True

    def _chosen(self) -> list[Mutant]:
        found = [m for m in all_mutants() if m.file.startswith(tuple(self.options.files)) or not self.options.files]
        found = [m for m in found if self.options.only in m.name]
        count = self.options.count
        return found if count <= 0 or count >= len(found) else random.Random(self.options.seed).sample(found, count)

    def _measure(
        self, coverage: Coverage, items: dict[str, pytest.Item], wholes: dict[str, Whole], progress: Progress
    ) -> None:
        linrec = hashlib.sha256()
        for path in sorted((ROOT / "linrec").rglob("*.py")):
            linrec.update(path.read_bytes())
        versions: dict[Path, str] = {}
        task = progress.add_task("which test runs what", total=len(items) + len(wholes))
        for k, (name, item) in enumerate(items.items()):
            if item.path not in versions:
                versions[item.path] = hashlib.sha256(linrec.digest() + item.path.read_bytes()).hexdigest()
            coverage.measure(name, versions[item.path], lambda item=item: _passes(item))
            progress.advance(task)
            if k % 50 == 0:
                coverage.save()
        for name, whole in wholes.items():
            coverage.measure(name, linrec.hexdigest(), lambda whole=whole: not whole.problem())
            assert coverage.known[name]["passed"], whole.problem()
            progress.advance(task)
            coverage.save()

    def _try(
        self, mutant: Mutant, coverage: Coverage, items: dict[str, pytest.Item], wholes: dict[str, Whole]
    ) -> dict[str, Any]:
        tests = coverage.running(mutant, list(items), self.options.budget)

        def by_tests() -> tuple[int, str]:
            if not mutant.apply():
                return WITHOUT_EFFECT, ""
            for name in tests:
                if not _passes(items[name]):
                    return KILLED, name
            return SURVIVED, f"{len(tests)} tests"

        chosen = coverage.running(mutant, list(wholes), 1e9)[: self.options.programs]
        for name in chosen:
            wholes[name].trace()

        def by_programs() -> tuple[int, str]:
            mutant.apply()
            for name in chosen:
                if problem := wholes[name].problem():
                    return KILLED, problem
            return SURVIVED, ""

        code, by = in_a_fork(by_tests, LIMIT)
        why = why_equivalent(mutant.name)
        outcome = "killed" if code == KILLED else "equivalent" if code == WITHOUT_EFFECT or why else "survived"
        wrong = ""
        if code != WITHOUT_EFFECT and not mutant.file.startswith(GUARD):
            passed, wrong = in_a_fork(by_programs, LIMIT)
            wrong = wrong if passed == KILLED else ""
        return {"mutant": mutant.name, "line": mutant.line, "outcome": outcome, "by": by, "wrong": wrong, "why": why}

    def _report(self) -> None:
        tally = Counter(r["outcome"] for r in self.results)
        wrong = [r for r in self.results if r["wrong"]]
        table = Table(title=f"{len(self.results)} mutants, seed {self.options.seed}", show_header=False)
        for kind in ("killed", "equivalent", "survived"):
            table.add_row(kind, str(tally[kind]))
        table.add_row("wrong with validation on", str(len(wrong)))
        self.console.print(table)
        for title, rows, said in (
            ("Survivors", [r for r in self.results if r["outcome"] == "survived"], "by"),
            ("Wrong with validation on", wrong, "wrong"),
        ):
            if rows:
                table = Table("line", "mutant", "", title=title)
                for r in rows:
                    table.add_row(str(r["line"]), r["mutant"].replace("[", "\\["), r[said].replace("[", "\\["))
                self.console.print(table)


def _passes(item: pytest.Item) -> bool:
    with warnings.catch_warnings():
        return not any(r.failed for r in runtestprotocol(item, log=False, nextitem=None))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=300, help="how many are drawn; 0 for all of them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--files", nargs="*", default=[], help="modules below linrec, such as analysis.rules")
    parser.add_argument("--only", default="", help="a part of a mutant's name")
    parser.add_argument("--tests", nargs="*", default=list(TESTS))
    parser.add_argument("--programs", type=int, default=2, help="whole programs for each mutant")
    parser.add_argument("--budget", type=float, default=BUDGET)
    options = parser.parse_args()
    torch.set_num_threads(1)
    check = Check(options)
    sys.dont_write_bytecode = True
    folders = [str(ROOT / "tests" / name) for name in options.tests]
    code = pytest.main([*folders, "-q", "-p", "no:cacheprovider", "--no-header"], plugins=[check])
    failed = code not in (0, 5) or not check.results
    return int(failed or any(r["wrong"] or r["outcome"] == "survived" for r in check.results))


if __name__ == "__main__":
    raise SystemExit(main())
