"""`scan_readout` on a GPU by Triton kernels, which keep the state of one step in `triton_launch.STEPS`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import triton_launch as launch
from ._dtypes import broadcast_shape, compute_dtype, result_dtype, time_axis
from .plain import are_plain
from .triton_launch import Lanes, empty_like, pairs, power_of_two
from .triton_scan import DTYPES

WIDEST = 256
"""Elements of the state that are read out together, at most."""


def takes(
    a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> bool:  # fmt: skip
    """Whether the kernels compute `scan_readout` for these operands."""
    if result_dtype(a, b, c, h0) not in DTYPES or not are_plain((a, b, c, h0), launch.DEVICES):
        return False
    shape = broadcast_shape(a.shape, b.shape, c.shape)
    if len(shape) < 2 or 0 in shape or shape[-1] > WIDEST or not -len(shape) <= dim < len(shape):
        return False
    return dim % len(shape) != len(shape) - 1 and launch.kernels() is not None


def scan_readout(
    a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """See `linrec.ops.scan_readout`."""
    dtype = result_dtype(a, b, c, h0)
    shape = broadcast_shape(a.shape, b.shape, c.shape)
    axis = time_axis(len(shape), dim)
    # Time comes first, so that rows are the last axis but one: there the readout may be one for all rows.
    a, b, c = (x.to(dtype).reshape((1,) * (len(shape) - x.ndim) + x.shape).movedim(axis, 0) for x in (a, b, c))
    shape = shape[axis : axis + 1] + shape[:axis] + shape[axis + 1 :]
    a, b = a.expand(shape), b.expand(shape)
    c = c.expand(*shape[:-2], c.shape[-2], shape[-1]) if len(shape) > 2 else c.expand(shape)
    if h0 is not None:
        h0 = h0.to(dtype).expand(shape[1:])
    y, last = _ScanReadout.apply(a, b, c, h0, reverse)  # type: ignore[no-untyped-call]
    return y.movedim(0, axis), last


class _ScanReadout(torch.autograd.Function):
    """The op with time in front and its first derivative; `linrec.ops.dispatch` sees to all others."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None, reverse: bool
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        length, state = b.shape[0], tuple(b.shape[1:])
        y, last = empty_like(b, tuple(b.shape[:-1])), empty_like(b, state)
        places = _Places.of(state, [a, b, c.expand(b.shape), y], [h0])
        if places is None:
            a, b, c = (x.contiguous() for x in (a, b, c))
            h0 = None if h0 is None else h0.contiguous()
            places = _Places.of(state, [a, b, c.expand(b.shape), y], [h0])
            assert places is not None
        steps = min(launch.STEPS, power_of_two(length))
        kept = torch.empty(-(-length // steps), *state, dtype=compute_dtype(b.dtype), device=b.device)
        with launch.on_device(b):
            launch.readout_kernels().forward[(places.programs,)](
                *(*places.operands[:3], places.operands[4], places.operands[3], pairs(kept), pairs(last)),
                *(*places.sizes(length), *places.strides(0, 1, 2), *places.strides(4)[1:], *places.strides(3)[:-1]),
                CONJ=a.is_conj(),
                HAS_H0=h0 is not None,
                FROM_END=reverse,
                STEPS=steps,
                **places.options,
            )
        ctx.save_for_backward(a, b, c, kept)
        ctx.reverse, ctx.steps = reverse, steps
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, c, kept = ctx.saved_tensors
        if grad is None and grad_last is None:
            return (None,) * 5
        length, state = b.shape[0], tuple(b.shape[1:])
        grad = b.new_zeros(()).expand(b.shape[:-1]) if grad is None else grad
        grad_a, grad_b = empty_like(b), empty_like(b)
        shared = c.shape != b.shape
        size = _Places.of(state, [b], [])
        blocks = size.blocks if shared and size is not None else 1
        grad_c = torch.empty(blocks, *c.shape, dtype=b.dtype, device=b.device)
        operands = [a, b, c.expand(b.shape), grad, grad_b, grad_c[0].expand(b.shape)]
        places = _Places.of(state, operands, [grad_last])
        if places is None:
            operands[:4] = [x.contiguous() for x in operands[:4]]
            grad_last = None if grad_last is None else grad_last.contiguous()
            places = _Places.of(state, operands, [grad_last])
            assert places is not None
        pair = 2 if b.is_complex() else 1
        with launch.on_device(b):
            launch.readout_kernels().backward[(places.programs,)](
                *(*places.operands[:4], places.operands[6], pairs(kept)),
                *(pairs(grad_a), places.operands[4], pairs(grad_c)),
                *(*places.sizes(length), *places.strides(0, 1, 2), *places.strides(3)[:-1], *places.strides(6)[1:]),
                *(*places.strides(4), grad_c.stride(0) * pair, *places.strides(5)),
                CONJ=operands[0].is_conj(),
                HAS_LAST=grad_last is not None,
                SHARED=shared,
                FROM_END=ctx.reverse,
                STEPS=ctx.steps,
                **places.options,
            )
        grad_h0 = None
        if ctx.needs_input_grad[3]:
            first = -1 if ctx.reverse else 0
            grad_h0 = a[first].conj() * grad_b[first]
        return grad_a, grad_b, grad_c.sum(0) if blocks > 1 else grad_c[0], grad_h0, None


class _Places:
    """How operands lie: time, at most three outer axes, rows, elements of the state."""

    def __init__(
        self, outer: Lanes, rows: int, elements: int, operands: list[Tensor | None], found: list[tuple[int, ...]]
    ) -> None:
        self.outer, self.rows, self.elements, self.found = outer, rows, elements, found
        first = next(x for x in operands if x is not None)
        self.operands = [first if x is None else x for x in operands]
        padded = power_of_two(elements)
        # Half the lanes that the plain scan takes: the derivative holds two scans at once.
        block = min(power_of_two(rows), max(1, launch.widest(first) // 2 // padded))
        self.blocks = -(-rows // block)
        self.programs = outer.count * self.blocks
        self.options = {"ROWS": block, "PADDED": padded}

    @staticmethod
    def of(state: tuple[int, ...], timed: list[Tensor], still: list[Tensor | None]) -> _Places | None:
        """For operands (T, *state), or (T, *state but the last axis), and others (*state); None where the outer axes
        are too many. The first one's conjugation is the kernels' to apply; others are copied for theirs."""
        count = len(state)
        tensors: list[Tensor | None] = []
        strides = []
        for i, x in enumerate([*timed, *still]):
            if x is None:
                tensors.append(None)
                strides.append([0] * (count + 1))
                continue
            tensors.append(pairs(x if i == 0 else x.resolve_conj()))
            own = list(tensors[-1].stride())[: x.ndim]  # type: ignore[union-attr]
            own = own if i < len(timed) else [0, *own]
            strides.append(own + [0] * (count + 1 - len(own)))
        rows = max(count - 2, 0)
        natural = list(torch.empty(*state, device="meta").stride())
        outer = Lanes.of(state[:rows], [*(own[1 : 1 + rows] for own in strides), natural[:rows]])
        if outer is None or outer.sizes[0] > 1:
            return None
        found = [
            (own[0], *lanes[1:], own[-2] if count > 1 else 0, own[-1])
            for own, lanes in zip(strides, outer.strides, strict=False)
        ]
        places = _Places(outer, state[rows] if count > 1 else 1, state[-1], tensors, found)
        places.options |= {"COMPLEX": timed[0].is_complex(), "ACC": launch.accumulator(timed[0].dtype)}
        return places

    def sizes(self, length: int) -> tuple[int, ...]:
        """The sizes that the kernels take."""
        return length, self.outer.count, self.rows, self.elements, *self.outer.sizes[2:]

    def strides(self, *which: int) -> list[int]:
        """Strides of operands, one after another: time, outer axes, rows, elements."""
        return [n for i in which for n in self.found[i]]
