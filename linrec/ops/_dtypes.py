"""What all ops share: dtype rules (torch's promotion, half precision computed in float32), axes, and chunks."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDER = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.complex32: torch.complex64}


def result_dtype(*tensors: Tensor | None) -> torch.dtype:
    """The dtype torch promotes the operands to; integers and bools become the default floating-point dtype."""
    present = [tensor.dtype for tensor in tensors if tensor is not None]
    dtype = present[0]
    for other in present[1:]:
        dtype = torch.promote_types(dtype, other)
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    return dtype


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype to accumulate in: float32 for half precision, else the dtype itself."""
    return _WIDER.get(dtype, dtype)


def time_axis(ndim: int, dim: int) -> int:
    """`dim` as a non-negative axis. Raises IndexError, as torch does, where there is no such axis."""
    if not -ndim <= dim < ndim:
        raise IndexError(f"dim={dim} is out of range for a result with {ndim} axes")
    return dim % ndim


def broadcast_shape(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that tensors of these shapes broadcast to. Raises RuntimeError where there is none."""
    # What torch has for this takes longer than a small kernel; it alone knows symbolic sizes.
    if all(type(n) is int for shape in shapes for n in shape):
        if all(shape == shapes[0] for shape in shapes):
            return tuple(shapes[0])
        found: list[int] = []
        for axis in range(-max(len(shape) for shape in shapes), 0):
            own = {shape[axis] for shape in shapes if len(shape) >= -axis} - {1}
            if len(own) > 1:
                break
            found.append(own.pop() if own else 1)
        else:
            return tuple(found)
    return tuple(torch.broadcast_shapes(*shapes))


def summed_to(x: Tensor, shape: torch.Size) -> Tensor:
    """A derivative of a broadcast operand as one of the operand."""
    return x if x.shape == shape else x.sum_to_size(shape)


def in_old_vmap(*tensors: Tensor | None) -> bool:
    """Whether some tensor is one of the vmap that `is_grads_batched` runs in, which knows no rules of ours."""
    if torch.compiler.is_compiling():
        return False
    return any(tensor is not None and torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


def split_time(length: int, chunk: int, reverse: bool) -> tuple[int, slice, slice]:
    """How many whole chunks `length` steps have, where these are, and where the rest is, which is done last."""
    chunks = length // chunk
    rest = length - chunks * chunk
    if reverse:
        return chunks, slice(rest, length), slice(0, rest)
    return chunks, slice(0, length - rest), slice(length - rest, length)


def chunk_views(x: Tensor, body: slice, chunk: int) -> Tensor:
    """The steps of `x` (T, ...) within `body` as (chunk, chunks, ...), a view: step within its chunk, then chunk."""
    x = x[body]
    return x.view(-1, chunk, *x.shape[1:]).transpose(0, 1)
