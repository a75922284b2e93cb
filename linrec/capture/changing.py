"""Says why a loop is not uniform, where what differs from step to step are plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from linrec.ir.location import location, places
from linrec.ir.obstruction import Refused, refuse

_FEWEST, _SHOWN = 2, 3


def changing_numbers(graph: fx.Graph) -> tuple[str, list[float]] | None:
    """The line of an operator of an unrolled loop that is given a number which changes from step to step other than by
    a constant difference, and the first of these numbers; None where there is none."""
    groups: dict[Any, list[fx.Node]] = {}
    for node in graph.nodes:
        found = places(node)
        if node.op == "call_function" and found:
            groups.setdefault((node.target, tuple(found)), []).append(node)
    for nodes in groups.values():
        for values in _numbers(nodes):
            differences = {b - a for a, b in itertools.pairwise(values)}
            if len(set(values)) >= _FEWEST and len(differences) > 1:
                return location(nodes[0]), values[:_SHOWN]
    return None


def not_uniform(graph: fx.Graph) -> Refused:
    """The refusal of an unrolled loop in which no step repeats."""
    text = "No uniform step was found that repeats with the length"
    numbers = changing_numbers(graph)
    if numbers is None:
        where = (location(n) for n in graph.nodes if n.op == "call_function")
        return refuse("LR004", f"{text}.", next(filter(None, where), ""))
    where_it_is, values = numbers
    shown = ", ".join(f"{v:.4g}" for v in values)
    hint = (
        "Compute such numbers for all steps before the loop, as a tensor (0.9 ** torch.arange(T), say), and take one "
        "by its index in each step."
    )
    return refuse("LR004", f"{text}: a number in it differs from step to step ({shown}, ...).", where_it_is, hint)


def _numbers(nodes: list[fx.Node]) -> Iterator[list[float]]:
    """The numbers at each argument of some calls that always has one."""
    leaves = [pytree.tree_leaves((n.args, dict(n.kwargs))) for n in nodes]
    if len({len(x) for x in leaves}) == 1:
        for column in zip(*leaves, strict=True):
            if all(type(x) in (int, float, bool) for x in column):
                yield list(column)
