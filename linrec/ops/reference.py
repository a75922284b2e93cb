"""The plain loop over time for each op of this package: what the op means, and what its tests compare it with.

Each function takes the arguments of the op of the same name and does one step after another, differentiably, in the
dtype that it is given. None of them is meant to be fast.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ._dtypes import broadcast_shape


def linear_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """h[t] = a[t] * h[t-1] + b[t]."""
    shape = broadcast_shape(a.shape, b.shape)
    a, b = a.expand(shape), b.expand(shape)
    state = torch.zeros_like(b.sum(dim)) if h0 is None else h0
    return _stack(lambda h, t: a.select(dim, t) * h + b.select(dim, t), state, b, dim, reverse)


def scan_readout(
    a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """y[t] = sum over n of h[t, ..., n] c[t, ..., n] where h[t] = a[t] * h[t-1] + b[t]."""
    shape = broadcast_shape(a.shape, b.shape, c.shape)
    h = linear_scan(a.expand(shape), b, h0, dim=dim, reverse=reverse)
    y = (h * c).sum(-1)
    if h.shape[dim]:
        return y, h.select(dim, 0 if reverse else -1)
    return y, torch.zeros_like(h.sum(dim)) + (0 if h0 is None else h0)


def matrix_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """h[t] = a[t] @ h[t-1] + b[t]."""
    lead = broadcast_shape(a.shape[:-2], b.shape[:-2])
    a, b = a.expand(*lead, *a.shape[-2:]), b.expand(*lead, *b.shape[-2:])
    state = torch.zeros_like(b.sum(dim)) if h0 is None else h0
    return _stack(lambda h, t: a.select(dim, t) @ h + b.select(dim, t), state, b, dim, reverse)


def matrix_powers(A: Tensor, n: int) -> Tensor:
    """A^0, ..., A^(n-1), stacked on axis 0."""
    power = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape)
    powers = []
    for _ in range(n):
        powers.append(power)
        power = A @ power
    return torch.stack(powers) if powers else A.new_empty((0, *A.shape))


def impulse_response(A: Tensor, B: Tensor, length: int) -> Tensor:
    """A^t B for t < length, stacked on axis 0."""
    response = torch.zeros_like(A @ B) + B
    responses = []
    for _ in range(length):
        responses.append(response)
        response = A @ response
    return torch.stack(responses) if responses else response.new_empty((0, *response.shape))


def impulse_response_diagonal(a: Tensor, length: int) -> Tensor:
    """a^t for t < length, stacked on axis 0."""
    power = torch.ones_like(a)
    powers = []
    for _ in range(length):
        powers.append(power)
        power = a * power
    return torch.stack(powers) if powers else a.new_empty((0, *a.shape))


def causal_convolution(kernel: Tensor, u: Tensor, *, dim: int = 1) -> Tensor:
    """y[t] = sum over j <= t of kernel[j] * u[t-j]."""
    ys = []
    for t in range(u.shape[dim]):
        terms = [kernel[j] * u.select(dim, t - j) for j in range(min(t + 1, kernel.shape[0]))]
        ys.append(torch.stack(terms).sum(0))
    return torch.stack(ys, dim - u.ndim if dim >= 0 else dim)


def lti_scan(A: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """h[t] = A h[t-1] + b[t], A acting on the last axis."""
    state = torch.zeros_like(b.sum(dim)) if h0 is None else h0
    return _stack(lambda h, t: _apply(A, h) + b.select(dim, t), state, b, dim, reverse)


def lti_fft(A: Tensor, B: Tensor, u: Tensor, h0: Tensor | None = None, *, dim: int = 1) -> Tensor:
    """m[t] = A m[t-1] + B u[t]."""
    return lti_scan(A, _apply(B, u), h0, dim=dim)


def lti_last(A: Tensor, B: Tensor, u: Tensor, h0: Tensor | None = None, *, dim: int = 1) -> Tensor:
    """The last state of m[t] = A m[t-1] + B u[t]."""
    return lti_fft(A, B, u, h0, dim=dim).select(dim, -1)


def lti_readout(A: Tensor, B: Tensor, C: Tensor, u: Tensor, h0: Tensor | None = None, *, dim: int = 1) -> Tensor:
    """y[t] = C m[t] where m[t] = A m[t-1] + B u[t]."""
    return _apply(C, lti_fft(A, B, u, h0, dim=dim))


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    value_decay: Tensor | None = None,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """S[t] = diag(decay[t]) S[t-1] diag(value_decay[t]) + k[t] v[t]^T, y[t] = q[t]^T S[t]."""

    def step(state: Tensor, t: int) -> Tensor:
        state = state if decay is None else at(decay, t).unsqueeze(-1) * state
        state = state if value_decay is None else at(value_decay, t).unsqueeze(-2) * state
        return state + at(k, t).unsqueeze(-1) * at(v, t).unsqueeze(-2)

    at = _Steps(dim, (q, 1), (k, 1), (v, 1), (decay, 1), (value_decay, 1))
    return _attend(step, at, q, h0, (k.shape[-1], v.shape[-1]), reads_old)


def dplr_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    w: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """S[t] = (diag(decay[t]) + sum_i u[t,i] w[t,i]^T) S[t-1] + sum_i k[t,i] v[t,i]^T, y[t] = q[t]^T S[t]."""

    def step(state: Tensor, t: int) -> Tensor:
        kept = state if decay is None else at(decay, t).unsqueeze(-1) * state
        return kept + at(u, t, 2).mT @ (at(w, t, 2) @ state) + at(k, t, 2).mT @ at(v, t, 2)

    at = _Steps(dim, (q, 1), (k, 2), (v, 2), (u, 2), (w, 2), (decay, 1))
    return _attend(step, at, q, h0, (k.shape[-1], v.shape[-1]), reads_old)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """S[t] = D S[t-1] + beta[t] k[t] (v[t] - (D S[t-1])^T k[t])^T where D = diag(decay[t]), y[t] = q[t]^T S[t]."""

    def step(state: Tensor, t: int) -> Tensor:
        kept = state if decay is None else at(decay, t).unsqueeze(-1) * state
        key = at(k, t).unsqueeze(-1)
        return kept + at(beta, t).unsqueeze(-1) * key * (at(v, t).unsqueeze(-2) - key.mT @ kept)

    at = _Steps(dim, (q, 1), (k, 1), (v, 1), (beta, 1), (decay, 1))
    return _attend(step, at, q, h0, (k.shape[-1], v.shape[-1]), False)


def max_plus_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """m[t] = max(a[t] + m[t-1], b[t])."""
    return _log_space(torch.maximum, a, b, h0, dim, reverse)


def max_times_scan(a: Tensor, b: Tensor, h0: Tensor, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """m[t] = max(a[t] * m[t-1], b[t])."""
    shape = broadcast_shape(a.shape, b.shape)
    a, b = a.expand(shape), b.expand(shape)
    return _stack(lambda m, t: torch.maximum(a.select(dim, t) * m, b.select(dim, t)), h0, b, dim, reverse)


def logsumexp_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """m[t] = log(exp(a[t] + m[t-1]) + exp(b[t]))."""
    return _log_space(torch.logaddexp, a, b, h0, dim, reverse)


def _log_space(
    add: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool
) -> Tensor:
    shape = broadcast_shape(a.shape, b.shape)
    a, b = a.expand(shape), b.expand(shape)
    state = torch.full_like(b.sum(dim), float("-inf")) if h0 is None else h0
    return _stack(lambda m, t: add(a.select(dim, t) + m, b.select(dim, t)), state, b, dim, reverse)


class _Steps:
    """Steps of operands that broadcast against each other but for their last axes."""

    def __init__(self, dim: int, *operands: tuple[Tensor | None, int]) -> None:
        self.shape = broadcast_shape(*(x.shape[: x.ndim - last] for x, last in operands if x is not None))
        self.dim = dim % (len(self.shape) + 1)

    def __call__(self, x: Tensor, t: int, features: int = 1) -> Tensor:
        return x.expand(*self.shape, *x.shape[x.ndim - features :]).select(self.dim, t)


def _attend(
    step: Callable[[Tensor, int], Tensor],
    at: _Steps,
    q: Tensor,
    h0: Tensor | None,
    size: tuple[int, int],
    reads_old: bool,
) -> tuple[Tensor, Tensor]:
    batch = at.shape[: at.dim] + at.shape[at.dim + 1 :]
    state = (q.new_zeros(()) if h0 is None else h0).expand(*batch, *size)
    ys = []
    for t in range(at.shape[at.dim]):
        old, state = state, step(state, t)
        ys.append((at(q, t).unsqueeze(-2) @ (old if reads_old else state)).squeeze(-2))
    if not ys:
        return q.new_zeros(*at.shape, size[1]), state
    return torch.stack(ys, at.dim), state


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _stack(step: Callable[[Tensor, int], Tensor], state: Tensor, like: Tensor, dim: int, reverse: bool) -> Tensor:
    states: list[Tensor] = []
    length = like.shape[dim]
    for t in reversed(range(length)) if reverse else range(length):
        state = step(state, t)
        states.append(state)
    if not states:
        return torch.zeros_like(like)
    return torch.stack(states[::-1] if reverse else states, dim)
