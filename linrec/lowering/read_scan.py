"""Diagonal recurrences that are read by a sum over some of the state's dimensions, as Mamba's: scan and readout are one
operator, whose kernels on a GPU do not keep the states of all steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from linrec.ir.nodes import value
from linrec.ir.recurrence import LinearRecurrence
from linrec.lowering.attention import Form, query_of, result_of, summed_dims, tensor_of
from linrec.lowering.cost import Work
from linrec.lowering.registry import Lowering, Site, coefficients, is_inexact, register, state_bytes, state_size
from linrec.ops import scan_readout
from linrec.ops.opaque import Shape, opaque

aten = torch.ops.aten


def _form(recurrence: LinearRecurrence, site: Site) -> Form | None:
    """The state's dimensions as those that are read out and the rest; None where the recurrence is of another kind."""
    if recurrence.transition.kind not in ("identity", "diagonal") or not is_inexact(recurrence) or not site.readouts:
        return None
    (state,) = recurrence.states
    keys = {summed_dims(r) for r in site.readouts}
    if len(keys) != 1 or None in keys or any(len(axis) > 1 for axis in recurrence.update.axes):
        return None
    if any(r.state is state or value(r.node).dtype != value(state).dtype for r in site.readouts):
        return None
    if any(m.of_kind("mask", "unmask") for m in recurrence.linear_terms()):
        return None
    axes = recurrence.update.axes
    found = keys.pop() or ()
    return Form(recurrence.algebra, axes, tuple(d for d in range(len(axes)) if d not in found), found)


class ReadScan(Lowering):
    """`linrec.ops.scan_readout`, once for each readout."""

    name = "diagonal scan, readout fused in"
    forms_states = False

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the transition is elementwise, and all that is read of the new state sums over some dimensions."""
        return _form(recurrence, site) is not None

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """As a scan, and a product with the readout; on a CPU the states are formed all the same."""
        size, moved = state_size(recurrence) * length, state_bytes(recurrence) * length
        on_cpu = value(recurrence.states[0]).device.type == "cpu"
        work = Work(elements=3 * size, bytes=(6 if on_cpu else 2) * moved, calls=7)
        return Work(*(x * len(site.readouts) for x in (work.products, work.elements, 0.0, work.bytes, work.calls)))

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the calls; return (None, final state)."""
        form = _form(recurrence, site)
        assert form is not None
        (state,) = recurrence.states
        emitter, side = site.emitter(recurrence), form.side(form.keys)
        a = tensor_of(emitter, recurrence.linear_terms(), side, value(state).dtype)
        b = coefficients(emitter, recurrence.drive_terms(), side, state)
        last: fx.Node | None = None
        for readout in site.readouts:
            c = query_of(site, form, readout)
            args = (a, b, c, site.initial[0], [form.batch, form.keys], site.vectorizer.length)
            shape = [value(state).shape[d] for d in form.batch]
            y, last = site.pair(read_scan, args, readout.node, shape)
            site.read[readout.node] = result_of(site, form, readout, y)
        assert last is not None
        return [(None, last)]


def _shapes(a: Tensor, b: Tensor, c: Tensor, h0: Tensor, dims: Sequence[Sequence[int]], length: int) -> list[Shape]:
    return [((length, *(h0.shape[d] for d in dims[0])), h0.dtype), (h0.shape, h0.dtype)]


@opaque(_shapes, listed=True)
def read_scan(a: Tensor, b: Tensor, c: Tensor, h0: Tensor, dims: Sequence[Sequence[int]], length: int) -> list[Any]:
    """The readout (T, *lanes) and the last state.

    Args:
        a, b, c: transition, drive and readout, (T or 1, *lanes, n), every other size the dimension's or 1.
        h0: the state before the first step, any order of dimensions.
        dims: which of its dimensions are lanes, and which are read out.
        length: T.
    """
    batch, keys = dims
    order = [*batch, *keys]
    lanes, n = [h0.shape[d] for d in batch], math.prod(h0.shape[d] for d in keys)
    start = h0.permute(order).reshape(*lanes, n)
    y, last = scan_readout(a, b.expand(length, *lanes, n), c, start, dim=0)
    last = last.reshape([h0.shape[d] for d in order]).permute([order.index(d) for d in range(len(order))])
    return [y, last.to(h0.dtype)]


register(ReadScan())
