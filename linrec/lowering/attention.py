"""Matrix states that are written by outer products and read by contractions: linear attention and its kin, with decays,
and with transitions that are diagonal plus low rank. By chunks of steps; the states of all steps are never formed.

Which dimensions are keys, values and lanes is read off the indices: keys are what the readouts sum over, values are
what neither a readout nor the transition mentions, and the rest are lanes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Axes, Factor, Monomial
from linrec.analysis.readout import Readout
from linrec.analysis.rules import Algebra
from linrec.ir.nodes import value
from linrec.ir.recurrence import LinearRecurrence
from linrec.ir.sizes import hint
from linrec.lowering.cost import Work
from linrec.lowering.emission import Emitter
from linrec.lowering.registry import Lowering, Site, is_inexact, register
from linrec.ops import dplr_attention, linear_attention
from linrec.ops.opaque import Shape, opaque

aten = torch.ops.aten
CHUNK = 32
Terms = tuple[Monomial, ...]


@dataclass
class Form:
    """A recurrence with its readouts, taken apart.

    Attributes:
        algebra: of the update, whose axes are `axes`.
        batch, keys, values: the state's dimensions by role.
        decay: the terms of the factor of the old state; `by_value` where it belongs to values rather than keys; empty
            for a factor of 1.
        ranks: for each row of what the transition adds, the terms of u and of w in u w^T S.
        writes: for each outer product, the terms of its key side and of its value side.
    """

    algebra: Algebra
    axes: Axes
    batch: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    values: tuple[int, ...] = ()
    decay: Terms = ()
    by_value: bool = False
    ranks: list[tuple[Terms, Terms, Axes]] = field(default_factory=list)
    writes: list[tuple[Terms, Terms]] = field(default_factory=list)

    def side(self, dims: Sequence[int], axes: Axes | None = None) -> Axes:
        """Output axes: one for each lane, and one for all of some dimensions together."""
        axes = self.axes if axes is None else axes
        return (*(axes[d] for d in self.batch), tuple(i for d in dims for i in axes[d]))


def form_of(recurrence: LinearRecurrence, site: Site) -> Form | None:
    """The recurrence as attention, or None where it is none."""
    if len(recurrence.states) != 1 or not site.readouts or not is_inexact(recurrence):
        return None
    (state,) = recurrence.states
    if any(value(r.node).dtype != value(state).dtype for r in site.readouts):
        return None
    opened = Algebra(set(recurrence.states), recurrence.algebra.core, expand=True)
    p = opened.of(_update(state))
    form = Form(opened, p.axes)
    if any(len(axis) > 1 for axis in p.axes):
        return None
    keys = {summed_dims(r) for r in site.readouts}
    if len(keys) != 1 or None in keys:
        return None
    form.keys = keys.pop() or ()
    linear = [(m, m.of_kind("state")) for m in p.terms]
    if any(len(s) > 1 or (s and m.of_kind("mask", "unmask")) or m.of_kind("opaque") for m, s in linear):
        return None
    kept = [(m.without(s[0]), s[0]) for m, s in linear if s and s[0].axes == p.axes]
    moved = [(m.without(s[0]), s[0]) for m, s in linear if s and s[0].axes != p.axes]
    if any(not _exchanges(s.axes, p.axes, form.keys) for _, s in moved):
        return None
    drive = [m for m, s in linear if not s]
    read = {d for r in site.readouts for d in _mentioned(r)}
    told = {d for m, _ in moved for d in _dims(p.axes, m.factors)}
    decayed = {d for m, _ in kept for d in _dims(p.axes, m.factors)}
    rest = [d for d in range(len(p.axes)) if d not in form.keys and p.axes[d]]
    free = [d for d in rest if d not in read and d not in told]
    plain = len(kept) == 1 and not kept[0][0].factors and kept[0][0].coefficient == 1
    form.decay = () if plain else tuple(m for m, _ in kept)
    if decayed & set(free):
        form.by_value = not decayed & set(form.keys) and not moved
        if not form.by_value:
            free = [d for d in free if d not in decayed]
    form.values = tuple(free)
    form.batch = tuple(d for d in range(len(p.axes)) if d not in form.keys and d not in free)
    if not form.values or not kept or not drive:
        return None
    if not _write(form, drive) or not _rank(form, moved):
        return None
    return form


def _update(state: fx.Node) -> fx.Node:
    placeholders = [n for n in state.graph.nodes if n.op == "placeholder"]
    output = next(n for n in state.graph.nodes if n.op == "output")
    found: fx.Node = output.args[0][placeholders.index(state)]
    return found


def _dims(axes: Axes, factors: Iterable[Factor]) -> set[int]:
    """The dimensions whose index some factors mention."""
    named = {i for f in factors for i in f.indices()}
    return {d for d, axis in enumerate(axes) if named & set(axis)}


def summed_dims(readout: Readout) -> tuple[int, ...] | None:
    """The state's dimensions that a readout sums over, the same in all its terms; None where it is of another form."""
    free = {i for axis in readout.polynomial.axes for i in axis}
    if any(len(axis) > 1 for axis in readout.polynomial.axes):
        return None
    found: set[tuple[int, ...]] = set()
    for m in readout.polynomial.terms:
        for state in m.of_kind("state"):
            indices = list(state.indices())
            if any(len(axis) > 1 for axis in state.axes) or len(set(indices)) != len(indices):
                return None
            if free - set(indices) or m.of_kind("mask", "unmask"):
                return None  # something else is spread over the result, or masked
            found.add(tuple(d for d, axis in enumerate(state.axes) if axis and axis[0] not in free))
    return found.pop() if len(found) == 1 else None


