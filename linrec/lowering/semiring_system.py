"""The lowering of affine recurrences over other semirings than (+, *), of any structure."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import fx

from linrec.analysis.polynomial import Axes, Factor, Index, Monomial
from linrec.analysis.semiring_system import SemiringSystem
from linrec.ir.nodes import value
from linrec.lowering.affine import MAX_MIXED, AffineScan, Structure
from linrec.lowering.cost import Work
from linrec.lowering.emission import Emitter
from linrec.lowering.registry import Site, state_bytes, state_size
from linrec.ops.semiring_program import SemiringProgram

aten = torch.ops.aten
_EXPONENTIAL = 8.0
"""What one element of a log-sum-exp takes, in operations on elements."""


def fits(system: SemiringSystem) -> bool:
    """Whether the mixed elements are few enough for a basis."""
    return 0 < Structure(system).volume() <= MAX_MIXED


def work(system: SemiringSystem, length: int) -> Work:
    """What a forward pass of `length` steps takes."""
    structure = Structure(system)
    each = _EXPONENTIAL if system.kind.name == "log-sum-exp" else 2.0
    size, volume = state_size(system) * length, structure.volume()
    wide = max(1, volume // len(system.states)) if structure.mixed else 1
    elements = each * size * wide * max(1, len(structure.linear)) * (2 + volume)
    return Work(elements=elements, bytes=16.0 * state_bytes(system) * length * wide, calls=24 * math.sqrt(length / 3))


def emit(system: SemiringSystem, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
    """Write the scan; return (all states, final state) for each carry."""
    emitter = _SemiringEmitter(site, system)
    drives = []
    for state, p in zip(system.states, system.updates, strict=True):
        terms = tuple(m for m in p.terms if not m.of_kind("state"))
        drives.append(emitter.drive(terms, p.axes, state))
    operands: list[fx.Node] = []
    structure = Structure(system)
    found = structure.program(emitter, operands, lambda weight: weight.number)
    outer = tuple(tuple(k for k, atom in enumerate(structure.atoms) if atom.node in own) for own in system.outer)
    program = SemiringProgram(found.terms, found.sizes, found.lanes, found.mixed, system.kind.name, system.ties, outer)
    args = (drives, operands, site.initial, site.vectorizer.length)
    states = site.call_module(AffineScan(program), args, system.states)
    return [(node, site.final(node, state)) for node, state in zip(states, system.states, strict=True)]


class _SemiringEmitter(Emitter):
    """Writes factors and sums of monomials in a semiring whose product is the ordinary sum."""

    masking = ("mask", "unmask", "selection")

    def __init__(self, site: Site, system: SemiringSystem) -> None:
        super().__init__(site.vectorizer, system.algebra, system.states[0])
        self.kind = system.kind

    def _split(self, factor: Factor) -> tuple[fx.Node, list[Index]]:
        node, indices = super()._split(factor)
        if factor.atom.kind == "selection":
            return self._emit(aten.ne.Scalar, node, 0), indices
        return node, indices

    def _inverse(self, node: fx.Node) -> fx.Node:
        return self._emit(aten.neg.default, node)

    def _masked(self, mask: Factor, condition: fx.Node, node: fx.Node) -> fx.Node:
        if mask.atom.kind != "unmask":
            return self._emit(aten.where.ScalarOther, condition, node, self.kind.zero)
        return self._emit(aten.where.ScalarSelf, condition, self.kind.zero, node)

    def drive(self, terms: Sequence[Monomial], axes: Axes, like: fx.Node) -> fx.Node:
        """The sum of monomials without a state, of the state's dtype."""
        order = [i for axis in axes for i in axis]
        parts = [self._sum(term, order) for term in terms]
        if parts:
            node = self._merge(functools.reduce(self._join, parts), axes)
        else:
            node = self._full(self.kind.zero, len(axes))
        dtype = value(like).dtype
        return node if value(node).dtype == dtype else self._emit(aten._to_copy.default, node, dtype=dtype)

    def _join(self, x: fx.Node, y: fx.Node) -> fx.Node:
        return self._emit(self.kind.join, x, y)

    def _sum(self, term: Monomial, order: list[Index]) -> fx.Node:
        bound = sorted({i for f in term.factors for i in f.indices()} - set(order))
        node: fx.Node | None = None
        masks = term.of_kind(*self.masking)
        for factor in (f for f in term.factors if f not in masks):
            spread = self._spread(self._split(factor), [*order, *bound])
            node = spread if node is None else self._emit(aten.add.Tensor, node, spread)
        number = term.coefficient.number
        if node is None:
            node = self._full(number, len(order) + len(bound))
        elif number:
            node = self._emit(aten.add.Tensor, node, number)
        for mask in masks:
            node = self._masked(mask, self._spread(self._split(mask), [*order, *bound]), node)
        if bound:
            node = self._emit(self.kind.total, node, [len(order) + 1 + k for k in range(len(bound))])
        return node
