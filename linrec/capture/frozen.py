"""What code finds elsewhere, frozen into something that compares equal while it has not changed."""

from __future__ import annotations

import argparse
import array
import collections
import decimal
import fractions
import functools
import operator
import sys
import threading
import types
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, nn

from linrec.capture.beside import is_foreign
from linrec.ir.fields import attributes, entries, exact, slot_names

PLAIN = (int, float, complex, bool, str, bytes, type(None))
CONTAINERS = (list, dict, tuple, set, frozenset, collections.deque)
BARE = frozenset((*CONTAINERS, collections.defaultdict, types.MappingProxyType))
"""Containers that have nothing but their items; those of the user's classes may have attributes."""
CONSTANTS = (
    range,
    slice,
    torch.dtype,
    torch.device,
    torch.layout,
    torch.memory_format,
    decimal.Decimal,
    fractions.Fraction,
)
BUFFERS = (bytearray, array.array)
_CODE = (types.BuiltinFunctionType, type, staticmethod, classmethod, property)
CODE = (types.FunctionType, types.MethodType, functools.partial, *_CODE)
"""What names may stand for so that other code runs."""
MAX_ITEMS, _MAX_PLAIN = 1024, 1 << 16
"""Items of a container that are looked into; and of one that holds nothing but numbers and strings."""
MAX_OBJECTS = 256
_MAX_BYTES = 1 << 16
_DEPTH = 6


class GONE:
    """What a variable has that is not set."""


class Kept:
    """A value as it was.

    Args:
        value: the value; own: the ids of modules that are looked after otherwise.

    Attributes:
        same: what is surely that value, unchanged: the value where it cannot change, or something that no name has.
    """

    def __init__(self, value: Any, own: frozenset[int] = frozenset()) -> None:
        self._own = own
        self._fixed = is_fixed(value)
        self._value = value if self._fixed else None
        self.same: Any = value if self._fixed else self
        self._items = None if self._fixed else _items(value)
        self._frozen = None if self._fixed else _frozen(value, _DEPTH, set(), own)

    def still(self, now: Any) -> bool:
        """Whether `now` is that value, unchanged."""
        if self._fixed:
            return _is_same(now, self._value)
        if self._items is not None and _has(now, self._items):
            return True
        return _frozen(now, _DEPTH, set(), self._own) == self._frozen


def is_fixed(value: Any) -> bool:
    """Whether a value is what it was as long as it is the same object, or equal."""
    if isinstance(value, types.FunctionType):
        return not notes(value)
    if type(value) is tuple:
        return all(map(is_fixed, value))
    kinds = (*_CODE, *CONSTANTS, types.ModuleType, types.CodeType)
    return type(value) in PLAIN or (isinstance(value, kinds) and not is_method(value)) or value is GONE


def _is_same(now: Any, old: Any) -> bool:
    """Whether a value is a fixed one that was seen before, or one like it: tuples are made anew where they are read."""
    if now is old:
        return True
    if type(now) is not type(old):
        return False
    if type(now) is tuple:
        return len(now) == len(old) and all(map(_is_same, now, old))
    if type(now) in PLAIN:
        return exact(now) == exact(old)
    return type(now) in CONSTANTS and repr(now) == repr(old)


def is_method(value: Any) -> bool:
    """Whether a value is a function that belongs to an object, of which it may read what there is to read."""
    if isinstance(value, types.BuiltinMethodType):
        return not isinstance(value.__self__, (type, types.ModuleType, type(None)))
    return isinstance(value, types.MethodType)


def _items(value: Any) -> tuple[Any, list[Any] | None, list[Any]] | None:
    """A container, and what it holds, if that is nothing but what is fixed: then it is quick to compare."""
    if type(value) not in BARE:
        return None
    if isinstance(value, dict) and all(map(_is_kept, [*dict.keys(value), *dict.values(value)])):
        pairs = list(entries(value))
        return value, [k for k, _ in pairs], [v for _, v in pairs]
    if isinstance(value, (list, tuple)) and all(map(_is_kept, value)):
        return value, None, list(value)
    return None


def _is_kept(value: Any) -> bool:
    """Whether to find the same object is enough; a plan reads the numbers of a tensor at every call."""
    return is_fixed(value) or isinstance(value, Tensor)


def _has(now: Any, items: tuple[Any, list[Any] | None, list[Any]]) -> bool:
    """Whether it is the same container with the same objects."""
    container, keys, values = items
    if now is not container or len(now) != len(values):
        return False
    if keys is None:
        return all(map(operator.is_, now, values))
    return all(k is key and v is old for (k, v), key, old in zip(entries(now), keys, values, strict=True))


