"""The lowering for every affine recurrence that has no better one: coupled states, Householder and low-rank
transitions, dense time-varying ones. Its program is read off the polynomial's indices; nothing here knows a model."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from linrec.analysis.polynomial import Atom, Axis, Index, Monomial, NoRule, Polynomial
from linrec.analysis.semiring_system import SemiringSystem
from linrec.ir.nodes import shape_of
from linrec.ir.recurrence import LinearRecurrence
from linrec.lowering.cost import Work
from linrec.lowering.emission import Emitter
from linrec.lowering.registry import Lowering, Site, coefficients, is_inexact, register, state_bytes, state_size
from linrec.ops.affine import AffineProgram, Term
from linrec.ops.opaque import Opaque, Shape

_LETTERS = "abcdefghijklmnopqrstuvwxABCDEFGHIJKLMNOPQRSTUVWX"
MAX_MIXED = 1024
"""The largest number of mixed state elements for which a basis is run through a chunk."""


class AffineScan(Opaque):
    """A program's scan as a module of a graph. Called with drives, operands, initial states, length."""

    def __init__(self, program: AffineProgram) -> None:
        super().__init__()
        self.program = program

    def shapes(self, drives: list[Tensor], operands: list[Tensor], initial: list[Tensor], length: int) -> list[Shape]:
        """Of `run`."""
        return [((length, *h.shape), h.dtype) for h in initial]

    def run(self, drives: list[Tensor], operands: list[Tensor], initial: list[Tensor], length: int) -> list[Tensor]:
        """See `linrec.ops.affine.affine_scan` and `linrec.ops.semiring_program.semiring_scan`."""
        full = [b.expand(length, *h.shape) for b, h in zip(drives, initial, strict=True)]
        return self.program.solve(full, operands, initial, length)


class ChunkedAffine(Lowering):
    """Chunks of steps, all chunks at once, for any structure of the transition."""

    name = "chunked affine scan"

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the state is inexact, every coefficient a number, and the mixed elements few enough for a basis."""
        if not is_inexact(recurrence) or any(is_symbolic_coefficient(p) for p in recurrence.updates):
            return False
        program = Structure(recurrence)
        return 0 < program.volume() <= MAX_MIXED

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """Operations of `length` steps, those of the basis included, and about as many calls as there are chunks."""
        structure = Structure(recurrence)
        size, terms = state_size(recurrence) * length, max(1, len(structure.linear))
        chunks = 3 * math.sqrt(length / 3)
        if recurrence.transition.time_invariant:  # what a chunk does to the state is found for one of them
            elements, each = 2.0 * size * terms * (2 + structure.volume() / 4), 8.0
        else:  # for all of them, and hardly any of it stays in a cache
            elements, each = 2.0 * size * terms * (2 + structure.volume()), 8 + 6.0 * terms * structure.volume()
        return Work(elements=elements, bytes=each * state_bytes(recurrence) * length, calls=6 * terms * 2 * chunks)

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, final state) for each carry."""
        structure = Structure(recurrence)
        emitter = site.emitter(recurrence)
        drives = []
        for state, p in zip(recurrence.states, recurrence.updates, strict=True):
            terms = tuple(m for m in p.terms if not m.of_kind("state"))
            drives.append(coefficients(emitter, terms, p.axes, state))
        operands: list[fx.Node] = []
        program = structure.program(emitter, operands)
        args = (drives, operands, site.initial, site.vectorizer.length)
        found = site.call_module(AffineScan(program), args, recurrence.states)
        return [(node, site.final(node, state)) for node, state in zip(found, recurrence.states, strict=True)]


def is_symbolic_coefficient(p: Polynomial) -> bool:
    """Whether a coefficient of a polynomial is no plain number."""
    return any(not isinstance(m.coefficient, (int, float, complex)) for m in p.terms)


