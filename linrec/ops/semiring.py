"""Recurrences over other semirings than (+, *): m[t] = max(a[t] + m[t-1], b[t]), and its soft form with log-sum-exp."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from . import reference
from ._dtypes import broadcast_shape, compute_dtype, in_old_vmap, result_dtype, time_axis
from .algebra import Algebra, scan_into
from .precision import own_precision
from .scan import DIAGONAL, batch_first, previous_states, scan


def max_plus_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of m[t] = max(a[t] + m[t-1], b[t]), where m[-1] = h0.

    Args:
        a: decays in log space, (B, T, *state) up to broadcasting with `b`; size 1 along `dim` is a constant.
        b: inputs, (B, T, *state) up to broadcasting with `a`. Either may hold -inf.
        h0: state before the first step, broadcastable to (B, *state); -inf if None.
        dim: the time axis of the broadcast shape of `a` and `b`.
        reverse: run from the end.

    Returns:
        m, real, of the broadcast shape of `a` and `b`. The derivative where both arguments of the maximum are equal is
        that of `torch.maximum`: half to each.

    Source: the stabiliser state of Beck et al., "xLSTM: Extended Long Short-Term Memory" (2024), eq. 15.

    >>> max_plus_scan(torch.tensor([[0.0, -1.0, -1.0]]), torch.tensor([[3.0, 0.0, 5.0]]))
    tensor([[3., 2., 5.]])
    """
    return _entry(MAX_PLUS, a, b, h0, dim, reverse)


