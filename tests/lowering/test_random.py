"""Random affine programs, coupled and contracted in any way, against their loops: whatever the passes make of them has
to agree; and, as no term mixes the batch, each of them has a lowering.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from linrec.passes import standard

from .recurrences import B, Case, Of
from .test_lowerings import build, compare, copy_of, draw, gradients

SIZES = {"b": B, "i": 3, "j": 4, "k": 2}


@dataclass(frozen=True)
class Operand:
    """A factor with these axes (capitals: axes of the state that are summed), in the steps or the same in each."""

    letters: str
    timed: bool
    at: int

    def of(self, xs: Sequence[Tensor], consts: Sequence[Tensor]) -> Tensor:
        return (xs if self.timed else consts)[self.at]

    def along(self, own: str, xs: Sequence[Tensor], consts: Sequence[Tensor]) -> Tensor:
        """The factor with one dimension for each axis of `own`."""
        x = self.of(xs, consts)
        x = x.permute([self.letters.index(c) for c in own if c in self.letters])
        for d, c in enumerate(own):
            x = x if c in self.letters else x.unsqueeze(d)
        return x


@dataclass(frozen=True)
class Term:
    """One einsum of a state with factors, scaled, and perhaps masked."""

    source: int
    equation: str
    factors: tuple[Operand, ...]
    scale: float
    mask: Operand | None

    def value(self, own: str, states: Sequence[Tensor], xs: Sequence[Tensor], consts: Sequence[Tensor]) -> Tensor:
        out = self.scale * torch.einsum(self.equation, states[self.source], *(f.of(xs, consts) for f in self.factors))
        return out if self.mask is None else torch.where(self.mask.along(own, xs, consts), out, 0.0)


class Program:
    """A random step: every update is a sum of terms and a drive."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.dtype = torch.complex128 if self.random.random() < 0.2 else torch.float64
        self.xs: list[Of] = []
        self.consts: list[Of] = []
        first = self._state()
        count = self.random.choice((1, 1, 2, 2, 3))
        self.states = [first] + [first if self.random.random() < 0.6 else self._state() for _ in range(count - 1)]
        self.drives = [self._operand(self._some(own, 0.8), self.dtype) for own in self.states]
        self.terms = [self._terms(t) for t in range(count)]

    def step(self, *args: Tensor) -> tuple[Tensor, ...]:
        at = len(self.states)
        states, xs, consts = args[:at], args[at : at + len(self.xs)], args[at + len(self.xs) :]
        new = []
        for own, drive, terms in zip(self.states, self.drives, self.terms, strict=True):
            value = drive.along(own, xs, consts)
            for term in terms:
                value = value + term.value(own, states, xs, consts)
            new.append(value)
        return (*new, *new)

    def case(self) -> Case:
        shapes = [Of(tuple(SIZES[c] for c in own), self.dtype) for own in self.states]
        # A first x says how many steps there are.
        return Case("random", self.step, tuple(shapes), tuple(self.xs), tuple(self.consts), ())

    def _some(self, letters: str, chance: float) -> str:
        return "".join(c for c in letters if self.random.random() < chance)

    def _state(self) -> str:
        return "b" + "".join(self.random.sample("ijk", self.random.choice((0, 1, 1, 2, 2))))

    def _operand(self, letters: str, dtype: torch.dtype) -> Operand:
        letters = "".join(self.random.sample(letters, len(letters)))
        timed = not self.xs or self.random.random() < 0.6
        group = self.xs if timed else self.consts
        group.append(Of(tuple(SIZES[c.lower()] for c in letters), dtype))
        return Operand(letters, timed, len(group) - 1)

    def _terms(self, target: int) -> list[Term]:
        sources = [s for s in range(len(self.states)) if s == target or self.random.random() < 0.6]
        return [self._term(self.states[target], s) for s in sources for _ in range(self.random.choice((1, 1, 2)))]

    def _term(self, own: str, source: int) -> Term:
        mixed = [c for c in own if c != "b" and c in self.states[source] and self.random.random() < 0.3]
        read = "".join(c.upper() if c in mixed or c not in own else c for c in self.states[source])
        summed = "".join(c for c in read if c.isupper())
        kept = "".join(c for c in own if c in read)
        new = "".join(c for c in own if c not in read)
        if new and summed and self.random.random() < 0.5:
            letters = [new + self._some(kept, 0.3), summed + self._some(kept, 0.3)]
        elif new or summed or self.random.random() < 0.7:
            letters = [new + summed + self._some(kept, 0.4)]
        else:
            letters = []
        factors = tuple(self._operand(x, self.dtype) for x in letters)
        equation = ",".join([read, *(f.letters for f in factors)]) + "->" + own
        width = 1
        for c in summed:
            width *= SIZES[c.lower()]
        mask = self._operand(self._some(own, 0.6), torch.bool) if self.random.random() < 0.25 else None
        return Term(source, equation, factors, 0.3 / width, mask)


def fast(loop: fx.GraphModule) -> tuple[fx.GraphModule, list[Any]]:
    twin = fx.GraphModule(loop, copy_of(loop.graph))
    result = standard().run(twin)
    return result.graph_module, result.recurrences


@pytest.mark.parametrize("seed", range(int(os.environ.get("LINREC_RANDOM_PROGRAMS", "16"))))
def test_a_random_program(seed: int) -> None:
    c = Program(seed).case()
    loop = build(c)
    graph, found = fast(loop)
    for r in found:
        assert r.parallel, str(r)
    for length in (1, 2, 16, 17, 30):
        compare(loop, graph, draw(c, length, 2, seed=length), f"length {length}")
    gradients(loop, graph, draw(c, 19), "gradients")
