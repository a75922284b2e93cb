"""Programs in double precision, whatever precision they are written for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

TO_DOUBLE = {
    torch.float32: torch.float64,
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.complex64: torch.complex128,
}
_TENSOR: Any = torch.Tensor
_CASTS = {
    torch.Tensor.float: torch.float64,
    torch.Tensor.half: torch.float64,
    torch.Tensor.bfloat16: torch.float64,
    _TENSOR.cfloat: torch.complex128,
}


_FACTORIES = frozenset(
    ("zeros", "ones", "empty", "rand", "randn", "normal", "eye", "linspace", "logspace", "scalar_tensor")
)
_LITERAL = frozenset(("tensor", "as_tensor", "asarray"))
_INFERRED = frozenset((*_LITERAL, "full", "arange", "range"))


class _InDouble(TorchFunctionMode):
    """Makes a program compute in double precision throughout, its explicit casts and constants included. (The default
    dtype would do the latter, but other threads would see it.)

    Args:
        literals: what a plan has of tensors that are made of numbers is rounded to this dtype, and so is what they are
            made of here.
    """

    def __init__(self, literals: torch.dtype | None = None) -> None:
        super().__init__()
        self.literals = literals

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _CASTS:
            return args[0].to(_CASTS[func])
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _LITERAL and not isinstance(args[0] if args else None, Tensor):
            made = func(*args, **kwargs)
            if self.literals is not None and made.dtype in (torch.float64, torch.complex128):
                made = made.to(self.literals.to_complex() if made.is_complex() else self.literals)
            return made.to(TO_DOUBLE.get(made.dtype, made.dtype))
        if func is _TENSOR.__setitem__ and self.literals is not None and type(args[2]) in (float, complex):
            # A tensor is made of the number first, in the dtype of what it is written into.
            dtype = self.literals.to_complex() if type(args[2]) is complex else self.literals
            args = (*args[:2], torch.tensor(args[2], dtype=dtype).to(TO_DOUBLE.get(dtype, dtype)))
        if kwargs or any(isinstance(a, torch.dtype) for a in args):
            args = tuple(TO_DOUBLE.get(a, a) if isinstance(a, torch.dtype) else a for a in args)
            kwargs = {k: TO_DOUBLE.get(v, v) if isinstance(v, torch.dtype) else v for k, v in kwargs.items()}
        if kwargs.get("dtype") is None:
            name = getattr(func, "__name__", "").partition(".")[0]
            if name in _FACTORIES and not isinstance(next(iter(args), None), Tensor):
                kwargs = kwargs | {"dtype": torch.float64}
            elif name in _INFERRED:
                dtype = func(*args, **kwargs).dtype
                kwargs = kwargs | {"dtype": TO_DOUBLE.get(dtype, dtype)}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.dtype in TO_DOUBLE:
            return _of_whole(func, args, kwargs, result)
        return result


def _of_whole(func: Any, args: Any, kwargs: Any, result: Tensor) -> Any:
    """What an operator makes of whole numbers and flags has the default dtype: the same in double precision."""
    whole = [x for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
    if not whole or any(x.is_floating_point() or x.is_complex() for x in whole):
        return result
    try:
        args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to(torch.float64), (args, kwargs))
        return func(*args, **kwargs)
    except (RuntimeError, TypeError):  # one that takes whole numbers only
        return result.to(TO_DOUBLE[result.dtype])


def in_double(literals: torch.dtype | None = None) -> TorchFunctionMode:
    """Everything in the block computes in float64 (complex128), with tensors made of numbers that are rounded."""
    return _InDouble(literals)


def as_double(x: Any) -> Any:
    """A detached copy of a tensor in double precision; anything else unchanged."""
    if not isinstance(x, Tensor):
        return x
    copy = x.detach().clone()
    return copy.to(TO_DOUBLE.get(x.dtype, x.dtype))
