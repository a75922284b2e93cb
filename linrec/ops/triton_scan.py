"""`linear_scan` on a GPU by Triton kernels: values, and all first derivatives in one pass over the data.

A block of lanes is one program, which walks over time by tiles; where the lanes are too few to fill the device, time is
cut into chunks, whose effects are found first. Operands are read where they lie, whatever their strides, half precision
as it is (and accumulated in float32). For what is not covered (`takes`) the torch form runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import triton_launch as launch
from ._dtypes import broadcast_shape, in_old_vmap, result_dtype, summed_to, time_axis
from .plain import unwatched
from .triton_launch import Grid, Lanes, Launch, geometry, pairs

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128))
"""What the kernels compute in."""


def takes(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> bool:
    """Whether the kernels compute `linear_scan` for these operands, which are plain."""
    if result_dtype(a, b, h0) not in DTYPES or b.device.type not in launch.DEVICES or launch.kernels() is None:
        return False
    shape = broadcast_shape(a.shape, b.shape)
    return 0 not in shape and -len(shape) <= dim < len(shape)  # else the op itself has the say


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """See `linrec.ops.linear_scan`."""
    dtype = result_dtype(a, b, h0)
    axis = time_axis(max(a.dim(), b.dim()), dim)
    h: Tensor = _Scan.apply(  # type: ignore[no-untyped-call]
        as_read(a, dtype, conj=True), as_read(b, dtype), None if h0 is None else as_read(h0, dtype), axis, reverse
    )
    return h


def as_read(x: Tensor, dtype: torch.dtype, conj: bool = False) -> Tensor:
    """An operand as the kernels read it: of their dtype, nothing pending but a conjugation where they apply it. A copy
    may lie otherwise than the operand, so it is made before anything is noted about how that one lies."""
    x = x if x.dtype == dtype else x.to(dtype)
    x = x if conj else x.resolve_conj()
    return x.resolve_neg() if x.is_neg() else x


class _Scan(torch.autograd.Function):
    """The scan with its derivatives."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
        with launch.on_device(b):
            key = ("forward", geometry(a), geometry(b), geometry(h0), dim, reverse)
            h: Tensor = launch.remembered(key, lambda: _Forward(a, b, h0, dim, reverse))(a, b, h0)
        ctx.save_for_backward(a, h0, h)
        ctx.b = b.shape
        ctx.dim, ctx.reverse = dim, reverse
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        dim, reverse = ctx.dim, ctx.reverse
        needs_a, needs_b, needs_h0 = ctx.needs_input_grad[:3]
        grad_a: Tensor | None
        if torch.is_grad_enabled() or in_old_vmap(grad) or not unwatched():
            grad_a, grad_b = _in_operators(a, grad, h, h0, dim, reverse)
        else:
            grad = as_read(grad, h.dtype)
            with launch.on_device(h):
                key = ("backward", *(geometry(x) for x in (a, grad, h, h0)), dim, reverse, needs_a)
                prepared = launch.remembered(key, lambda: _Backward(a, grad, h, h0, dim, reverse, needs_a))
                grad_a, grad_b = prepared(a, grad, h, h0)
        grad_h0 = None
        if needs_h0:
            first = -1 if reverse else 0
            grad_h0 = (a.expand(h.shape).select(dim, first).conj() * grad_b.select(dim, first)).sum_to_size(h0.shape)
        grad_a = summed_to(grad_a, a.shape) if needs_a and grad_a is not None else None
        return grad_a, summed_to(grad_b, ctx.b) if needs_b else None, grad_h0, None, None


