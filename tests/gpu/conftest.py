"""Where kernels run in these tests: on a GPU if there is one, else on the CPU, in Triton's interpreter."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import numpy
import pytest
import torch

from linrec.extend import isolated
from linrec.lowering.implementation import implementation
from linrec.ops import triton_launch, triton_readout, triton_scan


def scan_by_doubling(self: Any, operands: Any) -> list[Any]:
    """The interpreter's associative scan, grouped as a tree, as on a GPU. (Its own goes from one element to the next, in
    Python: a hundred times slower, and it would never compose two stretches of steps.)"""
    shift, length = 1, operands[0].handle.data.shape[self.axis]
    found = [x.handle.data for x in operands]
    late = numpy.arange(length).reshape([-1 if i == self.axis else 1 for i in range(found[0].ndim)])
    while shift < length:
        pairs = [*(numpy.roll(x, shift, self.axis) for x in found), *found]
        types = [x.dtype for x in operands]
        both = self.combine_fn.fn(*(self.to_tensor(x, t) for x, t in zip(pairs, types + types, strict=True)))
        found = [numpy.where(late >= shift, y.handle.data, x) for x, y in zip(found, both, strict=True)]
        shift *= 2
    return [self.to_tensor(x, y.dtype) for x, y in zip(found, operands, strict=True)]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A type of device for which the Triton kernels are registered. Tiles are tiny, so that there are several."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed")
    monkeypatch.setattr(triton_launch, "SCAN", triton_launch.Tile(4, 8, 1))
    monkeypatch.setattr(triton_launch, "READ", triton_launch.Tile(4, 4, 1))
    monkeypatch.setattr(triton_launch, "_remembered", {})
    if torch.cuda.is_available():
        yield "cuda"
        return
    from triton.runtime import interpreter

    monkeypatch.setattr(interpreter.ScanOps, "generic_scan", scan_by_doubling)
    monkeypatch.setattr(triton_launch, "DEVICES", ("cpu",))
    with isolated():
        for own, takes in (
            (triton_scan.linear_scan, triton_scan.takes),
            (triton_readout.scan_readout, triton_readout.takes),
        ):
            implementation(own.__name__, "triton", device="cpu", requires=takes, complete=True)(own)
        yield "cpu"


@pytest.fixture(params=["whole", "cut"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Time in one piece, or in chunks, as where there are too few lanes for the device."""
    monkeypatch.setattr(triton_launch, "SHORTEST", 4 if request.param == "cut" else 1 << 30)
    monkeypatch.setattr(triton_launch, "programs_wanted", lambda device: 6)
    return request.param
