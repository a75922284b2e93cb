"""The same polynomials over another semiring. Where a sum is a maximum, a minimum or a log-sum-exp and a product is a
sum, ``logsumexp(alpha[:, :, None] + A, 1) + e`` is a matrix times a vector times a number. What operators do to axes
and indices is as it was; only what adds, multiplies and contracts has rules of its own."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Monomial, NoRule, Polynomial, Space
from linrec.analysis.rules import MOVES, RULES, Algebra, Rule
from linrec.ops.semiring_kinds import LOG, MAX, MIN, Kind

aten = torch.ops.aten
KINDS = (LOG, MAX, MIN)


@dataclass(frozen=True, eq=False)
class Weight:
    """A number of a semiring, as a coefficient. It is 0 where it is the semiring's zero; 1 times it is itself, and n
    times it the sum of n of it."""

    number: float
    kind: Kind

    def __add__(self, other: Weight) -> Weight:
        return Weight(self.kind.plus(self.number, other.number), self.kind)

    def __mul__(self, other: Any) -> Weight:
        if isinstance(other, Weight):
            return Weight(self.number + other.number, self.kind)
        if isinstance(other, int):
            return (
                Weight(self.kind.times(self.number, other), self.kind) if other else Weight(self.kind.zero, self.kind)
            )
        raise NoRule("a sum over a symbolic size")

    __rmul__ = __mul__

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Weight):
            return (self.kind, self.number) == (other.kind, other.number)
        return bool(other == 0 and self.number == self.kind.zero)

    def __hash__(self) -> int:
        return hash((self.kind.name, self.number))


class SemiringSpace(Space):
    """Polynomials whose coefficients are of a semiring."""

    def __init__(self, kind: Kind) -> None:
        super().__init__()
        self.kind = kind

    def constant(self, number: Any) -> Polynomial:
        """A number, as a tensor of rank 0."""
        weight = Weight(float(number), self.kind)
        return Polynomial((), (Monomial(weight, ()),) if weight != 0 else ())

    def atom(self, kind: str, node: fx.Node, shape: Any) -> Polynomial:
        """An atom with fresh indices."""
        p = super().atom(kind, node, shape)
        return Polynomial(p.axes, tuple(Monomial(Weight(0.0, self.kind), m.factors) for m in p.terms))


class SemiringAlgebra(Algebra):
    """Evaluates the nodes of a step graph as polynomials over a semiring."""

    space: SemiringSpace

    def __init__(self, kind: Kind, states: set[fx.Node], core: set[fx.Node]) -> None:
        super().__init__(states, core)
        self.kind, self.space, self.rules = kind, SemiringSpace(kind), _rules(kind)


def _add(algebra: Algebra, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Polynomial:
    if alpha != 1:
        raise NoRule("a multiple of what is added")
    return algebra.space.multiply(algebra.lift(a), algebra.lift(b))


def _sub(algebra: Algebra, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Polynomial:
    subtracted = node.args[1]
    if alpha != 1 or not algebra.is_free(subtracted):
        raise NoRule("the state is subtracted")
    inverse = algebra.leaf("reciprocal", subtracted) if isinstance(subtracted, fx.Node) else algebra.lift(-b)
    return algebra.space.multiply(algebra.lift(a), inverse)


_PRODUCTS: dict[Any, Rule] = {
    aten.add.Tensor: _add,
    aten.add.Scalar: _add,
    aten.sub.Tensor: _sub,
    aten.sub.Scalar: _sub,
}


def _join(algebra: Algebra, node: fx.Node, a: Any, b: Any) -> Polynomial:
    return algebra.space.add(algebra.lift(a), algebra.lift(b))


def _over(algebra: Algebra, node: fx.Node, a: Any, dims: Any = (), keepdim: bool = False) -> Polynomial:
    """A sum over dimensions."""
    dims = [dims] if isinstance(dims, int) else list(dims) or list(range(a.rank))
    return algebra.space.contract(a, dims, keepdim) if a.rank else a


def _rectified(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return algebra.space.add(a, algebra.space.constant(0.0))


def _bounded(below: bool) -> Rule:
    """The rule of what bounds its first argument on one side only."""

    def bounded(algebra: Algebra, node: fx.Node, a: Any, first: Any = None, second: Any = None) -> Polynomial:
        two = node.target in (aten.clamp.default, aten.clamp.Tensor)
        bound, other = (second, first) if two and not below else (first, second)
        if other is not None or bound is None or algebra.is_free(node.args[0]):
            raise NoRule("another bound, or one that is the state")
        return algebra.space.add(a, algebra.lift(bound))

    return bounded


def _member(algebra: Algebra, node: fx.Node, source: Any, index: Any) -> Polynomial:
    """The values of ``max(x, dim)``, or a piece of a split tensor."""
    if not isinstance(source, fx.Node) or source.target not in _WITH_INDICES:
        return RULES[operator.getitem](algebra, node, source, index)
    if index != 0 or algebra.rules.get(source.target) is not _over:
        raise NoRule("where the greatest is")
    return _over(algebra, node, algebra.of(source.args[0]), *source.args[1:], **source.kwargs)


_WITH_INDICES = (aten.max.dim, aten.min.dim)
_SUMS: dict[str, dict[Any, Rule]] = {
    LOG.name: {aten.logaddexp.default: _join, aten.logsumexp.default: _over},
    MAX.name: {
        aten.maximum.default: _join,
        aten.max.other: _join,
        aten.amax.default: _over,
        aten.max.dim: _over,
        aten.relu.default: _rectified,
        aten.clamp_min.default: _bounded(True),
        aten.clamp_min.Tensor: _bounded(True),
        aten.clamp.default: _bounded(True),
        aten.clamp.Tensor: _bounded(True),
    },
    MIN.name: {
        aten.minimum.default: _join,
        aten.min.other: _join,
        aten.amin.default: _over,
        aten.min.dim: _over,
        aten.clamp_max.default: _bounded(False),
        aten.clamp_max.Tensor: _bounded(False),
        aten.clamp.default: _bounded(False),
        aten.clamp.Tensor: _bounded(False),
    },
}

TIES: dict[Any, str] = {
    aten.maximum.default: "even",
    aten.max.other: "even",
    aten.minimum.default: "even",
    aten.min.other: "even",
    aten.amax.default: "even",
    aten.amin.default: "even",
    aten.max.dim: "first",
    aten.min.dim: "first",
    aten.relu.default: "drive",
    aten.clamp_min.default: "state",
    aten.clamp_min.Tensor: "state",
    aten.clamp_max.default: "state",
    aten.clamp_max.Tensor: "state",
    aten.clamp.default: "state",
    aten.clamp.Tensor: "state",
}
"""Whose the derivative is where operands are equal: shared evenly, the first one's, the state's, or what it is joined
with has it."""


def sums_of(kind: Kind) -> frozenset[Any]:
    """The operators that sum in a semiring."""
    return frozenset(_SUMS[kind.name])


def _rules(kind: Kind) -> dict[Any, Rule]:
    moves = {target: RULES[target] for target in MOVES}
    return {**moves, **_PRODUCTS, **_SUMS[kind.name], operator.getitem: _member}
