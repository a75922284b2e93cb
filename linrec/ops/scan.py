"""Linear recurrences h[t] = a[t] h[t-1] + b[t] for all t at once, diagonal or dense, with derivatives of any order.

The torch form is the scan over chunks of `linrec.ops.algebra`: it works on any device, divides by no decay and takes no
logarithm of a gate. For diagonal transitions a compiled loop (`cpu_scan`) takes over on a CPU where it can, and on
other devices what is registered for them (`dispatch`), as Triton's kernels (`triton_scan`) are for GPUs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import cpu_scan, reference
from ._dtypes import broadcast_shape, compute_dtype, in_old_vmap, result_dtype, time_axis
from .algebra import Dense, Diagonal, Linear, scan_into
from .dispatch import dispatched
from .precision import own_precision

DIAGONAL, DENSE = Diagonal(), Dense()


@dispatched
def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of h[t] = a[t] * h[t-1] + b[t], where h[-1] = h0.

    Args:
        a: transitions, (B, T, *state) up to broadcasting with `b`; size 1 along `dim` is a constant transition.
        b: drive, (B, T, *state) up to broadcasting with `a`.
        h0: state before the first step, broadcastable to (B, *state); zeros if None.
        dim: the time axis of the broadcast shape of `a` and `b`.
        reverse: run from the end, h[t] = a[t] * h[t+1] + b[t], where h[T] = h0.

    Returns:
        h, of the broadcast shape of `a` and `b`, in the dtype torch promotes the operands to. Half precision is
        accumulated in float32.

    A NaN or infinity at step t reaches no state before t. Transitions may be zero, negative, complex or greater than
    one. Where the product of a chunk's transitions overflows and the state that it multiplies is neither zero nor
    large, the torch form's result is not finite although a loop's may be.

    Raises:
        RuntimeError: if the shapes do not broadcast.
        IndexError: if there is no axis `dim`.

    Source: Blelloch, "Prefix sums and their applications" (1990), section 1.4; for its derivative and the three passes,
    Martin and Cundy, "Parallelizing linear recurrent neural nets over sequence length" (2018), section 2.

    >>> linear_scan(torch.tensor([[0.5, 0.0, 2.0]]), torch.tensor([[1.0, 1.0, 1.0]]))
    tensor([[1., 1., 3.]])
    """
    dtype = result_dtype(a, b, h0)
    compute = compute_dtype(dtype)
    shape = broadcast_shape(a.shape, b.shape)
    axis = time_axis(len(shape), dim)
    if h0 is not None:
        h0 = h0.to(compute).expand(shape[:axis] + shape[axis + 1 :])
    a, b = a.to(compute).expand(shape), b.to(compute).expand(shape)
    return scan(DIAGONAL, a, b, h0, axis, reverse).to(dtype)


@own_precision
def matrix_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of h[t] = a[t] @ h[t-1] + b[t], where h[-1] = h0, for dense transitions that differ from step to step.

    Args:
        a: transitions, (B, T, ..., d, d); the axes before the last two broadcast with those of `b`.
        b: drive, (B, T, ..., d, n): n columns, each a state. Vectors need an axis of size one at the end.
        h0: state before the first step, broadcastable to (B, ..., d, n); zeros if None.
        dim: the time axis of the broadcast shape.
        reverse: run from the end, h[t] = a[t] @ h[t+1] + b[t], where h[T] = h0.

    Returns:
        h, (B, T, ..., d, n), in the dtype torch promotes the operands to. Half precision is computed in float32.

    It takes about twice the loop's arithmetic and, to compose transitions, 2 d / n times it again.

    Raises:
        ValueError: if `a` and `b` do not fit, or `dim` is one of the last two axes.
    """
    if a.ndim < 3 or b.ndim < 3 or not a.shape[-1] == a.shape[-2] == b.shape[-2]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"the transitions (..., d, d) and the drive (..., d, n) do not fit: {shapes}")
    dtype = result_dtype(a, b, h0)
    compute = compute_dtype(dtype)
    shape = broadcast_shape(a.shape[:-2], b.shape[:-2])
    axis = time_axis(len(shape) + 2, dim)
    if axis >= len(shape):
        raise ValueError(f"dim={dim} is one of the last two axes, which are the state's")
    if h0 is not None:
        h0 = h0.to(compute).expand(*shape[:axis], *shape[axis + 1 :], *b.shape[-2:])
    a, b = a.to(compute).expand(*shape, *a.shape[-2:]), b.to(compute).expand(*shape, *b.shape[-2:])
    return scan(DENSE, a, b, h0, axis, reverse).to(dtype)


def scan(
    algebra: Linear, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool, lagged: bool = False
) -> Tensor:
    """The scan over operands that are broadcast and of one dtype. See `_Scan` on `lagged`."""
    if in_old_vmap(a, b, h0):
        transitions = previous_states(a, None, dim, reverse) if lagged else a
        plain = reference.matrix_scan if isinstance(algebra, Dense) else reference.linear_scan
        return plain(transitions, b, h0, dim=dim, reverse=reverse)
    if torch.compiler.is_exporting():
        return _by_doubling(algebra, a, b, h0, dim, reverse)
    h: Tensor = _Scan.apply(algebra, a, b, h0, dim, reverse, lagged)  # type: ignore[no-untyped-call]
    return h


def _by_doubling(algebra: Linear, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The scan in operators that torch can differentiate, for an exported program, which has nothing else."""
    a, b = (x.movedim(dim, 0).flip(0) if reverse else x.movedim(dim, 0) for x in (a, b))
    if h0 is not None and b.shape[0]:
        b = torch.cat([b[:1] + algebra.apply(a[0], h0), b[1:]])
    distance = 1
    while distance < b.shape[0]:
        earlier = b[:-distance]
        moved = torch.where(algebra.settled(earlier), torch.zeros_like(earlier), algebra.apply(a[distance:], earlier))
        b = torch.cat([b[:distance], b[distance:] + moved])
        a = torch.cat([a[:distance], algebra.composed(a[distance:], a[:-distance])])
        distance *= 2
    return (b.flip(0) if reverse else b).movedim(0, dim)


