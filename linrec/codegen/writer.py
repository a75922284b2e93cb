"""Writes the scheduled work of one step, for one chunk of lanes: nests of loops over inner dimensions, in which every
value is computed at the shallowest loop that it depends on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from linrec.codegen import elements
from linrec.codegen.llvm import Builder, Loop, Val, size_of
from linrec.codegen.program import Access, Index, Node
from linrec.codegen.schedule import Nest, Schedule, Statement, Store

_ACCUMULATORS = 16
"""How many sums are kept in registers at a time."""


@dataclass(frozen=True)
class Place:
    """A value of an index: ``offset + sum(scale * counter)``, counters numbered by the depth of their loops."""

    terms: tuple[tuple[int, int], ...] = ()
    offset: int = 0

    @property
    def level(self) -> int:
        """How many loops it is in."""
        return max((depth + 1 for depth, _ in self.terms), default=0)


def place_of(index: Index, positions: Sequence[Place]) -> Place:
    """An index where the positions are somewhere."""
    offset, scales = index.offset, dict[int, int]()
    for p, scale in index.terms:
        offset += scale * positions[p].offset
        for depth, s in positions[p].terms:
            scales[depth] = scales.get(depth, 0) + scale * s
    return Place(tuple(sorted((d, s) for d, s in scales.items() if s)), offset)


class Source(Protocol):
    """Where an input's elements are."""

    def load(self, w: StepWriter, node: Node, places: Sequence[Place]) -> Val:
        """An element."""
        ...


class Target(Protocol):
    """Where a stored value goes."""

    def store(self, w: StepWriter, dtype: torch.dtype, places: Sequence[Place], value: Val) -> None:
        """Store an element."""
        ...


@dataclass
class Array:
    """Memory for a node: all its elements, each of one number or one for each lane."""

    pointer: Val
    kind: str
    wide: bool


