"""Products of decays within chunks of time, and scores weighted by them: what the chunked forms of this package share.

For steps j < t, D[t, j] is the product of the decays of steps j+1, ..., t-1: what is left at step t, before its update,
of what step j wrote. It is never taken as a quotient of two running products, which would fail where a decay is zero or
a product underflows. Instead each pair of steps has one level of a binary tree at which j is in the left and t in the
right half of one block; D[t, j] is the product from j up to the middle times the product from there up to t, and the
scores of a block's right half with its left are one matrix product.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .precision import own_precision

_BASE = 16  # pairs within blocks of this size are scored by masked products: smaller matrices would be slow


class Decay:
    """No decay, and what other kinds override. Operands are chunks of rows, (..., L, R, K): R rows a step, L steps."""

    def of_start(self, q: Tensor) -> Tensor:
        """`q` times what is left, at each row's step, of the state before the chunk."""
        return q

    def at_end(self, k: Tensor) -> Tensor:
        """`k` times what is left of each row's step in the state after the chunk."""
        return k

    def total(self, like: Tensor) -> Tensor:
        """What is left after the chunk of the state before it, (..., K) or (..., 1); `like` gives dtype and device."""
        return like.new_ones(1)

    def scores(self, readers: Sequence[Tensor], writers: Sequence[Tensor]) -> list[list[Tensor]]:
        """For each reader and writer, q[t] D[t, j] k[j] summed over keys for j < t, else zero: (..., L * R, L * S)."""
        return [[self._weighted(_alike(q, k), q.shape[-2], k.shape[-2]) for k in writers] for q in readers]

    def _weighted(self, alike: Tensor, rows: int, columns: int) -> Tensor:
        if rows == columns == 1:
            return alike.tril(-1)
        steps = torch.arange(alike.shape[-1] // columns, device=alike.device)
        return alike.where(_per_row(steps[:, None] > steps[None, :], rows, columns), 0)


class ScalarDecay(Decay):
    """One decay a step, (..., L): the scores without decay, times the matrix D."""

    def __init__(self, decay: Tensor) -> None:
        self.matrix, self.read, self.write, self.product = _scalar_products(decay)

    def of_start(self, q: Tensor) -> Tensor:
        """See `Decay`."""
        return q * self.read[..., None, None]

    def at_end(self, k: Tensor) -> Tensor:
        """See `Decay`."""
        return k * self.write[..., None, None]

    def total(self, like: Tensor) -> Tensor:
        """See `Decay`."""
        return self.product

    def _weighted(self, alike: Tensor, rows: int, columns: int) -> Tensor:
        # A mask, and not only a factor of zero: scores of what is not before t may be infinite.
        return super()._weighted(alike, rows, columns) * _per_row(self.matrix, rows, columns)


class VectorDecay(Decay):
    """One decay for each step and key, (..., L, K)."""

    def __init__(self, decay: Tensor) -> None:
        self.levels = block_products(decay)

    def of_start(self, q: Tensor) -> Tensor:
        """See `Decay`."""
        return q * self.levels[-1].read.unsqueeze(-2)

    def at_end(self, k: Tensor) -> Tensor:
        """See `Decay`."""
        return k * self.levels[-1].write.unsqueeze(-2)

    def total(self, like: Tensor) -> Tensor:
        """See `Decay`."""
        return self.levels[-1].total.squeeze(-2)

    def scores(self, readers: Sequence[Tensor], writers: Sequence[Tensor]) -> list[list[Tensor]]:
        """See `Decay`."""
        reads, writes = (
            [[(rows * factor.unsqueeze(-2)).flatten(-3, -2) for factor in factors] for rows in operands]
            for operands, factors in (
                (readers, [level.read for level in self.levels[:-1]]),
                (writers, [level.write for level in self.levels[:-1]]),
            )
        )
        return [[self._pair(q, k, reads[i], writes[j]) for j, k in enumerate(writers)] for i, q in enumerate(readers)]

    def _pair(self, q: Tensor, k: Tensor, reads: list[Tensor], writes: list[Tensor]) -> Tensor:
        length, rows, columns = q.shape[-3], q.shape[-2], k.shape[-2]
        base = min(_BASE, length)
        scores: Tensor | None = None
        for level, read, write in zip(self.levels, reads, writes, strict=False):
            if level.size < base:
                pairs = split_axis(read, -2, base * rows) @ split_axis(write, -2, base * columns).mT
                pairs = pairs.where(_per_row(split_mask(base, level.size, q.device), rows, columns), 0)
                scores = pairs if scores is None else scores + pairs
            else:
                assert scores is not None
                lower = halves(read, level.size * rows)[1] @ halves(write, level.size * columns)[0].mT
                scores = _grown(scores, lower)
        return torch.zeros_like(_alike(q, k)) if scores is None else scores.squeeze(-3)


def decay_of(gates: Tensor | None) -> Decay:
    """The kind of decay of `gates`: chunks of decays, (..., L, K), or (..., L, 1) for one a step, or None."""
    if gates is None:
        return Decay()
    return ScalarDecay(gates.squeeze(-1)) if gates.shape[-1] == 1 else VectorDecay(gates)


@dataclass(frozen=True)
class Products:
    """Products of decays within blocks of `size` steps, per step, (..., L, K), and per block, (..., L / size, K)."""

    size: int
    read: Tensor  # from the block's start up to the step before this one
    write: Tensor  # from the step after this one up to the block's end
    total: Tensor  # over the whole block


def block_products(decay: Tensor) -> list[Products]:
    """The products within blocks of 1, 2, 4, ..., L steps of `decay`, (..., L, K) with L a power of two."""
    ones = torch.ones_like(decay)
    levels = [Products(1, ones, ones, decay)]
    while levels[-1].size < decay.shape[-2]:
        last = levels[-1]
        left_total, right_total = halves(last.total, 1)
        left, right = halves(last.read, last.size)
        read = _joined(left, right * left_total)
        left, right = halves(last.write, last.size)
        write = _joined(left * right_total, right)
        levels.append(Products(2 * last.size, read, write, (left_total * right_total).flatten(-3, -2)))
    return levels


def halves(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """The left and right halves, (..., L / (2 size), size, K), of the blocks of 2 size steps of `x`, (..., L, K)."""
    left, right = split_axis(x, -2, 2, size).unbind(-3)
    return left, right


def split_axis(x: Tensor, axis: int, *sizes: int) -> Tensor:
    """`x` with `axis`, counted from the end, split into as many axes as needed and then `sizes`."""
    return x.reshape(*x.shape[:axis], -1, *sizes, *x.shape[x.ndim + axis + 1 :])


def split_mask(length: int, size: int, device: torch.device) -> Tensor:
    """(length, length): whether t is in the right and j in the left half of one block of 2 size steps."""
    half = torch.arange(length, device=device) // size
    return (half[:, None] == half[None, :] + 1) & (half[None, :] % 2 == 0)


def _alike(q: Tensor, k: Tensor) -> Tensor:
    return q.flatten(-3, -2) @ k.flatten(-3, -2).mT


def _per_row(matrix: Tensor, rows: int, columns: int) -> Tensor:
    """Each entry of `matrix` as a block of (rows, columns) equal entries."""
    if rows > 1:
        matrix = matrix.repeat_interleave(rows, -2)
    return matrix.repeat_interleave(columns, -1) if columns > 1 else matrix


def _grown(blocks: Tensor, lower: Tensor) -> Tensor:
    """Triangular blocks of twice the size, with `blocks` (..., 2n, r, s) on the diagonal and `lower` (..., n, r, s)."""
    left, right = split_axis(blocks, -3, 2).unbind(-3)
    top = torch.cat((left, torch.zeros_like(lower)), -1)
    return torch.cat((top, torch.cat((lower, right), -1)), -2)


def _joined(left: Tensor, right: Tensor) -> Tensor:
    """The inverse of `halves`."""
    return torch.stack((left, right), -3).flatten(-4, -2)


def _scalar_products(decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D, (..., L, L), zero where j is not before t; what is left of the start and at the end, (..., L); the product."""
    products: tuple[Tensor, Tensor, Tensor, Tensor] = _ScalarProducts.apply(decay)  # type: ignore[no-untyped-call]
    return products


class _ScalarProducts(torch.autograd.Function):
    """The products of one decay a step, with a derivative that divides by none of them.

    The product over a range that step s is in is the product before s times the product after s, and all of these are
    among the outputs.
    """

    @staticmethod
    def forward(decay: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        levels = block_products(decay.unsqueeze(-1))
        matrix = torch.zeros(*decay.shape, 1, 1, dtype=decay.dtype, device=decay.device)
        for level in levels[:-1]:
            lower = halves(level.read, level.size)[1] * halves(level.write, level.size)[0].mT
            matrix = _grown(matrix, lower)
        last = levels[-1]
        return matrix.squeeze(-3), last.read.squeeze(-1), last.write.squeeze(-1), last.total.squeeze(-1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*output[:3])

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        matrix, read, write = (x.conj() for x in ctx.saved_tensors)
        d_matrix, d_read, d_write, d_total = grads
        inner = (matrix * (d_matrix @ matrix.mT)).sum(-2)
        before = (d_read.unsqueeze(-2) @ matrix).squeeze(-2) + write * d_total
        after = (matrix @ d_write.unsqueeze(-1)).squeeze(-1)
        gradient: Tensor = inner + before * read + after * write
        return gradient

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int], decay: Tensor) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        return _scalar_products(decay.movedim(in_dims[0], 0)), (0, 0, 0, 0)