def logsumexp_scan(a: Tensor, b: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of m[t] = log(exp(a[t] + m[t-1]) + exp(b[t])), where m[-1] = h0, without leaving log space.

    Args and returns: as for `max_plus_scan`.

    >>> logsumexp_scan(torch.zeros(1, 3), torch.zeros(1, 3)).exp()
    tensor([[1., 2., 3.]])
    """
    return _entry(LOG_SUM_EXP, a, b, h0, dim, reverse)


def max_times_scan(a: Tensor, b: Tensor, h0: Tensor, *, dim: int = 1, reverse: bool = False) -> Tensor:
    """All states of m[t] = max(a[t] * m[t-1], b[t]), where m[-1] = h0.

    Args and returns: as for `max_plus_scan`. Where a decay is negative, multiplying by it turns the order around and no
    parallel form exists: then the steps run one after another.

    >>> max_times_scan(torch.tensor([[0.5]]), torch.tensor([[4.0, 1.0, 1.0, 1.0]]), torch.tensor(0.0))
    tensor([[4., 2., 1., 1.]])
    """
    return _entry(MAX_TIMES, a, b, h0, dim, reverse)


class Semiring(Algebra):
    """A semiring whose product is the ordinary sum, so that transitions compose by addition."""

    zero = float("-inf")

    def composed(self, late: Tensor, early: Tensor) -> Tensor:
        """The sum."""
        return late + early

    def parallel(self, a: Tensor) -> bool:
        """Whether transitions with these values compose."""
        return True

    def kept(self, a: Tensor, previous: Tensor) -> Tensor:
        """What a transition leaves of the previous state."""
        return a + previous

    def partials(self, share: Tensor, a: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of a step with respect to the previous state and to `a`, from the share of what is kept."""
        return share, share

    def weights(self, kept: Tensor, new: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The derivatives of the semiring's sum `m` with respect to its two arguments."""
        raise NotImplementedError


class MaxPlus(Semiring):
    """The greater of the two."""

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """The greater of what is kept and what is new."""
        torch.maximum(a + h, b, out=out)

    def weights(self, kept: Tensor, new: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """One to the greater, half to each of two equals."""
        shared = torch.where(kept == new, 0.5, 1.0).to(kept.dtype)
        return shared.masked_fill(kept < new, 0), shared.masked_fill(kept > new, 0)


class MaxTimes(MaxPlus):
    """The greater of the two, where transitions multiply."""

    def parallel(self, a: Tensor) -> bool:
        """Only where none is negative: that would turn the order around."""
        return not bool((a < 0).any())

    def composed(self, late: Tensor, early: Tensor) -> Tensor:
        """The product."""
        return late * early

    def kept(self, a: Tensor, previous: Tensor) -> Tensor:
        """The product."""
        return a * previous

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """The greater of what is kept and what is new."""
        # Nothing, times a decay of 0, is still nothing.
        torch.maximum(torch.where(h == self.zero, h, a * h), b, out=out)

    def partials(self, share: Tensor, a: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        """Of a product."""
        return share * a, share * previous


class LogSumExp(Semiring):
    """The logarithm of the sum of exponentials."""

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """The soft maximum of what is kept and what is new."""
        torch.logaddexp(a + h, b, out=out)

    def weights(self, kept: Tensor, new: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """The share of each in the sum; none where the sum is empty."""
        empty = m == self.zero
        level = m.masked_fill(empty, 0)
        return (kept - level).exp().masked_fill(empty, 0), (new - level).exp().masked_fill(empty, 0)


MAX_PLUS, MAX_TIMES, LOG_SUM_EXP = MaxPlus(), MaxTimes(), LogSumExp()


def _entry(semiring: Semiring, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
    dtype = result_dtype(a, b, h0)
    if dtype.is_complex:
        raise TypeError(f"complex numbers have no order: got {dtype}")
    compute = compute_dtype(dtype)
    shape = broadcast_shape(a.shape, b.shape)
    axis = time_axis(len(shape), dim)
    start = a.new_full((), semiring.zero, dtype=compute) if h0 is None else h0.to(compute)
    start = start.expand(shape[:axis] + shape[axis + 1 :])
    return _scan(semiring, a.to(compute).expand(shape), b.to(compute).expand(shape), start, axis, reverse).to(dtype)


def _scan(semiring: Semiring, a: Tensor, b: Tensor, h0: Tensor, dim: int, reverse: bool) -> Tensor:
    if in_old_vmap(a, b, h0):
        return _plain(semiring)(a, b, h0, dim=dim, reverse=reverse)
    m: Tensor = _SemiringScan.apply(semiring, a, b, h0, dim, reverse)  # type: ignore[no-untyped-call]
    return m


def _plain(semiring: Semiring) -> Callable[..., Tensor]:
    """The loop that a scan must agree with."""
    if isinstance(semiring, MaxTimes):
        return reference.max_times_scan
    return reference.max_plus_scan if isinstance(semiring, MaxPlus) else reference.logsumexp_scan


class _SemiringScan(torch.autograd.Function):
    """The scan as one operation, whose derivative is a linear scan with the derivatives of the semiring's sum."""

    @staticmethod
    def forward(semiring: Semiring, a: Tensor, b: Tensor, h0: Tensor, dim: int, reverse: bool) -> Tensor:
        m = torch.empty(b.shape, dtype=b.dtype, device=b.device)
        if b.numel() and not semiring.parallel(a):
            plain = _plain(semiring)
            m.copy_(plain(a, b, h0, dim=dim, reverse=reverse))
        elif b.numel():
            scan_into(semiring, a.movedim(dim, 0), b.movedim(dim, 0), h0, m.movedim(dim, 0), reverse)
        return m

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.semiring, a, b, h0, ctx.dim, ctx.reverse = inputs
        ctx.save_for_backward(a, b, h0, output)
        ctx.save_for_forward(a, b, h0, output)

    @staticmethod
    @own_precision
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        a, b, h0, m = ctx.saved_tensors
        previous = previous_states(m, h0, ctx.dim, ctx.reverse)
        share, take = ctx.semiring.weights(ctx.semiring.kept(a, previous), b, m)
        keep, by_a = ctx.semiring.partials(share, a, previous)
        total = scan(DIAGONAL, keep, grad, None, ctx.dim, not ctx.reverse, lagged=True)
        grad_h0 = None
        if ctx.needs_input_grad[3] and m.shape[ctx.dim]:
            grad_h0 = (total * keep).select(ctx.dim, -1 if ctx.reverse else 0)
        return None, total * by_a, total * take, grad_h0, None, None

    @staticmethod
    @own_precision
    def jvp(ctx: Any, _: None, da: Tensor | None, db: Tensor | None, dh0: Tensor | None, *flags: None) -> Tensor:
        a, b, h0, m = ctx.saved_tensors
        previous = previous_states(m, h0, ctx.dim, ctx.reverse)
        share, take = ctx.semiring.weights(ctx.semiring.kept(a, previous), b, m)
        keep, by_a = ctx.semiring.partials(share, a, previous)
        drive = torch.zeros_like(m)
        drive = drive if da is None else drive + by_a * da
        drive = drive if db is None else drive + take * db
        return scan(DIAGONAL, keep, drive, dh0, ctx.dim, ctx.reverse)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], semiring: Semiring, a: Tensor, b: Tensor, h0: Tensor, *rest: Any
    ) -> tuple[Tensor, int]:
        a, b, h0 = (batch_first(x, axis, info.batch_size) for x, axis in zip((a, b, h0), in_dims[1:4], strict=True))
        return _scan(semiring, a, b, h0, rest[0] + 1, rest[1]), 0