class _Scan(torch.autograd.Function):
    """The scan as one differentiable operation.

    The lagged form takes each transition one step late: h[t] = a[t-1] h[t-1] + b[t] (reversed: a[t+1] h[t+1]), starts
    from its first drive and has no h0. It is what the derivative of the plain form is, run the other way, and the
    derivative of the lagged form is the plain one again: so derivatives of every order are scans, and no shifted copy
    of `a` is made.
    """

    @staticmethod
    def forward(
        algebra: Linear, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool, lagged: bool
    ) -> Tensor:
        h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
        a, b, out = a.movedim(dim, 0), b.movedim(dim, 0), h.movedim(dim, 0)
        if b.shape[0] == 0:
            return h
        if lagged:
            first, later, earlier = (-1, slice(0, -1), slice(1, None)) if reverse else (0, slice(1, None), slice(0, -1))
            out[first] = b[first]
            a, b, h0, out = a[earlier], b[later], out[first], out[later]
        if b.numel() and not (isinstance(algebra, Diagonal) and cpu_scan.scan_into(a, b, h0, out, reverse)):
            scan_into(algebra, a, b, b.new_zeros(b.shape[1:]) if h0 is None else h0, out, reverse)
        return h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.algebra, a, _, h0, ctx.dim, ctx.reverse, ctx.lagged = inputs
        ctx.save_for_backward(a, h0, output)
        ctx.save_for_forward(a, h0, output)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, h0, h = ctx.saved_tensors
        algebra, dim, reverse, lagged = ctx.algebra, ctx.dim, ctx.reverse, ctx.lagged
        _, needs_a, _, needs_h0 = ctx.needs_input_grad[:4]
        grad_a = grad_h0 = fused = None
        if needs_a and not lagged and algebra is DIAGONAL:
            fused = _fused_backward(a, h0, h, grad, dim, reverse)
        if fused is not None:
            grad_a, grad_b = fused
        else:
            grad_b = scan(algebra, algebra.adjoint(a), grad, None, dim, not reverse, not lagged)
            if needs_a and lagged:
                grad_a = algebra.outer(previous_states(grad_b, None, dim, not reverse), h)
            elif needs_a:
                grad_a = algebra.outer(grad_b, previous_states(h, h0, dim, reverse))
        if needs_h0 and h.shape[dim]:
            first = -1 if reverse else 0
            grad_h0 = algebra.apply(algebra.adjoint(a.select(dim, first)), grad_b.select(dim, first))
        return None, grad_a, grad_b, grad_h0, None, None, None

    @staticmethod
    @own_precision
    def jvp(ctx: Any, _: None, da: Tensor | None, db: Tensor | None, dh0: Tensor | None, *flags: None) -> Tensor:
        a, h0, h = ctx.saved_tensors
        drive = torch.zeros_like(h) if db is None else db
        if da is not None and ctx.lagged:
            drive = drive + previous_states(ctx.algebra.apply(da, h), None, ctx.dim, ctx.reverse)
        elif da is not None:
            drive = drive + ctx.algebra.apply(da, previous_states(h, h0, ctx.dim, ctx.reverse))
        return scan(ctx.algebra, a, drive, dh0, ctx.dim, ctx.reverse, ctx.lagged)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], algebra: Linear, a: Tensor, b: Tensor, h0: Tensor | None, *rest: Any
    ) -> tuple[Tensor, int]:
        a, b, start = (batch_first(x, axis, info.batch_size) for x, axis in zip((a, b, h0), in_dims[1:4], strict=True))
        dim, *flags = rest
        return scan(algebra, a, b, start, dim + 1, *flags), 0


def batch_first(tensor: Any, axis: int | None, size: int) -> Any:
    """An operand of a vmap rule with its mapped axis first, or expanded to have one; None stays None."""
    if tensor is None:
        return None
    return tensor.expand(size, *tensor.shape) if axis is None else tensor.movedim(axis, 0)


def previous_states(h: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    """The state each step starts from: h one step earlier (reversed: later), h0 or zeros at the start."""
    length = h.shape[dim]
    if length == 0:
        return h
    start = torch.zeros_like(h.narrow(dim, 0, 1)) if h0 is None else h0.unsqueeze(dim)
    parts = (h.narrow(dim, 1, length - 1), start) if reverse else (start, h.narrow(dim, 0, length - 1))
    return torch.cat(parts, dim)


def _fused_backward(
    a: Tensor, h0: Tensor | None, h: Tensor, grad: Tensor, dim: int, reverse: bool
) -> tuple[Tensor, Tensor] | None:
    """grad_a and grad_b in one compiled pass over the data, or None where there is no compiled form."""
    grad_a, grad_b = (torch.empty(h.shape, dtype=h.dtype, device=h.device) for _ in range(2))
    if h.numel() == 0 or torch.is_grad_enabled() or in_old_vmap(a, grad):
        return None
    first = [tensor.movedim(dim, 0) for tensor in (a, h, grad, grad_a, grad_b)]
    done = cpu_scan.scan_backward_into(first[0], h0, first[1], first[2], first[3], first[4], reverse)
    return (grad_a, grad_b) if done else None