@dataclass
class StepWriter:
    """Writes one step.

    Attributes:
        b: where to.
        plan: the work.
        sources: where inputs are, by key.
        targets: where stores go, by key.
        arrays: the memory of kept nodes.
        simd: the lane along which values are wide.
    """

    b: Builder
    plan: Schedule
    sources: Mapping[Any, Source]
    targets: Mapping[Any, Target]
    arrays: dict[Node, Array]
    simd: int | None
    loops: list[Loop] = field(default_factory=list)
    _known: list[dict[Any, Val]] = field(default_factory=lambda: [{}])
    _scalars: dict[Node, Val] = field(default_factory=dict)

    def wide(self, node: Node) -> bool:
        """Whether a node's elements differ from lane to lane of a vector."""
        return self.simd in node.lanes and self.b.width > 1

    def run(self) -> None:
        """Write all nests."""
        for nest in self.plan.nests:
            self._nest(nest)

    def at_level(self, level: int, key: Any, make: Callable[[], Val]) -> Val:
        """A value that depends on the first `level` loops, computed once inside of them."""
        known = self._known[level]
        if key not in known:
            if level < len(self.loops):
                with self.b.within(self.loops[level].hoist):
                    known[key] = make()
            else:
                known[key] = make()
        return known[key]

    def number(self, place: Place) -> Val:
        """The value of an index."""

        def make() -> Val:
            b, total = self.b, self.b.integer(place.offset)
            for depth, scale in place.terms:
                total = b.add(b.mul(self.loops[depth].index, b.integer(scale)), total)
            return total

        return self.at_level(place.level, place, make)

    def offset(self, places: Sequence[Place], strides: Sequence[int | Val]) -> tuple[Val, int]:
        """The sum of indices times strides, and the level of loops that it is at."""
        fixed: dict[int, int] = {}
        base = 0
        moving: list[tuple[Place, Val]] = []
        for place, stride in zip(places, strides, strict=True):
            if isinstance(stride, int):
                base += place.offset * stride
                for depth, scale in place.terms:
                    fixed[depth] = fixed.get(depth, 0) + scale * stride
            else:
                moving.append((place, stride))
        flat = Place(tuple(sorted((d, s) for d, s in fixed.items() if s)), base)
        total, level = self.number(flat), flat.level
        for place, stride in moving:
            if place == Place():
                continue
            index, at = self.number(place), max(level, place.level)

            def make(index: Val = index, stride: Val = stride, total: Val = total) -> Val:
                return self.b.add(self.b.mul(index, stride), total)

            total = self.at_level(at, ("offset", index, stride, total), make)
            level = at
        return total, level

    def value(self, access: Access, positions: Sequence[Place]) -> Val:
        """An element."""
        return self._element(access.node, tuple(place_of(i, positions) for i in access.index))

    def _element(self, node: Node, places: tuple[Place, ...]) -> Val:
        if node in self._scalars:
            return self._scalars[node]
        level = max((p.level for p in places), default=0)
        key = (node, places)
        if key not in self._known[level]:
            made = self._made(node, places, level)
            self._known[level][key] = made
        return self._known[level][key]

    def _made(self, node: Node, places: tuple[Place, ...], level: int) -> Val:
        b = self.b
        if node.op == "literal":
            return b.number(node.attr, elements.KINDS[node.dtype])
        if node.op == "iota":
            return self.number(places[0])
        if node in self.arrays:
            return self._load(self.arrays[node], node, places, level)
        return self._computed(node, places)

    def _computed(self, node: Node, places: tuple[Place, ...]) -> Val:
        """An element of an input, from where that is, or of a map."""
        if node.op == "input":
            return self.sources[node.attr].load(self, node, places)
        assert node.op == "map", node
        args = [self.value(a, places) for a in node.args]
        dtypes = [a.node.dtype for a in node.args]
        level = max((p.level for p in places), default=0)
        if level < len(self.loops):
            with self.b.within(self.loops[level].hoist):
                return elements.emit(self.b, node.attr, args, dtypes, node.dtype)
        return elements.emit(self.b, node.attr, args, dtypes, node.dtype)

    def element_pointer(self, array: Array, shape: Sequence[int], places: Sequence[Place]) -> Val:
        """The address of an element of an array."""
        flat, level = self.offset(places, row_major(shape))
        b = self.b
        scale = b.width if array.wide else 1
        return self.at_level(
            level,
            ("pointer", array.pointer, flat),
            lambda: b.element(array.pointer, b.mul(flat, b.integer(scale)), array.kind),
        )

    def _load(self, array: Array, node: Node, places: Sequence[Place], level: int) -> Val:
        pointer = self.element_pointer(array, node.shape, places)

        def make() -> Val:
            found = self.b.load(pointer, array.kind, array.wide and self.wide(node))
            if node.dtype is torch.bool:
                return self.b.compare("icmp ne", found, self.b.number(0, "i8"))
            return found

        return self.at_level(level, ("load", node, tuple(places)), make)

    def keep(self, array: Array, node: Node, places: Sequence[Place], value: Val) -> None:
        """Store an element of an array, inside all loops."""
        if node.dtype is torch.bool:
            value = self.b.convert("zext", value, "i8")
        if array.wide:
            value = self.b.widen(value)
        self.b.store(value, self.element_pointer(array, node.shape, places))

    def _nest(self, nest: Nest) -> None:
        """Write a nest; its innermost kept loop in groups of iterations where sums are made, so that several of them
        are under way at a time, or, where there is none, its innermost summed loop."""
        sizes = nest.kept + nest.red
        sums = [s for s in nest.statements if s.kind == "reduce"]
        if not sums:
            self._loops(nest, [(0, s) for s in sizes], None, 1, {})
            return
        at = len(nest.kept) - 1 if nest.kept else len(sizes) - 1
        group = max(1, min(8 if nest.kept else 4, _ACCUMULATORS // len(sums), sizes[at]))
        found: dict[tuple[int, int], Val] = {}
        for start, stop, step in _spans(sizes[at], group):
            spans = [(0, s) for s in sizes]
            spans[at] = (start, stop)
            found |= self._loops(nest, spans, at, step, found)
        if not nest.kept:
            for k, s in enumerate(sums):
                first, *rest = [v for (which, _), v in found.items() if which == k]
                for other in rest:
                    first = self._joined(s.node, first, other)
                self._scalars[s.node] = first

    def _loops(
        self,
        nest: Nest,
        spans: Sequence[tuple[int, int]],
        grouped: int | None,
        group: int,
        found: dict[tuple[int, int], Val],
    ) -> dict[tuple[int, int], Val]:
        """Write the loops of a nest over spans of their counters, `group` iterations of one of them at a time. Returns
        the sums by number and iteration; where nothing is kept they go on from those found before."""
        sums = [s for s in nest.statements if s.kind == "reduce"]
        keys = [(k, u) for u in range(group) for k in range(len(sums))]
        kept = len(nest.kept)
        before = {} if nest.kept else found
        carried: list[Val] = []
        opened: list[AbstractContextManager[Loop]] = []
        for depth, (start, stop) in enumerate(spans):
            if depth == kept:
                carried = [before[key] if key in before else self._start(sums[key[0]].node) for key in keys]
            step = group if depth == grouped else 1
            manager = self.b.loop(self.b.integer(stop), self.b.integer(start), step, carried if depth >= kept else ())
            self.loops.append(manager.__enter__())
            self._known.append({})
            opened.append(manager)
            if depth >= kept:
                carried = self.loops[-1].carried
        values = dict(zip(keys, carried, strict=True))
        for u in range(group):
            places = [Place(((d, 1),), u if d == grouped else 0) for d in range(len(spans))]
            number = 0
            for s in nest.statements:
                own = [places[q] for q in s.order]
                if s.kind == "reduce":
                    values[number, u] = self._joined(s.node, values[number, u], self.value(s.reads[0], own))
                    number += 1
                else:
                    self._statement(s, own)
        # Leave the summed loops, handing the sums on, and then write them.
        handed = [values[key] for key in keys]
        while len(opened) > kept:
            self.loops[-1].handed = handed
            handed = self._leave(opened).results
        for key, total in zip(keys, handed, strict=True) if nest.kept else ():
            s = sums[key[0]]
            places = [Place(((d, 1),), key[1] if d == grouped else 0) for d in range(kept)]
            self.keep(self.arrays[s.node], s.node, [places[q] for q in s.order[:kept]], total)
        while opened:
            self._leave(opened)
        return dict(zip(keys, handed, strict=True))

    def _leave(self, opened: list[AbstractContextManager[Loop]]) -> Loop:
        """Close the innermost loop."""
        opened.pop().__exit__(None, None, None)
        self._known.pop()
        return self.loops.pop()

    def _statement(self, s: Statement, places: Sequence[Place]) -> None:
        if isinstance(s.what, Store):
            access = s.what.access
            self.targets[s.what.target].store(self, access.node.dtype, places, self.value(access, places))
            return
        node = s.what
        array = self.arrays[node]
        if s.kind == "array":
            # The node itself is looked up in its array: compute it by its function.
            level = max((p.level for p in places), default=0)
            value = self._known[level].get((node, tuple(places)))
            if value is None:
                value = self._computed(node, tuple(places))
                self._known[level][node, tuple(places)] = value
            self.keep(array, node, places, value)
            return
        if s.kind == "zero":
            self.keep(array, node, places, self.b.number(0, elements.KINDS[node.dtype]))
            return
        where = [place_of(i, places) for i in node.attr[s.piece][1]]
        value = self.value(s.reads[0], places)
        if s.kind == "add":
            pointer = self.element_pointer(array, node.shape, where)
            value = elements.emit(
                self.b, ("add",), [self.b.load(pointer, array.kind, array.wide), value], [node.dtype] * 2, node.dtype
            )
        self.keep(array, node, where, value)

    def _start(self, node: Node) -> Val:
        kind = elements.KINDS[node.dtype]
        if node.attr == "sum":
            first = self.b.number(0, kind)
        elif kind in ("float", "double"):
            first = self.b.number(-math.inf if node.attr == "max" else math.inf, kind)
        else:
            info = torch.iinfo(node.dtype)
            first = self.b.number(info.min if node.attr == "max" else info.max, kind)
        return self.b.widen(first) if self.wide(node) else first

    def _joined(self, node: Node, x: Val, y: Val) -> Val:
        name = "add" if node.attr == "sum" else node.attr
        return elements.emit(self.b, (name,), [x, y], [node.dtype] * 2, node.dtype)


def row_major(shape: Sequence[int]) -> list[int]:
    """Strides of an array in memory, row by row."""
    strides, size = [], 1
    for s in reversed(shape):
        strides.append(size)
        size *= s
    return strides[::-1]


def _spans(size: int, group: int) -> Iterator[tuple[int, int, int]]:
    """Cut a loop into groups of iterations: a divisor of its size if one is near, or groups and a rest."""
    best = max(g for g in range(1, group + 1) if size % g == 0)
    if best * 2 >= group:
        yield 0, size, best
        return
    whole = size - size % group
    if whole:
        yield 0, whole, group
    if whole < size:
        yield whole, size, 1


def array_bytes(node: Node, width: int, wide: bool) -> int:
    """The memory that an array takes."""
    kind = elements.KINDS[node.dtype]
    return math.prod(node.shape) * size_of(kind) * (width if wide else 1)