class Structure:
    """Which state dimensions are lanes, coupled or mixed, and the terms over index letters."""

    def __init__(self, recurrence: LinearRecurrence | SemiringSystem) -> None:
        self.recurrence = recurrence
        self.space = recurrence.algebra.space
        self.classes: dict[tuple[int, int], tuple[int, int]] = {}
        self.mixed: set[tuple[int, int]] = set()
        self.coupled: set[tuple[int, int]] = set()
        self.linear: list[tuple[int, int, Monomial, tuple[Axis, ...]]] = []
        self.atoms: list[Atom] = []  # of a program's operands
        for i, p in enumerate(recurrence.updates):
            for m in p.terms:
                for factor in m.of_kind("state"):
                    j = recurrence.states.index(factor.atom.node)
                    self.linear.append((i, j, m.without(factor), factor.axes))
        for i, j, rest, axes in self.linear:
            self._link(i, j, rest, axes)
        self._line_up()
        self._spread()

    def _find(self, key: tuple[int, int]) -> tuple[int, int]:
        while self.classes.get(key, key) != key:
            key = self.classes[key]
        return key

    def _link(self, i: int, j: int, rest: Monomial, axes: tuple[Axis, ...]) -> None:
        target = self.recurrence.updates[i].axes
        mentioned: set[Index] = {x for f in rest.factors for x in f.indices()}
        linked: set[int] = set()
        for p, own in enumerate(target):
            if not own:
                continue
            q = next((q for q, other in enumerate(axes) if other == own), None)
            if q is None:
                self.mixed.add((i, p))
                continue
            linked.add(q)
            self.classes[self._find((i, p))] = self._find((j, q))
            if mentioned & set(own):
                self.coupled.add((i, p))
        for q, other in enumerate(axes):
            if other and q not in linked:
                self.mixed.add((j, q))

    def _line_up(self) -> None:
        """Take dimensions of states of one shape to be the same lanes where no term of the update says which are."""
        shapes = [shape_of(s) for s in self.recurrence.states]
        met = {0}
        while more := {x for i, j, _, _ in self.linear for x in (i, j) if met & {i, j}} - met:
            met |= more
        for i in range(1, len(shapes)):
            if i not in met and shapes[i] == shapes[0]:
                for d in range(len(shapes[i])):
                    if self._find((i, d)) != self._find((0, d)):
                        self.classes[self._find((i, d))] = self._find((0, d))

    def _spread(self) -> None:
        keys = [(i, d) for i, s in enumerate(self.recurrence.states) for d in range(len(shape_of(s)))]
        groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for key in keys:
            groups.setdefault(self._find(key), []).append(key)
        count = len(self.recurrence.states)
        for members in groups.values():
            twice = len({i for i, _ in members}) < len(members)
            everywhere = len(members) == count
            if self.mixed & set(members) or twice or not everywhere:
                # A dimension that only some of the states have cannot be carried along as a batch of the basis.
                self.mixed |= set(members)
            elif self.coupled & set(members):
                self.coupled |= set(members)

    def _size(self, key: tuple[int, int]) -> Any:
        return shape_of(self.recurrence.states[key[0]])[key[1]]

    def volume(self) -> int:
        """The number of mixed state elements, 0 where it is not known (a symbolic size is mixed)."""
        total = 0
        for i, state in enumerate(self.recurrence.states):
            volume = 1
            for d in range(len(shape_of(state))):
                if (i, d) in self.mixed:
                    size = self._size((i, d))
                    if not isinstance(size, int):
                        return 0
                    volume *= size
            total += volume
        count = range(len(self.recurrence.states))
        orders = {tuple(self._find(key) for key in self._kept(i, True)) for i in count}
        lanes = {tuple(self._find(key) for key in self._kept(i, False)) for i in count}
        return total if len(orders) == 1 and len(lanes) == 1 else 0

    def _kept(self, i: int, coupled: bool) -> list[tuple[int, int]]:
        keys = [(i, d) for d in range(len(shape_of(self.recurrence.states[i])))]
        return [k for k in keys if k not in self.mixed and (k in self.coupled) == coupled]

    def program(
        self, emitter: Emitter, operands: list[fx.Node], number: Callable[[Any], Any] = lambda coefficient: coefficient
    ) -> AffineProgram:
        """The program, with its factors written into the graph and appended to `operands`; `number` says what the
        coefficient of a monomial is there."""
        letters: dict[Index, str] = {}
        rest_of_letters = iter(_LETTERS)
        freed: dict[Any, list[str]] = {}  # by size, those of indices that only other terms sum over

        def name(i: Index) -> str:
            if i not in letters:
                again = freed.get(self.space.sizes[i])
                letters[i] = again.pop() if again else next(rest_of_letters, "")
                if not letters[i]:
                    raise NoRule("more indices than letters")
            return letters[i]

        known: dict[Any, int] = {}
        terms, sizes = [], {}
        for i, j, m, axes in self.linear:
            bound_local = {x for f in m.factors for x in f.indices()} | {x for a in axes for x in a}
            free = {x for a in self.recurrence.updates[i].axes for x in a}
            masks, plain = [], []
            for f in m.factors:
                key = (f.atom, tuple(tuple(str(self.space.sizes[x]) for x in a) for a in f.axes))
                if key not in known:
                    node, _ = emitter._split(f)
                    known[key] = len(operands)
                    operands.append(node)
                    self.atoms.append(f.atom)
                labels = "".join(name(x) for x in f.indices())
                if f.atom.kind in emitter.masking:
                    masks.append((known[key], labels, f.atom.kind != "unmask"))
                else:
                    plain.append((known[key], labels))
            source = tuple("".join(name(x) for x in a) for a in axes)
            target = tuple("".join(name(x) for x in a) for a in self.recurrence.updates[i].axes)
            # The state meets the factors that share its contracted indices first: no matrix is formed on the way.
            contracted = set("".join(source)) - set("".join(target))
            plain.sort(key=lambda pair: not contracted & set(pair[1]))
            for x, letter in letters.items():
                if isinstance(self.space.sizes[x], int):
                    sizes[letter] = self.space.sizes[x]
            terms.append(
                Term(
                    i,
                    j,
                    tuple(k for k, _ in plain),
                    tuple(s for _, s in plain),
                    source,
                    target,
                    tuple(masks),
                    number(m.coefficient),
                )
            )
            for x in sorted(bound_local - free):
                if x in letters:
                    freed.setdefault(self.space.sizes[x], []).append(letters.pop(x))
        states = self.recurrence.states
        lanes = tuple(
            tuple(d for d in range(len(shape_of(s))) if (i, d) not in self.mixed and (i, d) not in self.coupled)
            for i, s in enumerate(states)
        )
        mixed = tuple(tuple(d for d in range(len(shape_of(s))) if (i, d) in self.mixed) for i, s in enumerate(states))
        return AffineProgram(tuple(terms), tuple(sorted(sizes.items())), lanes, mixed)


register(ChunkedAffine())
