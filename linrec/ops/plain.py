"""When a kernel that reads memory may stand in for torch's operators: only plain tensors, and nobody watching."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.guards import TensorGuards
from torch.utils._python_dispatch import _get_current_dispatch_mode


def unwatched() -> bool:
    """Whether torch's operators run as they are: no tracing, no dispatch mode, no function transform, no dual level."""
    if torch.compiler.is_compiling() or _get_current_dispatch_mode() or torch._C._get_tracing_state():
        return False
    functorch = torch._C._functorch
    return torch.autograd.forward_ad._current_level < 0 and functorch.peek_interpreter_stack() is None


def are_plain(tensors: Iterable[Tensor | None], devices: tuple[str, ...]) -> bool:
    """Whether all tensors lie, strided and unwrapped, in the memory of one device of a type in `devices`."""
    functorch = torch._C._functorch
    place = None
    for x in tensors:
        if x is None:
            continue
        if type(x) is not Tensor and type(x) is not nn.Parameter:
            return False
        if functorch.is_functorch_wrapped_tensor(x) or functorch.is_legacy_batchedtensor(x):
            return False
        if x.layout != torch.strided or x.device.type not in devices or x.device != (place or x.device):
            return False
        place = x.device
    return True


def guards_of(tensors: Sequence[Any], strides: bool = False) -> TensorGuards:
    """What is quick to tell whether other tensors are like these, of which each may be there once: types, dtypes,
    sizes, devices, whether they require gradient, what torch does with them now; strides where these count."""
    sizes: list[Any] = [list(x.shape) for x in tensors]
    steps: list[Any] = [list(x.stride()) if strides else [None] * x.dim() for x in tensors]
    return TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=steps)
