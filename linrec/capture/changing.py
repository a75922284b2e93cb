"""Says why a loop is not uniform, where what differs from step to step are plain numbers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from linrec.ir.location import location, places

_SHOWN = 3


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
            if len(set(values)) >= _SHOWN and len(differences) > 1:
                return location(nodes[0]), values[:_SHOWN]
    return None


def _numbers(nodes: list[fx.Node]) -> Iterator[list[float]]:
    """The numbers at each argument of some calls that always has one."""
    leaves = [pytree.tree_leaves((n.args, dict(n.kwargs))) for n in nodes]
    if len({len(x) for x in leaves}) == 1:
        for column in zip(*leaves, strict=True):
            if all(type(x) in (int, float) for x in column):
                yield list(column)
