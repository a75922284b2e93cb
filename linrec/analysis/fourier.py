"""Discrete Fourier transforms: contractions with constant matrices of cosines and sines, so linear in what they
transform, along any axis of known length."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from linrec.analysis.complex_rules import parts
from linrec.analysis.polynomial import Atom, Factor, Monomial, NoRule, Polynomial
from linrec.analysis.rules import Algebra, rule
from linrec.analysis.selection import MAX_ROWS, select_rows

aten = torch.ops.aten
One = Callable[[Algebra, Polynomial, int, int, Any], Polynomial]
"""A transform along one dimension: (algebra, tensor, dimension, number of points, norm)."""


def _wave(
    algebra: Algebra, kind: str, p: Polynomial, dim: int, rows: int, points: int, half: bool = False
) -> Polynomial:
    """The tensor multiplied, along a dimension of at most `points` elements, by the matrix (rows, its size) of
    ``cos(2 pi r c / points)`` ("cosine") or of the sines ("sine").

    Args:
        half: the columns are the first half of a spectrum whose other half mirrors it: all that have a mirror image
            count twice.
    """
    if points > MAX_ROWS:
        raise NoRule("a transform of a long axis")
    column, row = p.axes[dim], algebra.space.fresh(rows)
    factor = Factor(Atom(kind, None, (int(half),), points), (row, column))
    terms = [Monomial(m.coefficient, (*m.factors, factor)) for m in p.terms]
    return algebra.space.collect((*p.axes[:dim], row, *p.axes[dim + 1 :]), terms)


def _sized(algebra: Algebra, p: Polynomial, dim: int, points: int) -> Polynomial:
    """The first `points` elements of a dimension, followed by zeros where it has fewer."""
    size = algebra.space.size(p.axes[dim])
    if size == points:
        return p
    if not isinstance(size, int):
        raise NoRule("a transform along a symbolic axis")
    return select_rows(algebra, p, dim, [i if i < size else -1 for i in range(points)])


def _scale(norm: Any, points: int, forward: bool) -> float:
    if norm == "ortho":
        return 1 / math.sqrt(points)
    return 1 / points if forward == (norm == "forward") else 1


def _both(algebra: Algebra, p: Polynomial, dim: int, rows: int, points: int, sign: int) -> Polynomial:
    """The sum over n of ``exp(sign 2 pi i k n / points)`` times element n, for k < rows."""
    cosines, sines = (_wave(algebra, kind, p, dim, rows, points) for kind in ("cosine", "sine"))
    return algebra.space.add(cosines, sines, sign * 1j)


def _fft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    p = _sized(algebra, p, dim, points)
    return algebra.space.scale(_both(algebra, p, dim, points, points, -1), _scale(norm, points, True))


def _ifft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    p = _sized(algebra, p, dim, points)
    return algebra.space.scale(_both(algebra, p, dim, points, points, 1), _scale(norm, points, False))


def _rfft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    p = _sized(algebra, p, dim, points)
    return algebra.space.scale(_both(algebra, p, dim, points // 2 + 1, points, -1), _scale(norm, points, True))


def _irfft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    real, imaginary = parts(algebra, _sized(algebra, p, dim, points // 2 + 1))
    cosines = _wave(algebra, "cosine", real, dim, points, points, half=True)
    sines = _wave(algebra, "sine", imaginary, dim, points, points, half=True)
    return algebra.space.scale(algebra.space.add(cosines, sines, -1), _scale(norm, points, False))


def _hfft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    real, imaginary = parts(algebra, p)
    mirrored = algebra.space.add(real, imaginary, -1j)
    result = _irfft(algebra, mirrored, dim, points, "forward")
    return algebra.space.scale(result, _scale(norm, points, True))


def _ihfft(algebra: Algebra, p: Polynomial, dim: int, points: int, norm: Any) -> Polynomial:
    real, imaginary = parts(algebra, _rfft(algebra, p, dim, points, None))
    return algebra.space.scale(algebra.space.add(real, imaginary, -1j), _scale(norm, points, False))


def _points(algebra: Algebra, p: Polynomial, dim: int, given: Any, grows: bool) -> int:
    """The number of points along a dimension; where it `grows`, half a spectrum becomes a whole one."""
    size = algebra.space.size(p.axes[dim])
    points = given if given is not None and given != -1 else 2 * (size - 1) if grows else size
    if not isinstance(points, int) or not isinstance(size, int):
        raise NoRule("a transform along a symbolic axis")
    return points


_ALONG_ONE: dict[Any, tuple[One, bool]] = {
    aten.fft_fft.default: (_fft, False),
    aten.fft_ifft.default: (_ifft, False),
    aten.fft_rfft.default: (_rfft, False),
    aten.fft_irfft.default: (_irfft, True),
    aten.fft_hfft.default: (_hfft, True),
    aten.fft_ihfft.default: (_ihfft, False),
}


@rule(*_ALONG_ONE)
def _along_one(algebra: Algebra, node: fx.Node, a: Any, n: Any = None, dim: int = -1, norm: Any = None) -> Polynomial:
    transform, grows = _ALONG_ONE[node.target]
    dim %= a.rank
    return transform(algebra, a, dim, _points(algebra, a, dim, n, grows), norm)


_ALONG_SEVERAL: dict[Any, tuple[One, One]] = {
    aten.fft_fft2.default: (_fft, _fft),
    aten.fft_fftn.default: (_fft, _fft),
    aten.fft_ifft2.default: (_ifft, _ifft),
    aten.fft_ifftn.default: (_ifft, _ifft),
    aten.fft_rfft2.default: (_rfft, _fft),
    aten.fft_rfftn.default: (_rfft, _fft),
    aten.fft_irfft2.default: (_irfft, _ifft),
    aten.fft_irfftn.default: (_irfft, _ifft),
}
"""The transform along the last of the dimensions, and along the others."""


@rule(*_ALONG_SEVERAL)
def _along_several(
    algebra: Algebra, node: fx.Node, a: Any, s: Any = None, dim: Any = None, norm: Any = None
) -> Polynomial:
    if dim is None:
        two = node.target._schema.name.endswith("2")
        count = len(s) if s is not None else 2 if two else a.rank
        dim = range(a.rank - count, a.rank)
    last, other = _ALONG_SEVERAL[node.target]
    grows = last is _irfft
    dims = [d % a.rank for d in ([dim] if isinstance(dim, int) else dim)]
    sizes = list(s) if s is not None else [None] * len(dims)
    points = [_points(algebra, a, d, n, grows and d == dims[-1]) for d, n in zip(dims, sizes, strict=True)]
    order = list(zip(dims, points, strict=True))
    if not grows:
        a = last(algebra, a, *order[-1], norm)
    for d, n in order[:-1]:
        a = other(algebra, a, d, n, norm)
    return last(algebra, a, *order[-1], norm) if grows else a


_NORMS = (None, "ortho", "forward")
"""By torch's number for what a transform in its direction divides by: nothing, the root of the number of points, or
that number itself. Named as for a forward transform."""


@rule(aten._fft_c2c.default)
def _c2c(algebra: Algebra, node: fx.Node, a: Any, dims: Sequence[int], normalization: int, forward: bool) -> Polynomial:
    for d in dims:
        points = _points(algebra, a, d % a.rank, None, False)
        a = _both(algebra, a, d % a.rank, points, points, -1 if forward else 1)
        a = algebra.space.scale(a, _scale(_NORMS[normalization], points, True))
    return a  # type: ignore[no-any-return]


@rule(aten._fft_r2c.default)
def _r2c(
    algebra: Algebra, node: fx.Node, a: Any, dims: Sequence[int], normalization: int, onesided: bool
) -> Polynomial:
    for d in reversed(dims):
        points = _points(algebra, a, d % a.rank, None, False)
        rows = points // 2 + 1 if onesided and d == dims[-1] else points
        a = _both(algebra, a, d % a.rank, rows, points, -1)
        a = algebra.space.scale(a, _scale(_NORMS[normalization], points, True))
    return a  # type: ignore[no-any-return]


@rule(aten._fft_c2r.default)
def _c2r(algebra: Algebra, node: fx.Node, a: Any, dims: Sequence[int], normalization: int, last: Any) -> Polynomial:
    if not isinstance(last, int):
        raise NoRule("a transform along a symbolic axis")
    for d in dims[:-1]:
        points = _points(algebra, a, d % a.rank, None, False)
        a = _both(algebra, a, d % a.rank, points, points, 1)
        a = algebra.space.scale(a, _scale(_NORMS[normalization], points, True))
    a = _irfft(algebra, a, dims[-1] % a.rank, last, "forward")
    return algebra.space.scale(a, _scale(_NORMS[normalization], last, True))


@rule(aten.fft_fftshift.default, aten.fft_ifftshift.default)
def _shift(algebra: Algebra, node: fx.Node, a: Any, dim: Any = None) -> Polynomial:
    dims = range(a.rank) if dim is None else [dim] if isinstance(dim, int) else dim
    for d in dims:
        size = _points(algebra, a, d % a.rank, None, False)
        by = size // 2 if node.target is aten.fft_fftshift.default else (size + 1) // 2
        a = select_rows(algebra, a, d, [(i - by) % size for i in range(size)])
    return a  # type: ignore[no-any-return]
