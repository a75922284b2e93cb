"""A recurrence as formulas in the user's own names: what a report prints. Einstein indices become products of matrices
and vectors where the terms allow it (``S[t] = g[t] (I - b[t] k[t] k[t]^T) S[t-1] + v[t] k[t]^T``)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sympy
from torch import fx

from linrec.analysis.labels import Labels
from linrec.analysis.polynomial import Factor, Index, Monomial, Polynomial
from linrec.analysis.quoted import quoted
from linrec.analysis.semiring import SemiringRecurrence
from linrec.analysis.semiring_system import SemiringSystem
from linrec.ir.formula import Call, Diagonal, Elementwise, Equation, Symbol, Transpose, to_text
from linrec.ir.recurrence import LinearRecurrence


def equation(recurrence: LinearRecurrence, names: Sequence[str]) -> Equation:
    """The formulas of an affine recurrence whose states have these names."""
    labels = Labels(names, recurrence.invariant)
    formulas = []
    for k, (name, p) in enumerate(zip(names, recurrence.updates, strict=True)):
        right = _Writer(recurrence, names, labels, p, k).write()
        formulas.append(sympy.Eq(Symbol(f"{name}[t]"), right, evaluate=False))
    return Equation(tuple(formulas), _used(formulas, labels))


def unproved(names: Sequence[str], updates: Sequence[fx.Node], reads: Sequence[Iterable[str]]) -> Equation:
    """The user's own expressions for states of which nothing is known but which states they read, or
    ``h[t] = f(h[t-1], ...)`` where an expression is long."""
    formulas = []
    for name, update, read in zip(names, updates, reads, strict=True):
        arguments = [Symbol(f"{n}[t-1]") for n in read] + [Symbol("...")]
        right = quoted(update, name, names) or Call(sympy.Symbol("f"), *arguments)
        formulas.append(sympy.Eq(Symbol(f"{name}[t]"), right, evaluate=False))
    return Equation(tuple(formulas))


def joined(recurrence: SemiringRecurrence, name: str, invariant: Collection[fx.Node]) -> Equation:
    """The formula of a recurrence over another semiring: ``m[t] = max(m[t-1] + f[t], x[t])``."""
    labels = Labels((name,), invariant)

    def label(x: fx.Node | float) -> Any:
        return labels.of(x)[0] if isinstance(x, fx.Node) else sympy.sympify(x)

    def plus(first: Any, addends: tuple[tuple[int, fx.Node | float], ...]) -> Any:
        for sign, node in addends:
            first = sympy.Add(first, sign * label(node), evaluate=False)
        return first

    inner: Any = Symbol(f"{name}[t-1]")
    for factor in recurrence.factors:
        inner = sympy.Mul(label(factor), inner, evaluate=False)
    inner = plus(inner, recurrence.before)
    names = {"max-plus": "max", "max-times": "max", "min-plus": "min", "min-times": "min", "log-sum-exp": "logaddexp"}
    join = names.get(recurrence.kind, recurrence.kind)
    right = Call(sympy.Symbol(join), inner, labels.of(recurrence.other, "drive")[0])
    formulas = [sympy.Eq(Symbol(f"{name}[t]"), plus(right, recurrence.after), evaluate=False)]
    return Equation(tuple(formulas), _used(formulas, labels))


def summed(system: SemiringSystem, names: Sequence[str]) -> Equation:
    """The formulas of a recurrence over another semiring, of any structure: ``a[t] = logsumexp(A + a[t-1]) + e[t]``."""
    labels = Labels(names, system.invariant)
    join, over = system.kind.words

    def label(f: Factor) -> Any:
        if f.atom.kind == "state":
            return Symbol(f"{names[system.states.index(f.atom.node)]}[t-1]")
        if f.atom.kind not in ("value", "reciprocal"):
            raise _NoMatrixForm
        found = labels.of(f.atom.node)[0]
        return found if f.atom.kind == "value" else sympy.Mul(-1, found, evaluate=False)

    def term(m: Monomial, free: set[Index]) -> Any:
        bound = not free.issuperset(i for f in m.factors for i in f.indices())
        inside = [f for f in m.factors if f.atom.kind == "state" or not free.issuperset(f.indices())]
        parts = [_plus([label(f) for f in inside])] if inside else []
        if bound:
            parts = [Call(sympy.Symbol(over), *parts)]
        parts += [label(f) for f in m.factors if f not in inside]
        number = m.coefficient.number
        return _plus([*parts, *([sympy.sympify(number)] if number or not parts else [])])

    formulas = []
    for name, p in zip(names, system.updates, strict=True):
        free = {i for axis in p.axes for i in axis}
        terms = [term(m, free) for m in p.terms]
        right = Call(sympy.Symbol(join), *terms) if len(terms) > 1 else terms[0]
        formulas.append(sympy.Eq(Symbol(f"{name}[t]"), right, evaluate=False))
    return Equation(tuple(formulas), _used(formulas, labels))


def _plus(terms: list[Any]) -> Any:
    return sympy.Add(*terms, evaluate=False) if len(terms) > 1 else terms[0]


def _used(formulas: list[Any], labels: Labels) -> tuple[tuple[str, str], ...]:
    used = {str(s.name) for f in formulas for s in f.atoms(Symbol)}
    return tuple((symbol, text) for symbol, text in labels.where.items() if symbol in used)


MAX_TERMS = 6
"""An update with more terms is shown as one transition and one drive."""


_FUNCTIONS = {"real": "Re", "imaginary": "Im", "inverse": "inv"}
_CONSTANTS = {"cosine": "cos", "sine": "sin", "triangle": "tri"}


class _NoMatrixForm(Exception):
    """The term is no chain of matrices and vectors."""


@dataclass(frozen=True)
class _Part:
    """A factor with what matters of its axes: the row, column and summed indices, in order."""

    factor: Factor
    indices: tuple[Index, ...]


class _Writer:
    """Writes one state's update."""

    def __init__(
        self, recurrence: LinearRecurrence, names: Sequence[str], labels: Labels, p: Polynomial, number: int
    ) -> None:
        self.recurrence, self.names, self.labels, self.p = recurrence, names, labels, p
        self.space = recurrence.algebra.space
        self.free = [i for axis in p.axes for i in axis]
        self.row, self.column = self._axes()

    def _axes(self) -> tuple[Index | None, Index | None]:
        """The output indices that act as row and column; None where everything is element by element."""
        candidates = [i for i in self.free if isinstance(self.space.sizes[i], int)]
        gone, pairs = [], []
        for m in self.p.terms:
            sets = [set(f.indices()) for f in m.factors if f.atom.kind not in ("mask", "unmask")]
            for f in m.of_kind("state"):
                gone += [i for i in candidates if i not in f.indices() and i not in gone]
            for a in sets:
                for b in sets:
                    pairs += [(x, y) for x in candidates for y in candidates if x in a - b and y in b - a]
        for x, y in reversed(pairs):
            if not gone or x in gone or y in gone:
                return (x, y) if self.free.index(x) < self.free.index(y) else (y, x)
        if len(gone) == 2:
            return gone[0], gone[1]
        if gone:
            return gone[0], None
        return None, None

    def write(self) -> Any:
        """The right-hand side."""
        linear = [m for m in self.p.terms if m.of_kind("state")]
        drive = [m for m in self.p.terms if not m.of_kind("state")]
        if len(self.p.terms) > MAX_TERMS:
            return self._summary(linear, drive)
        try:
            terms = [*self._grouped(linear), *(self._product(m, "drive") for m in drive)]
        except _NoMatrixForm:
            terms = [self._plain(m) for m in (*linear, *drive)]
        return sympy.Add(*terms, evaluate=False) if len(terms) > 1 else (terms or [sympy.S.Zero])[0]

    def _summary(self, linear: list[Monomial], drive: list[Monomial]) -> Any:
        """``A[t] h[t-1] + b[t]``, for an update of many terms."""
        terms = []
        for state in dict.fromkeys(self._state(m.of_kind("state")[0]) for m in linear):
            own = [m for m in linear if self._state(m.of_kind("state")[0]) == state]
            terms.append(self.labels.sum_of("matrix" if self.row is not None else "coefficient", len(own)) * state)
        if drive:
            terms.append(self.labels.sum_of("drive", len(drive)))
        return sympy.Add(*terms, evaluate=False) if len(terms) > 1 else terms[0]

    def _grouped(self, linear: list[Monomial]) -> list[Any]:
        """The linear terms; those that all multiply one state from the same side are put in brackets together."""
        groups: dict[Any, list[tuple[list[Any], list[Any]]]] = {}
        for m in linear:
            scalars, chain = self._chain(m, "coefficient")
            groups.setdefault(self._state(m.of_kind("state")[0]), []).append((scalars, chain))
        found: list[Any] = []
        for state, group in groups.items():
            if all(chain and chain[-1] == state for _, chain in group):
                found.append(_bracket(state, [(scalars, chain[:-1]) for scalars, chain in group]))
            elif all(chain and chain[0] == state for _, chain in group):
                found.append(_bracket(state, [(scalars, chain[1:]) for scalars, chain in group], right=True))
            else:
                found += [_times([*scalars, *chain]) for scalars, chain in group]
        return found

    def _product(self, m: Monomial, role: str) -> Any:
        scalars, chain = self._chain(m, role)
        return _times([*scalars, *chain])

    def _plain(self, m: Monomial) -> Any:
        role = "coefficient" if m.of_kind("state") else "drive"
        states = [self._state(f) for f in m.of_kind("state")]
        others = [self._symbol(f, role)[0] for f in m.factors if f.atom.kind != "state"]
        return _times([*self._number(m), *others, *states])

    def _number(self, m: Monomial) -> list[Any]:
        return [] if m.coefficient == 1 else [sympy.sympify(m.coefficient)]

    def _state(self, factor: Factor) -> Any:
        return Symbol(f"{self.names[self.recurrence.states.index(factor.atom.node)]}[t-1]")

    def _symbol(self, factor: Factor, role: str) -> tuple[Any, bool]:
        kind = factor.atom.kind
        if kind == "state":
            return self._state(factor), False
        if factor.atom.node is None:
            return Symbol(self._constant(factor)), False
        symbol, turned = self.labels.of(factor.atom.node, role)
        if kind == "reciprocal":
            return symbol**-1, turned
        if kind in _FUNCTIONS:
            return Symbol(f"{_FUNCTIONS[kind]}({to_text(symbol)})"), turned
        if kind in ("position", "wrapped position"):
            return Symbol(f"onehot({to_text(symbol)})"), False
        if kind in ("mask", "unmask"):
            return Symbol(f"[{'not ' if kind == 'unmask' else ''}{to_text(symbol)}]"), turned
        return symbol, turned

    def _constant(self, factor: Factor) -> str:
        """A constant matrix of zeros and ones is called P, or P1, P2, ... where there are several; those of cosines and
        sines cos and sin."""
        if factor.atom.kind != "selection":
            return _CONSTANTS[factor.atom.kind]
        found = [f.atom for p in self.recurrence.updates for m in p.terms for f in m.of_kind("selection")]
        atoms = list(dict.fromkeys(found))
        return "P" if len(atoms) == 1 else f"P{atoms.index(factor.atom) + 1}"

    def _chain(self, m: Monomial, role: str) -> tuple[list[Any], list[Any]]:
        """(scalar factors, factors in the order of a matrix product)."""
        summed = {i for f in m.factors for i in f.indices()} - set(self.free)
        wanted = {i for i in (self.row, self.column) if i is not None} | summed
        parts = [_Part(f, tuple(i for i in f.indices() if i in wanted)) for f in m.factors]
        if any(len(p.indices) > 2 or len(set(p.indices)) < len(p.indices) for p in parts):
            raise _NoMatrixForm
        scalars = [p for p in parts if not p.indices and p.factor.atom.kind != "state"]
        left = [p for p in parts if p not in scalars]
        numbers = [*self._number(m), *(self._symbol(p.factor, role)[0] for p in scalars)]
        if self.row is None and not summed:
            # Element by element: the state comes last.
            left.sort(key=lambda p: p.factor.atom.kind == "state")
            return numbers, [self._symbol(p.factor, role)[0] for p in left]
        walk = _Walk(left, lambda p: self._symbol(p.factor, _role(p, role)))
        chain: list[Any] = []
        if self.row is not None:
            chain += walk.column_from(self.row, self.column)
        if self.column is not None and walk.open(self.column):
            chain += walk.row_to(self.column)
        while walk.left:
            vector = next((p for p in walk.left if len(p.indices) == 1), None)
            if vector is None:
                raise _NoMatrixForm
            walk.left.remove(vector)
            head = Transpose(self._symbol(vector.factor, role)[0])
            numbers += [head, *walk.column_from(vector.indices[0], None)]
        return numbers, chain


