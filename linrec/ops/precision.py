"""Autocast, switched off for what chooses its own dtypes."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_R = TypeVar("_R")

DEVICES = tuple(d for d in ("cpu", "cuda", "xpu", "mps") if torch.amp.is_autocast_available(d))
"""The device types that autocast is looked up for."""


def is_autocast() -> bool:
    """Whether autocast is on, for any device."""
    return torch._C._is_any_autocast_enabled() and any(torch.is_autocast_enabled(d) for d in DEVICES)


AutocastState = tuple[tuple[str, torch.dtype], ...]


def autocast_state() -> AutocastState:
    """What autocast does at the moment: the device types that it is on for, each with its dtype."""
    if not torch._C._is_any_autocast_enabled():
        return ()
    return tuple((d, torch.get_autocast_dtype(d)) for d in DEVICES if torch.is_autocast_enabled(d))


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """In the block, operators compute in the dtypes of their operands."""
    on = [d for d in DEVICES if torch.is_autocast_enabled(d)]
    for device in on:
        torch.set_autocast_enabled(device, False)
    try:
        yield
    finally:
        for device in on:
            torch.set_autocast_enabled(device, True)


@contextlib.contextmanager
def uncached_autocast() -> Iterator[None]:
    """In the block, autocast neither uses the casts of weights that it keeps nor keeps any: one that is made without
    gradient would serve, and cut off, a later call that needs it."""
    cached = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(cached)


@contextlib.contextmanager
def autocast_as(state: AutocastState) -> Iterator[None]:
    """In the block, autocast is on as in a state noted before."""
    with contextlib.ExitStack() as stack:
        for device, dtype in state:
            stack.enter_context(torch.autocast(device, dtype))
        yield


def own_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make `function` compute in the dtypes it chooses itself, whatever autocast would have its products take."""

    @functools.wraps(function)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not is_autocast():
            return function(*args, **kwargs)
        with no_autocast():
            return function(*args, **kwargs)

    return wrapped
