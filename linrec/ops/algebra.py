"""What a first-order recurrence is made of, and the scan over chunks that is the same for all of them.

An `Algebra` says how one step updates a state and how two transitions compose. `scan_into` then computes all states:
one pass finds, for all chunks of eight steps together, the composed transition of each chunk and the state it ends in
when it starts from zero; the chunk boundaries are a recurrence an eighth as long, solved by the same function; a last
pass runs every chunk from its true starting state. T steps take about 24 * log8(T) tensor operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._dtypes import chunk_views, split_time

_CHUNK = 8


class Algebra:
    """h[t] = apply(a[t], h[t-1]) + b[t], with the sum and the application of one semiring."""

    zero: float = 0.0  # neutral for the sum; absorbs every transition
    short: int = 16  # up to this length a plain loop costs no more than chunks

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """Write the state after `h` into `out`, which may be `h`."""
        raise NotImplementedError

    def composed(self, late: Tensor, early: Tensor) -> Tensor:
        """The transition that does what `early` and then `late` do."""
        raise NotImplementedError

    def settled(self, h: Tensor) -> Tensor:
        """Which states are zero and stay so without a drive, even where a product of transitions has overflowed."""
        return h == self.zero


class Linear(Algebra):
    """An algebra over the ordinary sum: its derivative is a recurrence of the same kind."""

    def apply(self, a: Tensor, h: Tensor) -> Tensor:
        """What transition `a` makes of `h`."""
        raise NotImplementedError

    def adjoint(self, a: Tensor) -> Tensor:
        """The transition of the derivative."""
        raise NotImplementedError

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        """The derivative with respect to a transition that met `h`, where the derivative of what it made is `g`."""
        raise NotImplementedError


class Diagonal(Linear):
    """h[t] = a[t] * h[t-1] + b[t], elementwise."""

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """Add the drive to what the transition makes of the state."""
        torch.addcmul(b, a, h, out=out)

    def composed(self, late: Tensor, early: Tensor) -> Tensor:
        """The product, later factor first."""
        return late * early

    def apply(self, a: Tensor, h: Tensor) -> Tensor:
        """The product."""
        return a * h

    def adjoint(self, a: Tensor) -> Tensor:
        """The conjugate."""
        return a.conj()

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        """The product with the conjugate."""
        return g * h.conj()


class Dense(Linear):
    """h[t] = a[t] @ h[t-1] + b[t], for a[t] (..., d, d) and h[t] (..., d, n)."""

    short = 64  # composing transitions costs more arithmetic than the loop does

    def step(self, a: Tensor, b: Tensor, h: Tensor, out: Tensor) -> None:
        """Add the drive to what the transition makes of the state."""
        torch.add(torch.matmul(a, h), b, out=out)

    def composed(self, late: Tensor, early: Tensor) -> Tensor:
        """The product, later factor first."""
        return late @ early

    def settled(self, h: Tensor) -> Tensor:
        """The columns that are zero throughout."""
        return (h == 0).all(-2, keepdim=True)

    def apply(self, a: Tensor, h: Tensor) -> Tensor:
        """The product."""
        return a @ h

    def adjoint(self, a: Tensor) -> Tensor:
        """The conjugate transpose."""
        return a.transpose(-1, -2).conj()

    def outer(self, g: Tensor, h: Tensor) -> Tensor:
        """The outer product with the conjugate."""
        return g @ h.transpose(-1, -2).conj()


def scan_into(
    algebra: Algebra, a: Tensor, b: Tensor, h0: Tensor, out: Tensor, reverse: bool, products: bool = False
) -> None:
    """Write the states of a recurrence over axis 0 of `a`, (T, *transition), and `b`, (T, *state), into `out`.

    `products`: the transitions are compositions, which may have overflowed although no transition is infinite.
    """
    length = b.shape[0]
    if length <= algebra.short:
        _run_steps(algebra, a, b, h0, out, reverse, products)
        return
    _, body, tail = split_time(length, _CHUNK, reverse)
    chunked_a, chunked_b, chunked_out = (chunk_views(x, body, _CHUNK) for x in (a, b, out))
    steps = range(_CHUNK)[:: -1 if reverse else 1]

    decay = chunked_a[steps[0]]
    end = torch.full_like(chunked_b[steps[0]], algebra.zero)
    _step(algebra, decay, chunked_b[steps[0]], end, end, products)
    for step in steps[1:]:
        decay = algebra.composed(chunked_a[step], decay)
        _step(algebra, chunked_a[step], chunked_b[step], end, end, products)
    ends = torch.empty_like(end)
    scan_into(algebra, decay, end, h0, ends, reverse, products=True)

    state = torch.cat((ends[1:], h0.unsqueeze(0)) if reverse else (h0.unsqueeze(0), ends[:-1]))
    _run_steps(algebra, chunked_a, chunked_b, state, chunked_out, reverse, products)
    if tail.start < tail.stop:
        state = chunked_out[steps[-1], 0 if reverse else -1]
        _run_steps(algebra, a[tail], b[tail], state, out[tail], reverse, products)


def _run_steps(
    algebra: Algebra, a: Tensor, b: Tensor, state: Tensor, out: Tensor, reverse: bool, products: bool
) -> None:
    """The recurrence as a loop over axis 0, written into `out`."""
    order = range(b.shape[0])
    for step in reversed(order) if reverse else order:
        _step(algebra, a[step], b[step], state, out[step], products)
        state = out[step]


def _step(algebra: Algebra, a: Tensor, b: Tensor, state: Tensor, out: Tensor, products: bool) -> None:
    if products:
        settled = algebra.settled(state)
        algebra.step(a, b, state, out)
        torch.where(settled, b, out, out=out)
    else:
        algebra.step(a, b, state, out)
