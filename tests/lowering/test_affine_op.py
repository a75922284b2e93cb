"""The affine scan of `linrec.ops` as its lowering uses it, at every length up to several chunks; and derivatives, first
and second, by finite differences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from .recurrences import CASES
from .test_lowerings import build, draw, lowered

BY_NAME = {c.name: c for c in CASES}
AFFINE = "chunked affine scan"


@pytest.mark.parametrize(
    "name",
    [
        "rotation",
        "a pair, one of them reshaped",
        "a rank-one change",
        "dense, changing",
        "masked pair",
        "dense, changing, complex",
        "a matrix and a vector",
    ],
)
def test_every_length(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = BY_NAME[name]
    loop = build(c)
    fast, entry = lowered(loop, AFFINE, monkeypatch)
    assert entry.lowering == AFFINE
    longest = draw(c, 70, 2)
    at = len(c.states)
    expected = loop(*longest)
    for length in range(1, 71):
        inputs = [x[:length] if at <= i < at + len(c.xs) else x for i, x in enumerate(longest)]
        found = fast(*inputs)
        for k, y in enumerate(found[at:]):
            torch.testing.assert_close(y, expected[at + k][:length], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "lowering"),
    [
        ("rotation", AFFINE),
        ("masked pair", AFFINE),
        ("dense and reset", AFFINE),
        ("complex pair", AFFINE),
        ("dense, one input", "FFT with the impulse response"),
        ("dense complex", "chunked powers"),
        ("resets", "diagonal scan"),
        ("complex constant", "diagonal scan"),
        ("sum of a broadcast", "cumulative sum"),
    ],
)
def test_derivatives(name: str, lowering: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = BY_NAME[name]
    fast, entry = lowered(build(c), lowering, monkeypatch)
    assert entry.lowering == lowering
    inputs = draw(c, 17 if lowering == AFFINE else 5, 1)
    inputs = [x.requires_grad_() if x.is_floating_point() or x.is_complex() else x for x in inputs]
    run: Callable[..., Any] = lambda *args: fast(*args)  # noqa: E731
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)