def _role(p: _Part, role: str) -> str:
    if len(p.indices) < 2:
        return role
    return "matrix" if role == "coefficient" else "drive matrix"


class _Walk:
    """Takes factors off a list in the order in which their indices connect them."""

    def __init__(self, parts: list[_Part], symbol: Callable[[_Part], tuple[Any, bool]]) -> None:
        self.left, self.symbol = list(parts), symbol

    def open(self, index: Index) -> bool:
        """Whether an index is still to be reached."""
        return any(index in p.indices for p in self.left)

    def _take(self, index: Index) -> tuple[list[Any], list[_Part]]:
        here = [p for p in self.left if index in p.indices]
        for p in here:
            self.left.remove(p)
        # The state comes last among vectors.
        vectors = sorted((p for p in here if len(p.indices) == 1), key=lambda p: p.factor.atom.kind == "state")
        return [self.symbol(p)[0] for p in vectors], [p for p in here if len(p.indices) == 2]

    def column_from(self, index: Index, end: Index | None) -> list[Any]:
        """The factors from a row index on: matrices, then a vector or the column index `end`."""
        chain: list[Any] = []
        while True:
            vectors, matrices = self._take(index)
            if not matrices:
                if len(vectors) > 1 and (chain or end is not None):
                    return [*chain, Elementwise(*vectors)]
                return [*chain, *vectors]
            if vectors:
                chain.append(Diagonal(vectors[0] if len(vectors) == 1 else Elementwise(*vectors)))
            others = {next(i for i in p.indices if i != index) for p in matrices}
            if len(others) > 1:
                raise _NoMatrixForm
            matrices.sort(key=lambda p: p.factor.atom.kind == "state")
            written = [self._oriented(p, index) for p in matrices]
            chain.append(written[0] if len(written) == 1 else Elementwise(*written))
            (index,) = others
            if index == end:
                vectors, matrices = self._take(index)
                if matrices:
                    raise _NoMatrixForm
                if vectors:
                    chain.append(Diagonal(vectors[0] if len(vectors) == 1 else Elementwise(*vectors)))
                return chain

    def row_to(self, index: Index) -> list[Any]:
        """The factors that end at a column index, a row vector first."""
        return [_transposed(x) for x in reversed(self.column_from(index, None))]

    def _oriented(self, p: _Part, index: Index) -> Any:
        symbol, turned = self.symbol(p)
        return symbol if (p.indices[0] == index) != turned else _transposed(symbol)


