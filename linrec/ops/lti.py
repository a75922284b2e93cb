"""Time-invariant recurrences m[t] = A m[t-1] + B u[t] with one dense transition A, solved for all steps at once.

Four forms, by what the program reads: all states by FFT with the impulse response (`lti_fft`) or by chunks, as stable
as the loop (`lti_scan`); only the last state, by one product (`lti_last`); a linear readout of every state, without
the states (`lti_readout`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import blocked, reference
from ._dtypes import chunk_views, compute_dtype, in_old_vmap, result_dtype, split_time, time_axis
from .convolution import causal_convolution, from_spectrum, good_fft_size, spectrum
from .powers import impulse_response, impulse_response_diagonal, matrix_power_apply, matrix_powers
from .precision import own_precision
from .scan import batch_first, previous_states

__all__ = [
    "causal_convolution",
    "impulse_response",
    "impulse_response_diagonal",
    "lti_fft",
    "lti_last",
    "lti_readout",
    "lti_scan",
    "matrix_powers",
]

_CHUNK = 8
_SHORT = 16


@own_precision
def lti_scan(A: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of h[t] = A h[t-1] + b[t], where h[-1] = h0, by chunks: as stable as the loop for any A.

    Args:
        A: (d, d), acting on the last axis of the state.
        b: drive, (B, T, ..., d), time at `dim`, which is not the last axis.
        h0: state before the first step, broadcastable to (B, ..., d); zeros if None.
        reverse: run from the end, h[t] = A h[t+1] + b[t], where h[T] = h0.

    Returns:
        h, of the shape of `b`, in the dtype torch promotes the operands to. Half precision is accumulated in float32.

    A NaN or infinity at step t reaches no state before t.

    Raises:
        ValueError: if `A` is not (d, d), or `dim` is the state's axis.

    >>> lti_scan(torch.tensor([[0.0, 1.0], [1.0, 1.0]]), torch.zeros(1, 4, 2), torch.tensor([0.0, 1.0]))[0, :, 1]
    tensor([1., 2., 3., 5.])
    """
    _check(A, b)
    dtype = result_dtype(A, b, h0)
    compute = compute_dtype(dtype)
    axis = time_axis(b.ndim, dim)
    if axis == b.ndim - 1:
        raise ValueError(f"dim={dim} is the last axis of the drive, which is the state's")
    if h0 is not None:
        h0 = h0.to(compute).expand(b.shape[:axis] + b.shape[axis + 1 :])
    return _scan(A.to(compute), b.to(compute), h0, axis, reverse).to(dtype)


@own_precision
def lti_fft(
    A: Tensor, B: Tensor, u: Tensor, h0: Tensor | None = None, *, dim: int = 1, response: Tensor | None = None
) -> Tensor:
    """All states of m[t] = A m[t-1] + B u[t], m[-1] = h0, as the convolution of `u` with the impulse response A^t B.

    Args:
        A: (d, d).
        B: (d, m).
        u: input, (B, T, ..., m), time at `dim`.
        h0: state before the first step, broadcastable to (B, ..., d); zeros if None.
        response: `impulse_response(A, B, T)`, where it is known already.

    Returns:
        (B, T, ..., d). Half precision is computed in float32. See `causal_convolution` on errors and NaN.

    Source: Chilkuri and Eliasmith, "Parallelizing Legendre Memory Unit Training" (2021), eq. 26.
    """
    _check(A, B, -2)
    A, B, u, h0, dtype, axis = _prepare(A, B, u, h0, dim)
    length = u.shape[axis]
    states = _convolve(_known(response, A, B, length), u, axis)
    if h0 is not None:
        states = states + _free_response(A, h0 @ A.mT, length, axis, states.ndim)
    return states.to(dtype)


@own_precision
def lti_last(
    A: Tensor, B: Tensor, u: Tensor, h0: Tensor | None = None, *, dim: int = 1, backwards: Tensor | None = None
) -> Tensor:
    """The last state of m[t] = A m[t-1] + B u[t], as one product of `u` with the reversed impulse response.

    Args: as for `lti_fft`, but `backwards`: the response from the last step to the first, (T, m, d), where it is known.
    Returns: (B, ..., d); h0, or zeros, where T is 0.

    Source: Chilkuri and Eliasmith, "Parallelizing Legendre Memory Unit Training" (2021), eq. 25.
    """
    _check(A, B, -2)
    A, B, u, h0, dtype, axis = _prepare(A, B, u, h0, dim)
    length = u.shape[axis]
    if backwards is None:
        backwards = impulse_response(A, B, length).flip(0).transpose(-1, -2)
    last = u.movedim(axis, -2).flatten(-2) @ backwards.to(A.dtype).reshape(-1, A.shape[0])
    if h0 is not None:
        last = last + matrix_power_apply(A, length, h0)
    return last.to(dtype)


