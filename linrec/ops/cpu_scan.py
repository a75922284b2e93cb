"""`linear_scan` on a CPU as one compiled loop over time per lane, where numba is installed and the operands are plain.

Each function here either does all of the work and returns True, or touches nothing and returns False: then the caller's
torch form runs. The compiled loop is sequential, so it is exact where products of transitions overflow or underflow.
On x86 it takes subnormal numbers (below 1e-38 in float32, 1e-308 in float64) for zero: states that decay through that
range would otherwise cost ten times as much.
"""

from __future__ import annotations

import functools
import itertools
import threading
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from . import cpu_threads
from .switch import Switch

_TYPES = {
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "complex64",
    torch.complex128: "complex128",
}
_SMALLEST = 2048  # elements; below, the torch form costs little and spares loading the compiler
_PARALLEL = 32768  # elements; below, starting threads costs more than it saves
_MIN_BLOCK = 64  # lanes
_lock = threading.Lock()
compiled_scan = Switch()
"""Where it is off, every scan takes the torch form, as on other devices and under transforms."""


def scan_into(a: Tensor, b: Tensor, h0: Tensor | None, out: Tensor, reverse: bool) -> bool:
    """Write the states of h[t] = a[t] * h[t-1] + b[t] over axis 0 into `out`; all but `h0` are (T, *state)."""
    if not _supported(out, a, b, h0):
        return False
    start = out.new_zeros(out.shape[1:]) if h0 is None else h0
    return _run("forward", out, (a, b, out), start, from_end=reverse)


def scan_backward_into(
    a: Tensor, h0: Tensor | None, h: Tensor, grad: Tensor, grad_a: Tensor, grad_b: Tensor, reverse: bool
) -> bool:
    """Write the derivatives of the scan's operands into `grad_a` and `grad_b`, given its states and their gradient."""
    if not _supported(grad_b, a, h0, h, grad, grad_a):
        return False
    start = h.new_zeros(h.shape[1:]) if h0 is None else h0
    return _run("backward", grad_b, (a, grad, h, grad_a, grad_b), start, from_end=not reverse)


def _supported(out: Tensor, *operands: Tensor | None) -> bool:
    """Whether `out` is worth it and all are plain tensors in memory, with nothing watching torch's operators."""
    if torch.compiler.is_compiling() or out.dtype not in _TYPES or out.numel() < _SMALLEST or out.shape[0] < 2:
        return False
    if compiled_scan.is_off:
        return False
    for tensor in (out, *operands):
        if tensor is not None and (type(tensor) is not Tensor or tensor.device.type != "cpu" or _is_wrapped(tensor)):
            return False
    return not (_get_current_dispatch_mode() or torch._C._get_tracing_state())


def _is_wrapped(tensor: Tensor) -> bool:
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor)) or tensor.layout != torch.strided


def _run(kernel: str, out: Tensor, series: tuple[Tensor, ...], start: Tensor, from_end: bool) -> bool:
    """Run a kernel over `series`, each (T, *state), and `start`, (*state)."""
    function = _compiled(kernel, out.dtype)
    lanes = _lane_groups(out)
    if function is None or lanes is None:
        return False
    outer, inner = lanes
    steps = out.shape[0]
    table: list[int] = []
    keep = []  # copies must outlive the call
    for tensor in (*series, start):
        has_time = tensor is not start
        strides = _strides(tensor, outer, inner, has_time)
        if strides is None or tensor.is_conj() or tensor.is_neg():
            like = out if has_time else start
            tensor = out.new_empty(like.shape).copy_(tensor)
            strides = _strides(tensor, outer, inner, has_time)
            assert strides is not None
        keep.append(tensor)
        time = tensor.stride()[0] if has_time else 0
        address = tensor.data_ptr()
        if from_end:
            address, time = address + (steps - 1) * time * tensor.element_size(), -time
        table += (address, time, *strides)

    outer_size, inner_size = (_size(out, group) for group in (outer, inner))
    threads = cpu_threads.thread_count() if out.numel() >= _PARALLEL else 1
    blocks = max(1, min(-(-4 * threads // outer_size), inner_size // _MIN_BLOCK)) if threads > 1 else 1
    block = -(-inner_size // blocks)
    blocks = -(-inner_size // block)
    numbers = [0, outer_size * blocks, blocks, block, inner_size, steps, *table]
    packed = torch.tensor(numbers, dtype=torch.int64, device="cpu")
    cpu_threads.run(function.address, packed.data_ptr(), threads)
    return True


def _size(tensor: Tensor, axes: list[int]) -> int:
    size = 1
    for axis in axes:
        size *= tensor.shape[axis]
    return size


def _lane_groups(out: Tensor) -> tuple[list[int], list[int]] | None:
    """The state's axes as two groups, each of which is one axis in the memory of `out`; slow axes first."""
    axes = sorted(
        (axis for axis in range(1, out.ndim) if out.shape[axis] > 1), key=lambda axis: out.stride()[axis], reverse=True
    )
    groups: list[list[int]] = []
    for axis in axes:
        if groups and out.stride(groups[-1][-1]) == out.stride(axis) * out.shape[axis]:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    if len(groups) > 2:
        return None
    inner = groups.pop() if groups else []
    return (groups.pop() if groups else [], inner)


def _strides(tensor: Tensor, outer: list[int], inner: list[int], has_time: bool) -> tuple[int, int] | None:
    """Strides of `tensor` along the two groups of lanes; None where a group is not one axis in its memory."""
    found = []
    for group in (outer, inner):
        axes = group if has_time else [axis - 1 for axis in group]
        if any(tensor.stride(p) != tensor.stride(q) * tensor.shape[q] for p, q in itertools.pairwise(axes)):
            return None
        found.append(tensor.stride(axes[-1]) if axes else 0)
    return found[0], found[1]


@functools.cache
def _kernels() -> Any:
    try:
        from . import cpu_kernels
    except ImportError:
        return None
    return cpu_kernels


@functools.cache
def _compile(kernel: str, dtype: torch.dtype) -> Any:
    kernels = _kernels()
    try:
        return None if kernels is None else kernels.compile_kernel(kernel, _TYPES[dtype])
    except Exception as error:  # the compiler's own failures have many types, and none may stop a training run
        warnings.warn(f"linrec: no compiled scan, the slower torch form runs instead: {error}", stacklevel=2)
        return None


def _compiled(kernel: str, dtype: torch.dtype) -> Any:
    with _lock:
        return _compile(kernel, dtype)
