"""A fixed set of random programs: none wrong, none crashed, none refused because its own rewriting was wrong.

`make fuzz N=10000` runs more of them, see docs/fuzzing.md.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import pytest

from .check import check
from .runnable import as_file
from .writer import write

PROGRAMS = range(16)
"""Seeds."""


class _Seeded:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def one(self, options: Sequence[Any]) -> Any:
        return self._random.choice(list(options))


@pytest.mark.parametrize("seed", PROGRAMS)
def test_a_program_keeps_its_values_and_gradients(seed: int) -> None:
    program = write(_Seeded(seed))
    outcome = check(program, ones=False)
    assert outcome.kind not in ("wrong", "crashed", "caught", "verdict"), as_file(program, outcome)
