"""Models that several files share: compiled once, and left by every test as it found them."""

from __future__ import annotations

import pytest
from torch import nn

from linrec.runtime import dispatcher

from .dispatchers import Compiler, Made, Model, put
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


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    """A module with a dispatcher that validates, and the compiler that it calls."""
    module = Model()
    compiler = Compiler(module)
    for name in ("compile_call", "find_time", "check_length"):
        monkeypatch.setattr(dispatcher, name, getattr(compiler, name))
    return module, put(module), compiler
