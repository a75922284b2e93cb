"""How Triton kernels are given tensors (lanes as four axes, complex numbers as pairs), and how many programs start."""

from __future__ import annotations

import functools
import importlib.util
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._dtypes import compute_dtype

DEVICES: tuple[str, ...] = ("cuda",)
"""Types of devices that kernels run on; tests add "cpu" to run them in Triton's interpreter."""

AXES = 4
STEPS, LANES = 32, 64
"""The greatest tile of real numbers. By what the compiler says of registers on sm_80 and sm_90: the derivatives fit in
them, without spilling. Not tuned otherwise: no GPU was at hand."""

SHORTEST = 512
"""Steps of a chunk, at least, where time is cut because there are few lanes."""


@functools.cache
def kernels() -> Any:
    """The module of kernels, or None where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return None
    from . import triton_kernels

    return triton_kernels


def readout_kernels() -> Any:
    """The kernels of the scan with a readout; only where `kernels` are."""
    from . import triton_readout_kernels

    return triton_readout_kernels


@functools.cache
def programs_wanted(device: torch.device) -> int:
    """How many programs keep a device busy."""
    if device.type != "cuda":
        return 1
    return 4 * int(torch.cuda.get_device_properties(device).multi_processor_count)


def pairs(x: Tensor) -> Tensor:
    """A tensor that a kernel can read: complex numbers as pairs, no negation pending. Conjugation is the caller's."""
    if not x.is_complex():
        return x.resolve_neg()
    return torch.view_as_real(x.conj() if x.is_conj() else x).resolve_neg()


def empty_like(x: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """Memory for a result, of the device and dtype of `x`, complex numbers as complex numbers."""
    return torch.empty(x.shape if shape is None else shape, dtype=x.dtype, device=x.device)


@dataclass(frozen=True)
class Lanes:
    """The state's axes, as at most `AXES` sizes, and where each of the given operands has them.

    Attributes:
        sizes: AXES of them, slow ones first.
        strides: for each operand the strides of these axes, in real numbers.
    """

    sizes: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(shape: tuple[int, ...], operands: list[list[int]]) -> Lanes | None:
        """Axes of some sizes, with the strides of each operand; None where they are more than the kernels take.

        The last operand is the one that is written: its fastest axis becomes the fastest of the lanes.
        """
        order = sorted((i for i, n in enumerate(shape) if n > 1), key=lambda i: operands[-1][i], reverse=True)
        sizes: list[int] = []
        strides: list[list[int]] = [[] for _ in operands]
        for axis in order:
            if sizes and all(s[-1] == own[axis] * shape[axis] for s, own in zip(strides, operands, strict=True)):
                sizes[-1] *= shape[axis]
                for s, own in zip(strides, operands, strict=True):
                    s[-1] = own[axis]
            else:
                sizes.append(shape[axis])
                for s, own in zip(strides, operands, strict=True):
                    s.append(own[axis])
        missing = AXES - len(sizes)
        if missing < 0:
            return None
        return Lanes((1,) * missing + tuple(sizes), tuple((0,) * missing + tuple(s) for s in strides))

    @property
    def count(self) -> int:
        """How many there are."""
        return math.prod(self.sizes)


@dataclass(frozen=True)
class Grid:
    """How the work is divided: blocks of `lanes`, and time in chunks of `chunk` steps, taken `steps` at a time."""

    lanes: int
    steps: int
    chunk: int
    blocks: int
    chunks: int

    @staticmethod
    def of(count: int, length: int, like: Tensor) -> Grid:
        """For a number of lanes and of steps. Time is cut where the lanes alone leave the device idle."""
        steps, lanes = min(STEPS, power_of_two(length)), min(widest(like), power_of_two(count))
        blocks = -(-count // lanes)
        wanted = max(1, min(programs_wanted(like.device) // blocks, length // SHORTEST))
        share = math.ceil(length / wanted)
        chunk = math.ceil(share / steps) * steps
        return Grid(lanes, steps, chunk, blocks, -(-length // chunk))


def widest(like: Tensor) -> int:
    """The most lanes in a tile: a complex number takes the registers of two."""
    return LANES // 2 if like.is_complex() else LANES


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def accumulator(dtype: torch.dtype) -> Any:
    """The kernels' type to accumulate in: float64 for double precision, else float32."""
    import triton.language as tl

    return tl.float64 if compute_dtype(dtype).to_real() == torch.float64 else tl.float32


def on_device(x: Tensor) -> Any:
    """A context in which kernels are launched on the device of `x`."""
    return torch.cuda.device_of(x)
