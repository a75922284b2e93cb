"""Where passes of extensions go: before or after one of the named passes of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from linrec.analysis.rules import RULES
from linrec.ir.extension import REGISTERED, Extension, ExtensionError, enter
from linrec.ir.recurrence import Recurrence
from linrec.passes.base import Pass

P = TypeVar("P", bound=Pass)

PLACES = ("draw", "simplify", "decompose", "parts", "sink", "outline", "split", "hoist", "lower")
"""The passes of linrec, in order."""

ADDED: list[tuple[str, str, Pass]] = []
"""("before" or "after", the name of a pass, the pass to run there), in the order in which they were added."""


def add_pass(new: P, *, before: str = "", after: str = "", replace: bool = False) -> P:
    """Run a pass of one's own before or after one of linrec's: "draw", "simplify", "decompose", "parts",
    "sink", "outline", "split", "hoist" or "lower".

    Args:
        new: the pass; see `linrec.Pass`.
        before, after: where; exactly one of them.
        replace: whether it may take the place of one of the same name.

    Returns:
        The pass.

    Raises:
        TypeError: where it is no `linrec.Pass` with a name.
        ValueError: where the place is not given, or there is none of this name.
        ExtensionError: where another pass has its name.
    """
    if not isinstance(new, Pass) or not getattr(new, "name", ""):
        raise TypeError(f"add_pass takes an instance of linrec.Pass with a name, not {new!r}")
    if bool(before) == bool(after) or (before or after) not in PLACES:
        raise ValueError(f"say before= or after= one of {', '.join(PLACES)}")
    if new.name in PLACES:
        raise ExtensionError(f"{new.name!r} is the name of one of linrec's own passes")
    known = next((x for _, _, x in ADDED if x.name == new.name), None)
    enter("pass", new.name, new, known, replace)
    ADDED[:] = [entry for entry in ADDED if entry[2].name != new.name]
    ADDED.append(("before", before, new) if before else ("after", after, new))
    return new


def placed(own: Sequence[Pass]) -> tuple[Pass, ...]:
    """linrec's passes with those of extensions in their places."""
    found: list[Pass] = []
    for step in own:
        found += [x for when, name, x in ADDED if when == "before" and name == step.name]
        found.append(step)
        found += [x for when, name, x in ADDED if when == "after" and name == step.name]
    return tuple(found)


def involved(recurrences: Sequence[Recurrence], modified: Sequence[str]) -> list[Extension]:
    """The extensions that had a part in a rewritten graph.

    Args:
        recurrences: the entries of its report.
        modified: the names of the passes that changed it.
    """
    operators = {name for r in recurrences for name in r.proof}
    rules = {str(t) for t, f in RULES.items() if str(t).split(".")[1:2] and str(t).split(".")[1] in operators}
    algorithms = {r.lowering for r in recurrences} | {r.transition.split(",")[0] for r in recurrences}
    found = []
    for extension in REGISTERED:
        used = {
            "rule": extension.name in rules,
            "lowering": extension.name in algorithms,
            "semiring": extension.name in algorithms,
            "pass": extension.name in modified,
        }
        if used.get(extension.kind, False):
            found.append(extension)
    return found
