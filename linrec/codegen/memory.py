"""How a kernel reaches memory: the table of addresses and strides that it is called with, elements of tensors of any
strides for all lanes of a chunk, and its own arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linrec.codegen import elements
from linrec.codegen.llvm import Builder, Val
from linrec.codegen.program import Node
from linrec.codegen.writer import Array, Place, StepWriter

HEADER = (
    "ticket",  # counts the workers that have begun
    "workers",
    "blocks",
    "chunks",  # of a block: so many vectors of lanes
    "lanes",  # along the vectors
    "lane_blocks",
    "steps",
    "segment",  # steps between two checkpoints
    "segments",
    "workspace",
    "workspace_bytes",
    "checkpoints",
)
"""What the table begins with."""

_STORED = {torch.bfloat16: "i16", torch.float16: "half", torch.bool: "i8"}


def stored_kind(dtype: torch.dtype) -> str:
    """The kind of a number of a dtype in memory."""
    return _STORED.get(dtype, elements.KINDS[dtype])


@dataclass(frozen=True)
class Slot:
    """A tensor's place in the table: its address, then strides in elements.

    Attributes:
        name: what the launcher knows it by.
        dtype: of its elements.
        lanes: those it has, in order; the strides of all but the vectors' are used per block.
        rank: number of inner dimensions.
        timed: whether it has a time stride.
        partial: whether each worker has one of its own, so that there is a stride from one to the next.
        along: its stride along the vectors: "unit", "strided", or "none" where it does not have that lane; "streamed"
            is "unit" with every vector at a multiple of its size, in memory that is not read again soon.
    """

    name: Any
    dtype: torch.dtype
    lanes: tuple[int, ...]
    rank: int
    timed: bool = False
    partial: bool = False
    along: str = "unit"

    @property
    def size(self) -> int:
        """Entries in the table."""
        return 1 + self.partial + self.timed + len(self.lanes) + self.rank


@dataclass(frozen=True)
class Form:
    """What a kernel is specialised for, besides its program.

    Attributes:
        width: lanes in a vector.
        simd: the lane along the vectors; None where there are no lanes.
        masked: whether a chunk may have fewer lanes than a vector.
        lanes: number of lanes of the program.
    """

    width: int
    simd: int | None
    masked: bool
    lanes: int


class Table:
    """Reads the table, at the beginning of a kernel."""

    def __init__(self, b: Builder, form: Form, slots: Sequence[Slot]) -> None:
        self.b = b
        self.head = {name: self._entry(i) for i, name in enumerate(HEADER) if name != "ticket"}
        at = len(HEADER)
        self.sizes = [self._entry(at + k) for k in range(form.lanes)]
        at += form.lanes
        self.pointer: dict[Slot, Val] = {}
        self.worker: dict[Slot, Val] = {}
        self.time: dict[Slot, Val] = {}
        self.lane: dict[Slot, dict[int, Val]] = {}
        self.inner: dict[Slot, list[Val]] = {}
        for slot in slots:
            entries = iter(range(at, at + slot.size))
            self.pointer[slot] = b.set("ptr", False, f"inttoptr i64 {self._entry(next(entries)).text} to ptr")
            if slot.partial:
                self.worker[slot] = self._entry(next(entries))
            if slot.timed:
                self.time[slot] = self._entry(next(entries))
            self.lane[slot] = {lane: self._entry(next(entries)) for lane in slot.lanes}
            self.inner[slot] = [self._entry(next(entries)) for _ in range(slot.rank)]
            at += slot.size

    def _entry(self, index: int) -> Val:
        return self.b.load(self.b.element(Val("%table", "ptr"), self.b.integer(index), "i64"), "i64")


@dataclass
class Chunk:
    """The lanes that are worked on at a time.

    Attributes:
        start: the first, counted from the block's first.
        count: the block's lanes.
        mask: the lanes that exist; None where all do.
        first: whether the lane along the vectors is at its beginning (in the vectors' first element).
        dummy: memory that nobody reads.
    """

    start: Val
    count: Val
    mask: Val | None
    first: Val
    dummy: Val


@dataclass
class Row:
    """One step's part of a tensor, for one block.

    Attributes:
        slot: the tensor.
        pointer: where the block's lanes of this step begin.
        along: the stride along the vectors.
        inner: strides of the inner dimensions.
        chunk: the chunk that is worked on.
        only: whether this block is the first one along all lanes that the tensor does not have (and that are not
            along the vectors); None where it has them all.
        missing: whether it does not have the lane along the vectors, though there is one.
    """

    slot: Slot
    pointer: Val
    along: Val | None
    inner: Sequence[Val]
    chunk: Chunk
    only: Val | None = None
    missing: bool = False
    accumulate: bool = False

    def load(self, w: StepWriter, node: Node, places: Sequence[Place]) -> Val:
        """An element of a tensor that is read; see `Seed` for one that counts only once."""
        b, kind = w.b, stored_kind(self.slot.dtype)
        if self.slot.along == "strided":
            base, level = self._element(w, places, self.pointer)
            return w.at_level(
                level, ("lanes", self.slot.name, base), lambda: self._decoded(b, self._gather(w, base, kind))
            )
        if self.slot.along == "none":
            base, level = self._element(w, places, self.pointer)
            return w.at_level(level, ("one", self.slot.name, base), lambda: self._decoded(b, b.load(base, kind)))
        base, level = self._element(w, places, self._shifted(w, kind))

        def make() -> Val:
            if self.chunk.mask is None or b.width == 1:
                return self._decoded(b, b.load(base, kind, True))
            return self._decoded(b, b.masked_load(base, kind, self.chunk.mask))

        return w.at_level(level, ("row", self.slot.name, base), make)

    def store(self, w: StepWriter, dtype: torch.dtype, places: Sequence[Place], value: Val) -> None:
        """Store an element, or add it to what is there."""
        b, kind = w.b, stored_kind(self.slot.dtype)
        if self.slot.along == "none":
            one = b.extract(value, 0)
            flag = self.only
            if self.missing:
                flag = self.chunk.first if flag is None else b.op("and", flag, self.chunk.first)
            base, _ = self._element(w, places, self.pointer)
            self._put(b, self._redirected(b, base, flag), one, kind)
            return
        if self.slot.along == "strided":
            base, _ = self._element(w, places, self.pointer)
            for lane, offset in enumerate(self._offsets(w)):
                target = b.element(base, offset, kind)
                if self.chunk.mask is not None:
                    target = self._redirected(b, target, b.extract(self.chunk.mask, lane))
                self._put(b, self._redirected(b, target, self.only), b.extract(value, lane), kind)
            return
        base, _ = self._element(w, places, self._shifted(w, kind))
        base = self._redirected(b, base, self.only)
        value = b.widen(value)
        if self.slot.along == "streamed" and not self.accumulate:
            b.stream(self._encoded(b, value), base)
            return
        if self.chunk.mask is None or b.width == 1:
            self._put(b, base, value, kind)
            return
        if self.accumulate:
            value = b.fadd(self._decoded(b, b.masked_load(base, kind, self.chunk.mask)), value)
        b.masked_store(self._encoded(b, value), base, self.chunk.mask)

    def _put(self, b: Builder, pointer: Val, value: Val, kind: str) -> None:
        if self.accumulate:
            value = b.fadd(self._decoded(b, b.load(pointer, kind, value.wide)), value)
        b.store(self._encoded(b, value), pointer)

    def _redirected(self, b: Builder, pointer: Val, flag: Val | None) -> Val:
        return pointer if flag is None else b.select(flag, pointer, self.chunk.dummy)

    def _shifted(self, w: StepWriter, kind: str) -> Val:
        return w.at_level(0, ("shifted", self.pointer), lambda: w.b.element(self.pointer, self.chunk.start, kind))

    def _element(self, w: StepWriter, places: Sequence[Place], pointer: Val) -> tuple[Val, int]:
        offset, level = w.offset(places, list(self.inner))
        kind = stored_kind(self.slot.dtype)
        found = w.at_level(level, ("address", pointer, offset), lambda: w.b.element(pointer, offset, kind))
        return found, level

    def _offsets(self, w: StepWriter) -> list[Val]:
        """For each lane of the chunk where it is, in elements; lanes that do not exist are where the last one is."""
        b, along = w.b, self.along
        assert along is not None

        def make(lane: int) -> Val:
            at = b.add(self.chunk.start, b.integer(lane))
            if self.chunk.mask is not None:
                last = b.op("sub", self.chunk.count, b.integer(1))
                at = b.select(b.compare("icmp slt", at, last), at, last)
            return b.mul(at, along)

        found = []
        for lane in range(b.width):
            found.append(w.at_level(0, ("lane", lane, along), functools.partial(make, lane)))
        return found

    def _gather(self, w: StepWriter, base: Val, kind: str) -> Val:
        b = w.b
        return b.from_lanes([b.load(b.element(base, offset, kind), kind) for offset in self._offsets(w)])

    def _decoded(self, b: Builder, value: Val) -> Val:
        if self.slot.dtype is torch.bool:
            return b.compare("icmp ne", value, b.number(0, "i8"))
        if self.slot.dtype is torch.bfloat16:
            return elements.from_bfloat16(b, value)
        return b.convert("fpext", value, "float") if self.slot.dtype is torch.float16 else value

    def _encoded(self, b: Builder, value: Val) -> Val:
        if self.slot.dtype is torch.bool:
            return b.convert("zext", value, "i8")
        if self.slot.dtype is torch.bfloat16:
            return elements.to_bfloat16(b, value)
        return b.convert("fptrunc", value, "half") if self.slot.dtype is torch.float16 else value


@dataclass
class Seed:
    """A derivative that comes in. Along lanes that the tensor does not have it counts only once, at their beginning."""

    row: Row

    def load(self, w: StepWriter, node: Node, places: Sequence[Place]) -> Val:
        """An element; 0 away from the beginning."""
        b, value = w.b, self.row.load(w, node, places)
        flag = self.row.only
        level = max((p.level for p in places), default=0)
        if not self.row.missing:
            if flag is None:
                return value
            own = flag
            return w.at_level(level, ("seed", value), lambda: b.select(own, value, b.number(0, value.kind)))

        def first() -> Val:
            beginning = self.row.chunk.first if flag is None else b.op("and", flag, self.row.chunk.first)
            one = b.select(beginning, value, b.number(0, value.kind))
            return b.insert(b.widen(b.number(0, value.kind)), one, 0)

        return w.at_level(level, ("seed", value), first)


@dataclass
class Memory:
    """An array of the kernel's own, as source and target."""

    array: Array
    shape: tuple[int, ...]
    accumulate: bool = False
    mask: Val | None = None

    def load(self, w: StepWriter, node: Node, places: Sequence[Place]) -> Val:
        """An element."""
        pointer = w.element_pointer(self.array, self.shape, places)
        level = max((p.level for p in places), default=0)

        def make() -> Val:
            found = w.b.load(pointer, self.array.kind, self.array.wide and w.wide(node))
            return w.b.compare("icmp ne", found, w.b.number(0, "i8")) if node.dtype is torch.bool else found

        return w.at_level(level, ("memory", pointer), make)

    def store(self, w: StepWriter, dtype: torch.dtype, places: Sequence[Place], value: Val) -> None:
        """Store an element, or add it to what is there."""
        b = w.b
        if dtype is torch.bool:
            value = b.convert("zext", value, "i8")
        value = b.widen(value) if self.array.wide else value
        pointer = w.element_pointer(self.array, self.shape, places)
        if self.accumulate:
            if self.mask is not None and b.width > 1:
                value = b.select(self.mask, value, b.number(0, value.kind))
            value = b.fadd(b.load(pointer, self.array.kind, value.wide), value)
        b.store(value, pointer)


@dataclass
class Lanewise:
    """A source whose elements are summed over the lanes of a vector as they are read."""

    inner: Memory

    def load(self, w: StepWriter, node: Node, places: Sequence[Place]) -> Val:
        """The sum of an element over the lanes."""
        pointer = w.element_pointer(self.inner.array, self.inner.shape, places)
        return w.b.sum_lanes(w.b.load(pointer, self.inner.array.kind, True))
