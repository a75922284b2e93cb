"""Causal convolution along time, by FFT or, for a few taps, by shifted sums.

A time-invariant recurrence is one, with its impulse response as the kernel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._dtypes import broadcast_shape, compute_dtype, result_dtype, time_axis

_FEW_TAPS = 16  # up to here shifted sums cost no more than an FFT, are exact and keep a NaN where a loop would


def causal_convolution(kernel: Tensor, u: Tensor, *, dim: int = 1) -> Tensor:
    """y[t] = sum over j <= t of kernel[j] * u[t-j].

    Args:
        kernel: (K, *k), where (*k) broadcasts with the shape of `u` without its time axis. K may differ from T.
        u: (B, T, ...), time at `dim`; real or complex.
        dim: the time axis of `u`. Where `kernel` has more axes than `u`, the result has as many axes after time as `u`.

    Returns:
        y in the dtype of `u` (complex where only the kernel is complex). Half precision is computed in float32.

    With more than 16 taps the product is taken by FFT: its error is relative to the largest value of the whole
    sequence, and a NaN or infinity in `u` reaches all steps, not only later ones.

    Source: Chilkuri and Eliasmith, "Parallelizing Legendre Memory Unit Training" (2021), eq. 26.

    >>> causal_convolution(torch.tensor([1.0, 0.5]), torch.tensor([[1.0, 0.0, 2.0]]))
    tensor([[1.0000, 0.5000, 2.0000]])
    """
    axis = time_axis(u.ndim, dim)
    length = u.shape[axis]
    dtype = u.dtype
    if kernel.is_complex() > u.is_complex() or not (dtype.is_floating_point or dtype.is_complex):
        dtype = result_dtype(kernel, u)
    compute = compute_dtype(result_dtype(kernel, u))
    kernel, u = kernel[:length].to(compute), u.to(compute)

    after = u.ndim - axis - 1
    kernel = kernel.reshape(kernel.shape[0], *(1,) * max(0, after - kernel.ndim + 1), *kernel.shape[1:])
    kernel = kernel.movedim(0, kernel.ndim - 1 - after)
    axis = -1 - after
    if kernel.shape[axis] <= _FEW_TAPS:
        return _shifted_sums(kernel, u, axis).to(dtype)
    size = good_fft_size(length + kernel.shape[axis] - 1)
    product = spectrum(kernel, size, axis) * spectrum(u, size, axis)
    return from_spectrum(product, size, length, axis, compute).to(dtype)


def spectrum(x: Tensor, size: int, dim: int) -> Tensor:
    """The Fourier transform of `x` along `dim`, zero-padded to `size`; half of it where `x` is real."""
    transformed: Tensor = torch.fft.fft(x, size, dim) if x.is_complex() else torch.fft.rfft(x, size, dim)
    return transformed


def from_spectrum(product: Tensor, size: int, length: int, dim: int, dtype: torch.dtype) -> Tensor:
    """The first `length` values along `dim` of the sequence that has this spectrum."""
    whole: Tensor = torch.fft.ifft(product, size, dim) if dtype.is_complex else torch.fft.irfft(product, size, dim)
    return whole.narrow(dim, 0, length)


def good_fft_size(least: int) -> int:
    """The smallest even number with no prime factor above 5 that is at least `least`: FFT libraries are fast at these.

    >>> [good_fft_size(n) for n in (1, 7, 127, 1567)]
    [2, 8, 128, 1600]
    """
    best = 1 << max(1, (least - 1).bit_length())
    fives = 1
    while fives < best:
        threes = fives
        while threes < best:
            quotient = -(-least // threes)
            best = min(best, threes << max(1, (quotient - 1).bit_length()))
            threes *= 3
        fives *= 5
    return best


def _shifted_sums(kernel: Tensor, u: Tensor, dim: int) -> Tensor:
    taps, length = kernel.shape[dim], u.shape[dim]
    if taps == 0:
        shape = broadcast_shape(kernel.narrow(dim, 0, 0).sum(dim, keepdim=True).shape, u.shape)
        return u.new_zeros(shape)
    silence = u.narrow(dim, 0, 1).expand([taps - 1 if axis == u.ndim + dim else n for axis, n in enumerate(u.shape)])
    padded = torch.cat((torch.zeros_like(silence), u), dim)
    y = kernel.narrow(dim, 0, 1) * u
    for tap in range(1, taps):
        y = y + kernel.narrow(dim, tap, 1) * padded.narrow(dim, taps - 1 - tap, length)
    return y
