"""How Triton kernels are given tensors (lanes as four axes, complex numbers as pairs), how many programs start, and
what is remembered from one call to the next: all but the tensors' addresses."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ._dtypes import compute_dtype

DEVICES: tuple[str, ...] = ("cuda",)
"""Types of devices that kernels run on; tests add "cpu" to run them in Triton's interpreter."""

AXES = 4


@dataclass(frozen=True)
class Tile:
    """What a program reads before it computes: at most so many steps of so many lanes (half the steps where numbers are
    complex), and the warps that it has. A thread has one lane or few; its steps wait in registers."""

    steps: int
    lanes: int
    warps: int


SCAN = Tile(8, 64, 1)
READ = Tile(8, 32, 1)
"""Those of the scan and of the scan with a readout. By `benchmarks.gpu_tiles` on an H200 the scan's is within 1.08 of
the best of 36 choices, in the geometric mean of five cases; 16 steps gain 3% and take twice as long to compile."""

PROGRAMS = 16
"""Programs for each multiprocessor, at least, where there are steps enough to cut."""

SHORTEST = 64
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
    return PROGRAMS * int(torch.cuda.get_device_properties(device).multi_processor_count)


def pairs(x: Tensor) -> Tensor:
    """A tensor that a kernel can read: complex numbers as pairs, no negation pending. Conjugation is the caller's."""
    if not x.is_complex():
        return x.resolve_neg()
    return torch.view_as_real(x.conj() if x.is_conj() else x).resolve_neg()


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
    warps: int
    chunk: int
    blocks: int
    chunks: int

    @staticmethod
    def of(count: int, length: int, like: Tensor, tile: Tile) -> Grid:
        """For a number of lanes and of steps. Time is cut where the lanes alone leave the device idle."""
        steps = min(tile.steps // 2 if like.is_complex() else tile.steps, power_of_two(length))
        lanes = min(tile.lanes, power_of_two(count))
        blocks = -(-count // lanes)
        # A program goes through the chunks before its own, so their number is not to exceed the steps of its two walks.
        wanted = max(1, min(programs_wanted(like.device) // blocks, length // SHORTEST, math.isqrt(2 * length)))
        share = math.ceil(length / wanted)
        chunk = math.ceil(share / steps) * steps
        return Grid(lanes, steps, tile.warps, chunk, blocks, -(-length // chunk))

    def options(self, like: Tensor) -> dict[str, Any]:
        """What kernels are told of it when they are compiled."""
        return {"STEPS": self.steps, "LANES": self.lanes, "ACC": accumulator(like.dtype), "num_warps": self.warps}


def power_of_two(n: int) -> int:
    """The least power of two that is at least n."""
    return 1 << max(0, n - 1).bit_length()


def accumulator(dtype: torch.dtype) -> Any:
    """The kernels' type to accumulate in: float64 for double precision, else float32."""
    import triton.language as tl

    return tl.float64 if compute_dtype(dtype).to_real() == torch.float64 else tl.float32


def on_device(x: Tensor) -> Any:
    """A context in which kernels are launched on the device of `x`."""
    if x.device.type != "cuda" or x.get_device() == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device_of(x)


class Launch:
    """A kernel, its grid, and all its arguments but the tensors, which come first.

    Triton's way to the compiled kernel looks at every argument of every launch, which takes longer than many a kernel
    runs. Here it is found once: the tensors of later launches must have the dtypes of the first ones, and addresses
    that 16 divides where it divided those (`geometry` tells).
    """

    def __init__(self, kernel: Any, grid: tuple[int, int], numbers: list[int], options: dict[str, Any]) -> None:
        self.kernel, self.grid, self.options = kernel, (*grid, 1), options
        self.numbers = self._rest = tuple(numbers)
        self._compiled: Callable[..., Any] | None = None

    def __call__(self, *tensors: Tensor) -> None:
        """Start the kernel."""
        if self._compiled is not None:
            self._compiled(*tensors, *self._rest)
            return
        compiled = self.kernel[self.grid](*tensors, *self.numbers, **self.options)
        if compiled is not None and _launches_directly():
            names = self.kernel.arg_names[len(tensors) + len(self.numbers) :]
            self._rest = (*self.numbers, *(self.options[name] for name in names))
            self._compiled = compiled[self.grid]


@functools.cache
def _launches_directly() -> bool:
    """Whether Triton's compiled kernels take all arguments, constants among them, in this version: elsewhere a mistake
    about that would write to any address. The interpreter has no compiled kernels."""
    import triton

    return tuple(int(n) for n in triton.__version__.split(".")[:2]) in TRIED


TRIED = frozenset({(3, 6), (3, 7)})
"""Versions of Triton whose launching was read."""

_MOST = 4096
_remembered: dict[Hashable, Any] = {}


def geometry(x: Tensor | None) -> Hashable:
    """All of a tensor that a launch depends on but where it lies."""
    if x is None:
        return None
    return x.dtype, x.shape, x.stride(), x.data_ptr() & 15, x.is_conj(), x.device


def remembered(key: Hashable, make: Callable[[], Any]) -> Any:
    """What was made for a key before, or make it."""
    key = (key, SCAN, READ, PROGRAMS, SHORTEST)
    found = _remembered.get(key)
    if found is None:
        if len(_remembered) >= _MOST:
            _remembered.clear()
        found = _remembered[key] = make()
    return found
