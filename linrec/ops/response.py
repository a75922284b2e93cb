"""Impulse responses that are asked for again: those of constant matrices are kept, found by what the matrices hold."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor

from .plain import are_plain, unwatched
from .powers import impulse_response

_ENTRIES = 16
_BYTES = 1 << 28
"""How many responses are kept, and the bytes that they may take together."""
_SUMS = 64
"""For how many lengths the sum of a response is kept."""


@dataclass(frozen=True)
class _Entry:
    A: Tensor
    B: Tensor
    response: Tensor
    backwards: list[Tensor] = field(default_factory=list)
    sums: dict[int, Tensor] = field(default_factory=dict)


def _libc_memcmp() -> Callable[[int, int, int], int] | None:
    try:
        found = ctypes.CDLL(None).memcmp
    except (OSError, TypeError, AttributeError):  # a system whose C library is found otherwise
        return None
    found.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
    return cast("Callable[[int, int, int], int]", found)


_memcmp = _libc_memcmp()

_kept: list[_Entry] = []
_lock = threading.Lock()


def response(A: Tensor, B: Tensor, length: int) -> Tensor:
    """`impulse_response(A, B, length)`, (length, d, m); computed once for matrices that need no derivative.

    What is returned may be shared: it is not to be written into. Equal matrices share one response, whatever tensors
    they are; it is kept for the greatest length asked for.
    """
    entry = _entry(A, B, length)
    return impulse_response(A, B, length) if entry is None else entry.response[:length]


def backwards(A: Tensor, B: Tensor, length: int) -> Tensor:
    """The same from the last step to the first, (length, m, d): it takes the inputs to the last state."""
    entry = _entry(A, B, length)
    if entry is None:
        return impulse_response(A, B, length).flip(0).transpose(-1, -2)
    return _backwards(entry, length)


def backwards_and_sum(A: Tensor, B: Tensor, length: int) -> tuple[Tensor, Tensor] | None:
    """`backwards`, and its sum over the steps, (m, d), which are kept; None where the matrices are no constants."""
    entry = _entry(A, B, length)
    if entry is None:
        return None
    found = _backwards(entry, length)
    total = entry.sums.get(length)
    if total is None:
        if len(entry.sums) >= _SUMS:
            entry.sums.clear()
        with torch.no_grad(), torch.inference_mode(False):
            total = entry.sums[length] = found.double().sum(0).to(found.dtype)
    return found, total


def _backwards(entry: _Entry, length: int) -> Tensor:
    if not entry.backwards:
        with torch.no_grad(), torch.inference_mode(False):
            entry.backwards.append(entry.response.flip(0).transpose(-1, -2).contiguous())
    found = entry.backwards[0]
    return found[found.shape[0] - length :]


def _entry(A: Tensor, B: Tensor, length: int) -> _Entry | None:
    """What is kept for two matrices, computed where it is not; None where they are no constants."""
    if not _constant(A, B):
        return None
    with _lock:
        entries = list(_kept)
    for entry in entries:
        same = entry.A.dtype == A.dtype and entry.B.shape == B.shape and entry.A.shape == A.shape
        if same and _equal(entry.B, B) and _equal(entry.A, A):
            if entry.response.shape[0] >= length:
                _touch(entry)
                return entry
            _forget(entry)
            break
    with torch.no_grad(), torch.inference_mode(False):
        # It is computed once: in double precision, where powers lose nothing that the result could hold.
        wide = torch.complex128 if A.is_complex() else torch.float64
        found = impulse_response(A.detach().to(wide), B.detach().to(wide), length).to(A.dtype)
        entry = _Entry(A.detach().clone(), B.detach().clone(), found)
    if entry.response.numel() * entry.response.element_size() <= _BYTES:
        _touch(entry)
    return entry


def _equal(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors of one shape and dtype hold the same."""
    dense = a.is_contiguous() or (a.dim() == 2 and a.mT.is_contiguous())
    lazy = a.is_conj() or a.is_neg() or b.is_conj() or b.is_neg()
    if _memcmp is not None and dense and a.stride() == b.stride() and not lazy:
        # Bit by bit, which is an order of magnitude faster than number by number.
        return int(_memcmp(a.data_ptr(), b.data_ptr(), a.numel() * a.element_size())) == 0
    return torch.equal(a, b)


def _constant(A: Tensor, B: Tensor) -> bool:
    """Whether no derivative is taken by the matrices and they can be compared: plain tensors in the CPU's memory."""
    if not unwatched() or not are_plain((A, B), ("cpu",)):
        return False
    moving = torch.is_grad_enabled() and (A.requires_grad or B.requires_grad)
    return not moving and A.dtype == B.dtype and not A.is_inference() and not B.is_inference()


def _touch(entry: _Entry) -> None:
    """Keep an entry, as the one used last."""
    with _lock:
        if _kept and _kept[-1] is entry:
            return
        rest = [e for e in _kept if e is not entry]
        total, found = 0, []
        for e in [entry, *reversed(rest)][:_ENTRIES]:
            total += e.response.numel() * e.response.element_size()
            if total > _BYTES:
                break
            found.append(e)
        _kept[:] = reversed(found)


def _forget(entry: _Entry) -> None:
    with _lock:
        _kept[:] = [e for e in _kept if e is not entry]
