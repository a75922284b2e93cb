"""The random programs as a Hypothesis strategy, so that what fails shrinks to a short file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from .writer import Program, write


class _Drawn:
    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def one(self, options: Sequence[Any]) -> Any:
        return options[self._draw(st.integers(0, len(options) - 1))]


@st.composite
def programs(draw: st.DrawFn) -> Program:
    """Whole recurrent modules as source text; the first element of every choice is the simplest."""
    return write(_Drawn(draw))
