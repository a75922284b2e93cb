"""Rules of the operators that only arrange elements: views, slices, joins, and tensors of constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from linrec.codegen.axes import Unsupported, View
from linrec.codegen.pointwise import pair, real
from linrec.codegen.translate import Complex, Translator, Value, rule


def each_part(x: Value, apply: Callable[[View], View]) -> Value:
    """Apply a function to a real tensor, or to both parts of a complex one."""
    if isinstance(x, Complex):
        return Complex(apply(x.re), apply(x.im))
    if not isinstance(x, View):
        raise Unsupported("an argument that is no tensor")
    return apply(x)


def rank(x: Value) -> int:
    """Number of dimensions."""
    return len((x.re if isinstance(x, Complex) else x).dims)


def positive(dim: int, ndim: int) -> int:
    """A dimension counted from the front."""
    return dim + ndim if dim < 0 else dim


def sizes(a: Any) -> list[int]:
    """The result's sizes."""
    return [int(s) for s in a.out.shape]


def permuted(x: Value, order: Sequence[int]) -> Value:
    """The dimensions in another order."""
    return each_part(x, lambda v: v.moved([v.dims[d] for d in order]))


@rule("view", "reshape", "_unsafe_view", "_reshape_alias", "flatten", "unflatten", "view_as", "reshape_as")
def _reshape(t: Translator, a: Any) -> Value:
    if isinstance(getattr(a, "dtype", None), torch.dtype):
        raise Unsupported("a view as another dtype")
    return each_part(a.self, lambda v: t.reshape(v, sizes(a)))


@rule("expand", "expand_as", "broadcast_to")
def _expand(t: Translator, a: Any) -> Value:
    return each_part(a.self, lambda v: t.expand(v, sizes(a)))


@rule("unsqueeze")
def _unsqueeze(t: Translator, a: Any) -> Value:
    return each_part(a.self, lambda v: t.unsqueeze(v, positive(a.dim, rank(v) + 1)))


@rule("squeeze")
def _squeeze(t: Translator, a: Any) -> Value:
    given = getattr(a, "dim", None)
    wanted = range(rank(a.self)) if given is None else [given] if isinstance(given, int) else given
    gone = {positive(d, rank(a.self)) for d in wanted}
    return each_part(a.self, lambda v: v.moved([d for i, d in enumerate(v.dims) if d or i not in gone]))


@rule("permute")
def _permute(t: Translator, a: Any) -> Value:
    return permuted(a.self, [positive(d, rank(a.self)) for d in a.dims])


@rule("transpose")
def _transpose(t: Translator, a: Any) -> Value:
    order = list(range(rank(a.self)))
    i, j = positive(a.dim0, len(order)), positive(a.dim1, len(order))
    order[i], order[j] = order[j], order[i]
    return permuted(a.self, order)


@rule("t", "numpy_T", "mT", "adjoint", "mH")
def _transposed(t: Translator, a: Any) -> Value:
    order = list(range(rank(a.self)))
    if a.name in ("t", "numpy_T"):
        order.reverse()
    else:
        order[-2:] = order[-1], order[-2]
    moved = permuted(a.self, order)
    if a.name in ("adjoint", "mH") and isinstance(moved, Complex):
        return Complex(moved.re, t.map("neg", moved.im, dtype=moved.im.dtype))
    return moved


@rule("movedim")
def _movedim(t: Translator, a: Any) -> Value:
    ndim = rank(a.self)
    source = [positive(d, ndim) for d in ([a.source] if isinstance(a.source, int) else a.source)]
    target = [positive(d, ndim) for d in ([a.destination] if isinstance(a.destination, int) else a.destination)]
    rest = iter(d for d in range(ndim) if d not in source)
    put = dict(zip(target, source, strict=True))
    return permuted(a.self, [put[d] if d in put else next(rest) for d in range(ndim)])


def _size(x: Value, dim: int) -> int:
    return (x.re if isinstance(x, Complex) else x).shape[dim]


def number(x: Any) -> int:
    """A position or size that is known when the kernel is written."""
    if isinstance(x, bool) or not isinstance(x, int):
        raise Unsupported("a position that is no constant")
    return x


def selected(t: Translator, x: Value, dim: int, at: int) -> Value:
    """One position of a dimension, which goes."""
    return each_part(x, lambda v: t.select(v, dim, at))


