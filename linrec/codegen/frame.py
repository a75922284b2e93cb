"""What forward and backward kernels share: the workers that take blocks of lanes, the blocks' chunks, and the memory
that a worker needs for itself."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linrec.codegen import elements
from linrec.codegen.llvm import METADATA, Builder, Val, size_of
from linrec.codegen.memory import Chunk, Form, Memory, Row, Slot, Table, stored_kind
from linrec.codegen.program import Node
from linrec.codegen.schedule import Schedule
from linrec.codegen.writer import Array, Source, StepWriter, Target, array_bytes

_LINE = 64
_ON_STACK = 8192


def padded(size: int) -> int:
    """Bytes rounded up to whole cache lines."""
    return -(-size // _LINE) * _LINE


@dataclass
class Kernel:
    """A kernel's text and how to call it.

    Attributes:
        text: a module with one function, named ``kernel``.
        form: what it is specialised for.
        slots: the tensors of its table, in order.
        fixed, per_chunk, per_step: bytes of a worker's memory: in any case, for each chunk of a block, and for each
            chunk at each step of a segment.
        state: bytes of a checkpoint for each chunk.
    """

    text: str
    form: Form
    slots: list[Slot]
    fixed: int
    per_chunk: int
    per_step: int
    state: int = 0


class Layout:
    """Arranges a worker's memory before the kernel is written."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.fixed = _LINE * 2  # what nobody reads
        self.per_chunk = 0

    def array(self, dtype: torch.dtype, shape: Sequence[int]) -> int:
        """An array that there is once; its offset."""
        at = self.fixed
        self.fixed += padded(math.prod(shape) * self.width * size_of(elements.KINDS[dtype]))
        return at

    def group(self, members: Sequence[tuple[torch.dtype, Sequence[int]]]) -> tuple[int, list[int]]:
        """Arrays that there are together for each chunk: their size, and each one's offset."""
        offsets, size = [], 0
        for dtype, shape in members:
            offsets.append(size)
            size += padded(math.prod(shape) * self.width * size_of(elements.KINDS[dtype]))
        return size, offsets

    def for_chunks(self, size: int) -> int:
        """Place such a group; its offset, for each chunk."""
        at = self.per_chunk
        self.per_chunk += size
        return at


