"""Integers that depend on the length of the input, as what they are at two lengths says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class AffineInt:
    """The integer ``(slope * length + offset) / period``, of lengths at which that is whole."""

    slope: int
    offset: int
    period: int = 1

    def at(self, length: int) -> int:
        """The integer at a length."""
        return (self.slope * length + self.offset) // self.period


def affine_through(a: int, b: int, first: int, second: int, period: int = 1) -> AffineInt | None:
    """The affine function that is `a` at length `first`, `b` at `second`, and whole at every `period`-th length from
    there on, if any."""
    slope, rest = divmod((b - a) * period, second - first)
    if rest:
        return None
    if slope % period == 0:
        return AffineInt(slope // period, a - slope // period * first)
    return AffineInt(slope, a * period - slope * first, period)


_SEEN = 3
"""How often integers take turns at least."""


def turns_of(places: Sequence[int]) -> int:
    """After how many of these integers, in order, the distances between them are the same again; 0 where they never
    are."""
    for turns in range(1, len(places) // _SEEN + 1):
        if len({b - a for a, b in zip(places, places[turns:], strict=False)}) == 1:
            return turns
    return 0
