"""`Sample`, one model at a small size with inputs and expectations, and the helpers that the tables of samples are
written with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Inputs = Callable[[int, int, torch.dtype], tuple[Tensor, ...]]

LTI_DENSE = "LTI, dense A"
LTI_DIAGONAL = "LTI, diagonal"
DIAGONAL = "diagonal, time-varying"
OUTER = "outer-product input"
LOW_RANK = "diagonal plus low rank"
BLOCK = "block of coupled states"
DENSE = "dense, time-varying"
MAX_PLUS = "max-plus, log-sum-exp"
CONVOLUTION = "linear convolution on the state"
FIR = "finite impulse response"
NONLINEAR = "not affine"


@dataclass(frozen=True)
class Sample:
    """One model at a small size.

    `factory()` builds it in the default dtype, always with the same weights. `inputs(batch, length, dtype)` gives its
    inputs, always the same ones, none of them requiring grad; integer and bool inputs keep their own dtype. `outputs`
    are the shapes returned, e.g. "B T 4; B 4". `klass` is the structure of its hardest recurrence, `affine` whether all
    of them are affine in the state, over the usual or a max-plus semiring. `expect` says what can leave the loop:
    "parallel" (all recurrences), "partial" or "sequential". `time_dims` is the time dimension of each input, None where
    it has none. `causal`: the output at t reads no later input.
    """

    name: str
    factory: Callable[[], nn.Module]
    inputs: Inputs
    outputs: str
    paper: str
    equation: str
    klass: str
    affine: bool = True
    expect: str = "parallel"
    time_dims: tuple[int | None, ...] = (1,)
    causal: bool = True


def seeded(build: Callable[..., nn.Module], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    def factory() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build(*args, **kwargs)

    return factory


def normal(*shapes: str, scale: float = 1.0, mean: float = 0.0) -> Inputs:
    """Inputs of the shapes given, e.g. "B T 4"; normal with standard deviation `scale`, shifted by `mean`."""

    def inputs(batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(1)
        draws = (torch.randn(shape_of(shape, batch, length), generator=generator, dtype=dtype) for shape in shapes)
        return tuple(draw * scale + mean for draw in draws)

    return inputs


def shape_of(text: str, batch: int, length: int) -> tuple[int, ...]:
    """The sizes that a text such as "B T 4" stands for: (batch, length, 4)."""
    sizes = {"B": batch, "T": length}
    return tuple(sizes[word] if word in sizes else int(word) for word in text.split())
