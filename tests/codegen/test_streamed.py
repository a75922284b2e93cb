"""Large results are written past the caches, where each block writes whole lines of them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linrec.codegen import CompiledScan, strides
from linrec.codegen.strides import Room
from linrec.ir.scan import Scan
from tests.analysis.graphs import traced

from .harness import call, gradients, leaves


def gate(h: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = a * h + x
    return h, h


def both(h: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h = a * h + x
    return h, h, torch.tanh(h) * a


def mixed(h: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    h = torch.stack((a[:, 0] * h[:, 0] + h[:, 1], a[:, 1] * h[:, 1] - h[:, 0]), 1) + x
    return h, h


def run(step: object, shape: tuple[int, ...], dtype: torch.dtype, how: str) -> tuple[list[str], list[str]]:
    """Hold a step against its loop; whether its forward and backward kernels stream."""
    torch.manual_seed(0)
    length = 7
    inputs = [torch.randn(shape), torch.sigmoid(torch.randn(length, *shape)), torch.randn(length, *shape)]
    inputs = [x.to(dtype) for x in inputs]
    if how == "batch first":
        inputs[1:] = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs[1:]]
    graph = traced(step, *(x if i < 1 else x[0] for i, x in enumerate(inputs)))
    loop = Scan(graph, 1, 2)
    fast = CompiledScan(graph, 1, 2, loop)
    found = []
    for scan in (fast, loop):
        own = leaves(inputs)
        results = call(scan, length, own)
        found.append([*results, *gradients(results, own)])
    assert fast.reason is None, fast.reason
    exact = 1e-9 if dtype is torch.float64 else 1e-5 if dtype is torch.float32 else 3e-2
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=exact, atol=exact)
    [(compiled, _)] = fast._kernels.values()
    texts = {key[0]: kernel.text for key, (kernel, _) in compiled._kernels.items()}
    return ["!nontemporal" in texts[name] and "fence" in texts[name] for name in ("forward", "backward")]


@pytest.fixture(autouse=True)
def from_the_first_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strides, "_STREAMED", 0)


@pytest.mark.parametrize("how", ["time first", "batch first"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("step", [gate, both])
def test_whole_lines(step: object, dtype: torch.dtype, how: str) -> None:
    assert run(step, (3, 64), dtype, how) == [True, True]


@pytest.mark.parametrize("width", [24, 30, 8, 1])
def test_other_widths(width: int) -> None:
    """A row of 24 numbers of 4 bytes ends within a line."""
    assert run(gate, (3, width), torch.float32, "time first") == [False, False]


def test_steps_of_several_rows() -> None:
    """What a block writes at a step is not one row."""
    assert run(mixed, (3, 2, 64), torch.float32, "time first") == [False, False]


def test_small_results_stay_in_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strides, "_STREAMED", 1 << 20)
    assert run(gate, (3, 64), torch.float32, "time first") == [False, False]


@pytest.mark.parametrize("by", [1, 4, 15])
def test_memory_elsewhere(by: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocator may hand out memory that begins anywhere."""
    make = Room.make

    def shifted(self: Room) -> Tensor:
        if not self.dtype.is_floating_point:
            return make(self)
        like = make(self)
        memory = torch.full((like.numel() + by,), float("nan"), dtype=self.dtype)
        return memory.as_strided(like.shape, like.stride(), by)

    monkeypatch.setattr(Room, "make", shifted)
    run(gate, (3, 64), torch.float32, "time first")
