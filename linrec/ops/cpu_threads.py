"""Runs a compiled function on torch's own OpenMP threads.

Another pool would run at serial speed beside torch's: torch's workers spin for a while after each parallel operator and
hold the cores. Where torch's OpenMP library is not GNU's, or after a fork (whose child has none of the threads), the
function is called once, serially.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any

import torch

_state = {"forked": False}


def _after_fork() -> None:
    _state["forked"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def thread_count() -> int:
    """How many threads `run` would use: torch's number, or 1."""
    return 1 if _state["forked"] or _gomp_parallel() is None else torch.get_num_threads()


def run(function: int, argument: int, threads: int) -> None:
    """Call the C function at address `function` with the pointer `argument`, on up to `threads` threads at once."""
    parallel = _gomp_parallel() if threads > 1 else None
    if parallel is None:
        _called(function)(argument)
    else:
        parallel(function, argument, threads, 0)


@functools.lru_cache(maxsize=4096)
def _called(function: int) -> Any:
    return _CALL(function)


_CALL = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@functools.cache
def _gomp_parallel() -> Any:
    """GOMP_parallel of the library that torch has loaded; None where there is none."""
    home = os.path.dirname(os.path.abspath(torch.__file__))
    try:
        with open("/proc/self/maps") as maps:
            loaded = {line.split(maxsplit=5)[5].strip() for line in maps if "libgomp" in line}
        mine = [path for path in loaded if path.startswith(home)] or (list(loaded) if len(loaded) == 1 else [])
        parallel = ctypes.CDLL(mine[0]).GOMP_parallel
    except (OSError, IndexError, AttributeError):
        return None
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    return parallel
