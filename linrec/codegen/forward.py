"""Writes the forward kernel: for each block of lanes, the states in the worker's memory and a loop over time. For a
backward pass it also keeps the states at the beginning of each segment of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from linrec.codegen.frame import Frame, Kernel, Layout
from linrec.codegen.llvm import Val
from linrec.codegen.memory import Form
from linrec.codegen.program import ancestors
from linrec.codegen.schedule import Store, schedule
from linrec.codegen.signature import Signature
from linrec.codegen.writer import Source, Target


def _states(s: Signature) -> list[tuple[torch.dtype, Sequence[int]]]:
    return [(operand.dtype, operand.shape) for operand, _ in s.carries.values()]


def state_bytes(s: Signature, form: Form) -> int:
    """Bytes of all states for each chunk of a block."""
    return Layout(form.width).group(_states(s))[0]


def forward_kernel(s: Signature, form: Form, along: Mapping[Any, str], keep: bool) -> Kernel:
    """Write the forward kernel.

    Args:
        s: the step.
        form: what to specialise for.
        along: for each tensor that has the lane along the vectors, its stride there: "unit" or "strided". Tensors are
            named ("initial", key), ("x", key), ("const", key), ("y", key), ("final", key).
        keep: whether to write checkpoints.
    """
    graph = s.program.graph
    states = list(s.carries)
    step = [Store(("state", k), s.updates[k][1], s.updates[k][0].shape) for k in states]
    step += [Store(("y", k), access, operand.shape) for k, (operand, access) in s.ys.items()]
    far = {("given", *key) for (group, key), how in along.items() if how == "strided" and group in ("x", "const")}
    plan = schedule(step, far)
    read = {n.attr[1:] for n in ancestors(x.access.node for x in step) if n.op == "input"}
    begin, end = [], []
    for k in states:
        operand, node = s.carries[k]
        initial = graph.node("input", ("initial", *k), operand.dtype, operand.shape, lanes=node.lanes)
        begin.append(Store(("state", k), initial.whole, operand.shape))
        end.append(Store(("final", k), node.whole, operand.shape))
    first, last = schedule(begin), schedule(end)

    slots = {("initial", k): s.slot(("initial", k), o, form, along) for k, (o, _) in s.carries.items()}
    slots |= {("x", k): s.slot(("x", k), o, form, along, timed=True) for k, (o, _) in s.xs.items() if k in read}
    slots |= {("const", k): s.slot(("const", k), o, form, along) for k, (o, _) in s.consts.items() if k in read}
    slots |= {("y", k): s.slot(("y", k), o, form, along, timed=True) for k, (o, _) in s.ys.items()}
    slots |= {("final", k): s.slot(("final", k), o, form, along) for k, (o, _) in s.carries.items()}

    layout = Layout(form.width)
    size, offsets = layout.group(_states(s))
    here, there = layout.for_chunks(size), layout.for_chunks(size)
    f = Frame(form, list(slots.values()), layout, [plan, first, last])
    b, head = f.b, f.t.head

    def members(region: Val) -> dict[Any, Any]:
        return {
            k: f.member(region, size, offset, s.carries[k][0].dtype, s.carries[k][0].shape)
            for k, offset in zip(states, offsets, strict=True)
        }

    with f.worker(), f.blocks() as block:
        old, new = f.region(here), f.region(there)
        with f.chunks() as chunk:
            sources: dict[Any, Source] = {("initial", *k): f.row(slots["initial", k], None, chunk) for k in states}
            targets: dict[Any, Target] = {("state", k): m for k, m in members(old).items()}
            f.write(first, sources, targets)
        whole = b.mul(f.chunk_count, b.integer(size))
        with b.loop(head["segments"], carried=[old, new]) as segment:
            if keep and size:
                number = b.add(b.mul(block, head["segments"]), segment.index)
                place = b.mul(number, b.mul(head["chunks"], b.integer(size)))
                f.copy(f.byte(f._absolute("checkpoints"), place), segment.carried[0], whole)
            start = b.mul(segment.index, head["segment"])
            stop = f.least(b.add(start, head["segment"]), head["steps"])
            with b.loop(stop, start, carried=segment.carried) as time:
                before, after = time.carried
                with f.chunks() as chunk:
                    sources = {("given", *k): m for k, m in members(before).items()}
                    sources |= {("given", *k): f.row(x, time.index, chunk) for (g, k), x in slots.items() if g == "x"}
                    sources |= {("given", *k): f.row(x, None, chunk) for (g, k), x in slots.items() if g == "const"}
                    targets = {("state", k): m for k, m in members(after).items()}
                    targets |= {("y", k): f.row(x, time.index, chunk) for (g, k), x in slots.items() if g == "y"}
                    f.write(plan, sources, targets)
                time.handed = [after, before]
            segment.handed = time.results
        with f.chunks() as chunk:
            sources = {("given", *k): m for k, m in members(segment.results[0]).items()}
            targets = {("final", k): f.row(slots["final", k], None, chunk) for k in states}
            f.write(last, sources, targets)
    return f.done(state=size)