class Frame:
    """Writes a kernel.

    Attributes:
        b: the builder.
        t: the table.
    """

    def __init__(self, form: Form, slots: Sequence[Slot], layout: Layout, plans: Sequence[Schedule]) -> None:
        self.form = form
        self.slots = list(slots)
        self.b = Builder(form.width, itertools.count())
        self.simd = form.simd
        self.layout = layout
        need = max((self._temporary(p) for p in plans), default=0)
        self._temps: int | None = None
        self._stack: Val | None = None
        if need > _ON_STACK:
            self._temps = layout.fixed
            layout.fixed += padded(need)
        self.t = Table(self.b, form, slots)
        if need and self._temps is None:
            self._stack = self.b.set("ptr", False, f"alloca i8, i64 {need}, align {_LINE}")
        self.lane_at: dict[int, Val] = {}
        self._only: dict[frozenset[int], Val] = {}
        self.base: dict[Slot, Val] = {}

    def wide(self, node: Node) -> bool:
        """Whether a node's elements differ from lane to lane of a vector."""
        return self.simd in node.lanes and self.form.width > 1

    def _temporary(self, plan: Schedule) -> int:
        return sum(padded(array_bytes(n, self.form.width, self.wide(n))) for n in plan.arrays)

    def text(self) -> str:
        """The module."""
        body = ["define void @kernel(ptr %table) #0 {", "entry:", *self.b.entry.lines(), "ret void", "}"]
        bits = "512" if self.form.width > 1 else "256"
        attributes = f'attributes #0 = {{ nounwind "prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" }}'
        return "\n".join([*self.b.needed, *body, attributes, METADATA, ""])

    def done(self, per_step: int = 0, state: int = 0) -> Kernel:
        """The finished kernel."""
        return Kernel(self.text(), self.form, self.slots, self.layout.fixed, self.layout.per_chunk, per_step, state)

    @contextlib.contextmanager
    def worker(self) -> Iterator[Val]:
        """For each worker that this call can get hold of: its number."""
        b = self.b
        head, inside, after = (b.fresh(n) for n in ("worker", "work", "idle"))
        b.emit(f"br label %{head}")
        b.emit(f"{head}:")
        number = b.set("i64", False, "atomicrmw add ptr %table, i64 1 monotonic")
        going = b.compare("icmp slt", number, self.t.head["workers"])
        b.emit(f"br i1 {going.text}, label %{inside}, label %{after}")
        b.emit(f"{inside}:")
        self.number = number
        self.memory = self.byte(self._absolute("workspace"), b.mul(number, self.t.head["workspace_bytes"]))
        yield number
        if any(slot.along == "streamed" for slot in self.slots):
            b.fence()
        b.emit(f"br label %{head}")
        b.emit(f"{after}:")

    def _absolute(self, name: str) -> Val:
        return self.b.set("ptr", False, f"inttoptr i64 {self.t.head[name].text} to ptr")

    def byte(self, pointer: Val, offset: Val) -> Val:
        """An address some bytes further on."""
        return self.b.element(pointer, offset, "i8")

    @contextlib.contextmanager
    def blocks(self) -> Iterator[Val]:
        """For each block of the worker: its number. Sets where each tensor begins for it."""
        b, head = self.b, self.t.head
        with b.loop(head["blocks"], self.number, head["workers"]) as loop:
            part = b.op("srem", loop.index, head["lane_blocks"])
            rest = b.op("sdiv", loop.index, head["lane_blocks"])
            most = b.mul(head["chunks"], b.integer(self.form.width))
            first = b.mul(part, most)
            for lane in reversed(range(self.form.lanes)):
                if lane != self.simd:
                    self.lane_at[lane] = b.op("srem", rest, self.t.sizes[lane])
                    rest = b.op("sdiv", rest, self.t.sizes[lane])
            left = b.op("sub", head["lanes"], first)
            self.count = b.select(b.compare("icmp slt", left, most), left, most)
            self.chunk_count = b.op(
                "sdiv", b.add(self.count, b.integer(self.form.width - 1)), b.integer(self.form.width)
            )
            self.leading = b.compare("icmp eq", part, b.integer(0))
            self._only = {}
            for slot in self.slots:
                offset = b.integer(0)
                if slot.partial:
                    offset = b.mul(self.number, self.t.worker[slot])
                for lane, stride in self.t.lane[slot].items():
                    at = first if lane == self.simd else self.lane_at[lane]
                    offset = b.add(offset, b.mul(at, stride))
                self.base[slot] = b.element(self.t.pointer[slot], offset, stored_kind(slot.dtype))
            for slot in self.slots:
                self.only(slot)
            yield loop.index

    def only(self, slot: Slot) -> Val | None:
        """Whether this block is the first along the lanes, other than the vectors', that a tensor does not have."""
        missing = frozenset(self.lane_at) - set(slot.lanes)
        if not missing:
            return None
        if missing not in self._only:
            b = self.b
            flag = b.number(True, "i1")
            for lane in sorted(missing):
                flag = b.op("and", flag, b.compare("icmp eq", self.lane_at[lane], b.integer(0)))
            self._only[missing] = flag
        return self._only[missing]

    def at_step(self, slot: Slot, step: Val | None) -> Val:
        """Where a tensor's part for a step begins, or, without a step, all of it."""
        if step is None or not slot.timed:
            return self.base[slot]
        return self.b.element(self.base[slot], self.b.mul(step, self.t.time[slot]), stored_kind(slot.dtype))

    def row(self, slot: Slot, step: Val | None, chunk: Chunk, accumulate: bool = False) -> Row:
        """A tensor's part for a step."""
        # A worker's own sums take something from every block.
        missing = self.simd is not None and self.simd not in slot.lanes and not slot.partial
        along = self.t.lane[slot].get(self.simd) if self.simd is not None else None
        pointer = self.at_step(slot, step)
        only = None if slot.partial else self.only(slot)
        return Row(slot, pointer, along, self.t.inner[slot], chunk, only, missing, accumulate)

    def dummy(self) -> Val:
        """Memory that nobody reads."""
        return self.memory

    def array(self, offset: int, dtype: torch.dtype) -> Array:
        """An array that there is once."""
        return Array(self.byte(self.memory, self.b.integer(offset)), _array_kind(dtype), self.form.width > 1)

    def region(self, offset: int) -> Val:
        """Where a group of arrays, one for each chunk, begins."""
        at = self.b.add(self.b.integer(self.layout.fixed), self.b.mul(self.t.head["chunks"], self.b.integer(offset)))
        return self.byte(self.memory, at)

    @contextlib.contextmanager
    def chunks(self, descending: bool = False) -> Iterator[Chunk]:
        """For each chunk of the block, by ascending or descending addresses. Its number is `self.chunk_number`.

        Where steps are taken from the last to the first, what is read goes down in memory as a whole if the chunks of a
        step do, too: the processor tells by that what will be wanted next.
        """
        b = self.b
        with b.loop(self.chunk_count) as loop:
            self.chunk_number = loop.index
            if descending:
                self.chunk_number = b.op("sub", b.op("sub", self.chunk_count, b.integer(1)), loop.index)
            yield self._chunk(b.mul(self.chunk_number, b.integer(self.form.width)))

    def no_chunk(self) -> Chunk:
        """For what is done once for a block."""
        return Chunk(self.b.integer(0), self.count, None, self.leading, self.dummy())

    def _chunk(self, start: Val) -> Chunk:
        b = self.b
        mask = None
        if self.form.masked and self.form.width > 1:
            lanes = b.op("add", b.widen(start), b.lanes())
            mask = b.compare("icmp slt", lanes, b.widen(self.count))
        first = b.op("and", self.leading, b.compare("icmp eq", start, b.integer(0)))
        return Chunk(start, self.count, mask, first, self.dummy())

    def member(self, region: Val, stride: int, offset: int, dtype: torch.dtype, shape: Sequence[int]) -> Memory:
        """This chunk's array in a group."""
        at = self.b.add(self.b.mul(self.chunk_number, self.b.integer(stride)), self.b.integer(offset))
        return Memory(Array(self.byte(region, at), _array_kind(dtype), self.form.width > 1), tuple(shape))

    def write(self, plan: Schedule, sources: Mapping[Any, Source], targets: Mapping[Any, Target]) -> None:
        """Write the work of a chunk."""
        arrays: dict[Node, Array] = {}
        at = 0
        for node in plan.arrays:
            if self._stack is not None:
                pointer = self.byte(self._stack, self.b.integer(at))
            else:
                assert self._temps is not None
                pointer = self.byte(self.memory, self.b.integer(self._temps + at))
            arrays[node] = Array(pointer, _array_kind(node.dtype), self.wide(node))
            at += padded(array_bytes(node, self.form.width, self.wide(node)))
        StepWriter(self.b, plan, sources, targets, arrays, self.simd).run()

    def clear(self, pointer: Val, size: Val) -> None:
        """Fill memory with zeros."""
        self.b.needed["declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"] = None
        self.b.emit(f"call void @llvm.memset.p0.i64(ptr {pointer.text}, i8 0, i64 {size.text}, i1 false)")

    def copy(self, target: Val, source: Val, size: Val) -> None:
        """Copy memory."""
        self.b.needed["declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"] = None
        self.b.emit(
            f"call void @llvm.memcpy.p0.p0.i64(ptr {target.text}, ptr {source.text}, i64 {size.text}, i1 false)"
        )

    def least(self, x: Val, y: Val) -> Val:
        """The smaller of two integers."""
        return self.b.select(self.b.compare("icmp slt", x, y), x, y)


def _array_kind(dtype: torch.dtype) -> str:
    kind = elements.KINDS[dtype]
    return "i8" if kind == "i1" else kind
