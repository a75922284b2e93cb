"""`scan_readout` on a GPU by Triton kernels, which keep the state of one step in a tile (`triton_launch.READ`)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from . import triton_launch as launch
from ._dtypes import broadcast_shape, compute_dtype, in_old_vmap, result_dtype, summed_to, time_axis
from .dispatch import by_torch
from .plain import unwatched
from .triton_launch import Grid, Lanes, Launch, geometry, pairs, power_of_two
from .triton_scan import DTYPES, Cut, as_read

WIDEST = 256
"""Elements of the state that are read out together, at most."""


def takes(
    a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> bool:  # fmt: skip
    """Whether the kernels compute `scan_readout` for these operands, which are plain."""
    if result_dtype(a, b, c, h0) not in DTYPES or b.device.type not in launch.DEVICES:
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
    axis = time_axis(max(a.dim(), b.dim(), c.dim()), dim)
    given = as_read(a, dtype, conj=True), as_read(b, dtype), as_read(c, dtype)
    y, last = _ScanReadout.apply(*given, None if h0 is None else as_read(h0, dtype), axis, reverse)  # type: ignore[no-untyped-call]
    return y, last


class _ScanReadout(torch.autograd.Function):
    """The op with its derivatives."""

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None, dim: int, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        with launch.on_device(b):
            key = ("read forward", *(geometry(x) for x in (a, b, c, h0)), dim, reverse)
            prepared = launch.remembered(key, lambda: _Forward(a, b, c, h0, dim, reverse))
            y, last, kept = prepared(a, b, c, h0)
        ctx.save_for_backward(a, b, c, h0, kept)
        ctx.dim, ctx.reverse = dim, reverse
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_last: Tensor | None) -> tuple[Tensor | None, ...]:
        a, b, c, h0, kept = ctx.saved_tensors
        dim, reverse = ctx.dim, ctx.reverse
        if grad is None and grad_last is None:
            return (None,) * 6
        if torch.is_grad_enabled() or in_old_vmap(grad, grad_last) or not unwatched():
            options = {"dim": dim, "reverse": reverse}
            again = by_torch("scan_readout", (a, b, c, h0), options, ctx.needs_input_grad[:4], (grad, grad_last))
            return *again, None, None
        grad = None if grad is None else as_read(grad, b.dtype)
        grad_last = None if grad_last is None else as_read(grad_last, b.dtype)
        with launch.on_device(b):
            key = ("read backward", *(geometry(x) for x in (a, b, c, grad, grad_last)), dim, reverse, kept.shape)
            prepared = launch.remembered(key, lambda: _Backward(a, b, c, grad, grad_last, dim, reverse))
            grad_a, grad_b, grad_c = prepared(a, b, c, grad, grad_last, kept)
        grad_h0 = None
        if ctx.needs_input_grad[3]:
            first = -1 if reverse else 0
            wide = a.expand(grad_b.shape).select(dim, first).conj()
            grad_h0 = (wide * grad_b.select(dim, first)).sum_to_size(h0.shape)
        found = (summed_to(x, own.shape) for x, own in ((grad_a, a), (grad_b, b), (grad_c, c)))
        return *found, grad_h0, None, None


class _Shape:
    """What both passes have in common: the broadcast shape, and whether all rows share one readout."""

    def __init__(self, a: Tensor, b: Tensor, c: Tensor, dim: int) -> None:
        self.dim = dim
        self.shape = broadcast_shape(a.shape, b.shape, c.shape)
        self.length = self.shape[dim]
        self.state = self.shape[:dim] + self.shape[dim + 1 :]
        rows = len(self.shape) - 2
        # Time in front, so that rows are the last axis but one: there the readout may be one for all rows.
        self.shared = len(self.state) > 1 and self.first(c).shape[-2] == 1 and self.state[-2] > 1
        self.rows = self.state[-2] if rows > 0 and len(self.state) > 1 else 1

    def first(self, x: Tensor) -> Tensor:
        """An operand of all axes, with time in front."""
        return x.reshape((1,) * (len(self.shape) - x.dim()) + tuple(x.shape)).movedim(self.dim, 0)

    def timed(self, x: Tensor) -> Tensor:
        """The same, broadcast."""
        return self.first(x).expand(self.length, *self.state)

    def readout(self, c: Tensor) -> Tensor:
        """The readout, broadcast but for the rows that share one."""
        shape = (self.length, *self.state)
        return self.first(c).expand((*shape[:-2], 1, shape[-1]) if self.shared else shape)

    def like_y(self, y: Tensor) -> Tensor:
        """A result or its derivative, with time in front."""
        return y.movedim(self.dim, 0)

    def cut(self, like: Tensor, *timed: Tensor) -> tuple[Grid, Lanes | None, list[int]]:
        """How time is cut for operands (T, *state): the grid, lanes of `summarise` in the order of the state's elements
        (None where time is whole), and strides in time."""
        strides = [list(pairs(x).stride())[: x.dim()] for x in timed]
        natural = list(torch.empty(self.state, device="meta").stride())
        lanes = Lanes.of(self.state, [*(own[1:] for own in strides), natural])
        count = math.prod(self.state)
        grid = Grid.of(count, self.length, like, launch.READ)
        if lanes is None or grid.chunks == 1:
            steps = grid.steps
            whole = math.ceil(self.length / steps) * steps
            return Grid(grid.lanes, steps, grid.warps, whole, grid.blocks, 1), None, []
        return grid, lanes, [own[0] for own in strides]


class _Forward:
    """The launches of the forward pass, for operands that lie in some way."""

    def __init__(self, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> None:
        self.s = s = _Shape(a, b, c, dim)
        self.y_shape = s.shape[:-1]
        y = torch.empty(self.y_shape, dtype=b.dtype, device=b.device)
        places = _Places.of(s.state, [s.timed(a), s.timed(b), s.timed(c), s.like_y(y)], [self._start(h0)])
        self.copies = places is None
        if places is None:
            a, b, c, h0 = self._copied(a, b, c, h0)
            places = _Places.of(s.state, [s.timed(a), s.timed(b), s.timed(c), s.like_y(y)], [self._start(h0)])
            assert places is not None
        grid, lanes, times = s.cut(b, s.timed(a), s.timed(b))
        self.kept = (-(-s.length // grid.steps), *s.state)
        self.wide = compute_dtype(b.dtype)
        self.cut = Cut(grid, math.prod(s.state), b)
        options = {"CONJ": a.is_conj(), "COMPLEX": b.is_complex(), "FROM_END": reverse, **grid.options(b)}
        self.summarise = None
        if lanes is not None:
            numbers = [s.length, grid.chunk, 0, lanes.count, *lanes.sizes[1:]]
            strides = [times[0], *lanes.strides[0], times[1], *lanes.strides[1], *([0] * 5)]
            self.summarise = Launch(
                launch.kernels().summarise,
                (grid.blocks, grid.chunks),
                [*numbers, *strides],
                {**options, "LAG": 0, "FACTOR": False},
            )
        del options["LANES"]
        self.main = Launch(
            launch.readout_kernels().forward,
            (places.programs, grid.chunks),
            [
                *(s.length, grid.chunk, *places.sizes()),
                *(*places.strides(0, 1, 2), *places.strides(4)[1:], *places.strides(3)[:-1]),
            ],
            {**options, **places.options, "HAS_H0": h0 is not None, "CUT": lanes is not None},
        )

    def _start(self, h0: Tensor | None) -> Tensor | None:
        return None if h0 is None else h0.expand(self.s.state)

    def _copied(
        self, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        a, b, c = _contiguous(self.s, a, b, c)
        return a, b, c, None if h0 is None else h0.expand(self.s.state).contiguous()

    def __call__(self, a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The result, the last state, and the states that the backward pass starts from."""
        if self.copies:
            a, b, c, h0 = self._copied(a, b, c, h0)
        y = torch.empty(self.y_shape, dtype=b.dtype, device=b.device)
        last = torch.empty(self.s.state, dtype=b.dtype, device=b.device)
        kept = torch.empty(self.kept, dtype=self.wide, device=b.device)
        ra, rb, rc, ry = pairs(a), pairs(b), pairs(c), pairs(y)
        product, state = self.cut.memory() or (ry, ry)
        if self.summarise is not None:
            self.summarise(ra, rb, rb, product, state)
        start = rb if h0 is None else pairs(h0)
        self.main(ra, rb, rc, start, product, state, ry, pairs(kept), pairs(last))
        return y, last, kept


