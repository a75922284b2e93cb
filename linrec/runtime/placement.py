"""The default device (`torch.set_default_device`, ``with torch.device(...)``) is a mode that gives a device to every
tensor made without one. It is meant for the user's code: forward runs under it, whatever linrec makes does not."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import _pop_mode, _push_mode
from torch.utils._device import DeviceContext

_aside: dict[int, Any] = {}
"""The modes that are set aside, by thread: whether there is any is quicker to see than what a thread has of its own."""


def _forked() -> None:
    """In a forked process there is one thread."""
    mode = _current()
    _aside.clear()
    _set(mode)


os.register_at_fork(after_in_child=_forked)


def default_device() -> torch.device | None:
    """The default device if one is set that is not set aside, else None."""
    mode = _mode()
    return None if mode is None else mode.device


def _mode() -> Any:
    """The mode, if it is the only one."""
    if torch._C._len_torch_function_stack() != 1:
        return None
    mode = torch._C._get_function_stack_at(0)
    return mode if isinstance(mode, DeviceContext) else None


@contextlib.contextmanager
def without_default_device() -> Iterator[None]:
    """Set the default device aside; `under_default_device` has it back."""
    mode = _mode()
    if mode is None:
        yield
        return
    before = _current()
    _pop_mode()
    _set(mode)
    try:
        yield
    finally:
        _set(before)
        _push_mode(mode)


def _current() -> Any:
    return _aside.get(threading.get_ident()) if _aside else None


def _set(mode: Any) -> None:
    if mode is None:
        _aside.pop(threading.get_ident(), None)
    else:
        _aside[threading.get_ident()] = mode


def is_any_set_aside() -> bool:
    """Whether a thread has set a default device aside."""
    return bool(_aside)


def device_set_aside() -> torch.device | None:
    """The device that `without_default_device` has set aside, if there is one."""
    mode = _current()
    return None if mode is None else mode.device


def under_default_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function as the user calls it: under the default device that was set aside, if one was."""
    mode = _current()
    return function if mode is None else functools.partial(_call_under, mode, function)


def _call_under(mode: Any, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    # It lies beneath the others, as torch has it: they see what the user wrote, before there is a device in it.
    others = _taken_off()
    _push_mode(mode)
    for other in reversed(others):
        _push_mode(other)
    before = _current()
    _set(None)
    try:
        return function(*args, **kwargs)
    finally:
        _set(before)
        others = _taken_off()[:-1]
        for other in reversed(others):
            _push_mode(other)


def _taken_off() -> list[Any]:
    """The modes in force, the innermost first, which are in force no longer."""
    return [_pop_mode() for _ in range(torch._C._len_torch_function_stack())]
