"""Integers that depend on the length of the input, as what they are at two lengths says."""

from __future__ import annotations

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
