"""The domain in which affinity is proved: tensors as polynomials in Einstein notation. A value is a sum of monomials; a
monomial is a coefficient times factors (atoms with named indices); an index that is not in the output is summed over.
An axis is a tuple of indices in row-major order, so that views split and merge axes by substitution, and an axis of
size 1 is the empty tuple."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy
from torch import fx

Index = int
Axis = tuple[Index, ...]
Axes = tuple[Axis, ...]
Number = Any


class NoRule(Exception):
    """The domain cannot express an operation; the value becomes an opaque atom."""


@dataclass(frozen=True)
class Atom:
    """A tensor that the domain does not look into.

    ``kind`` is "value" (state-free), "state" (a carry), "reciprocal" (1 / value), "mask" or "unmask" (1 where a boolean
    value holds, or does not), "position" (a last dimension of ``columns``, 1 where the column is the value, an
    integer; "wrapped position" where negative ones count from the end), "real" or "imaginary" (a part of a complex
    value), "inverse" (of matrices), or "opaque" (depends on the state through an operator without a rule). Others have
    no node and are constant matrices: "selection", 1 where the column is ``rows[row]`` of ``columns``, else 0;
    "triangle", 1 where ``column - row <= rows[0]``; "cosine" and "sine" of ``2 pi row column / columns``, with some
    columns twice where `rows` is not 0 (see `linrec.analysis.fourier`).
    """

    kind: str
    node: Any
    rows: tuple[int, ...] = ()
    columns: int = 0

    @property
    def name(self) -> str:
        """A name by which atoms are ordered and told apart."""
        return str(self.node.name) if self.node is not None else f"{self.kind}{self.columns}{self.rows}"

    def __repr__(self) -> str:
        if self.node is None:
            return self.name
        mark = _MARKS.get(self.kind, "@")
        return f"{mark}{self.node.name}"


_MARKS = {
    "value": "",
    "state": "",
    "reciprocal": "1/",
    "mask": "?",
    "unmask": "!",
    "opaque": "~",
    "real": "Re ",
    "imaginary": "Im ",
    "inverse": "inv ",
}


def selection_atom(rows: tuple[int, ...], columns: int) -> Atom:
    """The matrix (len(rows), columns) with a 1 in each row at the given column; none where that is -1."""
    return Atom("selection", None, rows, columns)


@dataclass(frozen=True)
class Factor:
    """An atom with one axis (a tuple of indices) for each of its dimensions."""

    atom: Atom
    axes: Axes

    def indices(self) -> Iterable[Index]:
        """The indices of all axes, in order, repeated where they repeat."""
        return itertools.chain.from_iterable(self.axes)

    def substitute(self, mapping: dict[Index, Axis]) -> Factor:
        """The same factor with indices replaced by tuples of indices; those not in the mapping stay."""
        return replace(self, axes=_substitute(self.axes, mapping))


@dataclass(frozen=True)
class Monomial:
    """``coefficient * product of factors``, summed over the indices that the output does not have."""

    coefficient: Number
    factors: tuple[Factor, ...]

    def of_kind(self, *kinds: str) -> list[Factor]:
        """The factors whose atom is of one of these kinds, in order."""
        return [f for f in self.factors if f.atom.kind in kinds]

    def without(self, factor: Factor) -> Monomial:
        """The monomial without one occurrence of a factor; ValueError where it has none."""
        factors = list(self.factors)
        factors.remove(factor)
        return replace(self, factors=tuple(factors))


@dataclass(frozen=True)
class Polynomial:
    """A tensor: its output axes and its monomials (like terms merged)."""

    axes: Axes
    terms: tuple[Monomial, ...]

    @property
    def rank(self) -> int:
        """The number of dimensions of the tensor."""
        return len(self.axes)


def _substitute(axes: Axes, mapping: dict[Index, Axis]) -> Axes:
    if not mapping:
        return axes
    return tuple(tuple(j for i in axis for j in mapping.get(i, (i,))) for axis in axes)


def quotient(a: Any, b: Any) -> Any:
    """The exact integer quotient of two sizes (ints or sympy expressions), or None."""
    if a == b:
        return 1
    if isinstance(a, int) and isinstance(b, int):
        return a // b if b and a % b == 0 else None
    ratio = sympy.cancel(sympy.sympify(a) / sympy.sympify(b))
    if sympy.denom(ratio) != 1:
        return None
    return int(ratio) if ratio.is_number else ratio


class Space:
    """Hands out indices, knows their sizes, and does the arithmetic of polynomials over them."""

    def __init__(self) -> None:
        self.sizes: dict[Index, Any] = {}

    def fresh(self, size: Any) -> Axis:
        """A new axis of the given size: one new index, or none for size 1."""
        if size == 1:
            return ()
        index = len(self.sizes)
        self.sizes[index] = size
        return (index,)

    def size(self, axis: Axis) -> Any:
        """The number of elements of an axis (an int or a sympy expression): the product of its indices' sizes."""
        total: Any = 1
        for index in axis:
            total = total * self.sizes[index]
        return total

    def constant(self, number: Number) -> Polynomial:
        """A number, as a tensor of rank 0."""
        return Polynomial((), (Monomial(number, ()),) if number != 0 else ())

    def atom(self, kind: str, node: fx.Node, shape: Sequence[Any]) -> Polynomial:
        """An atom with fresh indices."""
        axes = tuple(self.fresh(s) for s in shape)
        return Polynomial(axes, (Monomial(1, (Factor(Atom(kind, node), axes),)),))

    def substitute(self, p: Polynomial, mapping: dict[Index, Axis]) -> Polynomial:
        """The polynomial with indices replaced by tuples of indices, in its axes and in every factor."""
        if not mapping:
            return p
        terms = tuple(Monomial(m.coefficient, tuple(f.substitute(mapping) for f in m.factors)) for m in p.terms)
        return Polynomial(_substitute(p.axes, mapping), terms)

    def rename(self, p: Polynomial) -> Polynomial:
        """The same polynomial over indices that nobody else uses, bound and free."""
        used = {i for axis in p.axes for i in axis} | {i for m in p.terms for f in m.factors for i in f.indices()}
        return self.substitute(p, {i: self.fresh(self.sizes[i]) for i in used})

    def unify(self, a: Axis, b: Axis) -> tuple[dict[Index, Axis], dict[Index, Axis]]:
        """Substitutions for two axes of one size that make them the same tuple of indices (b follows a)."""
        left, right = list(a), list(b)
        in_a: dict[Index, Axis] = {}
        in_b: dict[Index, Axis] = {}
        while left and right:
            i, j = left.pop(0), right.pop(0)
            si, sj = self.sizes[i], self.sizes[j]
            if si == sj:
                in_b[j] = (i,)
                continue
            if (rest := quotient(sj, si)) is not None:
                tail = self.fresh(rest)
                in_b[j] = (i, *tail)
                right[:0] = tail
            elif (rest := quotient(si, sj)) is not None:
                head, tail = self.fresh(sj), self.fresh(rest)
                in_a[i] = (*head, *tail)
                in_b[j] = head
                left[:0] = tail
            else:
                raise NoRule("axes of incompatible factorisation")
        if left or right:
            raise NoRule("axes of different size")
        return _closed(in_a), _closed(in_b)

    def align(self, p: Polynomial, q: Polynomial) -> tuple[Polynomial, Polynomial]:
        """Broadcast two polynomials against each other, over the same output indices and disjoint bound ones."""
        q = self.rename(q)
        rank = max(p.rank, q.rank)
        p = Polynomial(((),) * (rank - p.rank) + p.axes, p.terms)
        q = Polynomial(((),) * (rank - q.rank) + q.axes, q.terms)
        for d in range(rank):
            if p.axes[d] and q.axes[d]:
                in_p, in_q = self.unify(p.axes[d], q.axes[d])
                p, q = self.substitute(p, in_p), self.substitute(q, in_q)
        axes = tuple(a or b for a, b in zip(p.axes, q.axes, strict=True))
        return Polynomial(axes, p.terms), Polynomial(axes, q.terms)

    def add(self, p: Polynomial, q: Polynomial, scale: Number = 1) -> Polynomial:
        """``p + scale * q``, broadcast, like terms merged."""
        p, q = self.align(p, q)
        scaled = tuple(Monomial(m.coefficient * scale, m.factors) for m in q.terms)
        return self.collect(p.axes, (*p.terms, *scaled))

    def scale(self, p: Polynomial, number: Number) -> Polynomial:
        """``number * p``."""
        return self.collect(p.axes, (Monomial(m.coefficient * number, m.factors) for m in p.terms))

    def multiply(self, p: Polynomial, q: Polynomial) -> Polynomial:
        """``p * q`` elementwise, broadcast; NoRule where it has more than 256 terms."""
        p, q = self.align(p, q)
        if len(p.terms) * len(q.terms) > 256:
            raise NoRule("the product has too many terms")
        terms = []
        for m in p.terms:
            rest = self._fresh_bound(m, p.axes)
            terms += [Monomial(rest.coefficient * n.coefficient, rest.factors + n.factors) for n in q.terms]
        return self.collect(p.axes, terms)

    def _fresh_bound(self, m: Monomial, axes: Axes) -> Monomial:
        free = {i for axis in axes for i in axis}
        bound = {i for f in m.factors for i in f.indices()} - free
        mapping = {i: self.fresh(self.sizes[i]) for i in bound}
        return Monomial(m.coefficient, tuple(f.substitute(mapping) for f in m.factors))

    def contract(self, p: Polynomial, dims: Sequence[int], keepdim: bool = False) -> Polynomial:
        """Sum over output dimensions."""
        dims = [d % p.rank for d in dims]
        summed = {i for d in dims for i in p.axes[d]}
        terms = []
        for m in p.terms:
            present = {i for f in m.factors for i in f.indices()}
            count = self.size(tuple(summed - present))
            terms.append(Monomial(m.coefficient * count, m.factors))
        if keepdim:
            axes = tuple(() if d in dims else axis for d, axis in enumerate(p.axes))
        else:
            axes = tuple(axis for d, axis in enumerate(p.axes) if d not in dims)
        return self.collect(axes, terms)

    def reshape(self, p: Polynomial, shape: Sequence[Any]) -> Polynomial:
        """The same elements in row-major order under another shape, splitting indices where needed."""
        flat = [i for axis in p.axes for i in axis]
        # An index that no factor mentions (a broadcast) still occupies its place in the flat order.
        mapping: dict[Index, Axis] = {}
        axes: list[Axis] = []
        for size in shape:
            axis: list[Index] = []
            left = size
            while left != 1:
                if not flat:
                    raise NoRule("shapes of different size")
                i = flat.pop(0)
                rest = quotient(left, self.sizes[i])
                if rest is not None:
                    axis.append(i)
                    left = rest
                    continue
                more = quotient(self.sizes[i], left)
                if more is None:
                    raise NoRule("a view that cuts an axis unevenly")
                head, tail = self.fresh(left), self.fresh(more)
                mapping[i] = (*head, *tail)
                axis += head
                flat[:0] = tail
                left = 1
            axes.append(tuple(axis))
        if flat:
            raise NoRule("shapes of different size")
        mapping = _closed(mapping)
        split = self.substitute(p, mapping)
        return self.collect(tuple(axes), split.terms)

    def permute(self, p: Polynomial, order: Sequence[int]) -> Polynomial:
        """The polynomial with its dimensions in another order, as ``Tensor.permute``."""
        return Polynomial(tuple(p.axes[d] for d in order), p.terms)

    def collect(self, axes: Axes, terms: Iterable[Monomial]) -> Polynomial:
        """Merge like monomials; drop those with coefficient 0 or with contradictory masks."""
        merged: dict[Any, Monomial] = {}
        free = {i for axis in axes for i in axis}
        for m in terms:
            factors = _reduce_masks(m.factors)
            if factors is not None:
                factors = self._compose(factors, free)
            if factors is None or m.coefficient == 0:
                continue
            key, ordered = _canonical(factors, free)
            if key in merged:
                merged[key] = Monomial(merged[key].coefficient + m.coefficient, merged[key].factors)
            else:
                merged[key] = Monomial(m.coefficient, ordered)
        return Polynomial(axes, tuple(m for m in merged.values() if m.coefficient != 0))

    def _compose(self, factors: tuple[Factor, ...], free: set[Index]) -> tuple[Factor, ...] | None:
        """Multiply out selections that meet; None where one selects nothing."""
        kept = list(factors)
        while True:
            found = [f for f in kept if f.atom.kind == "selection"]
            if any(all(r < 0 for r in f.atom.rows) for f in found):
                return None
            change = self._composed(kept, found, free) or self._substituted(kept, found, free)
            if change is None:
                return tuple(kept)
            kept = change

    def _composed(self, kept: list[Factor], found: list[Factor], free: set[Index]) -> list[Factor] | None:
        """Two selections in a row become one, where nothing else reads the index between them."""
        for f, g in itertools.permutations(found, 2):
            between = f.axes[1]
            others = [i for h in kept if h is not f and h is not g for i in h.indices()]
            if between != g.axes[0] or len(g.atom.rows) != f.atom.columns:
                continue
            if free.intersection(between) or set(between).intersection(others):
                continue
            rows = tuple(g.atom.rows[r] if r >= 0 else -1 for r in f.atom.rows)
            merged = Factor(selection_atom(rows, g.atom.columns), (f.axes[0], g.axes[1]))
            return [merged, *(h for h in kept if h is not f and h is not g)]
        return None

    def _substituted(self, kept: list[Factor], found: list[Factor], free: set[Index]) -> list[Factor] | None:
        """A selection that is the identity renames its column, where that is summed over."""
        for f in found:
            row, column = f.axes
            same = f.atom.rows == tuple(range(f.atom.columns))
            if not same or free.intersection(column) or [self.sizes[i] for i in row] != [self.sizes[i] for i in column]:
                continue
            mapping: dict[Index, Axis] = {j: (i,) for i, j in zip(row, column, strict=True)}
            return [h.substitute(mapping) for h in kept if h is not f]
        return None

    def map_terms(self, p: Polynomial, f: Callable[[Monomial], Monomial]) -> Polynomial:
        """The polynomial with `f` applied to every monomial, over the same axes, like terms merged."""
        return self.collect(p.axes, [f(m) for m in p.terms])


