"""Models that several files share: compiled once, and left by every test as it found them."""

from __future__ import annotations

import pytest
from torch import nn

from .samples import Gated, build, compiled, series, small_lmu

Pair = tuple[nn.Module, nn.Module]


@pytest.fixture(scope="session")
def gated() -> Pair:
    """A compiled gated loop, checked up to 40 steps, and its oracle."""
    model = compiled(Gated)
    model(series(2, 40))
    return model, build(Gated)


@pytest.fixture(scope="session")
def lmu() -> Pair:
    """A compiled Legendre memory unit and its oracle."""
    return compiled(small_lmu), build(small_lmu)
