"""Recurrences whose transition keeps every state index: running sums and elementwise gated states."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Monomial
from linrec.ir.nodes import value
from linrec.ir.recurrence import LinearRecurrence
from linrec.lowering.cost import Work
from linrec.lowering.registry import Lowering, Site, coefficients, is_inexact, register, state_bytes, state_size
from linrec.ops import linear_scan
from linrec.ops.opaque import opaque, states_shape

aten = torch.ops.aten


def running_sum(b: Tensor, h0: Tensor) -> Tensor:
    """h[t] = h[t-1] + b[t] for all t: (T, *state) from drives (T or 1, *state) and the initial state."""
    return torch.cat([h0.unsqueeze(0), b.expand(b.shape[0], *h0.shape)]).cumsum(0, dtype=h0.dtype)[1:]


class RunningSum(Lowering):
    """Transition 1: a cumulative sum, for any dtype."""

    name = "cumulative sum"

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the transition is 1."""
        return recurrence.transition.kind == "identity" and site is not None

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """One addition per element and step."""
        return Work(elements=state_size(recurrence) * length, bytes=3 * state_bytes(recurrence) * length, calls=3)

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, final state) of the carry."""
        state = recurrence.states[0]
        drive = _timed(
            site, coefficients(site.emitter(recurrence), recurrence.drive_terms(), recurrence.update.axes, state)
        )
        states = site.call(running_sum, (drive, site.initial[0]), state)
        return [(states, site.final(states, state))]


class DiagonalScan(Lowering):
    """Elementwise transition, real or complex, constant or not: `linrec.ops.linear_scan`."""

    name = "diagonal scan"

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the transition is elementwise: 1 included for floating-point and complex states. Integers wrap around
        in a scan as they do in the loop."""
        flags = value(recurrence.states[0]).dtype is torch.bool
        kinds = ("identity", "diagonal") if is_inexact(recurrence) else () if flags else ("diagonal",)
        return recurrence.transition.kind in kinds

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """One multiplication and one addition per element and step."""
        size, calls = state_size(recurrence) * length, 4
        if value(recurrence.states[0]).device.type != "cpu":
            calls = 12 * max(1, length.bit_length())  # three passes over chunks of chunks
        return Work(elements=2 * size, bytes=3 * state_bytes(recurrence) * length, calls=calls)

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, final state) of the carry."""
        state, axes = recurrence.states[0], recurrence.update.axes
        emitter = site.emitter(recurrence)
        decay = coefficients(emitter, recurrence.linear_terms(), axes, state)
        drive = coefficients(emitter, recurrence.drive_terms(), axes, state)
        kept = _kept(recurrence, site)
        states = site.call(scan_states, (decay, drive, site.initial[0], site.vectorizer.length, kept), state)
        return [(states, site.final(states, state))]


def _kept(recurrence: LinearRecurrence, site: Site) -> fx.Node | None:
    """Where the old state is read at all, for a recurrence whose every linear term is masked (a reset)."""
    terms = recurrence.linear_terms()
    if not terms or not all(m.of_kind("mask", "unmask") for m in terms):
        return None
    emitter = site.emitter(recurrence)
    masks = tuple(Monomial(1, tuple(m.of_kind("mask", "unmask"))) for m in terms)
    total = emitter.terms(masks, recurrence.update.axes)
    assert total is not None
    return site.vectorizer.emit(aten.ne.Scalar, (total, 0), recurrence.states[0])


@opaque(lambda a, b, h0, length, kept: states_shape(h0, length))
def scan_states(a: Tensor, b: Tensor, h0: Tensor, length: int, kept: Tensor | None = None) -> Tensor:
    """`linear_scan` over a leading time dimension, where decay and drive may be constant in time or over the state.

    `kept` is False where the program masks the old state out, so that a NaN in it ends there as it does in the loop.
    """
    if a.shape[0] != length and b.shape[0] != length:
        a = a.expand(length, *a.shape[1:])
    if b.shape[1:] != h0.shape:
        b = b.expand(b.shape[0], *h0.shape)
    if not (h0.is_floating_point() or h0.is_complex()):
        return _whole(a.expand(length, *a.shape[1:]), b.expand(length, *b.shape[1:]), h0)
    states = linear_scan(a, b, h0, dim=0)
    if kept is None or bool(states.isfinite().all()):
        return states
    kept, a, rows = kept.expand(length, *kept.shape[1:]), a.expand(length, *a.shape[1:]), []
    b = b.expand(length, *h0.shape)
    for t in range(length):
        h0 = torch.where(kept[t], a[t] * h0, 0) + b[t]
        rows.append(h0)
    return torch.stack(rows)


def _whole(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    """The scan over integers, by doubling: whatever overflows does so in the loop as well, to the same numbers."""
    b = torch.cat([(a[:1] * h0 + b[:1]).to(h0.dtype), b[1:].to(h0.dtype)])
    distance = 1
    while distance < len(b):
        b = torch.cat([b[:distance], b[distance:] + a[distance:] * b[:-distance]])
        a = torch.cat([a[:distance], a[distance:] * a[:-distance]])
        distance *= 2
    return b


def _timed(site: Site, drive: fx.Node) -> fx.Node:
    """A drive with all its steps, where it is the same in each."""
    if drive.meta["val"].shape[0] == 1:
        shape = [site.vectorizer.length, *([-1] * (drive.meta["val"].dim() - 1))]
        return site.vectorizer.emit(aten.expand.default, (drive, shape), drive)
    return drive


register(RunningSum())
register(DiagonalScan())
