"""The diagonal scan with a readout that contracts the last axis of the state, as Mamba's: the result is as small as the
readout. Torch forms hold the states of all steps; Triton's kernels (`triton_readout`) do not."""

from __future__ import annotations

from torch import Tensor

from ._dtypes import broadcast_shape, compute_dtype, result_dtype, time_axis
from .dispatch import dispatched
from .precision import own_precision
from .scan import linear_scan


@own_precision
@dispatched
def scan_readout(
    a: Tensor, b: Tensor, c: Tensor, h0: Tensor | None = None, *, dim: int = 1, reverse: bool = False
) -> tuple[Tensor, Tensor]:
    """y[t] = sum over n of h[t, ..., n] c[t, ..., n], where h[t] = a[t] * h[t-1] + b[t] and h[-1] = h0.

    Args:
        a: transitions, (B, T, ..., N); all operands broadcast against each other. Size 1 in time is a constant.
        b: drive, (B, T, ..., N).
        c: readout, (B, T, ..., N); not conjugated.
        h0: state before the first step, broadcastable to (B, ..., N); zeros if None.
        dim: the time axis of the broadcast shape; not the last one.
        reverse: run from the end, h[t] = a[t] * h[t+1] + b[t], where h[T] = h0.

    Returns:
        y, (B, T, ...), and the state after the last step (reversed: the first), (B, ..., N). Half precision is computed
        in float32.

    Raises:
        ValueError: if `dim` is the last axis.

    Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (2023), section 3.3.

    >>> import torch
    >>> y, last = scan_readout(torch.full((1, 3, 2), 0.5), torch.ones(1, 3, 2), torch.tensor([[[1.0, -1.0]]]))
    >>> y, last
    (tensor([[0., 0., 0.]]), tensor([[1.7500, 1.7500]]))
    """
    dtype = result_dtype(a, b, c, h0)
    compute = compute_dtype(dtype)
    shape = broadcast_shape(a.shape, b.shape, c.shape)
    axis = time_axis(len(shape), dim)
    if axis == len(shape) - 1:
        raise ValueError(f"dim={dim} is the axis that is read out")
    b = b.to(compute).expand(shape)
    start = None if h0 is None else h0.to(compute)
    if shape[axis] == 0:
        state = shape[:axis] + shape[axis + 1 :]
        last = b.new_zeros(state) if start is None else start.expand(state)
        return (b * c.to(compute)).sum(-1).to(dtype), last.to(dtype)
    h = linear_scan(a.to(compute), b, start, dim=axis, reverse=reverse)
    return (h * c.to(compute)).sum(-1).to(dtype), h.select(axis, 0 if reverse else -1).to(dtype)
