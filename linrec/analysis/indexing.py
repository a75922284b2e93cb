"""Operators that read or add to positions given by an integer tensor: gather, index, index_select, index_add,
scatter_add. Each is a contraction with the one-hot matrix of the positions, so it is linear whatever these are, as long
as they read no state. What *replaces* elements at such positions has no rule: there, one may occur twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Atom, Axes, Factor, Monomial, NoRule, Polynomial
from linrec.analysis.rules import Algebra, rule
from linrec.analysis.selection import MAX_ROWS, select_rows
from linrec.ir.nodes import shape_of, value

aten = torch.ops.aten


def one_hot(algebra: Algebra, positions: Any, columns: Any, wraps: bool = False) -> Polynomial:
    """For positions (*shape), the tensor (*shape, columns) with a 1 where the column is the position.

    Args:
        wraps: whether negative positions count from the end.

    Raises:
        NoRule: the positions read a state, are no integers, or the axis that they point into is symbolic or long.
    """
    if not isinstance(positions, fx.Node) or not algebra.is_free(positions):
        raise NoRule("positions that read the state")
    dtype = value(positions).dtype
    if dtype is torch.bool or dtype.is_floating_point or not isinstance(columns, int) or columns > MAX_ROWS:
        raise NoRule("positions along a symbolic or long axis")
    own = positions
    while own.target is aten.expand.default and len(shape_of(own.args[0])) == len(shape_of(own)):
        own = own.args[0]  # where the same positions serve a whole axis, it stays unmixed
    axes: Axes = tuple(algebra.space.fresh(s) for s in (*shape_of(own), columns))
    atom = Atom("wrapped position" if wraps else "position", own, columns=columns)
    return Polynomial(axes, (Monomial(1, (Factor(atom, axes),)),))


def _with_last(p: Polynomial, dim: int) -> Polynomial:
    """The tensor with dimension `dim` moved to the end, and one of size 1 left in its place."""
    return Polynomial((*p.axes[:dim], (), *p.axes[dim + 1 :], p.axes[dim]), p.terms)


def _from_last(p: Polynomial, dim: int) -> Polynomial:
    """The tensor with its last dimension moved to the place of `dim`, which has been summed."""
    return Polynomial((*p.axes[:dim], p.axes[-1], *p.axes[dim:-1]), p.terms)


def _cut(algebra: Algebra, p: Polynomial, dim: int, sizes: Sequence[Any]) -> Polynomial:
    """The first elements of every dimension but `dim`, as many as `sizes` says."""
    for d, size in enumerate(sizes):
        own = algebra.space.size(p.axes[d])
        if d != dim and own != size:
            if not isinstance(size, int):
                raise NoRule("positions for a symbolic part of an axis")
            p = select_rows(algebra, p, d, range(size))
    return p


@rule(aten.gather.default)
def _gather(algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any, sparse_grad: bool = False) -> Polynomial:
    if not a.rank:
        raise NoRule("a gather from a scalar")
    dim %= a.rank
    space, positions = algebra.space, node.args[2]
    hot = one_hot(algebra, positions, space.size(a.axes[dim]))
    a = _cut(algebra, a, dim, shape_of(positions))
    return space.contract(space.multiply(hot, _with_last(a, dim)), [-1])


@rule(aten.index_select.default)
def _index_select(algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any) -> Polynomial:
    return _take(algebra, node, a, {dim % a.rank: node.args[2]}, wraps=False)


@rule(aten.index.Tensor)
def _index(algebra: Algebra, node: fx.Node, a: Any, indices: Any) -> Polynomial:
    return _take(algebra, node, a, {d: x for d, x in enumerate(node.args[1]) if x is not None}, wraps=True)


def _take(algebra: Algebra, node: fx.Node, a: Polynomial, taken: dict[int, Any], wraps: bool) -> Polynomial:
    """The elements at positions along some dimensions; the positions' own dimensions take the place of the first of
    them, or come first where those are not neighbours, as torch does."""
    space = algebra.space
    if not taken or not all(isinstance(x, fx.Node) for x in taken.values()):
        raise NoRule("an index that is no tensor")
    rank = max(len(shape_of(x)) for x in taken.values())
    kept = [d for d in range(a.rank) if d not in taken]
    neighbours = max(taken) - min(taken) + 1 == len(taken)
    at = min(taken) if neighbours else 0
    before, after = [d for d in kept if d < at], [d for d in kept if d >= at]
    lead: Axes = ((),) * rank
    read = [*(a.axes[d] for d in before), *lead, *(a.axes[d] for d in after), *(a.axes[d] for d in taken)]
    result = Polynomial(tuple(read), a.terms)
    for k, (d, positions) in enumerate(taken.items()):
        hot = one_hot(algebra, positions, space.size(a.axes[d]), wraps)
        own: Axes = (*lead[: rank - hot.rank + 1], *hot.axes[:-1])
        last: Axes = tuple(hot.axes[-1] if j == k else () for j in range(len(taken)))
        spread = Polynomial((*((),) * len(before), *own, *((),) * len(after), *last), hot.terms)
        result = space.multiply(result, spread)
    return space.contract(result, range(-len(taken), 0))


@rule(aten.index_add.default)
def _index_add(
    algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any, source: Any, alpha: Any = 1
) -> Polynomial:
    if not a.rank or source.rank != a.rank:
        raise NoRule("an index_add of scalars")
    dim %= a.rank
    space = algebra.space
    hot = one_hot(algebra, node.args[2], space.size(a.axes[dim]))
    if hot.rank != 2:
        raise NoRule("an index_add at one position")
    axes: Axes = (*((),) * dim, hot.axes[0], *((),) * (a.rank - dim - 1), hot.axes[1])
    placed = space.multiply(Polynomial(axes, hot.terms), Polynomial((*source.axes, ()), source.terms))
    return space.add(a, _from_last(space.contract(placed, [dim]), dim), alpha)


@rule(aten.scatter_add.default)
def _scatter_add(algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any, source: Any) -> Polynomial:
    if not a.rank:
        raise NoRule("a scatter into a scalar")
    dim %= a.rank
    space, positions = algebra.space, node.args[2]
    hot = one_hot(algebra, positions, space.size(a.axes[dim]))
    sizes = shape_of(positions)
    source = _cut(algebra, source, dim, sizes)
    if space.size(source.axes[dim]) != sizes[dim]:
        source = select_rows(algebra, source, dim, range(int(sizes[dim])))
    placed = space.multiply(hot, Polynomial((*source.axes, ()), source.terms))
    result = _from_last(space.contract(placed, [dim]), dim)
    for d, size in enumerate(sizes):
        full = space.size(a.axes[d])
        if d != dim and full != size:
            if not isinstance(size, int) or not isinstance(full, int):
                raise NoRule("positions for a symbolic part of an axis")
            result = select_rows(algebra, result, d, [i if i < size else -1 for i in range(full)])
    return space.add(a, result)