class _Backward:
    """The launches of the backward pass."""

    def __init__(
        self,
        a: Tensor,
        b: Tensor,
        c: Tensor,
        grad: Tensor | None,
        grad_last: Tensor | None,
        dim: int,
        reverse: bool,
    ) -> None:
        self.s = s = _Shape(a, b, c, dim)
        places = self._places(a, b, c, grad, grad_last)
        self.copies = places is None
        if places is None:
            a, b, c, grad, grad_last = self._copied(a, b, c, grad, grad_last)
            places = self._places(a, b, c, grad, grad_last)
            assert places is not None
        self.blocks = places.blocks if s.shared else 1
        grid, lanes, times = s.cut(
            b, s.timed(a), s.like_y(self._given(grad, b)).unsqueeze(-1).expand(s.length, *s.state), s.timed(c)
        )
        self.cut = Cut(grid, math.prod(s.state), b)
        conj = a.is_conj()
        options = {"COMPLEX": b.is_complex(), **grid.options(b)}
        self.summarise = None
        if lanes is not None:
            short = grid.chunk * grid.chunks - s.length
            numbers = [s.length, grid.chunk, short, lanes.count, *lanes.sizes[1:]]
            strides = [n for time, own in zip(times, lanes.strides, strict=False) for n in (time, *own)]
            self.summarise = Launch(
                launch.kernels().summarise,
                (grid.blocks, grid.chunks),
                [*numbers, *strides],
                {**options, "CONJ": not conj, "FROM_END": not reverse, "LAG": 1, "FACTOR": True},
            )
        del options["LANES"]
        by_block = math.prod(self._c_shape()) * (2 if b.is_complex() else 1)
        self.main = Launch(
            launch.readout_kernels().backward,
            (places.programs, grid.chunks),
            [
                *(s.length, grid.chunk, *places.sizes()),
                *(*places.strides(0, 1, 2), *places.strides(3)[:-1], *places.strides(6)[1:]),
                *(*places.strides(4), by_block, *places.strides(5)),
            ],
            {
                **options,
                **places.options,
                "CONJ": conj,
                "FROM_END": reverse,
                "HAS_LAST": grad_last is not None,
                "CUT": lanes is not None,
                "SHARED": s.shared,
            },
        )

    def _c_shape(self) -> tuple[int, ...]:
        shape = (self.s.length, *self.s.state)
        return (*shape[:-2], 1, shape[-1]) if self.s.shared else shape

    def _given(self, grad: Tensor | None, b: Tensor) -> Tensor:
        return b.new_zeros(()).expand(self.s.shape[:-1]) if grad is None else grad

    def _places(
        self, a: Tensor, b: Tensor, c: Tensor, grad: Tensor | None, grad_last: Tensor | None
    ) -> _Places | None:  # fmt: skip
        s = self.s
        own_b = s.like_y(torch.empty(s.shape, dtype=b.dtype, device="meta"))
        own_c = torch.empty(self._c_shape(), dtype=b.dtype, device="meta").expand(s.length, *s.state)
        timed = [s.timed(a), s.timed(b), s.timed(c), s.like_y(self._given(grad, b)), own_b, own_c]
        return _Places.of(s.state, timed, [grad_last])

    def _copied(
        self, a: Tensor, b: Tensor, c: Tensor, grad: Tensor | None, grad_last: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        found = (None if x is None else x.contiguous() for x in (grad, grad_last))
        return *_contiguous(self.s, a, b, c), *found  # type: ignore[return-value]

    def __call__(
        self, a: Tensor, b: Tensor, c: Tensor, grad: Tensor | None, grad_last: Tensor | None, kept: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The derivatives of a, b and c, broadcast but for what `Tensor.sum_to_size` can sum."""
        if self.copies:
            a, b, c, grad, grad_last = self._copied(a, b, c, grad, grad_last)
        grad = self._given(grad, b)
        grad_a, grad_b = (torch.empty(self.s.shape, dtype=b.dtype, device=b.device) for _ in range(2))
        grad_c = torch.empty(self.blocks, *self._c_shape(), dtype=b.dtype, device=b.device)
        ra, rb, rc, rg = pairs(a), pairs(b), pairs(c), pairs(grad)
        product, state = self.cut.memory() or (rb, rb)
        if self.summarise is not None:
            self.summarise(ra, rg, rc, product, state)
        rl = rb if grad_last is None else pairs(grad_last)
        self.main(ra, rb, rc, rg, rl, product, state, pairs(kept), pairs(grad_a), pairs(grad_b), pairs(grad_c))
        total = grad_c.sum(0) if self.blocks > 1 else grad_c[0]
        return grad_a, grad_b, total.movedim(0, self.s.dim)


def _contiguous(s: _Shape, a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Copies, with all axes. A pending conjugation of the first one stays so: the launch has been told of it."""
    wide = a.expand(s.shape)
    a = wide.conj().contiguous().conj() if a.is_conj() else wide.contiguous()
    return a, b.expand(s.shape).contiguous(), s.readout(c).contiguous().movedim(0, s.dim)


class _Places:
    """How operands lie: time, at most three outer axes, rows, elements of the state."""

    def __init__(
        self, outer: Lanes, rows: int, elements: int, width: int, found: list[tuple[int, ...]]
    ) -> None:  # fmt: skip
        self.outer, self.rows, self.elements, self.found = outer, rows, elements, found
        padded = power_of_two(elements)
        block = min(power_of_two(rows), max(1, width // padded))
        self.blocks = -(-rows // block)
        self.programs = outer.count * self.blocks
        self.options: dict[str, Any] = {"ROWS": block, "PADDED": padded}

    @staticmethod
    def of(state: tuple[int, ...], timed: list[Tensor], still: list[Tensor | None]) -> _Places | None:
        """For operands (T, *state), or (T, *state but the last axis), and others (*state); None where the outer axes
        are too many. The first one's conjugation is the kernels' to apply; others are copied for theirs."""
        count = len(state)
        strides = []
        for i, x in enumerate([*timed, *still]):
            if x is None:
                strides.append([0] * (count + 1))
                continue
            own = list(pairs(x).stride())[: x.dim()]
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
        return _Places(outer, state[rows] if count > 1 else 1, state[-1], launch.READ.lanes, found)

    def sizes(self) -> tuple[int, ...]:
        """The sizes that the kernels take."""
        return self.outer.count, self.rows, self.elements, *self.outer.sizes[2:]

    def strides(self, *which: int) -> list[int]:
        """Strides of operands, one after another: time, outer axes, rows, elements."""
        return [n for i in which for n in self.found[i]]