def _transposed(x: Any) -> Any:
    if isinstance(x, Transpose):
        return x.args[0]
    return x if isinstance(x, (Diagonal, Elementwise)) and isinstance(x, Diagonal) else Transpose(x)


def _times(factors: list[Any]) -> Any:
    if not factors:
        return sympy.S.One
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result


def _bracket(state: Any, group: list[tuple[list[Any], list[Any]]], right: bool = False) -> Any:
    """``common (sum of the group's factors) state``, or with the state in front of the bracket."""
    if len(group) == 1:
        scalars, chain = group[0]
        return _times([*scalars, state, *chain] if right else [*scalars, *chain, state])
    common = [s for s in group[0][0] if all(s in scalars for scalars, _ in group) and not s.is_number]
    one = Symbol("I") if any(chain for _, chain in group) else sympy.S.One
    inner = []
    for scalars, chain in group:
        rest = list(scalars)
        for s in common:
            rest.remove(s)
        numbers = [s for s in rest if s.is_number]
        others = [s for s in rest if not s.is_number]
        inner.append(_times([*numbers, *others, *(chain or [one])]))
    inner.sort(key=lambda x: bool(x.could_extract_minus_sign()))
    total = sympy.Add(*inner, evaluate=False)
    return _times([*common, state, total] if right else [*common, total, state])