def _in_operators(
    a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None, dim: int, reverse: bool
) -> tuple[Tensor, Tensor]:
    """The same derivatives where they are to be differentiated, or are many at once."""
    from .scan import linear_scan as op

    length = h.shape[dim]
    start = h.new_zeros(()).expand(h.select(dim, 0).shape) if h0 is None else h0.expand(h.select(dim, 0).shape)
    one = torch.ones_like(start).unsqueeze(dim)
    factors = a.expand(h.shape).conj()
    if reverse:
        factors = torch.cat((one, factors.narrow(dim, 0, length - 1)), dim)
        before = torch.cat((h.narrow(dim, 1, length - 1), start.unsqueeze(dim)), dim)
    else:
        factors = torch.cat((factors.narrow(dim, 1, length - 1), one), dim)
        before = torch.cat((start.unsqueeze(dim), h.narrow(dim, 0, length - 1)), dim)
    grad_b = op(factors, grad, None, dim=dim, reverse=not reverse)
    return grad_b * before.conj(), grad_b


class _Forward:
    """The launches that compute states, for operands that lie in some way."""

    def __init__(self, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> None:
        shape = broadcast_shape(a.shape, b.shape)
        own = shape[:dim] + shape[dim + 1 :]
        self.shape, self.own, self.dim = shape, own, dim
        out = torch.empty_like(b.expand(shape))
        found = arranged(own, *self._moved(a, b, h0, out))
        self.copies = found is None
        if found is None:
            out = torch.empty(shape, dtype=b.dtype, device=b.device)
            found = arranged(own, *self._moved(*self._copied(a, b, h0), out))
            assert found is not None
        lanes, times = found
        self.stride = out.stride()
        grid = Grid.of(lanes.count, shape[dim], out, launch.SCAN)
        self.cut = Cut(grid, lanes.count, out)
        options = {"CONJ": a.is_conj(), "COMPLEX": out.is_complex(), "FROM_END": reverse, **grid.options(out)}
        operands = [*(times[0], *lanes.strides[0]), *(times[1], *lanes.strides[1])]
        sizes = [shape[dim], grid.chunk, lanes.count, *lanes.sizes[1:]]
        self.summarise = Launch(
            launch.kernels().summarise,
            (grid.blocks, grid.chunks),
            [*sizes[:2], 0, *sizes[2:], *operands, *([0] * 5)],
            {**options, "LAG": 0, "FACTOR": False},
        )
        self.main = Launch(
            launch.kernels().forward,
            (grid.blocks, grid.chunks),
            [*sizes, *operands, *lanes.strides[2], times[3], *lanes.strides[3]],
            {**options, "HAS_H0": h0 is not None, "CUT": grid.chunks > 1},
        )

    def _moved(self, a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor) -> list[tuple[Tensor | None, int]]:
        wide = ((x.expand(self.shape).movedim(self.dim, 0), 1) for x in (a, b))
        return [*wide, (None if h0 is None else h0.expand(self.own), 0), (out.movedim(self.dim, 0), 1)]

    def _copied(self, a: Tensor, b: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        # A conjugation that is pending stays so: the launch has been told of it.
        a = a.expand(self.shape)
        a = a.conj().contiguous().conj() if a.is_conj() else a.contiguous()
        return a, b.expand(self.shape).contiguous(), None if h0 is None else h0.expand(self.own).contiguous()

    def __call__(self, a: Tensor, b: Tensor, h0: Tensor | None) -> Tensor:
        """All states."""
        if self.copies:
            a, b, h0 = self._copied(a, b, h0)
        out = torch.empty_strided(self.shape, self.stride, dtype=b.dtype, device=b.device)
        ra, rb, ro = pairs(a), pairs(b), pairs(out)
        product, state = self.cut.memory() or (ro, ro)
        if self.cut.chunks > 1:
            self.summarise(ra, rb, rb, product, state)
        self.main(ra, rb, rb if h0 is None else pairs(h0), product, state, ro)
        return out


class _Backward:
    """The launches that compute the derivatives of the transitions, if they are wanted, and of what enters."""

    def __init__(
        self, a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None, dim: int, reverse: bool, with_a: bool
    ) -> None:
        self.shape, self.dim, self.with_a = tuple(h.shape), dim, with_a
        self.own = self.shape[:dim] + self.shape[dim + 1 :]
        self.stride = h.stride()
        found = arranged(self.own, *self._moved(a, grad, h, h0, h))
        self.copies = found is None
        if found is None:
            self.stride = torch.empty(self.shape, device="meta").stride()
            copies = self._copied(a, grad, h, h0)
            found = arranged(self.own, *self._moved(*copies, copies[2]))
            assert found is not None
        lanes, times = found
        length = self.shape[dim]
        grid = Grid.of(lanes.count, length, h, launch.SCAN)
        self.cut = Cut(grid, lanes.count, h)
        options = {"CONJ": not a.is_conj(), "COMPLEX": h.is_complex(), "FROM_END": not reverse, **grid.options(h)}
        operands = [*(times[0], *lanes.strides[0]), *(times[1], *lanes.strides[1])]
        sizes = [length, grid.chunk, lanes.count, *lanes.sizes[1:]]
        self.summarise = Launch(
            launch.kernels().summarise,
            (grid.blocks, grid.chunks),
            [*sizes[:2], 0, *sizes[2:], *operands, *([0] * 5)],
            {**options, "LAG": 1, "FACTOR": False},
        )
        self.main = Launch(
            launch.kernels().backward,
            (grid.blocks, grid.chunks),
            [*sizes, *operands, times[2], *lanes.strides[2], *lanes.strides[3], times[4], *lanes.strides[4]],
            {**options, "HAS_H0": h0 is not None, "CUT": grid.chunks > 1, "WITH_A": with_a},
        )

    def _moved(
        self, a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None, out: Tensor
    ) -> list[tuple[Tensor | None, int]]:
        timed = [(x.expand(self.shape).movedim(self.dim, 0), 1) for x in (a, grad, h, out)]
        return [*timed[:3], (None if h0 is None else h0.expand(self.own), 0), timed[3]]

    def _copied(
        self, a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        a = a.expand(self.shape)
        a = a.conj().contiguous().conj() if a.is_conj() else a.contiguous()
        return a, grad.contiguous(), h.contiguous(), None if h0 is None else h0.expand(self.own).contiguous()

    def __call__(self, a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None) -> tuple[Tensor | None, Tensor]:
        """The derivatives."""
        if self.copies:
            a, grad, h, h0 = self._copied(a, grad, h, h0)
        grad_b = torch.empty_strided(self.shape, self.stride, dtype=h.dtype, device=h.device)
        grad_a = torch.empty_strided(self.shape, self.stride, dtype=h.dtype, device=h.device) if self.with_a else None
        ra, rg, rh, rb = pairs(a), pairs(grad), pairs(h), pairs(grad_b)
        product, state = self.cut.memory() or (rb, rb)
        if self.cut.chunks > 1:
            self.summarise(ra, rg, rg, product, state)
        r0, rx = rb if h0 is None else pairs(h0), rb if grad_a is None else pairs(grad_a)
        self.main(ra, rg, rh, r0, product, state, rx, rb)
        return grad_a, grad_b


class Cut:
    """Where the chunks' effects are written."""

    def __init__(self, grid: Grid, lanes: int, like: Tensor) -> None:
        self.chunks = grid.chunks
        wide = torch.promote_types(like.dtype, torch.float32)
        self.dtype, pair = wide.to_real(), 2 if wide.is_complex else 1
        self.shape = 2, grid.chunks, lanes * pair
        self.device = like.device

    def memory(self) -> tuple[Tensor, Tensor] | None:
        """For the products of the transitions and for the states, as real numbers; None where time is not cut."""
        if self.chunks <= 1:
            return None
        product, state = torch.empty(self.shape, dtype=self.dtype, device=self.device).unbind()
        return product, state


def arranged(state: tuple[int, ...], *operands: tuple[Tensor | None, int]) -> tuple[Lanes, list[int]] | None:
    """Lanes, and strides in time, of operands (T, *state) or, where the number is 0, (*state); None where the axes are
    too many. The last operand is the one that is written."""
    times, strides = [], []
    for x, leading in operands:
        if x is None:
            times.append(0)
            strides.append([0] * len(state))
            continue
        own = list(pairs(x).stride())[: leading + len(state)]
        times.append(own[0] if leading else 0)
        strides.append(own[leading:])
    lanes = Lanes.of(state, strides)
    return None if lanes is None else (lanes, times)