def notes(function: types.FunctionType) -> dict[str, Any]:
    """What somebody has put on a function, without what wrappers leave there."""
    return {k: v for k, v in vars(function).items() if not k.startswith("__")} if function.__dict__ else {}


def is_array(value: Any) -> bool:
    """Whether a value is an array, or a number, of numpy's."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, (numpy.ndarray, numpy.generic))


_TABLES = ("_parameters", "_buffers", "_modules")


def _frozen(value: Any, depth: int, seen: set[int], own: frozenset[int]) -> Hashable:
    if type(value) in PLAIN:
        return exact(value)
    if isinstance(value, CONSTANTS):
        return (type(value), repr(value))
    if isinstance(value, Tensor):
        return ("tensor", id(value))
    if isinstance(value, BUFFERS) or is_array(value):  # of an array of objects, where they are
        content = bytes(value) if isinstance(value, bytearray) else value.tobytes()
        return (type(value), str(getattr(value, "dtype", "")), content if len(content) <= _MAX_BYTES else id(value))
    if isinstance(value, types.FunctionType):
        found = notes(value) if depth else None
        return (id(value), tuple([(k, _frozen(v, depth - 1, seen, own)) for k, v in found.items()]) if found else ())
    if isinstance(value, weakref.ref):
        return ("reference", _frozen(value(), depth, seen, own))
    if is_method(value):
        return (getattr(value, "__func__", value.__name__), _frozen(value.__self__, depth, seen, own))
    if isinstance(value, functools.partial) and depth:
        return (id(value), *(_frozen(x, depth - 1, seen, own) for x in (value.func, value.args, value.keywords)))
    inside = None if id(value) in own else _inside(value)
    if inside is None or depth == 0 or id(value) in seen or len(seen) > MAX_OBJECTS or not _is_small(inside):
        return ("object", id(value), 0 if inside is None else len(inside))
    seen.add(id(value))

    def within(x: Any) -> Hashable:
        return _frozen(x, depth - 1, seen, own)

    other = tuple([(k, within(v)) for k, v in beside_items(value).items()])
    if isinstance(inside, (dict, types.MappingProxyType)):
        name = type(value) if isinstance(value, dict) else id(value)
        return (name, tuple([(within(k) if is_key(k) else repr(k), within(v)) for k, v in entries(inside)]), other)
    items = [within(v) for v in inside]
    return (type(value), frozenset(items) if isinstance(inside, (set, frozenset)) else tuple(items), other)


def beside_items(value: Any) -> dict[str, Any]:
    """The attributes that a container of a user's class has besides its items."""
    return attributes(value) if isinstance(value, CONTAINERS) and type(value) not in BARE else {}


def is_key(key: Any) -> bool:
    """Whether the key of a dict has attributes that may change."""
    return type(key) not in PLAIN and is_object(key)


def _inside(value: Any) -> Any:
    """The items of a container, the attributes of an object, and of a module its submodules and those attributes that
    are no tensors; None for anything else."""
    if isinstance(value, (*CONTAINERS, types.MappingProxyType)):
        return value
    if isinstance(value, nn.Module):
        plain = {n: v for n, v in value.__dict__.items() if n not in _TABLES and not isinstance(v, Tensor)}
        return {**plain, **value._modules}
    return attributes(value) if is_object(value) else None


def _is_small(container: Any) -> bool:
    if len(container) <= MAX_ITEMS:
        return True
    if len(container) > _MAX_PLAIN:
        return False
    if isinstance(container, (dict, types.MappingProxyType)):
        container = [v for _, v in entries(container)]
    return all(type(x) in PLAIN for x in container)


_SIMPLE = (types.SimpleNamespace, argparse.Namespace, threading.local)
_HOLDING = frozenset(("collections", "configparser", "weakref"))
"""Modules of Python's whose objects are containers, too."""


def is_object(value: Any) -> bool:
    """Whether a value is an object of a user's class, with attributes, or a container that is written in Python."""
    cls = type(value)
    if issubclass(cls, _SIMPLE):
        return True
    if issubclass(cls, (type, types.ModuleType, types.FunctionType, nn.Module, Tensor, weakref.ref)):
        return False
    if is_foreign(cls.__module__) and cls.__module__ not in _HOLDING:
        return False
    return isinstance(getattr(value, "__dict__", None), dict) or bool(slot_names(cls))
