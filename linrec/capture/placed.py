"""Writes at positions that data give, as choices between the old and the new for all elements, where no two writes can
meet: ``memory[rows, slot] = x``, where `rows` counts all rows, and ``memory.scatter(1, slot, x)`` with one slot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from linrec.ir.nodes import emit, shape_of, value

aten = torch.ops.aten

_POINTWISE = frozenset(
    (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.neg.default, aten.lerp.Tensor)
)


def placed_writes(graph: fx.Graph) -> None:
    """Rewrite the writes of a graph at positions of which each row has one."""
    for node in list(graph.nodes):
        if node.target not in _WRITES:
            continue
        try:
            found = _WRITES[node.target](graph, node)
        except (RuntimeError, TypeError, ValueError):  # shapes that are spread in another way: it stays as it is
            continue
        if found is not None and value(found).dtype == value(node).dtype and shape_of(found) == shape_of(node):
            node.replace_all_uses_with(found)
            graph.erase_node(node)


def _scattered(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """``where(hit, new, x)`` for a scatter of one element along its dimension."""
    x, dim, index, new = node.args
    if node.kwargs or not value(x).dim():
        return None
    dim %= value(x).dim()
    sizes, whole = shape_of(index), shape_of(x)
    if sizes[dim] != 1 or not isinstance(whole[dim], int) or not _agree(index, x, dim):
        return None
    while index.target is aten.expand.default and value(index.args[0]).dim() == len(sizes):
        index = index.args[0]  # one position for all that it is spread over
    hit = _hit(graph, node, index, dim, whole[dim])
    if not isinstance(new, fx.Node):
        return emit(graph, node, aten.where.ScalarSelf, (hit, new, x), node)
    if shape_of(new)[dim] != 1 or not _agree(new, x, dim):
        return None
    reads = {
        n for n in _readers(x, aten.gather.default) if n.args[1] == node.args[1] and _same(n.args[2], node.args[2])
    }
    return emit(graph, node, aten.where.self, (hit, _with_old(graph, node, new, x, reads, None), x), node)


def _agree(a: fx.Node, b: fx.Node, dim: int) -> bool:
    """Whether two shapes are the same but for a dimension: as they are in this call, which makes it a condition of the
    plan where sizes are symbols."""
    if value(a).dim() != value(b).dim():
        return False
    pairs = zip(value(a).shape, value(b).shape, strict=True)
    return all(bool(p == q) for d, (p, q) in enumerate(pairs) if d != dim)


def _placed(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """``where(hit, new, x)`` for an assignment to one position of each row."""
    x, indices, new, *rest = node.args
    accumulate = bool(rest and rest[0])
    taken = {d: i for d, i in enumerate(indices) if i is not None}
    if node.kwargs or not taken or not isinstance(new, fx.Node) or not all(map(_counts, taken.values())):
        return None
    dim = _chosen(taken, tuple(value(x).shape))
    if dim is None or not isinstance(shape_of(x)[dim], int):
        return None
    size, index = shape_of(x)[dim], taken[dim]
    after = len(shape_of(x)) - dim - 1  # dimensions behind the chosen one
    keeps = len(taken) == 1 and value(index).dim() == 1  # its dimension is there, of size 1
    own = index
    if value(own).dtype is not torch.int64:
        own = emit(graph, node, aten._to_copy.default, (own,), node, {"dtype": torch.int64})
    below = emit(graph, node, aten.lt.Scalar, (own, 0), node)
    own = emit(graph, node, aten.where.self, (below, emit(graph, node, aten.add.Tensor, (own, size), node), own), node)
    # From (rows) to (rows, with 1 at the chosen dimension, ...), as far as x goes.
    rows = len(taken) - 1
    for _ in range(rows - value(own).dim()):
        own = emit(graph, node, aten.unsqueeze.default, (own, 0), node)
    if not keeps:
        own = emit(graph, node, aten.unsqueeze.default, (own, dim if rows else 0), node)
    while value(own).dim() < (len(shape_of(x)) if rows else after + 1):
        own = emit(graph, node, aten.unsqueeze.default, (own, -1), node)
    hit = _hit(graph, node, own, value(own).dim() - 1 - after, size)
    reads = {n for n in _readers(x, aten.index.Tensor) if _same(list(n.args[1]), list(indices))}
    new = _with_old(graph, node, new, x, set() if accumulate else reads, None if keeps else after)
    if accumulate:
        chosen = emit(graph, node, aten.where.ScalarOther, (hit, new, 0), node)
        return emit(graph, node, aten.add.Tensor, (x, chosen), node)
    return emit(graph, node, aten.where.self, (hit, new, x), node)


def _readers(x: fx.Node, target: Any) -> list[fx.Node]:
    """The operators of a kind that read a tensor, or what it is a copy of."""
    found = list(x.users)
    while x.target in (aten.clone.default, aten.contiguous.default, aten.alias.default):
        x = x.args[0]
        found += list(x.users)
    return [n for n in found if n.target is target]


def _same(a: Any, b: Any, depth: int = 8) -> bool:
    """Whether two arguments are the same values: one node, or what the same views take of the same."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, depth) for x, y in zip(a, b, strict=True))
    if not isinstance(a, fx.Node) or not isinstance(b, fx.Node) or a is b:
        return type(a) is type(b) and a == b
    views = a.target is b.target and a.target in _VIEWS and depth > 0
    return views and a.kwargs == b.kwargs and _same(a.args, b.args, depth - 1)


