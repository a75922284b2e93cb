"""Recurrences that are affine over another semiring: the state plus something, joined by a maximum (or log-sum-exp)
with something that reads no state. The stabilisers of mLSTM and RWKV-4 and every running maximum are of this form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from linrec.analysis.stategraph import Component
from linrec.ir.nodes import shape_of, value

aten = torch.ops.aten
JOINS: dict[Any, str] = {}
"""The operators that join two values, and the semiring that each belongs to; filled by `linrec.lowering.semirings`."""
SCALED = {"max-plus": "max-times", "min-plus": "min-times"}
"""What a join is called where the state is multiplied, not added to, before it."""


@dataclass(frozen=True)
class SemiringRecurrence:
    """``m[t] = join(m[t-1] + sum(before), other) + sum(after)``; every addend is (sign, node or number), and reads no
    state. Or, with factors in place of addends, ``m[t] = join(m[t-1] * product(factors), other)``.

    Attributes:
        kind: the name of the semiring, e.g. "max-plus".
        state, update: the carry and its update.
        before, after: what is added to the state before it is joined, and to the result.
        factors: what the state is multiplied by before it is joined.
        other: what the state is joined with.
    """

    kind: str
    state: fx.Node
    update: fx.Node
    before: tuple[tuple[int, fx.Node | float], ...]
    other: fx.Node
    after: tuple[tuple[int, fx.Node | float], ...]
    factors: tuple[fx.Node | float, ...] = ()


def semiring_of(step: fx.GraphModule, component: Component) -> SemiringRecurrence | None:
    """The component as a recurrence over (max, +) or (log-sum-exp, +), or None."""
    if len(component.carries) != 1:
        return None
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    output = next(n for n in step.graph.nodes if n.op == "output")
    (i,) = component.carries
    state, update = placeholders[i], output.args[0][i]
    addends: dict[bool, list[tuple[int, fx.Node | float]]] = {True: [], False: []}
    factors: list[fx.Node | float] = []
    kind, other, node = "", None, update
    while node is not state:
        inside = [a for a in node.args if isinstance(a, fx.Node) and (a in component.core or a is state)]
        free = [a for a in node.args if (isinstance(a, fx.Node) and a not in inside) or type(a) in (int, float)]
        if len(inside) != 1 or len(free) != 1 or node.kwargs or len(node.args) != 2:
            return None
        if not isinstance(value(inside[0]), torch.Tensor):  # one of several results
            return None
        if shape_of(inside[0]) != shape_of(node) or value(inside[0]).dtype != value(node).dtype:
            return None
        if node.target is aten.add.Tensor:
            addends[not kind].append((1, free[0]))
        elif node.target is aten.sub.Tensor and node.args[0] is inside[0]:
            addends[not kind].append((-1, free[0]))
        elif node.target is aten.mul.Tensor and kind:
            factors.append(free[0])
        elif node.target in JOINS and not kind and isinstance(free[0], fx.Node):
            kind, other = JOINS[node.target], free[0]
        else:
            return None
        node = inside[0]
    if not kind or other is None:
        return None
    if factors:
        kind = SCALED.get(kind, "")
        if not kind or addends[True] or addends[False]:
            return None
    # The walk goes from the update back to the state: `not kind` is False for what comes before the join.
    return SemiringRecurrence(kind, state, update, tuple(addends[False]), other, tuple(addends[True]), tuple(factors))