def _mentioned(readout: Readout) -> set[int]:
    """The state's dimensions that the other factors of a readout mention."""
    found: set[int] = set()
    for m in readout.polynomial.terms:
        for state in m.of_kind("state"):
            found |= _dims(state.axes, [f for f in m.factors if f is not state])
    return found


def _exchanges(old: Axes, new: Axes, keys: tuple[int, ...]) -> bool:
    """Whether the indices of the keys, and no others, are replaced by ones that are summed over."""
    changed = tuple(d for d, (o, n) in enumerate(zip(old, new, strict=True)) if o != n)
    fresh = [i for d in changed for i in old[d]]
    free = {i for axis in new for i in axis}
    return changed == keys and len(set(fresh)) == len(fresh) == len(keys) and not free & set(fresh)


def _halves(m: Monomial, first: set[int], second: set[int]) -> tuple[Monomial, Monomial] | None:
    """A product as one with the first indices (and what has neither) and one with the second; None if it is none."""
    left = tuple(f for f in m.factors if not second & set(f.indices()))
    right = tuple(f for f in m.factors if second & set(f.indices()))
    if any(first & set(f.indices()) for f in right):
        return None
    shared = {i for f in left for i in f.indices()} & {i for f in right for i in f.indices()}
    return None if shared & first or shared & second else (Monomial(m.coefficient, left), Monomial(1, right))


def _write(form: Form, drive: Sequence[Monomial]) -> bool:
    """Take the outer products apart; those with one value side become one."""
    keys, values = ({i for d in dims for i in form.axes[d]} for dims in (form.keys, form.values))
    free = {i for axis in form.axes for i in axis}
    found: dict[Any, tuple[list[Monomial], Monomial]] = {}
    for m in drive:
        halves = _halves(m, keys, values)
        if halves is None or _bound(halves[0], free) & _bound(halves[1], free):
            return False
        found.setdefault(frozenset(halves[1].factors), ([], halves[1]))[0].append(halves[0])
    form.writes = [(tuple(k), (v,)) for k, v in found.values()]
    return True


def _rank(form: Form, moved: Sequence[tuple[Monomial, Factor]]) -> bool:
    """Take what the transition adds to its diagonal apart; rows with one w become one."""
    free = {i for axis in form.axes for i in axis}
    found: dict[Any, tuple[list[Monomial], Monomial, Axes]] = {}
    first: Axes | None = None
    for m, state in moved:
        first = first or state.axes
        # The same names for the summed indices in every row, so that equal factors are equal.
        names = {o[0]: n for o, n in zip(state.axes, first, strict=True) if o and o != n}
        m = Monomial(m.coefficient, tuple(f.substitute(names) for f in m.factors))
        rows, columns = ({i for d in form.keys for i in axes[d]} for axes in (form.axes, first))
        halves = _halves(m, rows, columns)
        if halves is None or _bound(halves[0], free) & (_bound(halves[1], free) - columns):
            return False
        found.setdefault(frozenset(halves[1].factors), ([], halves[1], first))[0].append(halves[0])
    form.ranks = [(tuple(u), (w,), axes) for u, w, axes in found.values()]
    return True


