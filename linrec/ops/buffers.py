"""Memory for large results, used again once nobody holds it. The system hands out fresh pages, each zeroed and entered
into the page table at its first use, which can take longer than the kernel that fills them; training asks for memory of
the same sizes in every step, and gives it back."""

from __future__ import annotations

import functools
import math
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

_LEAST = 1 << 20
"""Bytes from which on memory is kept: smaller pieces come from the allocator's own store."""
_MOST = 256
"""MiB that are kept where ``LINREC_KEEP_MIB`` does not say otherwise, those in use included."""


def _references(storages: Mapping[int, Any], key: int) -> tuple[int, int]:
    """How many objects of Python, and how many of torch, hold a storage; nothing may name it while this runs."""
    return sys.getrefcount(storages[key]), torch._C._storage_Use_Count(key)


def _of_one_alone() -> tuple[int, int] | None:
    """What `_references` says of a storage that nobody else holds; None where it cannot be told."""
    if not getattr(sys, "_is_gil_enabled", lambda: True)() or not hasattr(torch._C, "_storage_Use_Count"):
        return None
    table = {0: torch.UntypedStorage(8)}
    key = table[0]._cdata
    return _references({key: table.pop(0)}, key)


@functools.lru_cache(maxsize=1024)
def dense(size: Sequence[int], stride: Sequence[int]) -> tuple[int, ...]:
    """The strides of ``torch.empty_like`` of a tensor. The tensor without memory that it is asked of takes 0.1 ms."""
    return torch.empty_like(torch.empty_strided(size, stride, device="meta")).stride()


def extent(size: Sequence[int], stride: Sequence[int] | None) -> int:
    """How many elements lie between the first and the last one of a tensor, these included; contiguous if None."""
    if stride is None or 0 in size:
        return math.prod(size)
    return 1 + sum((n - 1) * by for n, by in zip(size, stride, strict=True))


class Buffers:
    """Storages, those last that were asked for last. One that only this object still holds may be handed out again.

    Args:
        most: bytes that may be held, those in use included.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.held = 0
        self._alone = _of_one_alone()
        self._lock = threading.Lock()
        self._storages: OrderedDict[int, Any] = OrderedDict()
        self._made: dict[int, tuple[int, int]] = {}

    def empty(self, size: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None = None) -> Tensor:
        """An uninitialised tensor in the CPU's memory.

        Args:
            size: of each dimension; dtype: of the elements.
            stride: of a tensor without overlaps; contiguous if None.
        """
        need = extent(size, stride) * dtype.itemsize
        if stride is None and need >= _LEAST:
            stride = [math.prod(size[d + 1 :]) for d in range(len(size))]
        return self.of(need, size, dtype, stride)

    def of(self, need: int, size: Sequence[int], dtype: torch.dtype, stride: Sequence[int] | None) -> Tensor:
        """The same for a number of bytes that is known; the strides of what is large, too."""
        if need < _LEAST or need > self.most or self._alone is None or stride is None:
            if stride is None:
                return torch.empty(size, dtype=dtype, device="cpu")
            return torch.empty_strided(size, stride, dtype=dtype, device="cpu")
        new: Any = torch.empty(0, dtype=dtype, device="cpu")
        found: Tensor = new.set_(self._storage(need), 0, size, stride)
        return found

    def like(self, x: Tensor) -> Tensor:
        """An uninitialised tensor laid out as by ``torch.empty_like``."""
        if x.numel() * x.element_size() < _LEAST:
            return torch.empty_like(x, requires_grad=False)
        if x.is_contiguous():
            return self.empty(x.shape, x.dtype)
        return self.empty(x.shape, x.dtype, dense(x.shape, x.stride()))

    def release(self) -> None:
        """Let go of all memory that is not in use."""
        with self._lock:
            for key in list(self._storages):
                if self._is_free(key):
                    self._forget(key)

    def _storage(self, need: int) -> Any:
        with self._lock:
            for key in list(self._storages):
                if self._made[key][1] == need and self._is_free(key):
                    if (self._storages[key].data_ptr(), self._storages[key].nbytes()) == self._made[key]:
                        self._storages.move_to_end(key)
                        return self._storages[key]
                    self._forget(key)  # it was resized, or moved to memory that processes share
            for key in list(self._storages):
                if self.held + need <= self.most:
                    break
                if self._is_free(key):
                    self._forget(key)
            new = torch.UntypedStorage(need)
            if self.held + need <= self.most:
                self._storages[new._cdata] = new
                self._made[new._cdata] = new.data_ptr(), need
                self.held += need
            return new

    def _is_free(self, key: int) -> bool:
        """Whether nobody else holds a storage."""
        return _references(self._storages, key) == self._alone

    def _forget(self, key: int) -> None:
        del self._storages[key]
        self.held -= self._made.pop(key)[1]

    def _after_fork(self) -> None:
        """The parent's memory is copied when it is written to: nothing is gained by it here."""
        self.held, self._lock = 0, threading.Lock()
        self._storages, self._made = OrderedDict(), {}


def _most() -> int:
    try:
        return max(0, int(os.environ.get("LINREC_KEEP_MIB", _MOST))) << 20
    except ValueError:
        return _MOST << 20


buffers = Buffers(_most())
"""Those of this process."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=buffers._after_fork)
