"""What the code of a module reads from elsewhere: globals of its file, attributes of classes, defaults of arguments,
variables of the function that a class is defined in, and the objects and containers that it finds there. A plan takes
them for fixed, so it holds while they are what they were."""

from __future__ import annotations

import argparse
import contextvars
import functools
import os
import sys
import threading
import types
from collections.abc import Callable, Hashable, Iterator
from typing import Any

from torch import Tensor, nn

_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "linrec", "_pytest", "pytest", "IPython"}
"""Packages whose own globals no model changes between two calls."""
_PLAIN = (int, float, complex, bool, str, bytes, type(None))
_CONTAINERS = (list, dict, tuple, set, frozenset)
_MAX_ITEMS = 64
_MAX_POINTS = 256
_MAX_OBJECTS = 256
_DEPTH = 6

Point = tuple[str, Callable[[], Any], Callable[[Any], Any] | None]
"""A name, what reads the value, and what sets it."""


def surroundings(modules: list[nn.Module]) -> tuple[tuple[str, Hashable], ...]:
    """What the code of these modules can read besides their own attributes, as it is now, by name."""
    return tuple([(name, _frozen(read(), _DEPTH, set())) for name, read, _ in points(modules)])


def points(modules: list[nn.Module]) -> tuple[Point, ...]:
    """Where the code of these modules can read values besides their own attributes."""
    classes = frozenset([type(m) for m in modules])
    own = frozenset([v for m in modules for v in m.__dict__.values() if type(v) is types.FunctionType])
    return _points(classes, own)


class GONE:
    """What a variable has that is not set."""


@functools.lru_cache(maxsize=128)
def _points(classes: frozenset[type], own: frozenset[types.FunctionType]) -> tuple[Point, ...]:
    found: dict[tuple[int, str], Point] = {}
    seen: set[int] = set()
    functions = list(own)
    for cls in sorted(classes, key=lambda c: f"{c.__module__}.{c.__qualname__}"):
        for base in cls.__mro__:
            if _is_foreign(base.__module__):
                continue
            for name, value in list(vars(base).items()):
                functions += _functions_of(value)
                if not name.startswith("__") and _is_state(value):
                    found[id(cls), name] = _attribute(cls, name, value)
    while functions and len(found) < _MAX_POINTS:
        function = functions.pop()
        if id(function.__code__) in seen or _is_foreign(function.__module__ or ""):
            continue
        seen.add(id(function.__code__))
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
            content = _content(cell)
            functions += _functions_of(content)
            if _is_state(content):
                found[id(cell), name] = _point(
                    name,
                    content,
                    functools.partial(_content, cell),
                    functools.partial(setattr, cell, "cell_contents"),
                )
        if any(map(_is_state, _defaults(function))):
            found[id(function), "defaults"] = (function.__name__, functools.partial(_defaults, function), None)
        names = set(_names(function.__code__))
        if names & {"environ", "getenv"}:
            found[0, "environ"] = ("os.environ", lambda: tuple(sorted(os.environ.items())), None)
        for name in sorted(names & function.__globals__.keys()):
            value = function.__globals__[name]
            functions += _functions_of(value)
            if _is_state(value):
                found[id(function.__globals__), name] = _point(
                    name,
                    value,
                    functools.partial(function.__globals__.get, name, GONE),
                    functools.partial(function.__globals__.__setitem__, name),
                )
            elif isinstance(value, (types.ModuleType, type)) and not _is_foreign(_module_of(value)):
                for inner in sorted(names & vars(value).keys()):
                    functions += _functions_of(vars(value)[inner])
                    if _is_state(vars(value)[inner]):
                        found[id(value), inner] = _attribute(value, inner, vars(value)[inner])
    return tuple(found.values())


def _point(name: str, value: Any, read: Callable[[], Any], write: Callable[[Any], Any]) -> Point:
    """A point; of a context variable it is what that has."""
    if isinstance(value, contextvars.ContextVar):
        return name, functools.partial(_of_context, value), value.set
    return name, read, write


def _attribute(owner: Any, name: str, value: Any) -> Point:
    read, write = functools.partial(getattr, owner, name, GONE), functools.partial(setattr, owner, name)
    return _point(name, value, read, write)


def _defaults(function: types.FunctionType) -> tuple[Any, ...]:
    """The defaults of a function's arguments that can be changed."""
    every = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return tuple(x for x in every if type(x) not in _PLAIN)


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] in _FOREIGN


def _module_of(value: Any) -> str:
    return str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The Python functions that a value is or wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, property):
        return [f for f in (value.fget,) if isinstance(f, types.FunctionType)]
    found = []
    while isinstance(value, types.FunctionType):
        found.append(value)
        value = getattr(value, "__wrapped__", None)
    return found


def _is_state(value: Any) -> bool:
    if isinstance(value, type):
        return False
    return isinstance(value, (*_PLAIN, *_CONTAINERS, Tensor, contextvars.ContextVar)) or is_object(value)


def _of_context(variable: contextvars.ContextVar[Any]) -> Any:
    try:
        return variable.get()
    except LookupError:
        return GONE


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return GONE


def _names(code: types.CodeType) -> Iterator[str]:
    """The names that code and the functions within it look up."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _frozen(value: Any, depth: int, seen: set[int]) -> Hashable:
    if type(value) in _PLAIN:
        return (type(value), value)
    if isinstance(value, Tensor):
        return ("tensor", id(value))  # a plan reads the numbers of such a tensor at every call
    objects = is_object(value) and not isinstance(value, _CONTAINERS)
    size = len(vars(value)) if objects else len(value) if isinstance(value, _CONTAINERS) else _MAX_ITEMS + 1
    if size > _MAX_ITEMS or depth == 0 or id(value) in seen or len(seen) > _MAX_OBJECTS:
        return ("object", id(value), len(value) if isinstance(value, _CONTAINERS) else 0)
    seen.add(id(value))
    if objects:
        return (id(value), tuple([(k, _frozen(v, depth - 1, seen)) for k, v in vars(value).items()]))
    if isinstance(value, dict):
        return (dict, tuple([(repr(k), _frozen(v, depth - 1, seen)) for k, v in value.items()]))
    if isinstance(value, (set, frozenset)):
        return (set, tuple(sorted(map(repr, value))))
    return (type(value), tuple([_frozen(v, depth - 1, seen) for v in value]))


_SIMPLE = (types.SimpleNamespace, argparse.Namespace, threading.local)


def is_object(value: Any) -> bool:
    """Whether a value is an object of a user's class, with attributes."""
    cls = type(value)
    if issubclass(cls, _SIMPLE):
        return True
    if issubclass(cls, (type, types.ModuleType, types.FunctionType, nn.Module, Tensor)) or _is_foreign(cls.__module__):
        return False
    return isinstance(getattr(value, "__dict__", None), dict)
