"""What a step reads of a state: values that are affine in the state and sum over some of its dimensions. Where nothing
else reads the state, an algorithm need not form the states of all steps."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.rules import Algebra
from linrec.ir.nodes import value

aten = torch.ops.aten


@dataclass(frozen=True)
class Readout:
    """A value ``y = q S + r`` of the step.

    Attributes:
        node: the value, in the step graph.
        state: what it reads, as a node of the step: the carry (the state before the step) or its update (after it).
        polynomial: the value over that node as its only state.
        algebra: the algebra that the polynomial belongs to.
    """

    node: fx.Node
    state: fx.Node
    polynomial: Polynomial
    algebra: Algebra


def readout_of(node: fx.Node, carry: fx.Node, update: fx.Node, opened: bool = False) -> Readout | None:
    """A node as a readout of one state; None where it is not affine in it, or reads it before and after the update.

    `opened`: look into products of state-free values from the start, and not only where terms have to cancel.
    """
    if not isinstance(value(node), Tensor) or value(node).dtype is torch.bool:
        return None
    between = reached({carry, update}, node.graph.nodes)
    if any(n.target is aten.detach.default for n in between if n is node or _leads(n, node)):
        return None
    for expand in (True, False) if opened else (False, True):
        algebra = Algebra({carry, update}, between, expand)
        p = algebra.of(node)
        states = [f.atom.node for m in p.terms for f in m.of_kind("state")]
        affine = all(not m.of_kind("opaque") and len(m.of_kind("state")) <= 1 for m in p.terms)
        if affine and states and len(set(states)) == 1:
            return Readout(node, states[0], p, algebra)
    return None


def reached(roots: set[fx.Node], nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """The nodes of a graph, in its order, that depend on some others; without these."""
    found: set[fx.Node] = set()
    for node in nodes:
        if any(n in found or n in roots for n in node.all_input_nodes):
            found.add(node)
    return found - roots


def sums_over_state(readout: Readout) -> bool:
    """Whether every term that holds the state sums over some dimension of it."""
    free = {i for axis in readout.polynomial.axes for i in axis}
    for m in readout.polynomial.terms:
        for state in m.of_kind("state"):
            if all(i in free for i in state.indices()):
                return False
    return True


def _leads(node: fx.Node, target: fx.Node) -> bool:
    stack, seen = [target], set()
    while stack:
        n = stack.pop()
        if n is node:
            return True
        if n not in seen:
            seen.add(n)
            stack.extend(n.all_input_nodes)
    return False