def _closed(mapping: dict[Index, Axis]) -> dict[Index, Axis]:
    """Follow substitutions of substituted indices to their end."""

    def follow(i: Index) -> Axis:
        if i not in mapping or mapping[i] == (i,):
            return (i,)
        return tuple(k for j in mapping[i] for k in follow(j))

    return {i: follow(i) for i in mapping}


def _reduce_masks(factors: tuple[Factor, ...]) -> tuple[Factor, ...] | None:
    kept: list[Factor] = []
    for f in factors:
        if f.atom.kind in ("mask", "unmask"):
            other = Factor(Atom("unmask" if f.atom.kind == "mask" else "mask", f.atom.node), f.axes)
            if other in kept:
                return None
            if f in kept:
                continue
        kept.append(f)
    return tuple(kept)


def _canonical(factors: tuple[Factor, ...], free: set[Index]) -> tuple[Any, tuple[Factor, ...]]:
    """A key that is the same for like monomials, and the factors in its order."""

    def rough(f: Factor) -> Any:
        axes = tuple(tuple(i if i in free else -1 for i in axis) for axis in f.axes)
        return (f.atom.kind, f.atom.name, f.atom.columns, axes)

    ordered = tuple(sorted(factors, key=rough))
    names: dict[Index, int] = {}
    key = tuple(
        (
            f.atom.kind,
            f.atom.name,
            f.atom.columns,
            tuple(tuple(i if i in free else names.setdefault(i, -1 - len(names)) for i in axis) for axis in f.axes),
        )
        for f in ordered
    )
    return key, ordered
