"""Sizes as numbers, for estimates: what depends on a size only in its cost may look at the call that was traced."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def hint(size: Any) -> Any:
    """A symbolic size as that of the call that was traced; anything else as it is."""
    return size.node.hint if isinstance(size, torch.SymInt) else size


def element_count(value: Any) -> int:
    """The number of elements of a traced value, 1 for a number."""
    return math.prod(hint(s) for s in value.shape) if isinstance(value, Tensor) else 1
