"""A function with a derivative of its own, element by element: spikes with a surrogate gradient (Neftci, Mostafa and
Zenke, "Surrogate Gradient Learning in Spiking Neural Networks", 2019), rounding that lets gradient through (Bengio,
Leonard and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .opaque import Shape, opaque


class _Surrogate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[2])
        ctx.save_for_forward(inputs[2])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, Tensor, None]:
        return None, grads[0] * ctx.saved_tensors[0], None

    @staticmethod
    def jvp(ctx: Any, value: Any, x: Tensor | None, slope: Any) -> Tensor:
        (own,) = ctx.saved_tensors
        return torch.zeros_like(own) if x is None else x * own


def _shape(value: Tensor, x: Tensor, slope: Tensor) -> list[Shape]:
    return [(value.shape, value.dtype)]


@opaque(_shape)
def surrogate(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """A value that is given, differentiated as if it were a function of x with the slope that is given.

    Args:
        value, x, slope: of one shape and floating-point dtype. Of the three, x alone has a gradient: that of the result
            times the slope.

    Returns:
        the value, of the same shape and dtype.
    """
    found: Tensor = _Surrogate.apply(value, x, slope)  # type: ignore[no-untyped-call]
    return found


_library = torch.library.Library("linrec", "FRAGMENT")
_library.define("surrogate(Tensor value, Tensor x, Tensor slope) -> Tensor", tags=(torch.Tag.pointwise,))
_library.impl("surrogate", lambda value, x, slope: value.clone(), "CompositeExplicitAutograd")
"""What stands in graphs while they are rewritten; those that run hold `surrogate`."""
