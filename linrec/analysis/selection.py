"""Operators that move elements to other positions: slice, cat, stack, roll, flip, pad. Each is a contraction with a
matrix of zeros and ones, a *selection*, which says for every row the column that it takes, or none. Selections compose,
vanish and cancel as such, so that what is cut from a joined state is again the part that was joined. Axes are split
first wherever the cuts allow it: halves of an axis are two values of one index."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Factor, Monomial, NoRule, Polynomial, selection_atom
from linrec.analysis.rules import Algebra, rule
from linrec.ir.nodes import shape_of

aten = torch.ops.aten
MAX_ROWS = 4096


def select_rows(algebra: Algebra, p: Polynomial, dim: int, rows: Sequence[int]) -> Polynomial:
    """The tensor whose element i along a dimension is element rows[i] of `p`, or 0 where that is -1."""
    space = algebra.space
    dim %= p.rank
    size = size_of(algebra, p, dim)
    if len(rows) > MAX_ROWS or size > MAX_ROWS:
        raise NoRule("a selection from a long axis")
    shape = [space.size(axis) for axis in p.axes]
    for block in _blocks(rows, size):
        try:
            p = space.reshape(p, [*shape[:dim], size // block, block, *shape[dim + 1 :]])
        except NoRule:  # the axis is made of indices that this block would cut
            continue
        rows = [r // block if r >= 0 else -1 for r in rows[::block]]
        size //= block
        break
    else:
        block = 1
    column, row = p.axes[dim], space.fresh(len(rows))
    factor = Factor(selection_atom(tuple(rows), size), (row, column))
    terms = [Monomial(m.coefficient, (*m.factors, factor)) for m in p.terms]
    axes = [*p.axes[:dim], row, *p.axes[dim + 1 :]]
    if block > 1:
        axes[dim : dim + 2] = [(*axes[dim], *axes[dim + 1])]
    return space.collect(tuple(axes), terms)


def size_of(algebra: Algebra, p: Polynomial, dim: int) -> int:
    """The number of elements of a dimension; NoRule where it is symbolic."""
    size = algebra.space.size(p.axes[dim])
    if not isinstance(size, int):
        raise NoRule("positions along a symbolic axis")
    return size


def _blocks(rows: Sequence[int], size: int) -> Iterator[int]:
    """The lengths greater than 1 for which whole aligned blocks move together, the largest first."""
    for block in range(size, 1, -1):
        if size % block or len(rows) % block:
            continue
        groups = [rows[i : i + block] for i in range(0, len(rows), block)]
        if all(
            all(r == -1 for r in g) or (g[0] % block == 0 and all(r == g[0] + k for k, r in enumerate(g)))
            for g in groups
        ):
            yield block


@rule(aten.slice.Tensor, moves=True)
def _slice(
    algebra: Algebra, node: fx.Node, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Polynomial:
    if not all(x is None or isinstance(x, int) for x in (start, end)):
        raise NoRule("a slice at a symbolic position")
    return select_rows(algebra, a, dim, range(*slice(start, end, step).indices(size_of(algebra, a, dim))))


@rule(aten.narrow.default, moves=True)
def _narrow(algebra: Algebra, node: fx.Node, a: Any, dim: int, start: Any, length: Any) -> Polynomial:
    start %= size_of(algebra, a, dim)
    return select_rows(algebra, a, dim, range(start, start + length))


@rule(aten.select.int, moves=True)
def _select(algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any) -> Polynomial:
    if not isinstance(index, int):
        raise NoRule("an element at a symbolic position")
    picked = select_rows(algebra, a, dim, [index % size_of(algebra, a, dim)])
    return algebra.space.reshape(picked, shape_of(node))


@rule(aten.flip.default, moves=True)
def _flip(algebra: Algebra, node: fx.Node, a: Any, dims: Any) -> Polynomial:
    for dim in dims:
        a = select_rows(algebra, a, dim, range(size_of(algebra, a, dim))[::-1])
    return a  # type: ignore[no-any-return]


@rule(aten.roll.default, moves=True)
def _roll(algebra: Algebra, node: fx.Node, a: Any, shifts: Any, dims: Any = ()) -> Polynomial:
    shifts, dims = as_list(shifts), as_list(dims)
    if not dims:
        raise NoRule("a roll of the flattened tensor")
    for shift, dim in zip(shifts, dims, strict=True):
        size = size_of(algebra, a, dim)
        a = select_rows(algebra, a, dim, [(i - shift) % size for i in range(size)])
    return a  # type: ignore[no-any-return]


@rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(algebra: Algebra, node: fx.Node, a: Any, padding: Any, *args: Any, **kwargs: Any) -> Polynomial:
    mode = next((x for x in args if isinstance(x, str)), kwargs.get("mode", "constant"))
    fill = next((x for x in args if x is not None and not isinstance(x, str)), kwargs.get("value"))
    if not all(isinstance(x, int) for x in padding) or (mode == "constant" and fill):
        raise NoRule("padding with something else than zeros")
    for k in range(len(padding) // 2):
        before, after = padding[2 * k], padding[2 * k + 1]
        if before or after:
            size = size_of(algebra, a, -1 - k)
            a = select_rows(algebra, a, -1 - k, [_padded(i, size, mode) for i in range(-before, size + after)])
    return a  # type: ignore[no-any-return]


def _padded(i: int, size: int, mode: str) -> int:
    if 0 <= i < size:
        return i
    if mode == "circular":
        return i % size
    if mode == "replicate":
        return min(max(i, 0), size - 1)
    if mode == "reflect":
        return -i if i < 0 else 2 * (size - 1) - i
    return -1


@rule(aten.unfold.default, moves=True)
def _unfold(algebra: Algebra, node: fx.Node, a: Any, dim: int, size: int, step: int) -> Polynomial:
    dim %= a.rank
    count = (size_of(algebra, a, dim) - size) // step + 1
    taken = select_rows(algebra, a, dim, [w * step + k for w in range(count) for k in range(size)])
    shape = [algebra.space.size(axis) for axis in a.axes]
    windows = algebra.space.reshape(taken, [*shape[:dim], count, size, *shape[dim + 1 :]])
    return algebra.space.permute(windows, [*(d for d in range(a.rank + 1) if d != dim + 1), dim + 1])


@rule(aten.repeat_interleave.self_int, moves=True)
def _repeat_interleave(
    algebra: Algebra, node: fx.Node, a: Any, repeats: Any, dim: Any = None, output_size: Any = None
) -> Polynomial:
    if dim is None or not isinstance(repeats, int):
        raise NoRule("a repetition of the flattened tensor")
    dim %= a.rank
    axes = list(a.axes)
    axes[dim] = (*axes[dim], *algebra.space.fresh(repeats))
    return Polynomial(tuple(axes), a.terms)


@rule(aten.repeat.default, moves=True)
def _repeat(algebra: Algebra, node: fx.Node, a: Any, repeats: Any) -> Polynomial:
    if not all(isinstance(r, int) for r in repeats):
        raise NoRule("a repetition of symbolic length")
    axes = [()] * (len(repeats) - a.rank) + list(a.axes)
    return Polynomial(tuple((*algebra.space.fresh(r), *axis) for r, axis in zip(repeats, axes, strict=True)), a.terms)


@rule(aten.cat.default, moves=True)
def _cat(algebra: Algebra, node: fx.Node, tensors: Any, dim: int = 0) -> Polynomial:
    parts = [t for t, shape in zip(tensors, (shape_of(n) for n in node.args[0]), strict=True) if shape != (0,)]
    sizes = [size_of(algebra, t, dim) for t in parts]
    result: Polynomial | None = None
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        rows = [i - start if start <= i < start + size else -1 for i in range(sum(sizes))]
        placed = select_rows(algebra, part, dim, rows)
        result = placed if result is None else algebra.space.add(result, placed)
        start += size
    assert result is not None
    return result


@rule(aten.stack.default, moves=True)
def _stack(algebra: Algebra, node: fx.Node, tensors: Any, dim: int = 0) -> Polynomial:
    dim %= tensors[0].rank + 1
    lifted = [Polynomial((*t.axes[:dim], (), *t.axes[dim:]), t.terms) for t in tensors]
    result: Polynomial | None = None
    for k, part in enumerate(lifted):
        placed = select_rows(algebra, part, dim, [0 if i == k else -1 for i in range(len(lifted))])
        result = placed if result is None else algebra.space.add(result, placed)
    assert result is not None
    return result


@rule(aten.slice_scatter.default, moves=True)
def _slice_scatter(
    algebra: Algebra, node: fx.Node, a: Any, b: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Polynomial:
    if not all(x is None or isinstance(x, int) for x in (start, end)):
        raise NoRule("a slice at a symbolic position")
    return _put(algebra, a, b, dim, range(*slice(start, end, step).indices(size_of(algebra, a, dim))))


@rule(aten.select_scatter.default, moves=True)
def _select_scatter(algebra: Algebra, node: fx.Node, a: Any, b: Any, dim: int, index: Any) -> Polynomial:
    if not isinstance(index, int):
        raise NoRule("an element at a symbolic position")
    dim %= a.rank
    lifted = Polynomial((*b.axes[:dim], (), *b.axes[dim:]), b.terms)
    return _put(algebra, a, lifted, dim, [index % size_of(algebra, a, dim)])


def _put(algebra: Algebra, a: Polynomial, b: Polynomial, dim: int, at: Sequence[int]) -> Polynomial:
    """`a` with its elements at some positions along a dimension replaced by those of `b`."""
    size = size_of(algebra, a, dim)
    place = {i: k for k, i in enumerate(at)}
    kept = select_rows(algebra, a, dim, [-1 if i in place else i for i in range(size)])
    return algebra.space.add(kept, select_rows(algebra, b, dim, [place.get(i, -1) for i in range(size)]))


@rule(operator.getitem, moves=True)
def _getitem(algebra: Algebra, node: fx.Node, source: Any, index: Any) -> Polynomial:
    """A member of what `split`, `chunk` or `unbind` returns."""
    if not isinstance(source, fx.Node) or not isinstance(index, int):
        raise NoRule("a member of something")
    target, (of, *rest) = source.target, source.args
    p, shape = algebra.of(of), shape_of(node)
    dim = (rest[1] if len(rest) > 1 else source.kwargs.get("dim", 0)) if target is not aten.unbind.int else None
    if target is aten.unbind.int:
        dim = rest[0] if rest else source.kwargs.get("dim", 0)
        return algebra.space.reshape(select_rows(algebra, p, dim, [index % size_of(algebra, p, dim)]), shape)
    if target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        raise NoRule(f"a member of {target}")
    assert isinstance(dim, int)
    members = [int(m.shape[dim]) for m in source.meta["val"]]
    start = sum(members[: index % len(members)])
    return select_rows(algebra, p, dim, range(start, start + members[index]))


def as_list(x: Any) -> list[int]:
    """An option of an operator, a number or several, as a list; NoRule where it is symbolic."""
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if not all(isinstance(v, int) for v in values):
        raise NoRule("a symbolic option")
    return values
