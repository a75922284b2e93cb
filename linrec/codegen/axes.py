"""Which dimensions are lanes. Every value of a step is a view of a draft node whose dimensions are axes; operators
unify the axes that they walk together and mark those that they mix (sum over, slice, join). What is never mixed is a
lane: all steps of a loop are independent along it."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


class Unsupported(Exception):
    """No kernel can be written for a step; says why."""


class Resplit(Exception):
    """A dimension must be taken apart from the start: some operator splits what another one has as one."""


class Axis:
    """One index of a node's domain. Axes that are walked together form a class (a union-find tree)."""

    def __init__(self, size: int, origin: Hashable = None) -> None:
        self.size = size
        self._parent: Axis | None = None
        self.mixed = False
        self.origins = set() if origin is None else {origin}

    @property
    def root(self) -> Axis:
        """The representative of the class."""
        axis = self
        while axis._parent is not None:
            axis = axis._parent
        if axis is not self:
            self._parent = axis
        return axis

    def unify(self, other: Axis) -> None:
        """Make one class of two."""
        a, b = self.root, other.root
        if a is not b:
            b._parent = a
            a.mixed |= b.mixed
            a.origins |= b.origins

    def mix(self) -> None:
        """Say that elements along this axis depend on each other."""
        self.root.mixed = True


@dataclass(frozen=True)
class AxisIndex:
    """``offset + sum(scale * axis)``."""

    terms: tuple[tuple[Axis, int], ...] = ()
    offset: int = 0

    def put(self, place: dict[Axis, AxisIndex]) -> AxisIndex:
        """The same with axes replaced by functions of other axes."""
        terms: dict[Axis, int] = {}
        offset = self.offset
        for axis, scale in self.terms:
            inner = place.get(axis)
            if inner is None:
                terms[axis] = terms.get(axis, 0) + scale
                continue
            offset += scale * inner.offset
            for a, s in inner.terms:
                terms[a] = terms.get(a, 0) + scale * s
        return AxisIndex(tuple(terms.items()), offset)


@dataclass(eq=False)
class Draft:
    """A node whose axes are not yet told apart in lanes and inner dimensions; see `program.Node`.

    Attributes:
        pieces: for an assembly, the axes of each piece and its place in `axes`.
    """

    op: str
    attr: Any
    dtype: torch.dtype
    axes: tuple[Axis, ...] = ()
    args: tuple[tuple[Draft, tuple[AxisIndex, ...]], ...] = ()
    red: tuple[Axis, ...] = ()
    pieces: tuple[tuple[tuple[Axis, ...], tuple[AxisIndex, ...]], ...] = ()


Dim = tuple[Axis, ...]
"""A dimension of a tensor: its axes, slow ones first; none where its size is 1."""


@dataclass(frozen=True)
class View:
    """A tensor: elements of a draft node, in the order of `dims`. An axis that no index mentions is a broadcast one."""

    draft: Draft
    index: tuple[AxisIndex, ...]
    dims: tuple[Dim, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self.draft.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's sizes."""
        return tuple(math.prod(a.size for a in dim) for dim in self.dims)

    def moved(self, dims: Sequence[Dim], place: dict[Axis, AxisIndex] | None = None) -> View:
        """With other dimensions, and axes replaced."""
        index = self.index if not place else tuple(i.put(place) for i in self.index)
        return View(self.draft, index, tuple(dims))


def whole(draft: Draft, dims: Sequence[Dim]) -> View:
    """All elements of a draft node, its axes arranged in dimensions."""
    return View(draft, tuple(AxisIndex(((a, 1),)) for a in draft.axes), tuple(dims))


class Axes:
    """Makes axes, with the splits that earlier attempts have found necessary."""

    def __init__(self, splits: dict[Hashable, tuple[int, ...]]) -> None:
        self.splits = splits

    def make(self, size: int, origin: Hashable) -> Dim:
        """The axes of a dimension; `origin` names it, the same in every attempt."""
        if size == 1:
            return ()
        if origin not in self.splits:
            return (Axis(size, origin),)
        made: list[Axis] = []
        for k, part in enumerate(self.splits[origin]):
            made += self.make(part, (origin, k))
        return tuple(made)

    def split(self, axis: Axis, sizes: Sequence[int]) -> None:
        """Begin again with this axis, and all in its class, taken apart.

        Raises:
            Resplit: always, except where the class cannot be split.
            Unsupported: in that case.
        """
        origins = axis.root.origins
        if not origins or None in origins:
            raise Unsupported("a dimension is reshaped that operators before it have cut or joined")
        for origin in origins:
            self.splits[origin] = tuple(sizes)
        raise Resplit

    def unify(self, *dims: Dim) -> Dim:
        """Say that dimensions are walked together; returns their axes. Dimensions of size 1 broadcast."""
        wide = [d for d in dims if d]
        if not wide:
            return ()
        first = wide[0]
        for other in wide[1:]:
            self._aligned(first, other)
            for a, b in zip(first, other, strict=True):
                a.unify(b)
        return first

    def _aligned(self, one: Dim, two: Dim) -> None:
        """Split what must be split for two dimensions to have axes of the same sizes."""
        for a, b in zip(one, two, strict=False):
            if a.size == b.size:
                continue
            large, small = (a, b) if a.size > b.size else (b, a)
            if large.size % small.size:
                raise Unsupported(f"dimensions are split as {[x.size for x in one]} and as {[x.size for x in two]}")
            self.split(large, (small.size, large.size // small.size))
        if len(one) != len(two):
            raise Unsupported("tensors of different sizes are combined")

    def regroup(self, leaves: Sequence[Axis], shape: Sequence[int]) -> list[Dim]:
        """The dimensions of a reshaped tensor, from its axes in order."""
        found: list[Dim] = []
        rest = list(leaves)
        for size in shape:
            taken: list[Axis] = []
            missing = size
            while missing > 1:
                if not rest:
                    raise Unsupported("a reshape changes the number of elements")
                if missing % rest[0].size == 0:
                    missing //= rest[0].size
                    taken.append(rest.pop(0))
                elif rest[0].size % missing == 0:
                    self.split(rest[0], (missing, rest[0].size // missing))
                else:
                    raise Unsupported(f"a reshape to {tuple(shape)} interleaves dimensions")
            found.append(tuple(taken))
        return found
