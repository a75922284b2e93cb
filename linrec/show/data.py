"""Findings as data: the entries of a report, grouped where modules are alike, and as a dictionary with stable keys."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import Recurrence

SCHEMA = 1
"""Version of the dictionary's layout: keys are only ever added within one version."""


@dataclass
class Findings:
    """What was found in a model.

    Attributes:
        recurrences: one entry for each component of each loop, those that stay sequential included.
        obstructions: reasons why whole modules were left as they are.
        modules: names of the modules that own a time loop.
        called: whether there was a call in which a loop could have been found.
    """

    recurrences: list[Recurrence] = field(default_factory=list)
    obstructions: list[Obstruction] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    called: bool = False

    @property
    def parallel(self) -> bool:
        """Whether there is at least one loop and none of them stays."""
        return bool(self.recurrences) and all(r.parallel for r in self.recurrences) and not self.obstructions

    @property
    def empty(self) -> str:
        """What there is to say where no loop was found."""
        return NOT_FOUND if self.called else NOT_CALLED

    @property
    def done(self) -> int:
        """The number of recurrences whose loop over time is gone."""
        return sum(r.parallel for r in self.recurrences)

    @property
    def headline(self) -> str:
        """The result in one line."""
        owners = len(set(self.modules))
        return (
            f"{self.done} of {len(self.recurrences)} recurrences parallel, "
            f"in {owners} module{'' if owners == 1 else 's'} with a time loop"
        )


NOT_FOUND = (
    "no loop over time was found in the calls so far: forward runs no more operators where an input tensor is longer. "
    "A model without a loop is left as it is, and so is one whose number of steps comes of a list or of its own data."
)

NOT_CALLED = (
    "no loop over time has been seen yet. A model is compiled at its first call in training mode (or at once, with "
    "example_inputs); a model without a loop over time is left as it is."
)


@dataclass
class Group:
    """Modules in which the same was found."""

    modules: list[str]
    recurrences: list[Recurrence]

    @property
    def title(self) -> str:
        """The modules' names, cut after the third."""
        more = f" and {len(self.modules) - 3} more like them" if len(self.modules) > 3 else ""
        return ", ".join(self.modules[:3]) + more


def groups(findings: Findings) -> list[Group]:
    """The recurrences by module; modules with the same findings together."""
    by_module: dict[str, list[Recurrence]] = {}
    for r in findings.recurrences:
        by_module.setdefault(r.module or "(the model)", []).append(r)
    found: dict[tuple[Any, ...], Group] = {}
    for module, own in by_module.items():
        key = tuple((r.location, r.equation, r.lowering, r.parallel, tuple(r.obstructions)) for r in own)
        found.setdefault(key, Group([], own)).modules.append(module)
    return list(found.values())


def to_dict(findings: Findings) -> dict[str, Any]:
    """Findings as plain lists, dictionaries, strings and numbers; `SCHEMA` is their layout."""
    return {
        "schema": SCHEMA,
        "parallel": findings.parallel,
        "modules": list(findings.modules),
        "recurrences": [_recurrence(r) for r in findings.recurrences],
        "obstructions": [_obstruction(o) for o in findings.obstructions],
    }


def _recurrence(r: Recurrence) -> dict[str, Any]:
    return {
        "module": r.module,
        "location": r.location,
        "source": r.source,
        "states": list(r.states),
        "equation": r.equation,
        "latex": r.formula.latex if r.formula else "",
        "where": dict(r.formula.where) if r.formula else {},
        "transition": r.transition,
        "time_invariant": r.time_invariant,
        "proof": list(r.proof),
        "lowering": r.lowering,
        "parallel": r.parallel,
        "estimates": [
            {"name": e.name, "work": e.work, "calls": e.calls, "bytes": e.bytes, "seconds": e.seconds}
            for e in r.estimates
        ],
        "obstructions": [_obstruction(o) for o in r.obstructions],
    }


def _obstruction(o: Obstruction) -> dict[str, Any]:
    return {
        "id": o.id,
        "name": o.name,
        "location": o.location,
        "source": o.source,
        "caret": o.caret,
        "states": list(o.states),
        "explanation": o.explanation,
        "hint": o.hint,
    }


def comparison(r: Recurrence) -> str:
    """The expected work beside the loop's and the runner-up's, in one line; "" where nothing is known."""
    loop = next((e for e in r.estimates if e.name == "loop"), None)
    chosen = next((e for e in r.estimates if e.name == r.lowering and e is not loop), None)
    parts = []
    if chosen:
        parts.append(f"{_count(chosen.work)} multiply-adds over 1024 steps, {seconds_text(chosen.seconds)}")
    if loop and r.parallel:
        parts.append(
            f"the loop: {_count(loop.work)} in {loop.calls:,} calls one after another, {seconds_text(loop.seconds)}"
        )
    second = next((e for e in r.estimates if e is not loop and e is not chosen), None)
    if chosen and second:
        times = second.seconds / chosen.seconds if chosen.seconds else float("inf")
        parts.append(f"next best: {second.name} ({times:.2g} times as long)")
    return "; ".join(parts)


def seconds_text(seconds: float) -> str:
    """Seconds with a unit that suits them."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def _count(number: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.3g}{unit}"
    return f"{number:.0f}"
