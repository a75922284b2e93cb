"""`linear_scan` on a GPU by Triton kernels: values, and all first derivatives in one pass over the data.

A block of lanes is one program, which walks over time by tiles; where the lanes are too few to fill the device, time is
cut into chunks, whose effects are found first. Operands are read where they lie, whatever their strides, half precision
as it is (and accumulated in float32). For what is not covered (`takes`) and for second derivatives the torch form runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import triton_launch as launch
from ._dtypes import broadcast_shape, result_dtype, time_axis
from .plain import are_plain
from .triton_launch import Grid, Lanes, empty_like, pairs

DTYPES = frozenset((torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64, torch.complex128))
"""What the kernels compute in."""


def takes(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> bool:
    """Whether the kernels compute `linear_scan` for these operands."""
    if result_dtype(a, b, h0) not in DTYPES or not are_plain((a, b, h0), launch.DEVICES) or launch.kernels() is None:
        return False
    shape = broadcast_shape(a.shape, b.shape)
    return 0 not in shape and -len(shape) <= dim < len(shape)  # else the op itself has the say


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """See `linrec.ops.linear_scan`."""
    dtype = result_dtype(a, b, h0)
    shape = broadcast_shape(a.shape, b.shape)
    axis = time_axis(len(shape), dim)
    a, b = a.to(dtype).expand(shape), b.to(dtype).expand(shape)
    if h0 is not None:
        h0 = h0.to(dtype).expand(shape[:axis] + shape[axis + 1 :])
    h: Tensor = _Scan.apply(a, b, h0, axis, reverse)  # type: ignore[no-untyped-call]
    return h


class _Scan(torch.autograd.Function):
    """The scan with its first derivative; `linrec.ops.dispatch` sees to all others."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
        h = empty_like(b)
        with launch.on_device(b):
            forward_into(a.movedim(dim, 0), b.movedim(dim, 0), h0, h.movedim(dim, 0), reverse)
        ctx.save_for_backward(a, h0, h)
        ctx.dim, ctx.reverse = dim, reverse
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        dim = ctx.dim
        needs_a, needs_b, needs_h0 = ctx.needs_input_grad[:3]
        grad_b = empty_like(h)
        grad_a = empty_like(h) if needs_a else None
        moved = [None if x is None else x.movedim(dim, 0) for x in (a, grad, h, grad_a, grad_b)]
        with launch.on_device(h):
            backward_into(moved[0], moved[1], moved[2], h0, moved[3], moved[4], ctx.reverse)  # type: ignore[arg-type]
        grad_h0 = None
        if needs_h0:
            first = -1 if ctx.reverse else 0
            grad_h0 = a.select(dim, first).conj() * grad_b.select(dim, first)
        return grad_a, grad_b if needs_b else None, grad_h0, None, None


def forward_into(
    a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool, products: bool = False
) -> None:  # fmt: skip
    """Write the states of h[t] = a[t] * h[t-1] + b[t] over axis 0 into `out`; all but `h0` are (T, *state).

    `products`: the transitions are compositions, which may have overflowed although no transition is infinite.
    """
    length, state = out.shape[0], tuple(out.shape[1:])
    found = _arranged(state, [(a, 1), (b, 1), (h0, 0), (out, 1)])
    if found is None:
        a, b, h0 = (None if x is None else x.contiguous() for x in (a, b, h0))  # type: ignore[assignment]
        whole = empty_like(out)
        forward_into(a, b, h0, whole, reverse, products)
        out.copy_(whole)
        return
    lanes, times, tensors = found
    grid = Grid.of(lanes.count, length, out)
    start, start_chunk, start_lanes = tensors[2], 0, lanes.strides[2]
    if grid.chunks > 1:
        starts = _starts(a, b, h0, lanes, times, tensors, grid, length, reverse, lag=0, flip=False)
        start, start_chunk, start_lanes = _boundaries(starts, lanes)
    launch.kernels().forward[(grid.blocks, grid.chunks)](
        *(tensors[0], tensors[1], tensors[1] if start is None else start, tensors[3]),
        *(length, grid.chunk, lanes.count, *lanes.sizes[1:]),
        *(times[0], *lanes.strides[0], times[1], *lanes.strides[1], start_chunk, *start_lanes),
        *(times[3], *lanes.strides[3]),
        CONJ=a.is_conj(),
        COMPLEX=out.is_complex(),
        HAS_START=start is not None,
        FROM_END=reverse,
        PRODUCTS=products,
        STEPS=grid.steps,
        LANES=grid.lanes,
        ACC=launch.accumulator(out.dtype),
    )


