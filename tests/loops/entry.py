"""What one entry of the corpus is: a way to build a module with a time loop, its inputs, and what is known about it
by construction.

A table is a list of entries; `Table.add` is a class (or function) decorator, so an entry reads as the module that
somebody would have written, with one line above it. Inputs are factories of `(batch, length)`; floating-point tensors
are made in float32 and cast by the harness to the entry's dtype.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

Verdict = Literal["parallel", "partial", "sequential", "stateless", "any"]
"""`parallel`: at least one recurrence, all parallel. `partial`: some parallel, some not. `sequential`: none parallel.
`stateless`: there is no state, so no recurrence may be left sequential. `any`: only correctness is demanded."""


@dataclass(frozen=True)
class Call:
    """Positional and keyword arguments of one call."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


Inputs = Callable[[int, int], Any]
"""`(batch, length) -> Call`, or the tuple of positional arguments, or one tensor."""


@dataclass(frozen=True)
class At:
    """One call of the schedule: its sizes, the context it runs under, and what is done to the module just before it."""

    batch: int
    length: int
    under: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    before: Callable[[Any], None] | None = None
    inputs: Inputs | None = None


SCHEDULE = (At(2, 12), At(3, 23), At(1, 9), At(2, 3), At(2, 1), At(2, 0))
"""The first call compiles; the others differ from it in both sizes, go below the traced lengths, and end with no step
at all."""


@dataclass(frozen=True)
class Entry:
    """A loop under test. `factory()` builds a fresh module, or returns a plain function (then `is_function`)."""

    name: str
    factory: Callable[[], Any]
    inputs: Inputs
    verdict: Verdict = "parallel"
    schedule: tuple[At, ...] = SCHEDULE
    dtype: torch.dtype = torch.float64
    rtol: float = 1e-8
    is_function: bool = False
    mutates: bool = False
    """The loop writes into its argument, which therefore may not be a leaf that requires grad."""
    carries_over: bool = False
    """What one call computes is read by the next (running statistics), so that rounding is carried along."""
    obstruction: str | None = None
    """When set, the report must hold an obstruction in this entry's file, on a line that contains this text."""
    file: str = ""

    def __repr__(self) -> str:
        return self.name


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", name).lower().replace("_", "-")


class Table(list[Entry]):
    """Entries in order of definition, with unique names."""

    def add(self, inputs: Inputs, verdict: Verdict = "parallel", **options: Any) -> Callable[[Any], Any]:
        """Decorate a module class (built with no argument) or, with `is_function=True`, a plain function."""

        def register(definition: Any) -> Any:
            factory = (lambda: definition) if options.get("is_function") else definition
            self.put(_kebab(definition.__name__), factory, inputs, verdict, file=inspect.getfile(definition), **options)
            return definition

        return register

    def put(
        self, name: str, factory: Callable[[], Any], inputs: Inputs, verdict: Verdict = "parallel", **options: Any
    ) -> None:
        """Add an entry by name. Raises ValueError if the name is taken."""
        if any(name == entry.name for entry in self):
            raise ValueError(f"two entries of the corpus are called {name!r}")
        self.append(Entry(name, factory, inputs, verdict, **options))


def joined(*tables: Table) -> Table:
    """One table of several, names still unique."""
    whole = Table()
    for table in tables:
        for entry in table:
            if any(entry.name == other.name for other in whole):
                raise ValueError(f"two entries of the corpus are called {entry.name!r}")
            whole.append(entry)
    return whole


def btd(width: int, count: int = 1) -> Inputs:
    """`count` tensors `(B, T, width)`."""
    return lambda batch, length: tuple(torch.randn(batch, length, width) for _ in range(count))


def tbd(width: int, count: int = 1) -> Inputs:
    """`count` tensors `(T, B, width)`."""
    return lambda batch, length: tuple(torch.randn(length, batch, width) for _ in range(count))


def bdt(width: int) -> Inputs:
    """One tensor `(B, width, T)`."""
    return lambda batch, length: torch.randn(batch, width, length)


def td(width: int) -> Inputs:
    """One tensor `(T, width)`, no batch."""
    return lambda batch, length: torch.randn(length, width)


def bt(batch: int, length: int) -> torch.Tensor:
    """One tensor `(B, T)`."""
    return torch.randn(batch, length)


def as_call(made: Any) -> Call:
    """What an `Inputs` returned, as a `Call`."""
    if isinstance(made, Call):
        return made
    return Call(made if isinstance(made, tuple) else (made,))
