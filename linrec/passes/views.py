"""Views of views are one view, or none: writing a loop for all steps moves dimensions to and fro, and every operator of
a graph costs each call some microseconds, and its backward again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from linrec.ir.nodes import emit, value

aten = torch.ops.aten

Dims = tuple[int | None, ...]
"""For each dimension of a view the one of its base, or None for a new one of size 1."""


def merge_views(graph: fx.Graph) -> bool:
    """Write chains of views that only order, add or take away dimensions in as few operators as there are; whether
    anything was there to be done."""
    chains: dict[fx.Node, tuple[fx.Node, Dims, int]] = {}
    changed = False
    for node in list(graph.nodes):
        source = node.args[0] if node.op == "call_function" and node.args else None
        if not isinstance(source, fx.Node) or not hasattr(value(source), "shape"):
            continue
        own = _dims(node, value(source))
        if own is None:
            continue
        base, before, count = chains.get(source, (source, tuple(range(value(source).dim())), 0))
        dims = tuple(None if d is None else before[d] for d in own)
        calls = _calls(dims, value(base))
        returned = any(user.op == "output" for user in node.users)
        if count and len(calls) < count + 1 and (len(calls) <= 1 or _alone(source, base)) and (calls or not returned):
            new = base
            for target, argument in calls:
                new = emit(graph, node, target, (new, argument), node)
            node.replace_all_uses_with(new)
            changed = True
            if new is not base:
                chains[new] = (base, dims, len(calls))
        else:
            chains[node] = (base, dims, count + 1)
    if changed:
        graph.eliminate_dead_code()
    return changed


def _alone(node: fx.Node, base: fx.Node) -> bool:
    """Whether nothing but one chain reads the views from a base on."""
    while node is not base:
        if len(node.users) != 1:
            return False
        node = node.args[0]
    return True


def _dims(node: fx.Node, x: Any) -> Dims | None:
    """Where the dimensions of a view come from; None for what is no such view."""
    if node.kwargs or not hasattr(value(node), "shape"):
        return None
    rank = x.dim()
    every = list(range(rank))
    match node.target, node.args[1:]:
        case aten.unsqueeze.default, (int(d),):
            every.insert(d % (rank + 1), None)  # type: ignore[arg-type]
            return tuple(every)
        case aten.permute.default, (order,):
            return tuple(d % rank for d in order)
        case aten.transpose.int, (int(a), int(b)) if rank:
            every[a % rank], every[b % rank] = every[b % rank], every[a % rank]
            return tuple(every)
        case (aten.numpy_T.default, ()) | (aten.t.default, ()):
            return tuple(reversed(every))
        case (aten.squeeze.dims, (gone,)) if rank:
            out = {d % rank for d in gone}
        case (aten.squeeze.dim, (int(d),)) if rank:
            out = {d % rank}
        case (aten.select.int, (int(d), 0)) if rank:
            out = {d % rank}
        case _:
            return None
    return tuple(d for d in every if d not in out) if all(_is_one(x.shape[d]) for d in out) else None


def _is_one(size: Any) -> bool:
    return isinstance(size, int) and size == 1


def _calls(dims: Dims, base: Any) -> list[tuple[Any, Any]]:
    """The operators, and their arguments, that make a view of a base: as few as there are."""
    ones = {d for d in range(base.dim()) if d not in dims or _is_one(base.shape[d])}  # these go where they are wanted
    new = [at for at, d in enumerate(dims) if d is None or d in ones]
    count = min(len(ones), len(new), _MOST)
    ways = itertools.product(itertools.combinations(sorted(ones), count), itertools.combinations(new, count))
    found = []
    for used, places in itertools.islice(ways, _WAYS):
        filled: dict[int, int] = dict(zip(places, used, strict=True))
        wanted = [filled.get(at) if at in new else d for at, d in enumerate(dims)]
        found.append(_written(wanted, base.dim()))
    return min(found, key=len)


_MOST, _WAYS = 6, 100
"""Dimensions of size 1 that are given a place, and ways to do so that are looked at."""


def _written(dims: Sequence[int | None], rank: int) -> list[tuple[Any, Any]]:
    gone = [d for d in range(rank) if d not in dims]
    calls: list[tuple[Any, Any]] = [(aten.squeeze.dims, gone)] if gone else []
    kept = [d for d in dims if d is not None]
    order = [sorted(kept).index(d) for d in kept]
    if order != sorted(order):
        calls.append((aten.permute.default, order))
    return calls + [(aten.unsqueeze.default, at) for at, d in enumerate(dims) if d is None]
