"""Powers of a transition for many exponents at once, by doubling: log2(n) products instead of n."""

from __future__ import annotations

import torch
from torch import Tensor

from ._dtypes import broadcast_shape, compute_dtype, result_dtype
from .precision import own_precision


@own_precision
def matrix_powers(A: Tensor, n: int) -> Tensor:
    """A^0, A^1, ..., A^(n-1).

    Args:
        A: (..., d, d), real or complex.
        n: how many powers, at least 0.

    Returns:
        (n, ..., d, d), in the dtype of `A`.

    Raises:
        ValueError: if `A` is not square or `n` is negative.

    >>> matrix_powers(torch.tensor([[2.0]]), 4).flatten()
    tensor([1., 2., 4., 8.])
    """
    _check_square(A)
    eye = torch.eye(A.shape[-1], dtype=A.dtype, device=A.device).expand(A.shape)
    return impulse_response(A, eye, n)


@own_precision
def impulse_response(A: Tensor, B: Tensor, length: int) -> Tensor:
    """H[t] = A^t B, the response of h[t] = A h[t-1] + B u[t] to an impulse at step 0.

    Args:
        A: (..., d, d), real or complex.
        B: (..., d, m); leading axes broadcast with those of `A`.
        length: how many steps, at least 0.

    Returns:
        (length, ..., d, m).

    Raises:
        ValueError: if `A` is not square or `length` is negative.

    Source: Chilkuri and Eliasmith, "Parallelizing Legendre Memory Unit Training" (2021), eq. 23.
    """
    _check_square(A)
    _check_length(length)
    dtype = result_dtype(A, B)
    compute = compute_dtype(dtype)
    lead = broadcast_shape(A.shape[:-2], B.shape[:-2])
    # With d last, a product with one A for all steps and columns is a single matrix product.
    transposed = B.to(compute).transpose(-1, -2).expand(*lead, B.shape[-1], B.shape[-2]).unsqueeze(0)[:length]
    power = A.to(compute).transpose(-1, -2)
    while (known := transposed.shape[0]) < length:
        transposed = torch.cat((transposed, transposed[: length - known] @ power))
        if 2 * known < length:
            power = power @ power
    return transposed.transpose(-1, -2).to(dtype)


def impulse_response_diagonal(a: Tensor, length: int) -> Tensor:
    """a^t for t = 0, ..., length-1 (a Vandermonde matrix); 0^0 is 1, and derivatives at a = 0 are right.

    Args:
        a: any shape, real or complex.
        length: how many steps, at least 0.

    Returns:
        (length, *a.shape), in the dtype of `a`.

    Raises:
        ValueError: if `length` is negative.

    >>> impulse_response_diagonal(torch.tensor([0.0, 0.5]), 3)
    tensor([[1.0000, 1.0000],
            [0.0000, 0.5000],
            [0.0000, 0.2500]])
    """
    _check_length(length)
    dtype = result_dtype(a)
    power = a.to(compute_dtype(dtype))
    powers = torch.ones_like(power).unsqueeze(0)[:length]
    while (known := powers.shape[0]) < length:
        powers = torch.cat((powers, powers[: length - known] * power))
        if 2 * known < length:
            power = power * power
    return powers.to(dtype)


def matrix_power_apply(A: Tensor, n: int, h: Tensor) -> Tensor:
    """A^n h for one matrix A (d, d) and vectors on the last axis of `h`, by log2(n) squarings."""
    power = A.transpose(-1, -2)
    while n:
        if n & 1:
            h = h @ power
        n >>= 1
        if n:
            power = power @ power
    return h


def _check_square(A: Tensor) -> None:
    if A.ndim < 2 or A.shape[-1] != A.shape[-2]:
        raise ValueError(f"the transition must be a square matrix (..., d, d), got shape {tuple(A.shape)}")


def _check_length(length: int) -> None:
    if length < 0:
        raise ValueError(f"the length must be at least 0, got {length}")
