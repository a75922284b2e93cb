"""Integers that depend on the length of the input, as what they are at two lengths says."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AffineInt:
    """The integer ``slope * length + offset``."""

    slope: int
    offset: int

    def at(self, length: int) -> int:
        """The integer at a length."""
        return self.slope * length + self.offset


def affine_through(a: int, b: int, first: int, second: int) -> AffineInt | None:
    """The affine function with integer coefficients that is `a` at length `first` and `b` at `second`, if any."""
    slope, rest = divmod(b - a, second - first)
    return None if rest else AffineInt(slope, a - slope * first)
