"""Operators that take complex numbers apart and put them together: real, imag, conj, complex, and the views as pairs of
reals. They are linear over the real numbers only. So they have rules where every state is real: a value is then the sum
of its parts, `re + i im`, and each part is a polynomial with real coefficients. (`linrec.passes.parts` makes two real
states of a complex one that is read in this way.)"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Atom, Factor, Monomial, NoRule, Polynomial
from linrec.analysis.rules import Algebra, rule
from linrec.analysis.selection import select_rows
from linrec.ir.nodes import value

aten = torch.ops.aten
MAX_PARTS = 64
_UNITS = ((1, "real"), (1j, "imaginary"))
_REAL_KINDS = frozenset(["mask", "unmask", "position", "wrapped position", "real", "imaginary"])


def is_complex(factor: Factor) -> bool:
    """Whether a factor's elements may be complex numbers."""
    atom = factor.atom
    if atom.node is None or atom.kind in _REAL_KINDS:
        return False
    return bool(value(atom.node).is_complex())


def parts(algebra: Algebra, p: Polynomial) -> tuple[Polynomial, Polynomial]:
    """The real and the imaginary part of a tensor, both over its axes.

    Raises:
        NoRule: it reads a complex state, divides by a complex value, or has too many parts.
    """
    real: list[Monomial] = []
    imaginary: list[Monomial] = []
    for m in p.terms:
        for part in _expanded(m):
            number = complex(part.coefficient)
            real.append(Monomial(_plain(number.real), part.factors))
            imaginary.append(Monomial(_plain(number.imag), part.factors))
    return algebra.space.collect(p.axes, real), algebra.space.collect(p.axes, imaginary)


def _expanded(m: Monomial) -> list[Monomial]:
    """A monomial as a sum of monomials whose factors are all real."""
    if not isinstance(m.coefficient, (int, float, complex)):
        raise NoRule("a coefficient that depends on a symbolic size")
    found = [Monomial(m.coefficient, ())]
    for factor in m.factors:
        if not is_complex(factor):
            found = [Monomial(n.coefficient, (*n.factors, factor)) for n in found]
            continue
        if factor.atom.kind != "value":
            raise NoRule(f"the parts of a complex {factor.atom.kind}")
        pair = [(1, Atom("real", factor.atom.node)), (1j, Atom("imaginary", factor.atom.node))]
        found = [
            Monomial(n.coefficient * unit, (*n.factors, Factor(atom, factor.axes)))
            for n in found
            for unit, atom in pair
        ]
        if len(found) > MAX_PARTS:
            raise NoRule("a product of too many complex values")
    return found


def _plain(number: float) -> int | float:
    return int(number) if number.is_integer() else number


def joined(algebra: Algebra, real: Polynomial, imaginary: Polynomial) -> Polynomial:
    """``real + i imaginary``."""
    return algebra.space.add(real, imaginary, 1j)


def _inner(node: fx.Node) -> bool:
    """Whether an operator's first argument is complex."""
    return bool(value(node.args[0]).is_complex())


@rule(aten.real.default)
def _real(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return parts(algebra, a)[0] if _inner(node) else a


@rule(aten.imag.default)
def _imag(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return parts(algebra, a)[1]


@rule(aten._conj.default, aten.conj.default, aten.conj_physical.default, aten._conj_physical.default)
def _conj(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    if not _inner(node):
        return a  # type: ignore[no-any-return]
    real, imaginary = parts(algebra, a)
    return algebra.space.add(real, imaginary, -1j)


@rule(aten.resolve_conj.default, aten.resolve_neg.default)
def _resolved(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return a  # type: ignore[no-any-return]


@rule(aten.complex.default)
def _complex(algebra: Algebra, node: fx.Node, real: Any, imaginary: Any) -> Polynomial:
    return joined(algebra, real, imaginary)


@rule(aten.view_as_real.default, aten.view_as_real_copy.default)
def _view_as_real(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    placed = []
    for k, part in enumerate(parts(algebra, a)):
        column = Polynomial((*part.axes, ()), part.terms)
        placed.append(select_rows(algebra, column, -1, [0 if i == k else -1 for i in range(2)]))
    return algebra.space.add(*placed)


@rule(aten.view_as_complex.default, aten.view_as_complex_copy.default)
def _view_as_complex(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    real, imaginary = (select_rows(algebra, a, -1, [k]) for k in range(2))
    whole = joined(algebra, real, imaginary)
    return Polynomial(whole.axes[:-1], whole.terms)
