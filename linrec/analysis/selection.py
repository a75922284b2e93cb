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
    size = _size(algebra, p, dim)
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


def _size(algebra: Algebra, p: Polynomial, dim: int) -> int:
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


@rule(aten.slice.Tensor)
def _slice(
    algebra: Algebra, node: fx.Node, a: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Polynomial:
    if not all(x is None or isinstance(x, int) for x in (start, end)):
        raise NoRule("a slice at a symbolic position")
    return select_rows(algebra, a, dim, range(*slice(start, end, step).indices(_size(algebra, a, dim))))


@rule(aten.narrow.default)
def _narrow(algebra: Algebra, node: fx.Node, a: Any, dim: int, start: Any, length: Any) -> Polynomial:
    start %= _size(algebra, a, dim)
    return select_rows(algebra, a, dim, range(start, start + length))


@rule(aten.select.int)
def _select(algebra: Algebra, node: fx.Node, a: Any, dim: int, index: Any) -> Polynomial:
    if not isinstance(index, int):
        raise NoRule("an element at a symbolic position")
    picked = select_rows(algebra, a, dim, [index % _size(algebra, a, dim)])
    return algebra.space.reshape(picked, shape_of(node))


@rule(aten.flip.default)
def _flip(algebra: Algebra, node: fx.Node, a: Any, dims: Any) -> Polynomial:
    for dim in dims:
        a = select_rows(algebra, a, dim, range(_size(algebra, a, dim))[::-1])
    return a  # type: ignore[no-any-return]


@rule(aten.roll.default)
def _roll(algebra: Algebra, node: fx.Node, a: Any, shifts: Any, dims: Any = ()) -> Polynomial:
    shifts, dims = _as_list(shifts), _as_list(dims)
    if not dims:
        raise NoRule("a roll of the flattened tensor")
    for shift, dim in zip(shifts, dims, strict=True):
        size = _size(algebra, a, dim)
        a = select_rows(algebra, a, dim, [(i - shift) % size for i in range(size)])
    return a  # type: ignore[no-any-return]


@rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(algebra: Algebra, node: fx.Node, a: Any, padding: Any, *args: Any, **kwargs: Any) -> Polynomial:
    mode = next((x for x in args if isinstance(x, str)), kwargs.get("mode", "constant"))
    fill = next((x for x in args if isinstance(x, (int, float))), kwargs.get("value"))
    if not all(isinstance(x, int) for x in padding) or (mode == "constant" and fill):
        raise NoRule("padding with something else than zeros")
    for k in range(len(padding) // 2):
        before, after = padding[2 * k], padding[2 * k + 1]
        if before or after:
            size = _size(algebra, a, -1 - k)
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


@rule(aten.repeat_interleave.self_int)
def _repeat_interleave(
    algebra: Algebra, node: fx.Node, a: Any, repeats: Any, dim: Any = None, output_size: Any = None
) -> Polynomial:
    if dim is None or not isinstance(repeats, int):
        raise NoRule("a repetition of the flattened tensor")
    dim %= a.rank
    axes = list(a.axes)
    axes[dim] = (*axes[dim], *algebra.space.fresh(repeats))
    return Polynomial(tuple(axes), a.terms)


@rule(aten.repeat.default)
def _repeat(algebra: Algebra, node: fx.Node, a: Any, repeats: Any) -> Polynomial:
    if not all(isinstance(r, int) for r in repeats):
        raise NoRule("a repetition of symbolic length")
    axes = [()] * (len(repeats) - a.rank) + list(a.axes)
    return Polynomial(tuple((*algebra.space.fresh(r), *axis) for r, axis in zip(repeats, axes, strict=True)), a.terms)


@rule(aten.cat.default)
def _cat(algebra: Algebra, node: fx.Node, tensors: Any, dim: int = 0) -> Polynomial:
    parts = [t for t, shape in zip(tensors, (shape_of(n) for n in node.args[0]), strict=True) if shape != (0,)]
    sizes = [_size(algebra, t, dim) for t in parts]
    result: Polynomial | None = None
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        rows = [i - start if start <= i < start + size else -1 for i in range(sum(sizes))]
        placed = select_rows(algebra, part, dim, rows)
        result = placed if result is None else algebra.space.add(result, placed)
        start += size
    assert result is not None
    return result


@rule(aten.stack.default)
def _stack(algebra: Algebra, node: fx.Node, tensors: Any, dim: int = 0) -> Polynomial:
    dim %= tensors[0].rank + 1
    lifted = [Polynomial((*t.axes[:dim], (), *t.axes[dim:]), t.terms) for t in tensors]
    result: Polynomial | None = None
    for k, part in enumerate(lifted):
        placed = select_rows(algebra, part, dim, [0 if i == k else -1 for i in range(len(lifted))])
        result = placed if result is None else algebra.space.add(result, placed)
    assert result is not None
    return result


@rule(aten.slice_scatter.default)
def _slice_scatter(
    algebra: Algebra, node: fx.Node, a: Any, b: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Polynomial:
    if not all(x is None or isinstance(x, int) for x in (start, end)):
        raise NoRule("a slice at a symbolic position")
    return _put(algebra, a, b, dim, range(*slice(start, end, step).indices(_size(algebra, a, dim))))


@rule(aten.select_scatter.default)
def _select_scatter(algebra: Algebra, node: fx.Node, a: Any, b: Any, dim: int, index: Any) -> Polynomial:
    if not isinstance(index, int):
        raise NoRule("an element at a symbolic position")
    dim %= a.rank
    lifted = Polynomial((*b.axes[:dim], (), *b.axes[dim:]), b.terms)
    return _put(algebra, a, lifted, dim, [index % _size(algebra, a, dim)])


def _put(algebra: Algebra, a: Polynomial, b: Polynomial, dim: int, at: Sequence[int]) -> Polynomial:
    """`a` with its elements at some positions along a dimension replaced by those of `b`."""
    size = _size(algebra, a, dim)
    place = {i: k for k, i in enumerate(at)}
    kept = select_rows(algebra, a, dim, [-1 if i in place else i for i in range(size)])
    return algebra.space.add(kept, select_rows(algebra, b, dim, [place.get(i, -1) for i in range(size)]))


@rule(operator.getitem)
def _getitem(algebra: Algebra, node: fx.Node, source: Any, index: Any) -> Polynomial:
    """A member of what `split`, `chunk` or `unbind` returns."""
    if not isinstance(source, fx.Node) or not isinstance(index, int):
        raise NoRule("a member of something")
    target, (of, *rest) = source.target, source.args
    p, shape = algebra.of(of), shape_of(node)
    dim = (rest[1] if len(rest) > 1 else source.kwargs.get("dim", 0)) if target is not aten.unbind.int else None
    if target is aten.unbind.int:
        dim = rest[0] if rest else source.kwargs.get("dim", 0)
        return algebra.space.reshape(select_rows(algebra, p, dim, [index % _size(algebra, p, dim)]), shape)
    if target not in (aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default):
        raise NoRule(f"a member of {target}")
    assert isinstance(dim, int)
    members = [int(m.shape[dim]) for m in source.meta["val"]]
    start = sum(members[: index % len(members)])
    return select_rows(algebra, p, dim, range(start, start + members[index]))


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.convolution.default,
)
def _convolution(algebra: Algebra, node: fx.Node, x: Any, weight: Any, bias: Any = None, *options: Any) -> Polynomial:
    """Output position and tap together select the input position, one selection for each spatial dimension."""
    spatial = weight.rank - 2
    stride, padding, dilation, groups = _options(node, spatial, options)
    space = algebra.space
    lead = x.rank - spatial - 1
    shape = [space.size(axis) for axis in x.axes]
    channels, outputs = shape[lead], space.size(weight.axes[0])
    if groups > 1:
        x = space.reshape(x, [*shape[:lead], groups, channels // groups, *shape[lead + 1 :]])
        kernel = [space.size(axis) for axis in weight.axes]
        weight = space.reshape(weight, [groups, outputs // groups, *kernel[1:]])
    # (batch, group, out, in, positions..., taps...), every factor with size-1 axes where it does not vary.
    out_sizes = shape_of(node)[lead + 1 :]
    group = 1 if groups > 1 else 0
    positions, taps, terms = [], [], list(x.terms)
    for d in range(spatial):
        size, tap = _size(algebra, x, x.rank - spatial + d), _size(algebra, weight, weight.rank - spatial + d)
        places = [[o * stride[d] - padding[d] + k * dilation[d] for k in range(tap)] for o in range(int(out_sizes[d]))]
        rows = tuple(i if 0 <= i < size else -1 for place in places for i in place)
        if len(rows) > MAX_ROWS:
            raise NoRule("a convolution over a long axis")
        position, taken = space.fresh(int(out_sizes[d])), space.fresh(tap)
        factor = Factor(selection_atom(rows, size), ((*position, *taken), x.axes[x.rank - spatial + d]))
        terms = [Monomial(m.coefficient, (*m.factors, factor)) for m in terms]
        positions.append(position)
        taps.append(taken)
    own = x.axes[:lead]
    grouped = x.axes[lead : lead + group]
    inner = x.axes[lead + group]
    read = Polynomial((*own, *grouped, (), inner, *positions, *taps), tuple(terms))
    read = space.collect(read.axes, read.terms)
    w = weight.axes
    kernel_axes = (*((),) * lead, *w[:group], w[group], w[group + 1], *((),) * spatial, *w[group + 2 :])
    product = space.multiply(read, Polynomial(kernel_axes, weight.terms))
    summed = [lead + group + 1, *range(lead + group + 2 + spatial, lead + group + 2 + 2 * spatial)]
    result = space.reshape(space.contract(product, summed), shape_of(node))
    if bias is None:
        return result
    column = Polynomial((*bias.axes, *((),) * spatial), bias.terms)
    return space.add(result, column)


def _options(node: fx.Node, spatial: int, options: tuple[Any, ...]) -> tuple[list[int], list[int], list[int], int]:
    """Stride, padding, dilation and groups of a convolution; NoRule for a transposed one."""
    names = ["stride", "padding", "dilation", "groups"]
    if node.target is aten.convolution.default:
        names = ["stride", "padding", "dilation", "transposed", "output_padding", "groups"]
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **node.kwargs}
    given |= dict(zip(names, options, strict=False))
    if given.get("transposed"):
        raise NoRule("a transposed convolution")

    def each(x: Any) -> list[int]:
        values = _as_list(x)
        return values * spatial if len(values) == 1 else values

    stride, dilation = each(given["stride"]), each(given["dilation"])
    padding = given["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, shape_of(node.args[1])[2:], strict=True)]
        padding = [r // 2 for r in reach]
    return stride, each(padding), dilation, given["groups"]


def _as_list(x: Any) -> list[int]:
    values = list(x) if isinstance(x, (list, tuple)) else [x]
    if not all(isinstance(v, int) for v in values):
        raise NoRule("a symbolic option")
    return values
