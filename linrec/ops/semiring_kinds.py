"""The semirings whose product is the ordinary sum: log-sum-exp, the maximum, the minimum."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

aten = torch.ops.aten


@dataclass(frozen=True)
class Kind:
    """A semiring whose product is the ordinary sum.

    Attributes:
        name: what reports call it.
        zero: what is neutral for its sum.
        plus: its sum of two numbers; times: what some equal numbers sum to, given one of them and their count.
        exact: whether its derivative depends on the operator where the operands of its sum are equal.
        join, total: its sum of two tensors, and over dimensions of one.
        words: what formulas call these.
    """

    name: str
    zero: float
    plus: Callable[[float, float], float]
    times: Callable[[float, int], float]
    exact: bool
    join: Any
    total: Any
    words: tuple[str, str]


def _log_add(x: float, y: float) -> float:
    high = max(x, y)
    return high if math.isinf(high) else high + math.log(math.exp(x - high) + math.exp(y - high))


LOG = Kind(
    name="log-sum-exp",
    zero=-math.inf,
    plus=_log_add,
    times=lambda x, n: x + math.log(n),
    exact=False,
    join=aten.logaddexp.default,
    total=aten.logsumexp.default,
    words=("logaddexp", "logsumexp"),
)
MAX = Kind(
    name="max-plus",
    zero=-math.inf,
    plus=max,
    times=lambda x, n: x,
    exact=True,
    join=aten.maximum.default,
    total=aten.amax.default,
    words=("max", "max"),
)
MIN = Kind(
    name="min-plus",
    zero=math.inf,
    plus=min,
    times=lambda x, n: x,
    exact=True,
    join=aten.minimum.default,
    total=aten.amin.default,
    words=("min", "min"),
)
KINDS = {kind.name: kind for kind in (LOG, MAX, MIN)}
