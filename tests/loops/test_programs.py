"""Random recurrences (programs.py) agree with their loops; with LINREC_LOOPS_FULL=1 in the environment, 300 of them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from .entry import At, Entry
from .harness import FULL, check
from .programs import D, Program

SCHEDULE = (At(2, 12), At(3, 23), At(1, 9), At(2, 3), At(2, 1))


def inputs(batch: int, length: int) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, length, D), torch.rand(batch, length) > 0.7


@pytest.mark.parametrize("seed", range(300 if FULL else 12))
def test_random_program(seed: int) -> None:
    check(Entry(f"program-{seed}", functools.partial(Program, seed), inputs, "any", SCHEDULE))
