"""The operators by which a rewritten graph enters and leaves the time axis: take the steps of a tensor, put steps back
where the program wants them, count them. All are views where a view can do it. And `linear`, for which it matters where
in memory time lies."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def steps(x: Tensor, dim: int, start: int, step: int, length: int, width: int = 0) -> Tensor:
    """The slices ``x.select(dim, start + step * k)`` for k < length, as one tensor ``(length, ...)``.

    Args:
        x: any tensor.
        dim: its time dimension (not negative).
        start: index of the first step; step: the distance between two, negative for a reversed loop.
        width: 0 for single indices; w > 0 for the slices ``[start + step * k, start + step * k + w)``, whose own
            dimension stays at `dim` of each element.
    """
    if width:
        x = x.unfold(dim, width, 1).movedim(-1, dim + 1)
    if length == 0:
        return x.movedim(dim, 0)[:0]
    if length == x.shape[dim] and abs(step) == 1:  # all of it: a slice would cost its backward a copy
        x = _to_front(x, dim)
        return x if step == 1 else x.flip(0)
    if step < 0:
        last = start + step * (length - 1)
        x = x.narrow(dim, last, start - last + 1)
        return x.movedim(dim, 0).flip(0)[::-step]
    x = x.narrow(dim, start, step * (length - 1) + 1).movedim(dim, 0)
    return x if step == 1 else x[::step]


def _to_front(x: Tensor, dim: int) -> Tensor:
    """The same with a dimension moved to the front, by the operator that takes least to call."""
    return x if dim == 0 else x.transpose(0, 1) if dim == 1 else x.movedim(dim, 0)


def unsteps(
    ys: Tensor, dim: int, start: int, step: int, length: int, into: int, joined: bool = False, fresh: bool = False
) -> Tensor:
    """The steps ``start + step * k`` of `ys` along `dim`, laid along dimension `into` of the result.

    With `joined` each step already has the dimension `into` and they are concatenated along it, as ``torch.cat`` does;
    otherwise the dimension is new, as in ``torch.stack``. `fresh` says that nobody else reads `ys`.
    """
    # Contiguous, as the result of stack and cat is: later code may depend on the strides (view, the order of draws).
    # And a copy, as theirs is: the caller may write into it, while a scan has saved its states for backward.
    taken = steps(ys, dim, start, step, length)
    if into:
        taken = taken.transpose(0, 1) if into == 1 else taken.movedim(0, into)
    watched = fresh and not torch.compiler.is_compiling()
    if not (watched and getattr(ys.grad_fn, "notices_writes", False) and taken.stride() == _packed(taken)):
        taken = taken.clone(memory_format=torch.contiguous_format)
    return taken.flatten(into, into + 1) if joined else taken


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear`` of all steps, without a copy of `x` that only brings time to the front.

    Args:
        x: (T, B, ..., in); weight: (out, in); bias: (out,).

    Returns:
        (T, B, ..., out), with T and B in memory as they are in `x` where that is dense.
    """
    swapped = x.transpose(0, 1) if x.dim() > 2 else x
    if swapped is x or x.is_contiguous() or not swapped.is_contiguous():
        return F.linear(x, weight, bias)
    return F.linear(swapped, weight, bias).transpose(0, 1)


def _packed(x: Tensor) -> tuple[int, ...]:
    """The strides of a new tensor of the same shape."""
    found, total = [], 1
    for size in reversed(x.shape):
        found.append(total)
        total *= max(size, 1)
    return tuple(reversed(found))


def zeros(x: Tensor, dim: int) -> Tensor:
    """``torch.zeros_like(x.select(dim, 0))``: zeros for a state like one step of `x`, without taking a step."""
    return x.new_zeros(x.shape[:dim] + x.shape[dim + 1 :])


def size(x: Tensor, dim: int) -> int:
    """The size of a dimension. Function transforms know no ``aten.sym_size``."""
    return x.shape[dim]


def counter(length: int, start: int, step: int, device: torch.device) -> Tensor:
    """The integers ``start + step * k`` for k < length: the time index where the program uses it as a number."""
    return torch.arange(length, device=device) * step + start


def numbers(x: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers that Python computes for the steps, where and as the program computes with them."""
    return x.to(device=device, dtype=dtype)


def affine(length: int, slope: int, offset: int, period: int = 1) -> int:
    """``(slope * length + offset) / period``: an integer of the graph that depends on the length of the input."""
    return (slope * length + offset) // period