def cut(t: Translator, x: Value, dim: int, start: int, count: int, step: int = 1) -> Value:
    """Some positions of a dimension."""
    return each_part(x, lambda v: t.slice(v, dim, start, count, step))


@rule("select")
def _select(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, rank(a.self))
    at = positive(number(a.index), _size(a.self, dim))
    return selected(t, a.self, dim, at)


@rule("slice")
def _slice(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, rank(a.self))
    size = _size(a.self, dim)
    start = 0 if a.start is None else min(max(positive(number(a.start), size), 0), size)
    count = int(a.out.shape[dim])
    return cut(t, a.self, dim, start, count, number(a.step))


@rule("narrow")
def _narrow(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, rank(a.self))
    start = positive(number(a.start), _size(a.self, dim))
    return cut(t, a.self, dim, start, number(a.length))


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_chunk", "unsafe_split")
def _split(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, rank(a.self))
    parts, start = [], 0
    for out in a.out:
        count = int(out.shape[dim])
        parts.append(cut(t, a.self, dim, start, count))
        start += count
    return parts


@rule("unbind")
def _unbind(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, rank(a.self))
    return [selected(t, a.self, dim, i) for i in range(_size(a.self, dim))]


@rule("flip")
def _flip(t: Translator, a: Any) -> Value:
    x = a.self
    for d in a.dims:
        dim = positive(d, rank(x))
        size = _size(x, dim)
        if size > 1:
            x = cut(t, x, dim, size - 1, size, -1)
    return x


def _joined(t: Translator, a: Any, pieces: Sequence[Value], dim: int, starts: Sequence[int]) -> Value:
    dtype = a.out.dtype
    size = int(a.out.shape[dim])
    if dtype.is_complex:
        part = dtype.to_real()
        both = [pair(t, p, part) for p in pieces]
        return Complex(
            t.join([p.re for p in both], dim, size, starts, part), t.join([p.im for p in both], dim, size, starts, part)
        )
    return t.join([real(t, p, dtype) for p in pieces], dim, size, starts, dtype)


def _starts(counts: Sequence[int]) -> list[int]:
    return [sum(counts[:i]) for i in range(len(counts))]


@rule("cat")
def _cat(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, len(a.out.shape))
    return _joined(t, a, a.tensors, dim, _starts([_size(p, dim) for p in a.tensors]))


@rule("stack")
def _stack(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, len(a.out.shape))
    pieces = [each_part(p, lambda v: t.unsqueeze(v, dim)) for p in a.tensors]
    return _joined(t, a, pieces, dim, list(range(len(pieces))))


@rule("roll")
def _roll(t: Translator, a: Any) -> Value:
    x = a.self
    for shift, d in zip(a.shifts, a.dims, strict=True):
        dim = positive(d, rank(x))
        size = _size(x, dim)
        moved = number(shift) % size
        if moved:
            parts = [cut(t, x, dim, size - moved, moved), cut(t, x, dim, 0, size - moved)]
            x = _joined(t, a, parts, dim, [0, moved])
    return x


@rule("repeat")
def _repeat(t: Translator, a: Any) -> Value:
    x = a.self
    while rank(x) < len(a.repeats):
        x = each_part(x, lambda v: t.unsqueeze(v, 0))
    for dim, count in enumerate(a.repeats):
        size = _size(x, dim)
        if number(count) == 1:
            continue
        if size == 1:
            shape = [count if d == dim else _size(x, d) for d in range(rank(x))]
            x = each_part(x, lambda v, shape=shape: t.expand(v, shape))  # type: ignore[misc]
        else:
            x = _joined(t, a, [x] * count, dim, [k * size for k in range(count)])
    return x


