"""Writes into buffers, step by step: reads of what was written find it, and a chain of writes is one stack."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.capture.affine import turns_of
from linrec.ir.nodes import emit, shape_of, value

aten = torch.ops.aten


def replace_node(node: fx.Node, new: fx.Node) -> None:
    """Let another node stand for one, which is gone then."""
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


def dim_of(node: fx.Node, position: int, default: int = 0) -> int:
    """The dimension, counted from the front, that an operator takes as its argument at a position or by the name of
    `dim`."""
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    base = value(node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0])
    rank: int = base.dim() + (1 if node.target in (aten.stack.default, aten.unsqueeze.default) else 0)
    return int(dim) % max(rank, 1)


def _read(node: Any) -> tuple[fx.Node, int, int] | None:
    """(base, dim, index) where a node reads one index along a dimension: a select, or a slice of width 1."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is aten.select.int and isinstance(node.args[2], int):
        return node.args[0], node.args[1], node.args[2]
    if node.target is aten.slice.Tensor and len(node.args) == 4:
        base, dim, start, end = node.args
        if isinstance(start, int) and isinstance(end, int) and end == start + 1:
            return base, dim, start
    return None


def _store(node: Any) -> tuple[fx.Node, fx.Node, int, int] | None:
    """(base, value, dim, index) where a node writes one index along a dimension."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is aten.select_scatter.default and isinstance(node.args[3], int):
        base, val, dim, index = node.args
        rank, size = value(node).dim(), shape_of(node)[int(dim) % value(node).dim()]
        index = index + size if index < 0 and isinstance(size, int) else index
        return base, val, int(dim) % rank, index
    if node.target is aten.slice_scatter.default and len(node.args) == 5:
        base, val, dim, start, end = node.args
        if isinstance(start, int) and isinstance(end, int) and start >= 0 and end == start + 1:
            return base, val, int(dim) % value(node).dim(), start
    return None


def is_returned(node: fx.Node) -> bool:
    """Whether a graph returns what a node computes."""
    return any(user.op == "output" for user in node.users)


def open_window(graph: fx.Graph, node: fx.Node) -> None:
    """A read of a few indices of a buffer, or of a list that grows by ``torch.cat``, one of each: what is written there
    in further steps does not matter to it, and what was written in those before is the value written."""
    if node.target is not aten.slice.Tensor or len(node.args) != 4:
        return
    base, dim, start, end = node.args
    if not (isinstance(start, int) and isinstance(end, int) and 2 <= end - start <= _WINDOW):
        return
    if not any(_goes_on(user, base, dim) for user in base.users) or not any(
        start <= index < end for index in _written(base, dim)
    ):
        return
    each = [emit(graph, node, aten.select.int, (base, dim, index), node) for index in range(start, end)]
    replace_node(node, emit(graph, node, aten.stack.default, (each, dim), node))


_WINDOW = 64
"""How many indices are read one by one at most."""


def _goes_on(user: fx.Node, base: fx.Node, dim: int) -> bool:
    """Whether a node makes a buffer, or a list, with one more step of another."""
    store = _store(user)
    if store is not None:
        return store[0] is base
    return user.target is aten.cat.default and dim_of(user, 1) == dim and base in user.args[0]


def _written(base: fx.Node, dim: int) -> list[int]:
    """The indices of a buffer, or of a list, that were written one by one."""
    found, store = [], _store(base)
    while store is not None:
        if store[2] == dim:
            found.append(store[3])
        base, store = store[0], _store(store[0])
    if base.target is aten.cat.default and dim_of(base, 1) == dim:
        sizes = [shape_of(piece)[dim] if value(piece).dim() > dim else 0 for piece in base.args[0]]  # or an empty one
        last = sizes[-1]
        if all(isinstance(size, int) for size in sizes) and last == 1:
            found.append(sum(sizes) - 1)
    return found


def forward_store(graph: fx.Graph, node: fx.Node) -> None:
    """A read of an index that was written before is the value written there."""
    read = _read(node)
    if read is None:
        return
    base, dim, index = read
    if is_returned(node) and is_returned(base):  # as a view of the other, which the caller may write into
        return
    moved = False
    while True:
        store = _store(base)
        if store is not None and store[2] == dim:
            below, val, _, written = store
            if written != index:
                base, moved = below, True
                continue
            scalar_store = base.target is aten.select_scatter.default
            scalar_read = node.target is aten.select.int
            if scalar_store and not scalar_read:
                val = emit(graph, node, aten.unsqueeze.default, (val, dim), node)
            elif scalar_read and not scalar_store:
                val = emit(graph, node, aten.select.int, (val, dim, 0), node)
            replace_node(node, val)
            return
        if base.target is aten.stack.default and dim_of(base, 1) == dim:
            val = base.args[0][index]
            if node.target is not aten.select.int:
                val = emit(graph, node, aten.unsqueeze.default, (val, dim), node)
            replace_node(node, val)
            return
        if base.target is aten.cat.default and dim_of(base, 1) == dim:
            start, hit = 0, None
            for piece in base.args[0]:
                size = shape_of(piece)[dim] if value(piece).dim() > dim else None
                if not isinstance(size, int):
                    break
                if start <= index < start + size:
                    hit = (piece, index - start)
                    break
                start += size
            if hit is None:
                break
            base, index, moved = hit[0], hit[1], True
            continue
        if base.target is aten.unsqueeze.default and dim_of(base, 1) == dim and node.target is aten.select.int:
            replace_node(node, base.args[0])
            return
        break
    shifted = base.target is aten.slice.Tensor and dim_of(base, 1) == dim  # the part of a queue that moves up
    if moved and not shifted:
        node.args = (base, dim, index) if node.target is aten.select.int else (base, dim, index, index + 1)


def drop_overwritten(graph: fx.Graph, node: fx.Node) -> None:
    """A write over the same index makes the one below it invisible."""
    store = _store(node)
    while store is not None:
        below = _store(store[0])
        if below is None or below[2:] != store[2:] or store[0].target is not node.target:
            return
        node.args = (below[0], *node.args[1:])
        store = _store(node)


def collapse_buffer(graph: fx.Graph, node: fx.Node) -> None:
    """A chain of writes to distinct indices becomes one stack, with what the buffer held before at its ends; of writes
    at every so many indices, one stack that is written there."""
    store = _store(node)
    if store is None:
        return
    dim = store[2]
    written: dict[int, tuple[fx.Node, bool]] = {}
    base = node
    while (link := _store(base)) is not None and link[2] == dim and (base is node or len(base.users) == 1):
        written.setdefault(link[3], (link[1], base.target is aten.select_scatter.default))
        base = link[0]
    lo, hi = min(written), max(written)
    size = shape_of(node)[dim]
    if len(written) < 2 or not isinstance(size, int):
        return
    places = sorted(written)
    turns = 1 if len(written) == hi + 1 - lo else turns_of(places)
    if not turns:
        return
    items = {
        index: val if scalar else emit(graph, node, aten.select.int, (val, dim, 0), node)
        for index, (val, scalar) in sorted(written.items())
    }
    step = places[turns] - lo
    if step > turns:
        new = base
        for own in (places[k::turns] for k in range(turns)):
            stacked = emit(graph, node, aten.stack.default, ([items[index] for index in own], dim), node)
            new = emit(graph, node, aten.slice_scatter.default, (new, stacked, dim, own[0], own[-1] + 1, step), node)
        replace_node(node, new)
        graph.eliminate_dead_code()
        return
    new = emit(graph, node, aten.stack.default, (list(items.values()), dim), node)
    if (lo, hi) != (0, size - 1):
        pieces = [new]
        if lo > 0:
            pieces.insert(0, emit(graph, node, aten.slice.Tensor, (base, dim, 0, lo), node))
        if hi < size - 1:
            pieces.append(emit(graph, node, aten.slice.Tensor, (base, dim, hi + 1, size), node))
        new = emit(graph, node, aten.cat.default, (pieces, dim), node)
    replace_node(node, new)
    # The writes below are dead now; as users of what they wrote they would hide buffers within this one.
    graph.eliminate_dead_code()