def _counts(index: fx.Node) -> bool:
    return value(index).dtype in (torch.int64, torch.int32, torch.int16)


def _chosen(taken: dict[int, fx.Node], shape: tuple[Any, ...]) -> int | None:
    """The dimension along which data choose, where every other index counts a dimension of its own: no two writes meet
    then. None where they may."""
    if len(taken) == 1:
        ((dim, index),) = taken.items()
        return dim if shape_of(index) in ((), (1,)) else None
    if sorted(taken) != list(range(len(taken))):
        return None
    chosen = [d for d, i in taken.items() if not _is_counter(i)]
    if len(chosen) != 1:
        return None
    rows = [d for d in taken if d != chosen[0]]
    if any(value(i).dim() > len(rows) for i in taken.values()):
        return None

    def sizes(index: fx.Node) -> tuple[Any, ...]:
        return ((1,) * len(rows) + tuple(value(index).shape))[-len(rows) :]

    for axis, d in enumerate(rows):
        own = sizes(taken[d])
        if not all(_is_one(size) for k, size in enumerate(own) if k != axis) or not bool(own[axis] == shape[d]):
            return None
    pairs = zip(sizes(taken[chosen[0]]), rows, strict=True)
    return chosen[0] if all(_is_one(size) or bool(size == shape[d]) for size, d in pairs) else None


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _is_counter(node: fx.Node) -> bool:
    """Whether a tensor is 0, 1, 2, ... along one of its dimensions."""
    while node.target in _SPREAD or (node.target is aten.slice.Tensor and shape_of(node) == shape_of(node.args[0])):
        node = node.args[0]
    if node.target is aten.arange.default:
        return True
    start, *step = (*node.args[:1], *node.args[2:]) if node.target in _COUNTED else (1,)
    return start == 0 and step in ([], [1])


_SPREAD = (aten.unsqueeze.default, aten.view.default, aten.reshape.default, aten._to_copy.default)
_VIEWS = (*_SPREAD, aten.select.int, aten.slice.Tensor, aten.squeeze.dim, aten.expand.default)
_COUNTED = (aten.arange.start, aten.arange.start_step)


def _hit(graph: fx.Graph, node: fx.Node, index: fx.Node, dim: int, size: int) -> fx.Node:
    """Where along a dimension of that size a position is; one out of range raises, as it does for the program."""
    kwargs = {"dtype": torch.bool}
    zeros = emit(graph, node, aten.zeros_like.default, (index,), node, kwargs)
    full = [size if d == dim else -1 for d in range(value(index).dim())]
    zeros = emit(graph, node, aten.expand.default, (zeros, full), node)
    ones = emit(graph, node, aten.ones_like.default, (index,), node, kwargs)
    return emit(graph, node, aten.scatter.src, (zeros, dim, index, ones), node)


def _with_old(
    graph: fx.Graph,
    node: fx.Node,
    new: fx.Node,
    x: fx.Node,
    reads: set[fx.Node],
    after: int | None,
    depth: int = 8,
) -> fx.Node:
    """What is written, for all elements: where it is computed from what was there before, from all of that.

    Args:
        x: what is written into; reads: nodes that hold what was there.
        after: how many dimensions of x are behind the chosen one, which what is written has not; None where it has it.
    """
    if reads & _ancestors(new, depth):
        written = _opened(graph, node, new, x, reads, after, depth)
        if written is not None:
            return written
    at = value(new).dim() - (after or 0)
    return emit(graph, node, aten.unsqueeze.default, (new, at), node) if after is not None and at > 0 else new


def _opened(
    graph: fx.Graph, node: fx.Node, new: Any, x: fx.Node, reads: set[fx.Node], after: int | None, depth: int
) -> Any:
    if not isinstance(new, fx.Node) or not isinstance(value(new), torch.Tensor):
        return new
    if new in reads:
        return x
    if not reads & _ancestors(new, depth):
        return _with_old(graph, node, new, x, set(), after)
    if depth == 0 or new.target not in _POINTWISE:
        return None
    args = [_opened(graph, node, a, x, reads, after, depth - 1) for a in new.args]
    if any(a is None for a in args):
        return None
    if new.target is aten.lerp.Tensor:
        start, end, weight = args
        change = emit(
            graph, node, aten.mul.Tensor, (weight, emit(graph, node, aten.sub.Tensor, (end, start), new)), new
        )
        return emit(graph, node, aten.add.Tensor, (start, change), new)
    return emit(graph, node, new.target, tuple(args), new, dict(new.kwargs))


def _ancestors(node: fx.Node, depth: int) -> set[fx.Node]:
    """A node and what it is computed from, some steps back."""
    found, level = {node}, [node]
    for _ in range(depth):
        level = [n for m in level for n in m.all_input_nodes if n not in found]
        found.update(level)
    return found


_WRITES: dict[Any, Callable[[fx.Graph, fx.Node], fx.Node | None]] = {
    aten.scatter.src: _scattered,
    aten.scatter.value: _scattered,
    aten.index_put.default: _placed,
}
