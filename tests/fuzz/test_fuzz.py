"""A fixed set of random programs: none wrong, none crashed, none refused because its own rewriting was wrong.

`make fuzz N=10000` runs more of them, see docs/fuzzing.md.
"""

from __future__ import annotations

import pytest

from .check import check
from .choices import Choices, drawn, shrunk
from .runnable import as_file
from .writer import Program, write

PROGRAMS = range(16)


@pytest.mark.parametrize("number", PROGRAMS)
def test_a_program_keeps_its_values_and_gradients(number: int) -> None:
    program = drawn(0, number)[0]
    outcome = check(program, ones=False)
    assert outcome.kind not in ("wrong", "crashed", "caught", "verdict"), as_file(program, outcome)


def test_a_program_is_its_choices() -> None:
    program, indices = drawn(3, 5)
    assert write(Choices(indices)).source == program.source
    assert drawn(3, 6)[0].source != program.source


def test_what_fails_is_made_small() -> None:
    number = next(n for n in range(50) if "torch.tanh" in drawn(0, n)[0].source)
    program, indices = drawn(0, number)

    def fails(smaller: Program) -> bool:
        return "torch.tanh" in smaller.source

    small, kept = shrunk(indices, fails, tries=400)
    assert fails(small)
    assert len(small.source) < len(program.source)
    assert len(kept) <= len(indices)
