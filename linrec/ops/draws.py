"""Random numbers of all steps of a loop, drawn before it runs: in the order in which the loop draws them, so that the
same seed gives the same numbers and leaves the generator in the same state."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .opaque import Opaque, Shape

_Fill = Callable[..., Any]
_FILLS: dict[str, _Fill] = {
    "uniform": lambda x, low=0.0, high=1.0: x.uniform_(low, high),
    "normal": lambda x, mean=0.0, std=1.0: x.normal_(mean, std),
    "bernoulli": lambda x, p=0.5: x.bernoulli_(p),
    "exponential": lambda x, rate=1.0: x.exponential_(rate),
    "integers": lambda x, low, high: x.random_(low, high),
}


@dataclass(frozen=True)
class Draw:
    """What one operator draws in every step.

    Attributes:
        kind: "uniform", "normal", "bernoulli", "exponential", "integers"; "dropout": what dropout multiplies with;
            "each": ones with a probability for every element.
        params: of the distribution; for dropout the rate; for "each" the probability where it is the same everywhere.
        dtype: of the numbers; that of the tensor that goes with them where None.
    """

    kind: str
    params: tuple[Any, ...] = ()
    dtype: torch.dtype | None = None


class Draws(Opaque):
    """Called with the number of steps, for each draw a tensor that has its device and dtype, and for each draw its
    shape; returns for each draw the numbers of all steps, (length, *shape). The tensor of "each" has the probabilities
    of all steps, (length, *shape), where they are not the same everywhere.

    Args:
        draws: what is drawn in every step, in order.
    """

    _is_impure = True  # to fx: what draws moves the generator, whether it is read or not

    def __init__(self, draws: Sequence[Draw]) -> None:
        super().__init__()
        self.draws = tuple(draws)

    def shapes(self, length: int, likes: list[Tensor], sizes: list[list[int]]) -> list[Shape]:
        """Of `run`."""
        return [
            ((length, *size), draw.dtype or like.dtype)
            for draw, like, size in zip(self.draws, likes, sizes, strict=True)
        ]

    def run(self, length: int, likes: list[Tensor], sizes: list[list[int]]) -> list[Tensor]:
        """Draw step by step."""
        found = [
            torch.empty((length, *size), dtype=draw.dtype or like.dtype, device=like.device)
            for draw, like, size in zip(self.draws, likes, sizes, strict=True)
        ]
        with torch.no_grad():
            rows = [x.unbind(0) for x in found]
            for t in range(length):
                for draw, steps, like in zip(self.draws, rows, likes, strict=True):
                    if draw.kind == "each":
                        x = steps[t]
                        x.copy_(torch.bernoulli(torch.full_like(x, *draw.params) if draw.params else like[t]))
                    else:
                        _fill(draw, steps[t])
            for draw, x in zip(self.draws, found, strict=True):
                if draw.kind == "dropout" and 0 < draw.params[0] < 1 and x.device.type == "cpu":
                    x.div_(1 - draw.params[0])
        return found


def _fill(draw: Draw, x: Tensor) -> None:
    if draw.kind != "dropout":
        _FILLS[draw.kind](x, *draw.params)
        return
    (rate,) = draw.params
    if rate == 1:
        x.zero_()
    elif x.device.type == "cpu":
        x.bernoulli_(1 - rate)
    else:  # a kernel of its own there
        x.copy_(torch.dropout(torch.ones_like(x), rate, True))