@own_precision
def lti_readout(
    A: Tensor,
    B: Tensor,
    C: Tensor,
    u: Tensor,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    response: Tensor | None = None,
) -> Tensor:
    """y[t] = C m[t], where m[t] = A m[t-1] + B u[t], with C folded into the impulse response: no state is formed.

    Args: as for `lti_fft`, and C: (p, d). Returns: (B, T, ..., p).

    Source: Chilkuri and Eliasmith, "Parallelizing Legendre Memory Unit Training" (2021), eqs. 20 and 26.
    """
    _check(A, B, -2)
    _check(A, C)
    dtype = result_dtype(A, B, C, u, h0)
    A, B, u, h0, _, axis = _prepare(A, B, u, h0, dim, dtype)
    C = C.to(A.dtype)
    length = u.shape[axis]
    if response is None and C.shape[0] <= B.shape[1]:
        kernel = impulse_response(A.mT, C.mT, length).mT @ B
    else:
        kernel = C @ _known(response, A, B, length)
    y = _convolve(kernel, u, axis)
    if h0 is not None:
        y = y + _free_response(A, h0 @ A.mT, length, axis, y.ndim) @ C.mT
    return y.to(dtype)


def _check(A: Tensor, vectors: Tensor, axis: int = -1) -> None:
    if A.ndim != 2 or A.shape[0] != A.shape[1] or vectors.ndim < 2 or vectors.shape[axis] != A.shape[0]:
        shapes = f"{tuple(A.shape)} and {tuple(vectors.shape)}"
        raise ValueError(f"the transition must be (d, d) and act on vectors of size d, got {shapes}")


def _prepare(
    A: Tensor, B: Tensor, u: Tensor, h0: Tensor | None, dim: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, torch.dtype, int]:
    """The operands in one dtype to compute in, the dtype of the result, and the time axis counted from the front."""
    dtype = result_dtype(A, B, u, h0) if dtype is None else dtype
    compute = compute_dtype(dtype)
    axis = time_axis(u.ndim, dim)
    if axis == u.ndim - 1:
        raise ValueError(f"dim={dim} is the last axis of the input, which B acts on")
    if u.shape[-1] != B.shape[-1]:
        raise ValueError(f"B {tuple(B.shape)} does not act on the last axis of the input {tuple(u.shape)}")
    if h0 is not None:
        h0 = h0.to(compute).expand(*u.shape[:axis], *u.shape[axis + 1 : -1], A.shape[0])
    return A.to(compute), B.to(compute), u.to(compute), h0, dtype, axis


def _known(response: Tensor | None, A: Tensor, B: Tensor, length: int) -> Tensor:
    return impulse_response(A, B, length) if response is None else response.to(A.dtype)


def _convolve(kernel: Tensor, u: Tensor, axis: int) -> Tensor:
    """sum over j of kernel[j] u[t-j]: matrices kernel[j] (p, m), vectors on the last axis of `u`, time at `axis`."""
    length = u.shape[axis]
    if length == 0:
        return u.new_zeros(*u.shape[:-1], kernel.shape[1])
    if kernel.shape[2] == 1 and kernel.dtype == u.dtype and blocked.applies(kernel, u):
        rows = u.squeeze(-1).movedim(axis, -1)
        y = blocked.convolve_column(kernel.squeeze(2), rows.reshape(-1, length))
        return y.reshape(*rows.shape, kernel.shape[1]).movedim(-2, axis)
    size = good_fft_size(2 * length - 1)
    inputs = spectrum(u, size, axis).movedim(axis, 0)
    kernels = spectrum(kernel, size, 0)
    if kernel.shape[2] == 1:
        kernels = kernels.squeeze(2)
        product = inputs * kernels.reshape(kernels.shape[0], *(1,) * (u.ndim - 2), kernels.shape[1])
    else:
        product = (inputs.flatten(1, -2) @ kernels.mT).reshape(*inputs.shape[:-1], kernels.shape[1])
    return from_spectrum(product.movedim(0, axis), size, length, axis, u.dtype)


