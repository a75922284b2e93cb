"""The verdict on one component of a step: affine in its states, with which structure, or not, with the operator to
blame."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import fx

from linrec.analysis.blame import blame
from linrec.analysis.polynomial import Polynomial
from linrec.analysis.rules import Algebra
from linrec.analysis.stategraph import Component
from linrec.ir.names import state_names
from linrec.ir.nodes import value
from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import LinearRecurrence, Transition

aten = torch.ops.aten


def recurrence_of(step: fx.GraphModule, component: Component, xs: Iterable[fx.Node]) -> LinearRecurrence | Obstruction:
    """Prove that a component is affine in its states and name its structure, or say what stands in the way.

    Args:
        step: the step graph.
        component: one recurrent component of its state graph.
        xs: the placeholders that change from step to step.
    """
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    output = next(n for n in step.graph.nodes if n.op == "output")
    states = tuple(placeholders[i] for i in component.carries)
    updates = tuple(output.args[0][i] for i in component.carries)
    blocked = next((n for n in step.graph.nodes if n in component.core and n.target is aten.detach.default), None)
    if blocked is not None:
        names = " and ".join(f"'{n}'" for n in state_names(states, updates))
        return Obstruction.at("LR007", blocked, f"the state {names} passes through detach inside the step.")
    for expand in (False, True):
        algebra = Algebra(set(states), set(component.core), expand)
        polynomials = tuple(algebra.of(u) for u in updates)
        if all(affine(p) for p in polynomials):
            transition = transition_of(algebra, states, polynomials, changing_nodes(step, xs, component))
            invariant = frozenset(step.graph.nodes) - changing_nodes(step, xs, component)
            return LinearRecurrence(states, polynomials, algebra, transition, invariant)
    return blame(step, component, polynomials, updates)


def affine(p: Polynomial) -> bool:
    """Whether no term holds two states, or a value that depends on them through an operator without a rule."""
    return all(not m.of_kind("opaque") and len(m.of_kind("state")) <= 1 for m in p.terms)


def changing_nodes(step: fx.GraphModule, xs: Iterable[fx.Node], component: Component) -> frozenset[fx.Node]:
    """The nodes that change from step to step."""
    changing = set(xs)
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    changing |= {placeholders[i] for i in component.carries}
    for node in step.graph.nodes:
        if any(n in changing for n in node.all_input_nodes):
            changing.add(node)
    return frozenset(changing)


def transition_of(
    algebra: Algebra, states: tuple[fx.Node, ...], updates: tuple[Polynomial, ...], changing: frozenset[fx.Node]
) -> Transition:
    """The structure of the linear part of the updates."""
    is_complex = any(value(s).is_complex() for s in states)
    linear = [m for p in updates for m in p.terms if m.of_kind("state")]
    constant = not any(f.atom.node in changing for m in linear for f in m.factors if f.atom.kind != "state")
    if len(states) > 1:
        return Transition("block", constant, is_complex=is_complex)
    (p,) = updates
    free = {i for axis in p.axes for i in axis}
    axes_of = [m.of_kind("state")[0].axes for m in linear]
    if all(axes == p.axes for axes in axes_of):
        plain = len(linear) == 1 and len(linear[0].factors) == 1 and linear[0].coefficient == 1
        return Transition("identity" if plain else "diagonal", constant, is_complex=is_complex)
    moved = {d for axes in axes_of for d, (s, o) in enumerate(zip(axes, p.axes, strict=True)) if s != o}
    columns = {axes[d] for axes in axes_of for d in moved if axes[d] != p.axes[d]}
    bound_once = all(len(column) == 1 and not free & set(column) for column in columns)
    if len(moved) == 1 and bound_once and all(len(p.axes[d]) == 1 for d in moved):
        (axis,) = moved
        return Transition("dense", constant, axis, min(columns), is_complex)
    return Transition("other", constant, is_complex=is_complex)