def _bound(m: Monomial, free: set[int]) -> set[int]:
    return {i for f in m.factors for i in f.indices()} - free


class ChunkedAttention(Lowering):
    """Linear attention with any decay, a diagonal plus low rank transition, or neither."""

    name = "chunked attention"
    forms_states = False

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the state is written by outer products, and read by sums over its keys and nothing else."""
        return form_of(recurrence, site) is not None

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """Scores and their product with values, and the states at the chunks' boundaries."""
        form = form_of(recurrence, site)
        assert form is not None
        sizes = [int(hint(s)) for s in value(recurrence.states[0]).shape]
        lanes, keys, values = (math.prod(sizes[d] for d in dims) for dims in (form.batch, form.keys, form.values))
        ranks, writes = len(form.ranks), len(form.writes)
        scores = CHUNK * (keys + values) * (1 + ranks) * (writes + ranks)
        between = keys * values * (2 + writes + ranks) + (keys * keys * (keys + values) / CHUNK if ranks else 0)
        count, size = len(site.readouts), value(recurrence.states[0]).element_size()
        moved = lanes * length * (6 * keys + 4 * values + CHUNK * (2 + ranks) + 4 * keys * values / CHUNK)
        if form.decay and set(form.keys if not form.by_value else form.values) & self._mentioned(form):
            moved += lanes * length * 12 * keys  # products of decays for each level of the tree within a chunk
        work = Work(products=lanes * length * (scores + between), elements=2 * moved, bytes=2 * moved * size, calls=60)
        return Work(*(getattr(work, f.name) * count for f in fields(work)))

    @staticmethod
    def _mentioned(form: Form) -> set[int]:
        return {d for m in form.decay for d in _dims(form.axes, m.factors)}

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm once for each readout; return (None, final state)."""
        form = form_of(recurrence, site)
        assert form is not None
        (state,) = recurrence.states
        emitter, dtype = Emitter(site.vectorizer, form.algebra, state), value(state).dtype
        writes = [
            (tensor_of(emitter, k, form.side(form.keys), dtype), tensor_of(emitter, v, form.side(form.values), dtype))
            for k, v in form.writes
        ]
        ranks = [
            (
                tensor_of(emitter, u, form.side(form.keys), dtype),
                tensor_of(emitter, w, form.side(form.keys, axes), dtype),
            )
            for u, w, axes in form.ranks
        ]
        decay = None
        if form.decay:
            decay = tensor_of(emitter, form.decay, form.side(form.values if form.by_value else form.keys), dtype)
        dims = (form.batch, form.keys, form.values)
        last: fx.Node | None = None
        for readout in site.readouts:
            query = query_of(site, form, readout)
            operands = (query, writes, ranks, decay, site.initial[0], dims, site.vectorizer.length)
            args = (*operands, form.by_value, readout.state is state)
            shape = [value(state).shape[d] for d in (*form.batch, *form.values)]
            y, last = site.pair(attention, args, readout.node, shape)
            site.read[readout.node] = result_of(site, form, readout, y)
        assert last is not None
        return [(None, last)]


def query_of(site: Site, form: Form, readout: Readout) -> fx.Node:
    """q over lanes and keys; the indices of all terms become those of the first."""
    terms, first = [], None
    for m in readout.polynomial.terms:
        for s in m.of_kind("state"):
            first = first or s.axes
            names = {o[0]: n for o, n in zip(s.axes, first, strict=True) if o and o != n}
            rest = m.without(s)
            terms.append(Monomial(rest.coefficient, tuple(f.substitute(names) for f in rest.factors)))
    assert first is not None
    emitter = Emitter(site.vectorizer, readout.algebra, readout.node)
    return tensor_of(emitter, tuple(terms), form.side(form.keys, first), value(readout.node).dtype)


def result_of(site: Site, form: Form, readout: Readout, y: fx.Node) -> fx.Node:
    """The readout from (T, *lanes, *values), with its dimensions in order and what it adds."""
    p = readout.polynomial
    state = next(s for m in p.terms for s in m.of_kind("state"))
    kept = [d for d in (*form.batch, *form.values) if state.axes[d]]
    order = [next((kept.index(d) for d in kept if state.axes[d] == axis), -1) if axis else -1 for axis in p.axes]
    like, dtype = readout.node, value(readout.node).dtype
    ones = [d for d in form.batch if not state.axes[d]]
    node = y
    if ones:
        lanes = [*form.batch, *form.values]
        node = site.vectorizer.emit(aten.squeeze.dims, (node, [1 + lanes.index(d) for d in ones]), like)
    node = site.vectorizer.emit(aten.permute.default, (node, [0, *(1 + k for k in order if k >= 0)]), like)
    for d, k in enumerate(order):
        if k < 0:
            node = site.vectorizer.emit(aten.unsqueeze.default, (node, 1 + d), like)
    rest = tuple(m for m in p.terms if not m.of_kind("state"))
    if rest:
        added = Emitter(site.vectorizer, readout.algebra, readout.node).terms(rest, p.axes)
        node = site.vectorizer.emit(aten.add.Tensor, (node, added), like)
    if value(node).dtype != dtype:
        node = site.vectorizer.emit(aten._to_copy.default, (node,), like, {"dtype": dtype})
    return node


def tensor_of(emitter: Emitter, terms: Terms, axes: Axes, dtype: torch.dtype) -> fx.Node:
    """A sum of monomials as a tensor of a dtype."""
    node = emitter.terms(terms, axes)
    assert node is not None
    if value(node).dtype != dtype:
        node = emitter._emit(aten._to_copy.default, node, dtype=dtype)
    return node


def _shapes(
    query: Tensor,
    writes: Any,
    ranks: Any,
    decay: Any,
    initial: Tensor,
    dims: Sequence[Sequence[int]],
    length: int,
    by_value: bool = False,
    reads_old: bool = False,
) -> list[Shape]:
    batch, _, values = dims
    return [((length, *(initial.shape[d] for d in (*batch, *values))), initial.dtype), (initial.shape, initial.dtype)]


@opaque(_shapes, listed=True)
def attention(
    query: Tensor,
    writes: Sequence[tuple[Tensor, Tensor]],
    ranks: Sequence[tuple[Tensor, Tensor]],
    decay: Tensor | None,
    initial: Tensor,
    dims: tuple[Sequence[int], Sequence[int], Sequence[int]],
    length: int,
    by_value: bool = False,
    reads_old: bool = False,
) -> list[Tensor]:
    """The readout (T, *lanes, *values) and the last state of a matrix state.

    Args:
        query: (T or 1, *lanes, keys), every size but that of time either the dimension's or 1, here and below.
        writes: pairs of a key side and a value side, (T or 1, *lanes, keys or values).
        ranks: pairs u, w of what the transition adds, u w^T, (T or 1, *lanes, keys).
        decay: (T or 1, *lanes, keys), or values with `by_value`; None for 1.
        initial: the state before the first step, any order of dimensions.
        dims: which of its dimensions are lanes, keys and values.
        length: T.
        reads_old: read the state before the update.
    """
    batch, keys, values = dims
    order = [*batch, *keys, *values]
    lanes = [initial.shape[d] for d in batch]
    rows, columns = (math.prod(initial.shape[d] for d in part) for part in (keys, values))
    start = initial.permute(order).reshape(*lanes, rows, columns)
    query = query.expand(length, *lanes, rows)
    sides = [(k.expand(-1, *k.shape[1:-1], rows), v.expand(length, *lanes, columns)) for k, v in writes]
    if ranks:
        k, v, u, w = (
            torch.stack([x.expand(length, *lanes, n) for x in xs], -2)
            for xs, n in (
                ([k for k, _ in sides], rows),
                ([v for _, v in sides], columns),
                ([u for u, _ in ranks], rows),
                ([w for _, w in ranks], rows),
            )
        )
        y, last = dplr_attention(query, k, v, u, w, decay, start, dim=0, chunk=CHUNK, reads_old=reads_old)
    else:
        gates = (None, decay) if by_value else (decay, None)
        parts = [
            linear_attention(
                query,
                k,
                v,
                gates[0],
                start if i == 0 else None,
                dim=0,
                chunk=CHUNK,
                value_decay=gates[1],
                reads_old=reads_old,
            )
            for i, (k, v) in enumerate(sides)
        ]
        y, last = parts[0]
        for more, rest in parts[1:]:
            y, last = y + more, last + rest
    shape = [initial.shape[d] for d in order]
    last = last.reshape(shape).permute([order.index(d) for d in range(len(order))])
    return [y.reshape(length, *lanes, *(initial.shape[d] for d in values)), last.to(initial.dtype)]


register(ChunkedAttention())
