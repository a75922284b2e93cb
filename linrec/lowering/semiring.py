"""Recurrences over (max, +) and log-sum-exp, as scans over that semiring."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from linrec.analysis.semiring import SemiringRecurrence
from linrec.analysis.vectorize import Steps
from linrec.ir.nodes import value
from linrec.lowering.registry import Site
from linrec.lowering.semirings import SCANS
from linrec.ops.opaque import opaque, states_shape

aten = torch.ops.aten


def applies(recurrence: SemiringRecurrence) -> bool:
    """Whether the state is real floating-point, as the scans need."""
    return bool(value(recurrence.state).dtype.is_floating_point)


def emit(recurrence: SemiringRecurrence, site: Site) -> fx.Node:
    """Write the scan; return all states."""
    state = recurrence.state
    if recurrence.factors:
        decay: fx.Node | float | None = _product(recurrence.factors, site, state)
    else:
        decay = _total(recurrence.before + recurrence.after, site, state)
    joined = _aligned(recurrence.other, site, state)
    shift = _total(recurrence.after, site, state)
    if shift is not None and shift != 0:
        joined = site.vectorizer.emit(aten.add.Tensor, (joined, shift), state)
    args = (recurrence.kind, decay, joined, site.initial[0], site.vectorizer.length)
    return site.call(semiring_states, args, state)


@opaque(lambda kind, a, b, h0, length: states_shape(h0, length))
def semiring_states(kind: str, a: Tensor | float | None, b: Tensor, h0: Tensor, length: int) -> Tensor:
    """All states of ``m[t] = join(m[t-1] + a[t], b[t])`` (or times a[t]), (T, *state); `a` None for 0."""
    if not isinstance(a, Tensor):
        a = b.new_full((1,) * (h0.dim() + 1), a or 0.0, dtype=h0.dtype)
    b = b.to(h0.dtype).expand(length, *h0.shape)
    return SCANS[kind](a.to(h0.dtype), b, h0, dim=0)


def _aligned(node: fx.Node, site: Site, state: fx.Node) -> fx.Node:
    steps: Steps = site.vectorizer.run(node)
    rank = value(state).dim()
    if steps.timed:
        return site.vectorizer.aligned(steps, rank)
    new = steps.node
    for _ in range(rank + 1 - steps.rank):
        new = site.vectorizer.emit(aten.unsqueeze.default, (new, 0), state)
    return new


def _total(addends: tuple[tuple[int, fx.Node | float], ...], site: Site, state: fx.Node) -> fx.Node | float | None:
    number = sum(sign * x for sign, x in addends if not isinstance(x, fx.Node))
    total: fx.Node | None = None
    for sign, node in addends:
        if not isinstance(node, fx.Node):
            continue
        part = _aligned(node, site, state)
        if sign < 0:
            part = site.vectorizer.emit(aten.neg.default, (part,), state)
        total = part if total is None else site.vectorizer.emit(aten.add.Tensor, (total, part), state)
    if total is None:
        return number if addends else None
    return site.vectorizer.emit(aten.add.Tensor, (total, number), state) if number else total


def _product(factors: tuple[fx.Node | float, ...], site: Site, state: fx.Node) -> fx.Node | float:
    number = math.prod(x for x in factors if not isinstance(x, fx.Node))
    total: fx.Node | None = None
    for node in factors:
        if isinstance(node, fx.Node):
            part = _aligned(node, site, state)
            total = part if total is None else site.vectorizer.emit(aten.mul.Tensor, (total, part), state)
    if total is None:
        return number
    return site.vectorizer.emit(aten.mul.Tensor, (total, number), state) if number != 1 else total
