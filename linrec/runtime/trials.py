"""Warnings of a dispatcher, where the user's code calls the model, and none of those of its trial runs; what a longer
call may show; what a dispatcher says of its own mistakes."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Hashable, Iterator
from typing import Any

from torch import Tensor, nn

from linrec.capture.discover import SHORT
from linrec.ir import members
from linrec.ir.location import is_library
from linrec.ir.obstruction import Obstruction


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the warnings of the user's code, which runs on inputs of other lengths here: a call has its own."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def warn(text: str) -> None:
    """Warn where the user's code calls the model."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and is_library(frame.f_code.co_filename):
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level)


def clipped(leaves: list[Any]) -> Hashable:
    """Sizes up to twice the shortest traced length: a longer call may show a loop that a shorter one did not."""
    return tuple(tuple(min(s, 2 * SHORT) for s in x.shape) for x in leaves if isinstance(x, Tensor))


def may_be_longer(leaves: list[Any]) -> bool:
    """Whether nothing was found because the call is too short to tell."""
    return not any(isinstance(x, Tensor) and any(s >= SHORT for s in x.shape) for x in leaves)


def failure(error: Exception) -> Obstruction:
    """What to say of a bug of the compiler."""
    return Obstruction("LR002", "", f"the compiler failed with {type(error).__name__}: {error}")


def names_of(module: nn.Module) -> list[nn.Module]:
    """The submodules of a module, without itself."""
    return [m for m in members.modules(module) if m is not module]
