"""What the analysis says about one affine component: its states, its transition and the structure found in it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx

from linrec.ir.formula import Equation
from linrec.ir.obstruction import Obstruction


@dataclass(frozen=True)
class Transition:
    """The linear part of an update.

    Attributes:
        kind: "identity" (coefficient 1), "diagonal" (every state index is kept), "dense" (one state axis is replaced),
            "block" (several coupled states) or "other".
        time_invariant: whether no coefficient changes over time.
        axis: for "dense", the state dimension that is contracted.
        column: for "dense", the indices of the contracted state axis.
        is_complex: whether the state is complex.
    """

    kind: str
    time_invariant: bool
    axis: int = -1
    column: tuple[int, ...] = ()
    is_complex: bool = False

    def __str__(self) -> str:
        when = "time-invariant" if self.time_invariant else "time-varying"
        return f"{self.kind}, {when}{', complex' if self.is_complex else ''}"


@dataclass(frozen=True)
class LinearRecurrence:
    """An affine component of a loop: ``h[t] = A[t] h[t-1] + b[t]``.

    Attributes:
        states: the carries of the step graph.
        updates: for each, its update as a polynomial in the states.
        algebra: the algebra that the polynomials belong to.
        transition: the structure of the linear part.
        invariant: nodes of the step that are the same in every step.
    """

    states: tuple[fx.Node, ...]
    updates: tuple[Any, ...]
    algebra: Any
    transition: Transition
    invariant: frozenset[fx.Node]

    @property
    def update(self) -> Any:
        """The update of the only state."""
        (update,) = self.updates
        return update

    def linear_terms(self) -> tuple[Any, ...]:
        """The monomials of the update that hold the state, without it."""
        return tuple(m.without(m.of_kind("state")[0]) for m in self.update.terms if m.of_kind("state"))

    def drive_terms(self) -> tuple[Any, ...]:
        """The monomials of the update that hold no state."""
        return tuple(m for m in self.update.terms if not m.of_kind("state"))


@dataclass(frozen=True)
class Estimate:
    """What a way of solving a recurrence is expected to cost in a forward pass, by the compiler's cost model.

    Attributes:
        name: the algorithm, or "loop".
        work: multiply-adds at `REFERENCE_LENGTH` steps, at the sizes of the call that was traced.
        calls: operator calls made one after the other.
        bytes: what is read from memory or written to it.
        seconds: how long that is expected to take, at the speeds that were measured for the machine.
    """

    name: str
    work: float
    calls: int = 0
    bytes: float = 0.0
    seconds: float = 0.0


REFERENCE_LENGTH = 1024
"""The number of steps at which ways of solving a recurrence are compared."""


@dataclass(frozen=True)
class LoopView:
    """The loop that a recurrence was part of, for a reader.

    Attributes:
        states: names of all states of the loops of the module; edges: (i, j) where the update of state j reads state i.
        groups: the states of each component, as positions.
        before, after: the graph with its loops before the passes and after them, as text.
    """

    states: tuple[str, ...] = ()
    edges: tuple[tuple[int, int], ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()
    before: str = ""
    after: str = ""


@dataclass
class Recurrence:
    """One entry of a report: a component of a loop, and what became of it.

    Attributes:
        module: qualified name of the module that owns the loop.
        location: ``"file.py:12"`` of the update of its first state.
        states: names of its states in the user's code.
        equation: the recurrence as text.
        transition: structure of the transition, in words.
        time_invariant: whether the transition is the same in every step.
        lowering: the algorithm used, or "loop".
        parallel: whether the time loop of this component is gone.
        obstructions: what stands in the way, where it stays.
        graph: the step graph of the component.
        formula: the recurrence as sympy equations, with LaTeX, where it has one.
        source: the user's line of the update of its first state.
        proof: the operators between the old state and the new one whose rules prove it affine.
        estimates: what the chosen algorithm, those it was preferred to and the loop are expected to cost, best first.
        view: the loop that it was part of.
    """

    module: str
    location: str
    states: tuple[str, ...]
    equation: str
    transition: str
    time_invariant: bool
    lowering: str
    parallel: bool
    obstructions: list[Obstruction] = field(default_factory=list)
    graph: fx.GraphModule | None = None
    formula: Equation | None = None
    source: str = ""
    proof: tuple[str, ...] = ()
    estimates: tuple[Estimate, ...] = ()
    view: LoopView | None = field(default=None, repr=False)

    def __str__(self) -> str:
        where = f"{self.module or 'the model'} at {self.location}" if self.location else self.module or "the model"
        verdict = f"parallel by {self.lowering}" if self.parallel else "stays a loop"
        lines = [f"{where}: {self.equation}", f"    {self.transition}; {verdict}"]
        return "\n".join([*lines, *(f"    {o}" for o in self.obstructions)])
