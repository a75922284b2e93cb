"""What stands in the way of parallelising a loop, and the errors that carry it: every refusal of the compiler is one
`Obstruction`, with an id of the catalogue below, the user's file and line, why, and what would help."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import fx

from linrec.ir.location import location, places
from linrec.ir.source import line_with_caret

CATALOGUE: dict[str, tuple[str, str, str]] = {
    "LR001": (
        "no-time-loop",
        "No module repeats operators in proportion to the length of an input.",
        "Nothing to do: the model has no loop over time, or the loop runs over a dimension of constant size.",
    ),
    "LR002": (
        "capture-failed",
        "torch.export could not trace the code.",
        "Write what is named in torch's own operators, on plain tensors, or take it out of the module with the loop.",
    ),
    "LR003": (
        "state-in-nonlinearity",
        "An operator that is not affine reads the state.",
        "The recurrence has to stay sequential; what does not read the state is computed outside the loop.",
    ),
    "LR004": (
        "not-a-uniform-loop",
        "The traces at several lengths are not one repeated step.",
        "Make every step run the same operators, or let steps take turns: no other branches, no early stop.",
    ),
    "LR005": (
        "length-in-number",
        "A number in the graph depends on the length in a way that is not an integer affine function.",
        "Compute it from a tensor, or pass it as an argument.",
    ),
    "LR006": (
        "no-lowering",
        "The recurrence is affine in its state, but no lowering exists for its structure yet.",
        "Register a lowering for this structure; until then the loop stays sequential.",
    ),
    "LR007": (
        "gradient-blocked",
        "The state passes through detach (or a no_grad block): affine in value, but not for gradients.",
        "Remove the detach for exact gradients through time, or detach the whole state.",
    ),
    "LR008": (
        "hook-inside-loop",
        "A hook is registered on a module that is called inside the loop; a rewritten loop would not call it.",
        "Remove the hook, or register it on the module that owns the loop.",
    ),
    "LR009": (
        "random-in-step",
        "A random operator in the loop draws what depends on the state, or in a way that cannot be taken out of it.",
        "Draw numbers whose distribution reads no state (dropout, rand, randn), and compute from them what is needed.",
    ),
    "LR010": (
        "validation-failed",
        "The rewritten graph did not reproduce the original at a length that was not traced.",
        "Please report this with the model: the original code is used.",
    ),
    "LR011": (
        "trace-differs-at-length",
        "At this length the original runs other operators than its short traces predict.",
        "Something depends on the step number or on the length (a branch, a cap, an early stop); the original is used.",
    ),
    "LR012": (
        "not-vectorisable",
        "No rule says how this operator runs for all steps at once.",
        "Register a vectorisation rule for it; until then it stays inside the loop.",
    ),
    "LR013": (
        "mutates-input",
        "The code writes into one of its inputs or buffers in a way that cannot be replayed.",
        "Return it, assign it to an attribute or a buffer, or do it outside forward.",
    ),
    "LR014": (
        "unsupported-context",
        "The model is called in a context that the compiler does not handle.",
        "The original code runs there.",
    ),
    "LR015": (
        "data-dependent",
        "Control flow or a shape depends on the values of a tensor.",
        "Use torch.where or a mask, so that every step runs the same operators.",
    ),
    "LR016": (
        "kept-by-option",
        "The option lowering='loop' keeps every recurrence sequential.",
        "Leave the option out, or name an algorithm.",
    ),
    "LR017": (
        "loop-is-faster",
        "The recurrence is affine, and every algorithm for it is expected to take longer than the loop.",
        "Name an algorithm (lowering='chunked affine scan') to have it all the same.",
    ),
}


@dataclass(frozen=True)
class Obstruction:
    """One reason why a loop, or a part of it, stays as it is.

    Attributes:
        id: key of the catalogue, e.g. ``"LR003"``.
        location: ``"file.py:12"`` in the user's code, or ``""`` where no line is to blame.
        explanation: what happens there, in terms of the user's program.
        hint: what would help.
        source: the user's line, "" where it is not known.
        caret: carets under the expression in it that is to blame.
        states: the states of the recurrence that it stops.
    """

    id: str
    location: str
    explanation: str
    hint: str = field(default="")
    source: str = field(default="", compare=False)
    caret: str = field(default="", compare=False)
    states: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def at(cls, id: str, node: fx.Node, explanation: str, states: Sequence[str] = (), hint: str = "") -> Obstruction:
        """An obstruction at a node of a graph, with the user's line that it comes from."""
        found = places(node)
        source, caret = line_with_caret(found[0]) if found else ("", "")
        return cls(id, location(node), explanation, hint, source, caret, tuple(states))

    def __post_init__(self) -> None:
        if self.id not in CATALOGUE:
            raise ValueError(f"unknown obstruction id {self.id!r}; known: {', '.join(sorted(CATALOGUE))}")
        if not self.hint:
            object.__setattr__(self, "hint", CATALOGUE[self.id][2])

    @property
    def name(self) -> str:
        """The short name of the catalogue, e.g. ``"state-in-nonlinearity"``."""
        return CATALOGUE[self.id][0]

    def __str__(self) -> str:
        where = f" at {self.location}" if self.location else ""
        return f"{self.id} {self.name}{where}: {self.explanation} Hint: {self.hint}"


class LinrecError(Exception):
    """Base class of all errors that linrec raises."""


class NotParallelizable(LinrecError):
    """Raised under ``strict=True`` where a time loop would stay; carries the obstructions.

    Attributes:
        obstructions: the list of `Obstruction` that stand in the way.
    """

    def __init__(self, obstructions: list[Obstruction]) -> None:
        self.obstructions = list(obstructions)
        super().__init__("\n".join(str(o) for o in self.obstructions) or "a time loop stays sequential")


class Refused(LinrecError):
    """Internal control flow of the compiler: this module keeps its original code, for the reason given."""

    def __init__(self, obstruction: Obstruction) -> None:
        self.obstruction = obstruction
        super().__init__(str(obstruction))


def refuse(id: str, explanation: str, location: str = "", hint: str = "") -> Refused:
    """Build the `Refused` for an obstruction, to be raised by the caller."""
    return Refused(Obstruction(id, location, explanation, hint))
