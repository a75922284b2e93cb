"""Writes the backward kernel: for each block of lanes a loop over time from the end, with the derivatives by the
states in the worker's memory, and, where states must be computed again, a loop forward over each segment before the
one back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from linrec.codegen.adjoint import Adjoint, Wanted, factor_operand, partial_dtype
from linrec.codegen.elements import KINDS
from linrec.codegen.frame import Frame, Kernel, Layout
from linrec.codegen.lanes import Operand
from linrec.codegen.llvm import Val
from linrec.codegen.memory import Chunk, Form, Lanewise, Memory, Row, Seed, Slot
from linrec.codegen.program import Node, ancestors
from linrec.codegen.schedule import Schedule, Store, schedule
from linrec.codegen.signature import Key, Signature
from linrec.codegen.writer import Source, Target


def backward_kernel(
    s: Signature,
    a: Adjoint,
    wanted: Wanted,
    form: Form,
    along: Mapping[Any, str],
    owned: frozenset[Key] = frozenset(),
) -> Kernel:
    """Write the backward kernel.

    Args:
        s, a, wanted: the step and its derivative.
        form: what to specialise for.
        along: for each tensor that has the lane along the vectors, its stride there. Tensors are named ("x", key),
            ("const", key), ("initial", key), ("stored", key) for a carry that was put out, ("grad", key) for the
            derivative by an output, ("grad_final", key) by a final state, ("change", key) for that by an input.
        owned: the inputs that lack no lane but that along the vectors, all of which a block has: what it sums is the
            derivative, and no other worker adds to it.
    """
    return _Backward(s, a, wanted, form, along, owned).run()


@dataclass
class _Lone:
    """Sums over the lanes of a block, made anew in every step: where they are, from which byte on, and how many."""

    arrays: dict[Key, int]
    at: int
    size: int


@dataclass
class _Group:
    """Arrays that there are together for each chunk."""

    size: int
    offsets: dict[Any, int]
    at: int = 0


class _Backward:
    def __init__(
        self,
        s: Signature,
        a: Adjoint,
        wanted: Wanted,
        form: Form,
        along: Mapping[Any, str],
        owned: frozenset[Key],
    ) -> None:
        self.s, self.a, self.wanted, self.form, self.along, self.owned = s, a, wanted, form, along, owned
        self.operands = {k: o for k, (o, _) in s.inputs.items()}
        self.stores = a.stores(s)
        self.again = a.recomputation(s)
        self.slots = self._slots()
        self._plans()
        layout = self._layout()
        self.f = Frame(form, list(self.slots.values()), layout, self.plans)

    def _changed(self, group: Mapping[Key, Any]) -> list[Key]:
        """The wanted inputs of a group that have a derivative."""
        return [k for k in group if k in self.wanted.inputs and self.a.changes.get(k) is not None]

    def _vectors(self, key: Key) -> bool:
        """Whether an operand has the lane along the vectors (or there is none)."""
        return self.form.simd is None or self.form.simd in self.operands[key].lanes

    def _slots(self) -> dict[Any, Slot]:
        s, a = self.s, self.a
        read = {n.attr for x in (*self.stores, *self.again) for n in ancestors([x.access.node]) if n.op == "input"}
        found: dict[Any, Slot] = {}

        def add(name: Any, operand: Operand, timed: bool = False, partial: bool = False) -> None:
            found[name] = s.slot(name, operand, self.form, self.along, timed, partial)

        for k, (o, _) in s.xs.items():
            if ("given", *k) in read:
                add(("x", k), o, timed=True)
        for k, (o, _) in s.consts.items():
            if ("given", *k) in read:
                add(("const", k), o)
        for k, (o, _) in s.ys.items():
            if ("grad", *k) in read:
                add(("grad", k), o, timed=True)
        for k, (o, _) in s.carries.items():
            if k in a.cotangents and k in self.wanted.finals:
                add(("grad_final", k), o)
            if a.reads_outputs and k in (*a.needed, *a.later):
                add(("stored", k), o, timed=True)
                if k in a.needed:
                    add(("initial", k), o)
        for i, node in enumerate(a.factors):
            add(("factor", i), self._series(node), timed=True)
        for group, timed in ((s.xs, True), (s.consts, False), (s.carries, False)):
            for k in self._changed(group):
                operand = self.operands[k]
                partial = len(operand.lanes) < self.form.lanes and k not in self.owned
                if partial:
                    operand = replace(operand, dtype=partial_dtype(operand.dtype))
                add(("change", k), operand, timed, partial)
        return found

    def _series(self, node: Node) -> Operand:
        return factor_operand(node, self.s.program.lanes)

    def _flushing(self, keys: list[Key], source: str) -> Schedule:
        """Move sums to where they belong."""
        graph = self.s.program.graph
        stores = []
        for k in keys:
            o = self.operands[k]
            lanes = o.lanes if source == "cot" or self._vectors(k) else o.lanes - {self.form.simd}
            node = graph.node("input", (source, *k), o.dtype, o.shape, lanes=lanes)
            stores.append(Store(("change", k), node.whole, o.shape))
        return schedule(stores)

    def _plans(self) -> None:
        s = self.s
        xs, consts, carries = (self._changed(g) for g in (s.xs, s.consts, s.carries))
        lone = [k for k in xs if not self._vectors(k)]
        self.lone_xs = [k for k in lone if ("change", k) not in self.a.ahead]
        self.lone_ahead = [k for k in lone if ("change", k) in self.a.ahead]
        self.wide_consts = [k for k in consts if self._vectors(k)]
        self.lone_consts = [k for k in consts if not self._vectors(k)]
        self.wide_carries = [k for k in carries if self._vectors(k)]
        self.lone_carries = [k for k in carries if not self._vectors(k)]
        graph, every = s.program.graph, frozenset(range(self.form.lanes))
        begin = []
        for k, node in self.a.cotangents.items():
            value: Node = graph.literal(0.0, node.dtype)
            if k in self.wanted.finals:
                value = graph.node("input", ("grad_final", *k), node.dtype, node.shape, lanes=every)
            begin.append(Store(("cot", k), value.whole, node.shape))
        self.begin = schedule(begin)
        strided = [name for name, slot in self.slots.items() if slot.along == "strided"]
        far = {("given", *key) for group, key in strided if group in ("x", "const", "stored")}
        far |= {("later", *key) for group, key in strided if group == "stored"}
        far |= {("grad", *key) for group, key in strided if group == "grad"}
        self.step = schedule(self.stores, far)
        self.forward = schedule(self.again, far)
        self.flush_xs = self._flushing([k for k in self.lone_xs if not self._in_vectors(k)], "sum")
        self.flush_ahead = self._flushing([k for k in self.lone_ahead if not self._in_vectors(k)], "sum")
        self.flush_wide = self._flushing(self.wide_consts, "sum")
        self.flush_lone = self._flushing(self.lone_consts, "sum")
        self.flush_carries = schedule(
            [
                Store(("change", k), self.a.cotangents[k].whole, self.operands[k].shape)
                for k in (*self.wide_carries, *self.lone_carries)
            ]
        )
        self.flush_lone_carries = self._flushing(self.lone_carries, "sum")
        self.plans = [self.begin, self.step, self.forward, self.flush_xs, self.flush_ahead, self.flush_wide]
        self.plans += [self.flush_lone, self.flush_carries, self.flush_lone_carries]

    def _layout(self) -> Layout:
        layout = Layout(self.form.width)

        def group(keys: Any, dtype_shape: Any) -> _Group:
            size, offsets = layout.group([dtype_shape(k) for k in keys])
            return _Group(size, dict(zip(keys, offsets, strict=True)))

        def operand(k: Key) -> Any:
            o = self.operands[k]
            return partial_dtype(o.dtype), o.shape

        def carry(k: Key) -> Any:
            return self.operands[k].dtype, self.operands[k].shape

        self.cots = group(list(self.a.cotangents), operand)
        self.cots.at = layout.for_chunks(self.cots.size)
        self.cots_after = layout.for_chunks(self.cots.size)
        self.sums = group(self.wide_consts, operand)
        self.sums.at = layout.for_chunks(self.sums.size)
        self.states = group(list(self.s.carries) if self.a.recomputed else [], carry)
        self.saved = group(list(self.a.saved), lambda name: (self.a.saved[name].dtype, self.a.saved[name].shape))
        if self.a.recomputed and not self.a.keeps_states:
            self.passing = layout.for_chunks(self.states.size), layout.for_chunks(self.states.size)
        self.lone = self._lone(layout, self.lone_xs, operand)
        self.ahead = self._lone(layout, self.lone_ahead, operand)
        self.kept_at = layout.fixed
        self.kept = {k: layout.array(*operand(k)) for k in (*self.lone_consts, *self.lone_carries)}
        self.kept_bytes = layout.fixed - self.kept_at
        return layout

    @staticmethod
    def _lone(layout: Layout, keys: list[Key], operand: Callable[[Key], Any]) -> _Lone:
        at = layout.fixed
        arrays = {k: layout.array(*operand(k)) for k in keys}
        return _Lone(arrays, at, layout.fixed - at)

    def run(self) -> Kernel:
        f, a, b = self.f, self.a, self.f.b
        head = f.t.head
        with f.worker(), f.blocks() as block:
            old, new = f.region(self.cots.at), f.region(self.cots_after)
            if self.kept_bytes:
                f.clear(f.byte(f.memory, b.integer(self.kept_at)), b.integer(self.kept_bytes))
            if self.sums.size:
                f.clear(f.region(self.sums.at), b.mul(f.chunk_count, b.integer(self.sums.size)))
            with f.chunks() as chunk:
                seeds: dict[Any, Source] = {
                    ("grad_final", *k): Seed(f.row(x, None, chunk))
                    for (g, k), x in self.slots.items()
                    if g == "grad_final"
                }
                f.write(self.begin, seeds, {("cot", k): m for k, m in self._members(self.cots, old).items()})
            if a.recomputed and not a.keeps_states:
                self._run_ahead(block)
            with b.loop(head["segments"], carried=[old, new]) as segment:
                number = b.op("sub", b.op("sub", head["segments"], b.integer(1)), segment.index)
                start = b.mul(number, head["segment"])
                stop = f.least(b.add(start, head["segment"]), head["steps"])
                states, saved = self._recompute(block, number, start, stop)
                with b.loop(b.op("sub", stop, start), carried=segment.carried) as time:
                    at = b.op("sub", b.op("sub", stop, b.integer(1)), time.index)
                    self._step(at, b.op("sub", at, start), states, saved, time.carried)
                    time.handed = [time.carried[1], time.carried[0]]
                segment.handed = time.results
            self._finish(segment.results[0])
        per_step = self.states.size + self.saved.size
        return f.done(per_step if a.keeps_states else 0, self.states.size)

    def _members(self, group: _Group, region: Val) -> dict[Any, Memory]:
        found = {}
        for k, offset in group.offsets.items():
            if k in self.a.saved:
                dtype, shape = self.a.saved[k].dtype, self.a.saved[k].shape
            else:
                dtype, shape = self.operands[k].dtype, self.operands[k].shape
            found[k] = self.f.member(region, group.size, offset, dtype, shape)
        return found

    def _given(self, chunk: Chunk, at: Val) -> dict[Any, Source]:
        found: dict[Any, Source] = {}
        for (group, k), slot in self.slots.items():
            if group in ("x", "const"):
                found |= {("given", *k): self.f.row(slot, at if group == "x" else None, chunk)}
        return found

    def _recompute(self, block: Val, number: Val, start: Val, stop: Val) -> tuple[Val, Val]:
        """Fill the segment's states, from its checkpoint; returns where they and what is kept beside them begin."""
        f, b, head = self.f, self.f.b, self.f.t.head
        if not self.a.keeps_states:
            return b.integer(0), b.integer(0)
        states = f.region(f.layout.per_chunk)
        row = b.mul(head["chunks"], b.integer(self.states.size))
        saved = f.byte(states, b.mul(b.add(head["segment"], b.integer(1)), row))
        self._from_checkpoint(states, block, number)
        with b.loop(b.op("sub", stop, start)) as time:
            before = f.byte(states, b.mul(time.index, row))
            kept = f.byte(saved, b.mul(time.index, b.mul(head["chunks"], b.integer(self.saved.size))))
            self._again(b.add(start, time.index), before, f.byte(before, row), kept)
        return states, saved

    def _run_ahead(self, block: Val) -> None:
        """Go through all steps, from the first checkpoint, without keeping their states."""
        f, b = self.f, self.f.b
        old, new = (f.region(at) for at in self.passing)
        self._from_checkpoint(old, block, b.integer(0))
        with b.loop(f.t.head["steps"], carried=[old, new]) as time:
            before, after = time.carried
            self._again(time.index, before, after, None)
            time.handed = [after, before]

    def _from_checkpoint(self, states: Val, block: Val, number: Val) -> None:
        f, b, head = self.f, self.f.b, self.f.t.head
        row = b.mul(head["chunks"], b.integer(self.states.size))
        place = b.mul(b.add(b.mul(block, head["segments"]), number), row)
        f.copy(states, f.byte(f._absolute("checkpoints"), place), b.mul(f.chunk_count, b.integer(self.states.size)))

    def _again(self, at: Val, before: Val, after: Val, kept: Val | None) -> None:
        """Compute the states after a step again, and what is made on the way."""
        f = self.f
        self._clear(self.ahead)
        with f.chunks() as chunk:
            sources = self._given(chunk, at) | self._seeds(chunk, at)
            sources |= {("given", *k): m for k, m in self._members(self.states, before).items()}
            targets = self._targets(chunk, at, self.ahead)
            targets |= {("state", k): m for k, m in self._members(self.states, after).items()}
            if kept is not None:
                targets |= self._members(self.saved, kept)
            f.write(self.forward, sources, targets)
        self._flush_steps(self.ahead, self.flush_ahead, at)

    def _seeds(self, chunk: Chunk, at: Val) -> dict[Any, Source]:
        """The derivatives by the outputs of a step."""
        grads = {k: slot for (group, k), slot in self.slots.items() if group == "grad"}
        return {("grad", *k): Seed(self.f.row(slot, at, chunk)) for k, slot in grads.items()}

    def _targets(self, chunk: Chunk, at: Val, lone: _Lone) -> dict[Any, Target]:
        """Where derivatives and factors of a step go, by the names of their stores."""
        f = self.f
        targets: dict[Any, Target] = {}
        for k, m in self._members(self.sums, f.region(self.sums.at)).items():
            targets["change", k] = replace(m, accumulate=True)
        for k, offset in {**lone.arrays, **self.kept}.items():
            if k not in self.s.carries:
                targets["change", k] = self._sum(k, offset, chunk)
        for k in self._changed(self.s.xs):
            slot = self.slots["change", k]
            targets.setdefault(("change", k), f.row(slot, at, chunk, accumulate=slot.partial))
        return targets | {name: f.row(x, at, chunk) for name, x in self.slots.items() if name[0] == "factor"}

    def _clear(self, lone: _Lone) -> None:
        f, b = self.f, self.f.b
        if lone.size:
            f.clear(f.byte(f.memory, b.integer(lone.at)), b.integer(lone.size))

    def _flush_steps(self, lone: _Lone, plan: Schedule, at: Val) -> None:
        """Add the sums of a step to where they belong."""
        self._flush(plan, {k: x for k, x in lone.arrays.items() if not self._in_vectors(k)}, at)
        for k, offset in lone.arrays.items():
            if self._in_vectors(k):
                self._flush_vectors(k, offset, at)

    def _previous(self, k: Key, at: Val, chunk: Chunk) -> Row:
        """A state before a step: that put out one step earlier, or the initial one."""
        f, b = self.f, self.f.b
        later = f.row(self.slots["stored", k], b.op("sub", at, b.integer(1)), chunk)
        first = f.row(self.slots["initial", k], None, chunk)
        begun = b.compare("icmp sgt", at, b.integer(0))
        inner = [b.select(begun, x, y) for x, y in zip(later.inner, first.inner, strict=True)]
        along = later.along
        if along is not None and first.along is not None:
            along = b.select(begun, along, first.along)
        return replace(later, pointer=b.select(begun, later.pointer, first.pointer), inner=inner, along=along)

    def _step(self, at: Val, inside: Val, states: Val, saved: Val, cots: list[Val]) -> None:
        f, b, a, head = self.f, self.f.b, self.a, self.f.t.head
        self._clear(self.lone)
        regions = None
        if a.keeps_states:
            row = b.mul(head["chunks"], b.integer(self.states.size))
            before = f.byte(states, b.mul(inside, row))
            kept = f.byte(saved, b.mul(inside, b.mul(head["chunks"], b.integer(self.saved.size))))
            regions = before, f.byte(before, row), kept
        with f.chunks(descending=True) as chunk:
            sources = self._given(chunk, at) | self._seeds(chunk, at)
            sources |= {("cot", *k): m for k, m in self._members(self.cots, cots[0]).items()}
            if regions is not None:
                sources |= {("given", *k): m for k, m in self._members(self.states, regions[0]).items()}
                sources |= {("later", *k): m for k, m in self._members(self.states, regions[1]).items()}
                sources |= self._members(self.saved, regions[2])
            elif a.reads_outputs:
                sources |= {("given", *k): self._previous(k, at, chunk) for k in a.needed}
                sources |= {("later", *k): f.row(self.slots["stored", k], at, chunk) for k in a.later}
            targets = self._targets(chunk, at, self.lone)
            targets |= {("cot", k): m for k, m in self._members(self.cots, cots[1]).items()}
            f.write(self.step, sources, targets)
        self._flush_steps(self.lone, self.flush_xs, at)

    def _sum(self, k: Key, offset: int, chunk: Chunk) -> Memory:
        o = self.operands[k]
        return Memory(self.f.array(offset, partial_dtype(o.dtype)), o.shape, True, chunk.mask)

    def _flush(self, plan: Schedule, places: Mapping[Key, int], at: Val | None) -> None:
        """Add sums over the block's lanes to the worker's, or put them out where they are all that there is."""
        if not plan.nests:
            return
        f, chunk = self.f, self.f.no_chunk()
        sources: dict[Any, Source] = {}
        targets: dict[Any, Target] = {}
        for k, offset in places.items():
            sources |= {("sum", *k): Lanewise(replace(self._sum(k, offset, chunk), accumulate=False))}
            targets["change", k] = f.row(self.slots["change", k], at, chunk, accumulate=k not in self.owned)
        f.write(plan, sources, targets)

    def _in_vectors(self, k: Key) -> bool:
        """Whether a sum can be flushed a vector at a time: its last dimension is one of whole vectors."""
        last = self.operands[k].dims[-1:]
        if self.slots["change", k].dtype in (torch.bfloat16, torch.float16):
            return False
        return self.form.width > 1 and any(
            len(dim) == 1 and dim[0].lane is None and dim[0].size % self.form.width == 0 for dim in last
        )

    def _flush_vectors(self, k: Key, offset: int, at: Val) -> None:
        """Do as `_flush` does where the targets are next to each other along the last dimension."""
        f, b, width, slot = self.f, self.f.b, self.form.width, self.slots["change", k]
        *outer, last = self.operands[k].shape
        kind = KINDS[slot.dtype]
        source, target = f.byte(f.memory, b.integer(offset)), f.at_step(slot, at)
        with contextlib.ExitStack() as loops:
            row = b.integer(0)
            for size, stride in zip(outer, f.t.inner[slot], strict=False):
                index = loops.enter_context(b.loop(b.integer(size))).index
                row = b.add(b.mul(row, b.integer(size)), index)
                target = b.element(target, b.mul(index, stride), kind)
            index = loops.enter_context(b.loop(b.integer(last // width))).index
            first = b.mul(b.add(b.mul(row, b.integer(last // width)), index), b.integer(width * width))
            vectors = b.element(source, first, kind)
            total = b.sum_each(
                [b.load(b.element(vectors, b.integer(i * width), kind), kind, True) for i in range(width)]
            )
            place = b.element(target, b.mul(index, b.integer(width)), kind)
            b.store(total if k in self.owned else b.fadd(b.load(place, kind, True), total), place)

    def _finish(self, cots: Val) -> None:
        """Write out what a block has summed."""
        f = self.f
        with f.chunks() as chunk:
            targets: dict[Any, Target] = {}
            for k in (*self.wide_consts, *self.wide_carries):
                slot = self.slots["change", k]
                targets["change", k] = f.row(slot, None, chunk, accumulate=slot.partial)
            sources: dict[Any, Source] = {
                ("sum", *k): m for k, m in self._members(self.sums, f.region(self.sums.at)).items()
            }
            f.write(self.flush_wide, sources, targets)
            sources = {("cot", *k): m for k, m in self._members(self.cots, cots).items()}
            targets |= {("change", k): self._sum(k, self.kept[k], chunk) for k in self.lone_carries}
            f.write(self.flush_carries, sources, targets)
        self._flush(self.flush_lone, {k: self.kept[k] for k in self.lone_consts}, None)
        self._flush(self.flush_lone_carries, {k: self.kept[k] for k in self.lone_carries}, None)
