"""Causal convolution with one column of kernels, y[t] = sum over j of kernel[j] u[t-j] for many outputs of one input,
on a CPU: sequence by sequence with time along the vectors, in buffers that stay in the cache, forward and backward."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ._dtypes import in_old_vmap
from .convolution import good_fft_size
from .plain import are_plain, unwatched

_NEAR = 1 << 22
"""Bytes of a block of spectra: what the last cache holds beside the kernels' own."""
_SMALL = 1 << 15
"""Numbers of a spectrum up to which calling an operator takes longer than what it does."""


def applies(kernel: Tensor, u: Tensor) -> bool:
    """Whether operands are real and plain tensors on a CPU, watched by nothing but first derivatives."""
    plain = unwatched() and are_plain((kernel, u), ("cpu",))
    return plain and kernel.dtype in (torch.float32, torch.float64) and u.numel() > 0 and kernel.numel() > 0


def convolve_column(kernel: Tensor, u: Tensor) -> Tensor:
    """y[n, t] = sum over j <= t of kernel[j] u[n, t - j].

    Args:
        kernel: (T, p).
        u: (N, T), of the same dtype.

    Returns:
        (N, T, p). Its errors are those of `causal_convolution`.
    """
    y: Tensor = _Column.apply(kernel, u)  # type: ignore[no-untyped-call]
    return y


def plain(kernel: Tensor, u: Tensor) -> Tensor:
    """The same by torch's operators alone: the reference, and the form that can be differentiated again."""
    length = u.shape[1]
    size = good_fft_size(2 * length - 1)
    spectra = torch.fft.rfft(u, size).unsqueeze(1) * torch.fft.rfft(kernel.T, size)
    whole: Tensor = torch.fft.irfft(spectra, size)
    return whole[..., :length].transpose(1, 2)


class _Column(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, kernel: Tensor, u: Tensor) -> Tensor:
        ctx.save_for_backward(kernel, u)
        count, length = u.shape
        outputs = kernel.shape[1]
        size = good_fft_size(2 * length - 1)
        kernels = torch.fft.rfft(kernel.T.contiguous(), size)
        inputs = torch.fft.rfft(u, size)
        y = u.new_empty(count, length, outputs)
        for at, rows in _blocks(count, outputs * size * u.element_size()):
            product = inputs[at : at + rows].unsqueeze(1) * kernels
            whole = torch.fft.irfft(product, size)
            y[at : at + rows].copy_(whole[..., :length].transpose(1, 2))
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        kernel, u = ctx.saved_tensors
        if torch.is_grad_enabled() or not applies(kernel, grad) or in_old_vmap(grad):
            return _again(kernel, u, grad, ctx.needs_input_grad)
        count, length = u.shape
        outputs = kernel.shape[1]
        size = good_fft_size(2 * length - 1)
        inputs = torch.fft.rfft(u, size)
        kernels = torch.fft.rfft(kernel.T.contiguous(), size) if ctx.needs_input_grad[1] else None
        by_kernel = inputs.new_zeros(outputs, inputs.shape[1]) if ctx.needs_input_grad[0] else None
        by_input = torch.empty_like(inputs) if kernels is not None else None
        padded = grad.new_zeros(min(count, _rows(outputs * size * u.element_size())), outputs, size)
        for at, rows in _blocks(count, outputs * size * u.element_size()):
            padded[:rows, :, :length].copy_(grad[at : at + rows].transpose(1, 2))
            spectra = torch.fft.rfft(padded[:rows])
            if by_kernel is not None:
                mirrored = inputs[at : at + rows].conj().resolve_conj()
                if by_kernel.numel() < _SMALL:
                    by_kernel += (spectra * mirrored.unsqueeze(1)).sum(0)
                else:
                    for row in range(rows):
                        by_kernel.addcmul_(spectra[row], mirrored[row])
            if by_input is not None and kernels is not None:
                torch.sum(spectra.mul_(kernels.conj()), 1, out=by_input[at : at + rows])
        grad_kernel = grad_u = None
        if by_kernel is not None:
            grad_kernel = torch.fft.irfft(by_kernel, size)[:, :length].T
        if by_input is not None:
            grad_u = torch.fft.irfft(by_input, size)[:, :length]
        return grad_kernel, grad_u


def _again(kernel: Tensor, u: Tensor, grad: Tensor, needed: tuple[bool, ...]) -> tuple[Tensor | None, Tensor | None]:
    """The derivatives by torch's operators, with a graph of their own where one is wanted."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        if again:
            kernel, u = kernel.view_as(kernel), u.view_as(u)
        else:
            kernel, u = (x.detach().requires_grad_(need) for x, need in zip((kernel, u), needed, strict=True))
        wanted = [x for x, need in zip((kernel, u), needed, strict=True) if need]
        found = iter(torch.autograd.grad(plain(kernel, u), wanted, grad, create_graph=again))
    return next(found) if needed[0] else None, next(found) if needed[1] else None


def _rows(size: int) -> int:
    return max(1, _NEAR // size)


def _blocks(count: int, size: int) -> list[tuple[int, int]]:
    """Where each block of sequences begins, and how many it has."""
    rows = _rows(size)
    return [(at, min(rows, count - at)) for at in range(0, count, rows)]
