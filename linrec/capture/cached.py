"""Functions that keep their results (`functools.lru_cache`). A trial run must not find some of them, or it does other
things than one that does not, and must leave none of its own: they may be stand-ins for tensors."""

from __future__ import annotations

import functools
import gc
import types
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor

from linrec.capture.frozen import PLAIN

_CACHED: Any = functools._lru_cache_wrapper
_INTERNAL = (type, types.FunctionType)
"""What such a function refers to besides keys and results."""


def is_cache(value: Any) -> bool:
    """Whether a function keeps its results."""
    return type(value) is _CACHED


def set_aside(functions: Iterable[Any]) -> list[Callable[[], None]]:
    """Make functions forget their results that are tensors; what puts back what they had, as far as that can be.

    Of a function that keeps a certain number of results, these can only be dropped; one that keeps objects, such as the
    only instance of something, keeps them, and what a trial run adds.
    """
    return [_set_aside(f) for f in functions]


def _set_aside(function: Any) -> Callable[[], None]:
    table = _table(function)
    if function.cache_parameters()["maxsize"] is None and table is not None:
        content = dict(table)
        for key, result in content.items():
            if _has_tensors(result):
                del table[key]

        def put_back() -> None:
            if len(table) != len(content) or any(table.get(k, table) is not v for k, v in content.items()):
                table.clear()
                table.update(content)

        return put_back

    others = {id(x) for x in (table, vars(function), *(table or ()))}  # keys are no results
    held = [x for x in gc.get_referents(function) if id(x) not in others]
    objects = not all(_is_plain(x) or _has_tensors(x) for x in held)
    if not objects and any(map(_has_tensors, held)):
        function.cache_clear()
    misses = function.cache_info().misses

    def drop() -> None:
        if function.cache_info().misses != misses and not objects:
            function.cache_clear()

    return drop


def _table(function: Any) -> dict[Any, Any] | None:
    """Where a function keeps its results, by their keys."""
    found = [x for x in gc.get_referents(function) if type(x) is dict and x is not vars(function)]
    return found[0] if len(found) == 1 else None


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return isinstance(value, (*PLAIN, *_INTERNAL)) or type(value) is object


def _has_tensors(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_has_tensors, value))
    if isinstance(value, dict):
        return any(map(_has_tensors, value.values()))
    return isinstance(value, Tensor)
