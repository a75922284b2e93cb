"""Recurrences that are affine over another semiring, of any structure: ``alpha[t] = logsumexp(A[t] + alpha[t-1])`` of
hidden Markov models and conditional random fields, the scores of Viterbi's algorithm, sums that are kept positive."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.semiring_rules import KINDS, TIES, SemiringAlgebra, sums_of
from linrec.analysis.stategraph import Component
from linrec.analysis.structure import affine, changing_nodes, transition_of
from linrec.ir.nodes import value
from linrec.ir.recurrence import Transition
from linrec.ops.semiring_kinds import Kind

aten = torch.ops.aten


@dataclass(frozen=True)
class SemiringSystem:
    """An affine component over a semiring whose product is the ordinary sum.

    Attributes:
        kind: the semiring.
        states, updates, algebra, transition, invariant: as in a `LinearRecurrence`; the polynomials are the semiring's.
        ties: for each state, whose the derivative is where operands of its sum are equal (see `TIES`).
        outer: for each state, what is added to its sum as a whole: its derivative is the state's.
    """

    kind: Kind
    states: tuple[fx.Node, ...]
    updates: tuple[Polynomial, ...]
    algebra: SemiringAlgebra
    transition: Transition
    invariant: frozenset[fx.Node]
    ties: tuple[str, ...]
    outer: tuple[frozenset[fx.Node], ...]


def system_of(step: fx.GraphModule, component: Component, xs: Iterable[fx.Node]) -> SemiringSystem | None:
    """The component as a recurrence over the first semiring in which it is affine, or None.

    Where maxima of maxima are taken, how equal operands share a derivative depends on the order in which they meet: an
    update with more than one maximum (or minimum) is not taken for one.
    """
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    output = next(n for n in step.graph.nodes if n.op == "output")
    states = tuple(placeholders[i] for i in component.carries)
    updates = tuple(output.args[0][i] for i in component.carries)
    if not all(value(s).dtype.is_floating_point for s in states):
        return None
    if any(n.target is aten.detach.default for n in component.core):
        return None
    for kind in KINDS:
        sums = {n for n in component.core if n.target in sums_of(kind)}
        if not sums:
            continue
        ties = tuple(_ties(update, component, sums) for update in updates)
        if kind.exact and not all(ties):
            continue
        algebra = SemiringAlgebra(kind, set(states), set(component.core))
        polynomials = tuple(algebra.of(u) for u in updates)
        if not all(affine(p) for p in polynomials):
            continue
        if kind.exact and not all(map(_follows, polynomials, ties)):
            continue
        changing = changing_nodes(step, xs, component)
        transition = transition_of(algebra, states, polynomials, changing)
        invariant = frozenset(step.graph.nodes) - changing
        outer = tuple(_outer(u, p, component) for u, p in zip(updates, polynomials, strict=True))
        return SemiringSystem(kind, states, polynomials, algebra, transition, invariant, ties, outer)
    return None


def _ties(update: fx.Node, component: Component, sums: set[fx.Node]) -> str:
    """How the only sum between the states and an update shares a derivative; "" where there are several."""
    core = set(component.core)
    found, stack = {update}, [update]
    while stack:
        more = [n for n in stack.pop().all_input_nodes if n in core and n not in found]
        found.update(more)
        stack += more
    met = found & sums
    return TIES.get(next(iter(met)).target, "") if len(met) == 1 else "" if met else "even"


def _outer(update: fx.Node, p: Polynomial, component: Component) -> frozenset[fx.Node]:
    """What is added last, after everything was summed that is; nothing where a term holds it twice."""
    core, found, node = set(component.core), [], update
    while node in core and node.target in (aten.add.Tensor, aten.sub.Tensor):
        inside = [n for n in node.args if n in core]
        if len(inside) != 1:
            break
        found += [n for n in node.args if isinstance(n, fx.Node) and n is not inside[0]]
        node = inside[0]
    if any(not m.of_kind("state") for m in p.terms):
        return frozenset()
    return frozenset(n for n in found if all([f.atom.node for f in m.factors].count(n) == 1 for m in p.terms))


def _follows(p: Polynomial, tie: str) -> bool:
    """Whether the rule for equal operands can be told from the terms: nothing was joined before the states were, and
    where the first one has the derivative all are elements of one state."""
    free = {i for axis in p.axes for i in axis}
    drives = [m for m in p.terms if not m.of_kind("state")]
    summed = [m for m in p.terms if not free.issuperset(i for f in m.factors for i in f.indices())]
    if any(m in drives for m in summed) or len(drives) > 1:
        return False
    return tie != "first" or (len(summed) == 1 and not drives)