@rule("pad", "constant_pad_nd")
def _pad(t: Translator, a: Any) -> Value:
    mode, fill = getattr(a, "mode", "constant"), a.value
    if mode != "constant":
        raise Unsupported("a mode other than a constant")
    x = a.self
    for k in range(len(a.pad) // 2):
        before, after = number(a.pad[2 * k]), number(a.pad[2 * k + 1])
        if before < 0 or after < 0:
            raise Unsupported("a negative width")
        if before or after:
            x = _padded(t, x, rank(x) - 1 - k, before, after, fill or 0)
    return x


def _padded(t: Translator, x: Value, dim: int, before: int, after: int, fill: Any) -> Value:
    size = before + _size(x, dim) + after
    if fill == 0:
        return each_part(x, lambda v: t.join([v], dim, size, [before], v.dtype))
    if isinstance(x, Complex):
        raise Unsupported("a complex tensor with something other than zeros around it")
    pieces, starts = [x], [before]
    for width, start in ((before, 0), (after, size - after)):
        if width:
            shape = [width if d == dim else _size(x, d) for d in range(rank(x))]
            pieces.append(t.expand(real(t, fill, x.dtype), shape))
            starts.append(start)
    return t.join(pieces, dim, size, starts, x.dtype)


@rule("select_scatter", "slice_scatter")
def _scatter(t: Translator, a: Any) -> Value:
    dim = positive(a.dim, len(a.out.shape))
    size = int(a.out.shape[dim])
    if a.name == "select_scatter":
        start, count = positive(number(a.index), size), 1
        piece = each_part(a.src, lambda v: t.unsqueeze(v, dim))
    else:
        start = 0 if a.start is None else positive(number(a.start), size)
        count, piece = _size(a.src, dim), a.src
        if number(a.step) != 1:
            return _scattered(t, a, dim, size, start, number(a.step))
    pieces, starts = [piece], [start]
    if start:
        pieces.append(cut(t, a.self, dim, 0, start))
        starts.append(0)
    if start + count < size:
        pieces.append(cut(t, a.self, dim, start + count, size - start - count))
        starts.append(start + count)
    return _joined(t, a, pieces, dim, starts)


def _scattered(t: Translator, a: Any, dim: int, size: int, start: int, step: int) -> Value:
    """Rows that are written at every so many rows of another tensor."""
    places = {start + step * k: k for k in range(_size(a.src, dim))}
    pieces = [cut(t, a.src, dim, places[i], 1) if i in places else cut(t, a.self, dim, i, 1) for i in range(size)]
    return _joined(t, a, pieces, dim, list(range(size)))


@rule("view_as_real")
def _view_as_real(t: Translator, a: Any) -> Value:
    a.tensors, a.dim = [a.self.re, a.self.im], -1
    return _stack(t, a)


@rule("view_as_complex")
def _view_as_complex(t: Translator, a: Any) -> Value:
    return Complex(t.select(a.self, rank(a.self) - 1, 0), t.select(a.self, rank(a.self) - 1, 1))


_FILLS = {"zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1}


@rule(*_FILLS, "full", "full_like", "new_full", "scalar_tensor", "empty_like")
def _full(t: Translator, a: Any) -> Value:
    if a.name == "empty_like":
        raise Unsupported("memory that is not initialised")
    given = a.s if a.name == "scalar_tensor" else getattr(a, "fill_value", None)
    fill = _FILLS.get(a.name, given)
    if a.out.dtype.is_complex:
        value: Value = pair(t, fill, a.out.dtype.to_real())
    else:
        value = real(t, fill, a.out.dtype)
    return each_part(value, lambda v: t.expand(v, sizes(a)))


@rule("arange")
def _arange(t: Translator, a: Any) -> Value:
    count = int(a.out.shape[0])
    start = getattr(a, "start", 0) or 0
    step = getattr(a, "step", 1) or 1
    index = t.cast(t.iota(count), a.out.dtype)
    scaled = t.map("mul", index, real(t, step, a.out.dtype), dtype=a.out.dtype)
    return t.map("add", scaled, real(t, start, a.out.dtype), dtype=a.out.dtype)


@rule("eye")
def _eye(t: Translator, a: Any) -> Value:
    rows, columns = sizes(a)
    row, column = t.unsqueeze(t.iota(rows), 1), t.iota(columns)
    return t.cast(t.map("eq", row, column, dtype=torch.bool), a.out.dtype)


@rule("tril", "triu")
def _triangle(t: Translator, a: Any) -> Value:
    rows, columns = sizes(a)[-2:]
    row = t.map("add", t.unsqueeze(t.iota(rows), 1), t.literal(number(a.diagonal), torch.int64), dtype=torch.int64)
    kept = t.map("ge" if a.name == "tril" else "le", row, t.iota(columns), dtype=torch.bool)
    return each_part(a.self, lambda v: t.map("where", kept, v, real(t, 0, v.dtype), dtype=v.dtype))
