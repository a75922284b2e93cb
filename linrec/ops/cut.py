"""Cutting operands with a time axis into chunks, and the states at the chunks' boundaries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ._dtypes import broadcast_shape, time_axis
from .decay import split_axis
from .scan import linear_scan, matrix_scan


@dataclass(frozen=True)
class Cut:
    """How operands with time at `axis` are cut: (B, T, ..., K) becomes (B, ..., chunks, chunk, K)."""

    axis: int
    length: int
    chunk: int
    batch: tuple[int, ...]

    @staticmethod
    def of(dim: int, chunk: int, features: tuple[tuple[Tensor | None, int], ...]) -> Cut:
        """The cut for operands that broadcast against each other but for the last axes; each comes with their number.

        Raises ValueError where `chunk` is not a power of two or `dim` is one of the last axes.
        """
        if chunk < 1 or chunk & (chunk - 1):
            raise ValueError(f"the chunk must be a power of two, got {chunk}")
        shape = broadcast_shape(*(x.shape[: x.ndim - last] for x, last in features if x is not None))
        axis = time_axis(len(shape) + 1, dim)
        if axis == len(shape):
            raise ValueError(f"dim={dim} is an axis of the state")
        length = shape[axis]
        return Cut(axis, length, min(chunk, 1 << max(0, length - 1).bit_length()), shape[:axis] + shape[axis + 1 :])

    def chunks(self, x: Tensor, features: int = 1, fill: float = 0) -> Tensor:
        """`x` by chunks, with `fill` for the steps that the last chunk lacks; one chunk if `x` is constant in time.

        `features`: how many of the last axes belong to a step.
        """
        ndim = len(self.batch) + 1 + features
        x = x.reshape((1,) * (ndim - x.ndim) + x.shape).movedim(self.axis, -1 - features)
        time, missing = x.ndim - 1 - features, -self.length % self.chunk
        lead, step = x.shape[:time], x.shape[time + 1 :]
        if x.shape[time] == 1 and not missing:
            x = x.expand(*lead, self.chunk, *step)
        elif missing:
            rest = torch.full((), fill, dtype=x.dtype, device=x.device).expand(*lead, missing, *step)
            x = torch.cat((x.expand(*lead, self.length, *step), rest), time)
        return split_axis(x, time - x.ndim, self.chunk)

    def whole(self, y: Tensor) -> Tensor:
        """The inverse of `chunks` for results that are not broadcast, (B, ..., chunks, chunk, V)."""
        return y.flatten(-3, -2).narrow(-2, 0, self.length).movedim(-2, self.axis)

    def without_steps(self, width: int, like: Tensor) -> Tensor:
        """The result of no steps, (B, 0, ..., width)."""
        return like.new_zeros(*self.batch[: self.axis], 0, *self.batch[self.axis :], width)

    def start(self, h0: Tensor | None, keys: int, values: int, like: Tensor) -> Tensor:
        """The state before the first step, (B, ..., K, V), in the dtype of `like`."""
        start = like.new_zeros(()) if h0 is None else h0.to(like.dtype)
        return start.expand(*self.batch, keys, values)


def boundary_states(transition: Tensor, drive: Tensor, start: Tensor, dense: bool) -> Tensor:
    """The state before the first chunk and after each, (..., chunks + 1, K, V), from what each chunk does to the state.

    `transition`: a factor that broadcasts against the state, or a matrix for its key axis if `dense`.
    """
    drive = drive.expand(*start.shape[:-2], *drive.shape[-3:])
    states = (matrix_scan if dense else linear_scan)(transition, drive, start, dim=drive.ndim - 3)
    return torch.cat((start.unsqueeze(-3), states), -3)