def backward_into(
    a: Tensor, grad: Tensor, h: Tensor, h0: Tensor | None, grad_a: Tensor | None, grad_b: Tensor, reverse: bool
) -> None:
    """Write the derivatives of the scan's operands into `grad_a`, if there is one, and `grad_b`, given its states."""
    length, state = h.shape[0], tuple(h.shape[1:])
    found = _arranged(state, [(a, 1), (grad, 1), (h, 1), (h0, 0), (grad_b, 1)])
    if found is None:
        a, grad, h, h0 = (None if x is None else x.contiguous() for x in (a, grad, h, h0))  # type: ignore[assignment]
        whole_a, whole_b = None if grad_a is None else empty_like(h), empty_like(h)
        backward_into(a, grad, h, h0, whole_a, whole_b, reverse)
        grad_b.copy_(whole_b)
        if grad_a is not None and whole_a is not None:
            grad_a.copy_(whole_a)
        return
    lanes, times, tensors = found
    grid = Grid.of(lanes.count, length, h)
    start, start_chunk, start_lanes = None, 0, (0,) * launch.AXES
    if grid.chunks > 1:
        starts = _starts(a, grad, None, lanes, times, tensors, grid, length, not reverse, lag=1, flip=True)
        start, start_chunk, start_lanes = _boundaries(starts, lanes)
    out = tensors[4]
    launch.kernels().backward[(grid.blocks, grid.chunks)](
        *(tensors[0], tensors[1], tensors[2], out if tensors[3] is None else tensors[3]),
        *(out if start is None else start, out if grad_a is None else pairs(grad_a), out),
        *(length, grid.chunk, lanes.count, *lanes.sizes[1:]),
        *(times[0], *lanes.strides[0], times[1], *lanes.strides[1], times[2], *lanes.strides[2], *lanes.strides[3]),
        *(start_chunk, *start_lanes, times[4], *lanes.strides[4]),
        CONJ=not a.is_conj(),
        COMPLEX=h.is_complex(),
        HAS_H0=h0 is not None,
        HAS_START=start is not None,
        WITH_A=grad_a is not None,
        FROM_END=not reverse,
        STEPS=grid.steps,
        LANES=grid.lanes,
        ACC=launch.accumulator(h.dtype),
    )


Arranged = tuple[Lanes, list[int], list[Any]]


def _arranged(state: tuple[int, ...], operands: list[tuple[Tensor | None, int]]) -> Arranged | None:
    """Lanes, strides in time, and what to pass of operands (T, *state) or, where the number is 0, (*state).

    A conjugated operand other than the first is copied; the first one's conjugation is the kernels' to apply.
    """
    tensors: list[Tensor | None] = []
    times, strides = [], []
    for i, (x, leading) in enumerate(operands):
        if x is None:
            tensors.append(None)
            times.append(0)
            strides.append([0] * len(state))
            continue
        x = pairs(x if i == 0 else x.resolve_conj())
        own = list(x.stride())[: leading + len(state)]
        tensors.append(x)
        times.append(own[0] if leading else 0)
        strides.append(own[leading:])
    lanes = Lanes.of(state, strides)
    return None if lanes is None else (lanes, times, tensors)


def _starts(
    a: Tensor,
    b: Tensor,
    h0: Tensor | None,
    lanes: Lanes,
    times: list[int],
    tensors: list[Any],
    grid: Grid,
    length: int,
    from_end: bool,
    lag: int,
    flip: bool,
) -> Tensor:
    """The state before each chunk, in the order of the walk: (chunks, lanes), lanes in their own order."""
    wide = torch.promote_types(b.dtype, torch.float32)
    product, state, ends = (torch.empty(grid.chunks, lanes.count, dtype=wide, device=b.device) for _ in range(3))
    launch.kernels().summarise[(grid.blocks, grid.chunks)](
        *(tensors[0], tensors[1], pairs(product), pairs(state)),
        *(length, grid.chunk, lanes.count, *lanes.sizes[1:]),
        *(times[0], *lanes.strides[0], times[1], *lanes.strides[1]),
        CONJ=a.is_conj() != flip,
        COMPLEX=b.is_complex(),
        FROM_END=from_end,
        LAG=lag,
        STEPS=grid.steps,
        LANES=grid.lanes,
        ACC=launch.accumulator(b.dtype),
    )
    first = ends.new_zeros(lanes.count) if h0 is None else _in_lane_order(tensors[2], lanes, h0.is_complex()).to(wide)
    forward_into(product, state, first, ends, reverse=False, products=True)
    return torch.cat((first.unsqueeze(0), ends[:-1]))


def _in_lane_order(h0: Tensor, lanes: Lanes, is_complex: bool) -> Tensor:
    """The initial state, given as real numbers or pairs, with its lanes in their own order."""
    if is_complex:
        flat = h0.as_strided((*lanes.sizes, 2), (*lanes.strides[2], 1), h0.storage_offset()).reshape(-1, 2)
        return torch.view_as_complex(flat.contiguous())
    return h0.as_strided(lanes.sizes, lanes.strides[2], h0.storage_offset()).reshape(-1)


def _boundaries(starts: Tensor, lanes: Lanes) -> tuple[Tensor, int, tuple[int, ...]]:
    """States before chunks as an operand: what to pass, its stride by chunk, its strides by lane."""
    numbers = 2 if starts.is_complex() else 1
    own, step = [], numbers
    for size in reversed(lanes.sizes):
        own.append(step)
        step *= size
    return pairs(starts), numbers * lanes.count, tuple(reversed(own))
