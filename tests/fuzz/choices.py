"""What a program is drawn from: numbers, from a seed or from a list that can be made smaller until it is small."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .writer import Program, write


class Choices:
    """Draws from lists by given indices, then by a random generator, and notes which were drawn.

    Args:
        given: indices to take first; an index that is too large is the last element.
        rest: what draws when they are used up; the first element where None.
    """

    def __init__(self, given: Sequence[int] = (), rest: random.Random | None = None) -> None:
        self._given, self._rest = list(given), rest
        self.drawn: list[int] = []

    def one(self, options: Sequence[Any]) -> Any:
        at = len(self.drawn)
        if at < len(self._given):
            index = min(self._given[at], len(options) - 1)
        else:
            index = self._rest.randrange(len(options)) if self._rest is not None else 0
        self.drawn.append(index)
        return options[index]


def drawn(seed: int, number: int) -> tuple[Program, list[int]]:
    """Program `number` of a seed, and the indices that it was drawn with."""
    choices = Choices(rest=random.Random(f"{seed}:{number}"))
    return write(choices), choices.drawn


def shrunk(indices: list[int], fails: Callable[[Program], bool], tries: int = 60) -> tuple[Program, list[int]]:
    """A smaller program that still fails: with choices left out, or replaced by simpler ones, as long as that works.

    Args:
        indices: what the program was drawn with; fails: whether a program still fails; tries: how often to ask.
    """
    tried: set[str] = set()
    again = True
    while again:
        again = False
        for shorter in _smaller(indices):
            choices = Choices(shorter)
            program = write(choices)
            kept = _trimmed(choices.drawn)
            if program.source in tried or not _simpler(kept, indices):
                continue
            if tries == 0:
                return write(Choices(indices)), indices
            tried.add(program.source)
            tries -= 1
            if fails(program):
                indices, again = kept, True
                break
    return write(Choices(indices)), indices


def _trimmed(indices: list[int]) -> list[int]:
    while indices and not indices[-1]:
        indices = indices[:-1]
    return indices


def _simpler(a: list[int], b: list[int]) -> bool:
    return (len(_trimmed(a)), a) < (len(_trimmed(b)), b)


def _smaller(indices: list[int]) -> Iterator[list[int]]:
    indices = _trimmed(indices)
    size = len(indices)
    for keep in (size // 2, 3 * size // 4):
        yield indices[:keep]
    width = max(size // 2, 1)
    while width:
        for start in range(0, size, width):
            if any(indices[start : start + width]):
                yield [*indices[:start], *[0] * len(indices[start : start + width]), *indices[start + width :]]
        width //= 2
    for start in range(size):
        yield indices[:start] + indices[start + 1 :]
