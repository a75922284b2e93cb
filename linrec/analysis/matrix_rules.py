"""Operators on the matrices in a tensor and running sums: cumsum, tril and triu are products with triangles of ones,
diagonals are selections of the elements in order, and solving a system that reads no state is a product with its
inverse."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Atom, Axes, Axis, Factor, Monomial, NoRule, Polynomial
from linrec.analysis.rules import Algebra, matmul, rule, widens
from linrec.analysis.selection import MAX_ROWS, select_rows
from linrec.ir.nodes import shape_of

aten = torch.ops.aten


def _size(algebra: Algebra, axis: Axis) -> int:
    size = algebra.space.size(axis)
    if not isinstance(size, int) or size > MAX_ROWS:
        raise NoRule("a triangle along a symbolic or long axis")
    return size


def _triangle(algebra: Algebra, p: Polynomial, row: Axis, column: Axis, diagonal: int, axes: Axes) -> Polynomial:
    """The tensor times 1 where ``column - row <= diagonal``, over other axes."""
    rows, columns = _size(algebra, row), _size(algebra, column)
    if diagonal >= columns - 1:
        return algebra.space.collect(axes, p.terms)
    if diagonal <= -rows:
        return Polynomial(axes, ())
    factor = Factor(Atom("triangle", None, (diagonal,), columns), (row, column))
    return algebra.space.collect(axes, [Monomial(m.coefficient, (*m.factors, factor)) for m in p.terms])


@rule(aten.cumsum.default)
def _cumsum(algebra: Algebra, node: fx.Node, a: Any, dim: int, dtype: Any = None) -> Polynomial:
    if not widens(node):
        raise NoRule("a sum of what was rounded")
    if not a.rank or _size(algebra, a.axes[dim]) == 1:
        return a  # type: ignore[no-any-return]
    dim %= a.rank
    row = algebra.space.fresh(_size(algebra, a.axes[dim]))
    return _triangle(algebra, a, row, a.axes[dim], 0, (*a.axes[:dim], row, *a.axes[dim + 1 :]))


@rule(aten.tril.default)
def _tril(algebra: Algebra, node: fx.Node, a: Any, diagonal: int = 0) -> Polynomial:
    return _triangle(algebra, a, a.axes[-2], a.axes[-1], diagonal, a.axes)


@rule(aten.triu.default)
def _triu(algebra: Algebra, node: fx.Node, a: Any, diagonal: int = 0) -> Polynomial:
    below = _triangle(algebra, a, a.axes[-2], a.axes[-1], diagonal - 1, a.axes)
    return algebra.space.add(a, below, -1)


def _positions(rows: int, columns: int, offset: int) -> list[tuple[int, int]]:
    """(row, column) of the elements of a diagonal of a matrix."""
    return [(r, r + offset) for r in range(rows) if 0 <= r + offset < columns]


@rule(aten.diagonal.default, aten.diagonal_copy.default)
def _diagonal(algebra: Algebra, node: fx.Node, a: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Polynomial:
    first, second = dim1 % a.rank, dim2 % a.rank
    kept = [d for d in range(a.rank) if d not in (first, second)]
    rows, columns = _size(algebra, a.axes[first]), _size(algebra, a.axes[second])
    moved = algebra.space.permute(a, [*kept, first, second])
    sizes = [algebra.space.size(axis) for axis in moved.axes[:-2]]
    flat = algebra.space.reshape(moved, [*sizes, rows * columns])
    return select_rows(algebra, flat, -1, [r * columns + c for r, c in _positions(rows, columns, offset)])


@rule(aten.diag_embed.default)
def _diag_embed(algebra: Algebra, node: fx.Node, a: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Polynomial:
    rank = a.rank + 1
    first, second = dim1 % rank, dim2 % rank
    size = _size(algebra, a.axes[-1]) + abs(offset)
    place = {r * size + c: k for k, (r, c) in enumerate(_positions(size, size, offset))}
    if size * size > MAX_ROWS:
        raise NoRule("the diagonal of a large matrix")
    flat = select_rows(algebra, a, -1, [place.get(i, -1) for i in range(size * size)])
    sizes = [algebra.space.size(axis) for axis in flat.axes[:-1]]
    matrix = algebra.space.reshape(flat, [*sizes, size, size])
    order: list[Any] = [None] * rank
    order[first], order[second] = rank - 2, rank - 1
    rest = iter(range(rank - 2))
    return algebra.space.permute(matrix, [next(rest) if d is None else d for d in order])


@rule(aten.trace.default)
def _trace(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    found = _diagonal(algebra, node, a)
    return algebra.space.contract(found, [0])


@rule(aten.linalg_solve.default)
def _solve(algebra: Algebra, node: fx.Node, matrix: Any, right: Any, *, left: bool = True) -> Polynomial:
    source = node.args[0]
    if not algebra.is_free(source):
        raise NoRule("the matrix of the system reads the state")
    inverse = algebra.leaf("inverse", source)
    given = shape_of(source)
    vector = right.rank == 1 or (right.rank == len(given) - 1 and shape_of(node.args[1]) == given[:-1])
    if vector:
        right = Polynomial((*right.axes, ()), right.terms)
    result = matmul(algebra, inverse, right) if left else matmul(algebra, right, inverse)
    return Polynomial(result.axes[:-1], result.terms) if vector else result