def _free_response(A: Tensor, start: Tensor, length: int, axis: int, ndim: int) -> Tensor:
    """A^t start for t < length, with time at `axis`; `start` has its vectors on the last axis."""
    response = impulse_response(A, start.reshape(-1, A.shape[0]).mT, length).mT
    return response.reshape(length, *start.shape).movedim(0, axis)


def _scan(A: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    if in_old_vmap(A, b, h0):
        return reference.lti_scan(A, b, h0, dim=dim, reverse=reverse)
    h: Tensor = _LtiScan.apply(A, b, h0, dim, reverse)  # type: ignore[no-untyped-call]
    return h


class _LtiScan(torch.autograd.Function):
    """`lti_scan` over operands of one dtype. Its derivative is itself, run the other way with the adjoint of A."""

    @staticmethod
    def forward(A: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
        h = torch.empty(b.shape, dtype=b.dtype, device=b.device)
        if b.numel():
            start = b.new_zeros(b.select(dim, 0).shape) if h0 is None else h0
            _scan_into(A.mT, b.movedim(dim, 0), start, h.movedim(dim, 0), reverse)
        return h

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        A, _, h0, ctx.dim, ctx.reverse = inputs
        ctx.save_for_backward(A, h0, output)
        ctx.save_for_forward(A, h0, output)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        A, h0, h = ctx.saved_tensors
        dim, reverse = ctx.dim, ctx.reverse
        grad_b = _scan(A.mH, grad, None, dim, not reverse)
        grad_A = grad_h0 = None
        if ctx.needs_input_grad[0]:
            before = previous_states(h, h0, dim, reverse)
            size = A.shape[0]
            grad_A = grad_b.reshape(-1, size).transpose(0, 1) @ before.reshape(-1, size).conj()
        if ctx.needs_input_grad[2]:
            first = grad_b.select(dim, -1 if reverse else 0) if h.shape[dim] else torch.zeros_like(grad_b.sum(dim))
            grad_h0 = first @ A.conj()
        return grad_A, grad_b, grad_h0, None, None

    @staticmethod
    @own_precision
    def jvp(ctx: Any, dA: Tensor | None, db: Tensor | None, dh0: Tensor | None, *_: Any) -> Tensor:
        A, h0, h = ctx.saved_tensors
        drive = torch.zeros_like(h) if db is None else db
        if dA is not None:
            drive = drive + previous_states(h, h0, ctx.dim, ctx.reverse) @ dA.mT
        return _scan(A, drive, dh0, ctx.dim, ctx.reverse)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], A: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool
    ) -> tuple[Tensor, int]:
        b, start = (batch_first(x, axis, info.batch_size) for x, axis in zip((b, h0), in_dims[1:3], strict=True))
        if in_dims[0] is None:
            return _scan(A, b, start, dim + 1, reverse), 0
        starts = [None] * info.batch_size if start is None else start.unbind(0)
        rows = zip(A.movedim(in_dims[0], 0).unbind(0), b.unbind(0), starts, strict=True)
        return torch.stack([_scan(*row, dim, reverse) for row in rows]), 0


def _scan_into(A_T: Tensor, b: Tensor, h0: Tensor, out: Tensor, reverse: bool) -> None:
    """Write the states of a scan over axis 0 into `out`. The three passes are those of `linrec.ops.scan`."""
    length = b.shape[0]
    if length <= _SHORT:
        _run_steps(A_T, b, h0, out, reverse)
        return
    _, body, tail = split_time(length, _CHUNK, reverse)
    chunked_b, chunked_out = (chunk_views(x, body, _CHUNK) for x in (b, out))
    steps = range(_CHUNK)[:: -1 if reverse else 1]

    end = chunked_b[steps[0]]
    for step in steps[1:]:
        end = torch.matmul(end, A_T) + chunked_b[step]
    ends = torch.empty_like(end)
    _scan_into(torch.linalg.matrix_power(A_T, _CHUNK), end, h0, ends, reverse)

    state = torch.cat((ends[1:], h0.unsqueeze(0)) if reverse else (h0.unsqueeze(0), ends[:-1]))
    _run_steps(A_T, chunked_b, state, chunked_out, reverse)
    if tail.start < tail.stop:
        _run_steps(A_T, b[tail], chunked_out[steps[-1], 0 if reverse else -1], out[tail], reverse)


def _run_steps(A_T: Tensor, b: Tensor, state: Tensor, out: Tensor, reverse: bool) -> None:
    order = range(b.shape[0])
    for step in reversed(order) if reverse else order:
        state = torch.matmul(state, A_T) + b[step]
        out[step] = state
