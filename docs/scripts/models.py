"""The page `docs/models.md`: every model of `models.registry`, and what the compiler makes of it."""

from __future__ import annotations

import sys
from collections.abc import Iterable

import torch

import linrec
from models.registry import SAMPLES, Sample
from models.sample import NONLINEAR

HEAD = """# How each model is seen

<!-- Written by `python -m docs.scripts.update --models`, from models/registry.py and from what linrec finds. -->

The models of `models/` are plain loops, written as their papers write them. Here is what the compiler makes of each at
a small size: its recurrences in the model's own names (`linrec explain` shows each with its source line and its proof),
the structure that was proved, and the algorithm that was chosen. A dash under "loop" means that no step is left to be
taken one after another. Which algorithm is the cheapest depends on the sizes: the column says what these small
instances get.

"""
_COLUMNS = "| model | paper, equations | recurrence | structure | algorithm | loop |"

Row = tuple[str, str, str, str]
"""Recurrences, structures, algorithms, and what stays a loop, as cells of a table."""


def _cell(parts: Iterable[str]) -> str:
    return "<br>".join(dict.fromkeys(parts)).replace("|", "\\|") or "–"


def row(sample: Sample) -> Row:
    """What linrec finds in a model, at batch 2 and 20 steps."""
    dtype = torch.get_default_dtype()
    report = linrec.explain(sample.factory(), *sample.inputs(2, 20, dtype))
    stateful = [r for r in report.recurrences if r.states]
    done = [r for r in stateful if r.parallel]
    stays = [f"`{', '.join(r.states)}`: {_reason(r)}" for r in stateful if not r.parallel]
    stays += [f"{o.id} {o.name}" for o in report.obstructions]
    return (
        _cell(f"`{equation}`" for r in stateful for equation in r.equation.splitlines()),
        _cell(r.transition for r in stateful),
        _cell(r.lowering for r in done),
        _cell(stays),
    )


def _reason(recurrence: linrec.ir.recurrence.Recurrence) -> str:
    return ", ".join(f"{o.id} {o.name}" for o in recurrence.obstructions) or "the loop is cheaper"


def look(names: Iterable[str] | None = None) -> dict[str, Row]:
    """`row` of every model, or of those named."""
    wanted = [s for s in SAMPLES if names is None or s.name in set(names)]
    found = {}
    for k, sample in enumerate(wanted):
        print(f"\r{k + 1} of {len(wanted)}: {sample.name:<30}", end="", file=sys.stderr)
        found[sample.name] = row(sample)
    print(file=sys.stderr)
    return found


def line(sample: Sample, found: Row) -> str:
    """A model's line of the table."""
    source = f"{sample.paper}<br>{sample.equation}" if sample.equation else sample.paper
    return f"| `{sample.name}` | {source} | " + " | ".join(found) + " |"


def page(found: dict[str, Row]) -> str:
    """The whole page, by the class that each model's sample states."""
    parts = []
    for klass in sorted(dict.fromkeys(s.klass for s in SAMPLES), key=lambda klass: klass == NONLINEAR):
        lines = [line(s, found[s.name]) for s in SAMPLES if s.klass == klass]
        parts.append("\n".join([f"## {klass[0].upper()}{klass[1:]}", "", _COLUMNS, "|---" * 6 + "|", *lines, ""]))
    return HEAD + "\n".join(parts)
