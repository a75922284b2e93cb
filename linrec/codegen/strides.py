"""How tensors lie along the lanes: which one vectors run along, how each tensor's elements follow each other there; and
the memory that a call makes."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from linrec.codegen import toolchain
from linrec.codegen.adjoint import Adjoint, factor_operand, partial_dtype
from linrec.codegen.elements import KINDS
from linrec.codegen.lanes import Operand
from linrec.codegen.llvm import size_of
from linrec.codegen.memory import Form
from linrec.codegen.signature import Signature
from linrec.ops.buffers import buffers, extent

LINE = 64
"""Bytes that go to memory together."""
_STREAMED = 1 << 20
"""Bytes of results from which on they are written past the caches: these would have to read the memory first, and what
the kernel reads would leave them."""


@dataclass(frozen=True)
class Room:
    """Memory that every call makes anew: its sizes, dtype and strides; contiguous if None."""

    size: tuple[int, ...]
    dtype: torch.dtype
    stride: tuple[int, ...] | None = None

    @functools.cached_property
    def _bytes(self) -> int:
        return extent(self.size, self.stride) * self.dtype.itemsize

    def make(self) -> Tensor:
        """The memory, with anything in it."""
        if self.stride is None:
            return buffers.empty(self.size, self.dtype)
        return buffers.of(self._bytes, self.size, self.dtype, self.stride)

    def shadow(self) -> Tensor:
        """A tensor like it without memory."""
        if self.stride is None:
            return torch.empty(self.size, dtype=self.dtype, device="meta")
        return torch.empty_strided(self.size, self.stride, dtype=self.dtype, device="meta")


@dataclass(frozen=True)
class Partial:
    """Zeros that every call makes anew: their sizes in memory, dtype, and in which order dimensions are wanted."""

    size: tuple[int, ...]
    dtype: torch.dtype
    order: tuple[int, ...]

    def make(self) -> Tensor:
        """The zeros."""
        return torch.zeros(self.size, dtype=self.dtype, device="cpu").permute(self.order)

    def shadow(self) -> Tensor:
        """A tensor like it without memory."""
        return torch.empty(self.size, dtype=self.dtype, device="meta").permute(self.order)


class Step(Protocol):
    """What is asked of a step here."""

    s: Signature

    @property
    def cost(self) -> int:
        """Instructions for one vector, roughly."""
        ...

    def operand(self, name: Any) -> Operand:
        """The operand of a named tensor."""
        ...


class Strides:
    """Sizes of the lanes, and each tensor's strides along them.

    Args:
        compiled: the step.
        tensors: by name; they need not have memory.
        simd: the lane along the vectors; the one that costs least where -1.
        a: the step's derivative, in a backward pass.
    """

    def __init__(
        self, compiled: Step, tensors: dict[Any, Tensor], simd: int | None = -1, a: Adjoint | None = None
    ) -> None:
        self.compiled = compiled
        self.adjoint = a
        self.tensors = tensors
        self.sizes = list(compiled.s.program.lanes)
        self.lanes: dict[Any, dict[int, int]] = {}
        self.inner: dict[Any, list[int]] = {}
        for name, tensor in tensors.items():
            self._read(name, tensor)
        self.form = self._form(self._best() if simd == -1 else simd)
        self.size = self.sizes[self.form.simd] if self.form.simd is not None else 1
        self.outer = math.prod(self.sizes) // self.size

    def _read(self, name: Any, tensor: Tensor) -> None:
        if name[0] == "factor" and self.adjoint is not None:
            operand = factor_operand(self.adjoint.factors[name[1]], self.compiled.s.program.lanes)
        else:
            operand = self.compiled.operand(name)
        strides = tensor.stride()[tensor.dim() - len(operand.dims) :]
        lanes, inner = {}, []
        for dim, stride in zip(operand.dims, strides, strict=True):
            own = []
            for leaf in reversed(dim):
                own.append((leaf, stride))
                stride *= leaf.size
            for leaf, s in reversed(own):
                if leaf.lane is None:
                    inner.append(s)
                else:
                    lanes[leaf.lane] = s
        self.lanes[name], self.inner[name] = lanes, inner

    def fit_states(self) -> dict[Any, Room]:
        """The initial states that have to be copied, since their strides along the vectors are of another kind than
        those of the states put out: by name, where to."""
        simd = self.form.simd
        found = {}
        for name in [n for n in self.tensors if n[0] == "stored"]:
            first = "initial", name[1]
            if simd is None or simd not in self.lanes[name] or first not in self.tensors:
                continue
            if (self.lanes[name][simd] == 1) != (self.lanes[first][simd] == 1):
                like = self.tensors[name][0]
                found[first] = Room(tuple(like.shape), like.dtype, like.stride())
                self.tensors[first] = found[first].shadow()
                self._read(first, self.tensors[first])
        return found

    def along(self, chunks: int, streams: bool) -> dict[Any, str]:
        """How each tensor's elements follow each other along the vectors' lane; see `Slot`.

        Args:
            chunks: vectors of a block; streams: whether results may be written past the caches.
        """
        simd = self.form.simd
        if simd is None:
            return {}
        found = {n: "unit" if s[simd] == 1 else "strided" for n, s in self.lanes.items() if simd in s}
        whole = [n for n in found if n[0] in ("y", "change") and self._in_lines(n, chunks)]
        if streams and sum(self.tensors[n].nbytes for n in whole) >= _STREAMED:
            found |= dict.fromkeys(whole, "streamed")
        return found

    def _in_lines(self, name: Any, chunks: int) -> bool:
        """Whether a block writes whole lines of a result at each step, one after the other."""
        tensor, lanes = self.tensors.get(name), self.lanes[name]
        if tensor is None or self.form.masked or len(lanes) < len(self.sizes) or self.inner[name]:
            return False
        size = tensor.element_size()
        block = min(self.form.width * chunks, self.size)
        places = [tensor.stride(0) * size, block * size]
        places += [stride * size for lane, stride in lanes.items() if lane != self.form.simd]
        return self.form.width * size >= 16 and not any(at % LINE for at in places)

    def _best(self) -> int | None:
        """The lane along which vectors cost least."""
        if not self.sizes:
            return None
        return min(range(len(self.sizes)), key=self._cost)

    def _cost(self, lane: int) -> float:
        width = self._width(lane)
        total = float(self.compiled.cost)
        for name, strides in self.lanes.items():
            if name[0] in ("x", "y"):
                size = math.prod(self.compiled.operand(name).shape)
                total += size * (0.5 if lane not in strides else 1 if strides[lane] == 1 else 2 * width)
        return total * -(-self.sizes[lane] // width) / self.sizes[lane]

    def _width(self, lane: int | None) -> int:
        if lane is None:
            return 1
        operands = [o for group in self.compiled.s.inputs.values() for o in group[:1]]
        most = max((size_of(KINDS[o.dtype]) for o in operands if o.dtype.is_floating_point), default=4)
        widest = toolchain.vector_bytes() // most
        return min(widest, 1 << (self.sizes[lane] - 1).bit_length())

    def _form(self, simd: int | None) -> Form:
        width = self._width(simd)
        masked = simd is not None and self.sizes[simd] % width != 0
        return Form(width, simd, masked, len(self.sizes))

    def partial(self, name: Any, lead: Sequence[int]) -> Partial:
        """Room for sums of a derivative, `lead` sizes first; the lane along the vectors is the fast dimension."""
        operand = self.compiled.operand(name)
        shape = [math.prod(leaf.size for leaf in dim) for dim in operand.dims]
        last = [d for d, dim in enumerate(operand.dims) if any(x.lane == self.form.simd for x in dim)]
        order = [d for d in range(len(shape)) if d not in last] + last
        back = [len(lead) + order.index(d) for d in range(len(shape))]
        size = (*lead, *(shape[d] for d in order))
        found = Partial(size, partial_dtype(operand.dtype), (*range(len(lead)), *back))
        self._read(name, found.shadow())
        return found

    def owns(self, name: Any, tensor: Tensor, chunks: int) -> bool:
        """Whether one block makes each element of a derivative: it lacks the lane along the vectors, and no other, and
        a block has all of that lane. The tensor is then where it goes."""
        operand, simd = self.compiled.operand(name), self.form.simd
        if set(range(len(self.sizes))) - operand.lanes != {simd} or self.size > self.form.width * chunks:
            return False
        self._read(name, tensor)
        if self.inner[name] and self.inner[name][-1] != 1:
            return False
        self.tensors[name] = tensor
        return True

    def blocks(self, chunks: int) -> int:
        """Number of blocks of so many vectors."""
        return self.outer * -(-self.size // (self.form.width * chunks))
