"""Results that are lists with an item for each step: a graph returns one tensor, and a plan takes that apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

_ROWS: Any = torch.unbind_copy


class Slot:
    """Marks a leaf that is a tensor output of the graph (its value is the position in the flat outputs)."""

    def __init__(self, position: int) -> None:
        self.position = position

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and vars(other) == vars(self)

    def __hash__(self) -> int:
        return hash(self.position)

    def __repr__(self) -> str:
        return f"out[{self.position}]"


class Items(Slot):
    """Marks a list, or a tuple, whose items are the rows of outputs.

    Args:
        kind: list or tuple; spec: the structure of an item; positions: of the outputs that hold its leaves.
    """

    def __init__(self, kind: type, spec: Any, positions: Sequence[int]) -> None:
        super().__init__(positions[0])
        self.kind, self.spec, self.positions = kind, spec, tuple(positions)

    __hash__ = Slot.__hash__

    def of(self, values: Sequence[Tensor]) -> list[list[Tensor]]:
        """The leaves of every item, each in memory of its own, as the loop's are."""
        return [list(leaves) for leaves in zip(*(_ROWS(values[p], 0) for p in self.positions), strict=True)]


class ItemOf(Slot):
    """Marks a leaf that is the very tensor that the first or the last item of a list has.

    Args:
        position: of the list's first output; index: 0 or -1; leaf: which one of the item's.
    """

    def __init__(self, position: int, index: int, leaf: int) -> None:
        super().__init__(position)
        self.index, self.leaf = index, leaf

    __hash__ = Slot.__hash__


class _Column:
    """A leaf in the place of a list of the user's."""

    def __init__(self, items: Any) -> None:
        self.kind = type(items)
        self.items = [pytree.tree_flatten(item) for item in items]


def gathered(value: Any, length: int) -> Any:
    """A result in which leaves stand for lists that have an item for each of `length` steps (or one more, or fewer)."""

    def has_steps(x: Any) -> bool:
        return type(x) in (list, tuple) and len(x) > 1 and abs(len(x) - length) <= 1 and _are_alike(x)

    return pytree.tree_map(lambda x: _Column(x) if has_steps(x) else x, value, is_leaf=has_steps)


def _are_alike(items: Sequence[Any]) -> bool:
    kinds = set()
    for item in items:
        leaves, spec = pytree.tree_flatten(item)
        if not leaves or not all(isinstance(x, Tensor) and x.layout is torch.strided for x in leaves):
            return False
        shapes = tuple((tuple(map(str, x.shape)), x.dtype, x.device) for x in leaves)
        kinds.add((repr(spec), shapes))
    return len(kinds) == 1


def marked_lists(leaves: Sequence[Any], put: Callable[[Tensor], int]) -> list[Any]:
    """The leaves of a result, with marks for lists and for the tensors that these have as well; what they hold is `put`
    among the outputs, each time for a position."""
    ends: dict[int, ItemOf] = {}
    found: list[Any] = list(leaves)
    for k, x in enumerate(leaves):
        if isinstance(x, _Column):
            rows = [row for row, _ in x.items]
            positions = [put(torch.stack(column)) for column in zip(*rows, strict=True)]
            found[k] = Items(x.kind, x.items[0][1], positions)
            for index in (0, -1):
                ends |= {id(y): ItemOf(positions[0], index, leaf) for leaf, y in enumerate(rows[index])}
    return [ends.get(id(x), x) if isinstance(x, Tensor) else x for x in found]


def assembled(spec: Any, leaves: list[Any], values: Sequence[Tensor]) -> Any:
    """What a structure with marks stands for.

    Args:
        spec: the structure; leaves: its leaves, with marks; values: the outputs.
    """
    if len(leaves) == 1 and spec.is_leaf() and type(leaves[0]) is Slot:
        return values[leaves[0].position]
    rows = {x.position: x.of(values) for x in leaves if type(x) is Items}

    def of(x: Any) -> Any:
        if type(x) is Slot:
            return values[x.position]
        if type(x) is ItemOf:
            return rows[x.position][x.index][x.leaf]
        if type(x) is Items:
            return x.kind([pytree.tree_unflatten(row, x.spec) for row in rows[x.position]])
        return x

    return pytree.tree_unflatten([of(x) for x in leaves], spec)
