"""The leaves of what an operator is called with, which modes ask for at every operator of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

_LEAVES = frozenset(
    [Tensor, nn.Parameter, int, float, bool, complex, str, type(None), slice, torch.dtype, torch.device, torch.layout]
)


def leaves_of(*values: Any) -> list[Any]:
    """What `torch.utils._pytree.tree_leaves` finds in values; much faster where they are what operators are called
    with: tensors, numbers, and lists of these."""
    found: list[Any] = []
    for value in values:
        kind = type(value)
        if kind in _LEAVES:
            found.append(value)
        elif kind is tuple or kind is list:
            found += leaves_of(*value)
        elif kind is dict:
            found += leaves_of(*value.values())
        else:
            found += pytree.tree_leaves(value)
    return found
