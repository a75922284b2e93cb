"""Tensors that modules hold: parameters, buffers, plain attributes, and what is in lists, tuples, dicts and dataclasses
that attributes hold. Each is found by the qualified name of an attribute and the keys that lead on from there, at every
call anew: a state from the last call may be kept in a tuple."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from linrec.ir import members
from linrec.ir.fields import attributes
from linrec.ir.results import can_be_opened

DEPTH = 4
"""How many containers within one another are looked into."""

_DICTS = (dict, collections.OrderedDict, collections.defaultdict)
_LISTS = (list, collections.deque)
_TABLES = ("_parameters", "_buffers", "_modules")

Keys = tuple[Hashable, ...]
Place = tuple[str, Keys]
"""The qualified name of an attribute, and the keys that lead from its value to a tensor."""


def is_open(value: Any) -> bool:
    """Whether a value is a container whose tensors have places."""
    kind = type(value)
    return kind in _DICTS or kind in _LISTS or isinstance(value, tuple) or can_be_opened(value)


def items(value: Any) -> list[tuple[Hashable, Any]]:
    """What a container holds, by key: a key, a number, or the name of a field."""
    if type(value) in _DICTS:
        return list(value.items())
    if type(value) in _LISTS or isinstance(value, tuple):
        return list(enumerate(value))
    return list(attributes(value).items())


def item(value: Any, key: Any) -> Any:
    """What a container has at a key; None where there is nothing."""
    try:
        if type(value) in _DICTS or type(value) in _LISTS or isinstance(value, tuple):
            return value[key]
        return getattr(value, key)
    except (LookupError, TypeError, AttributeError):
        return None


def set_item(value: Any, key: Any, new: Any) -> None:
    """Put something into a list or a dict, or a field of a dataclass."""
    if type(value) in _DICTS or type(value) in _LISTS:
        value[key] = new
    else:
        object.__setattr__(value, key, new)


def held(value: Any, depth: int = DEPTH) -> Iterator[tuple[Keys, Tensor]]:
    """The tensors in a container with the keys that lead to them."""
    if depth and is_open(value):
        for key, inner in items(value):
            if isinstance(inner, Tensor):
                yield (key,), inner
            else:
                yield from (((key, *rest), x) for rest, x in held(inner, depth - 1))


def containers(value: Any, depth: int = DEPTH) -> Iterator[tuple[Keys, Any]]:
    """A container and those within it that `held` looks into, with the keys that lead to them."""
    if depth and is_open(value):
        yield (), value
        for key, inner in items(value):
            yield from (((key, *rest), x) for rest, x in containers(inner, depth - 1))


def replaced(value: Any, new: Callable[[Tensor], Tensor], depth: int = DEPTH) -> Any:
    """A copy of a container with other tensors; the same object where it holds none."""
    if isinstance(value, Tensor):
        return new(value)
    if not any(True for _ in held(value, depth)):
        return value
    inner = [(key, replaced(x, new, depth - 1)) for key, x in items(value)]
    if isinstance(value, tuple):
        values = [x for _, x in inner]
        return type(value)._make(values) if hasattr(value, "_make") else type(value)(values)
    if type(value) in _DICTS:
        made = value.copy()
        made.update(inner)
        return made
    if type(value) in _LISTS:
        return type(value)(x for _, x in inner)
    made = object.__new__(type(value))
    for key, x in inner:
        object.__setattr__(made, str(key), x)
    return made


def named_attributes(root: nn.Module) -> Iterator[tuple[str, Any]]:
    """The plain attributes of all modules, by qualified name."""
    for path, module in members.named_modules(root):
        for name, value in module.__dict__.items():
            if name not in _TABLES:
                yield f"{path}.{name}" if path else name, value


def identity(tensor: Tensor) -> Hashable:
    """What tells a tensor from others through the wrappers that tracing puts around it: its memory and geometry."""
    if tensor.layout is not torch.strided or not tensor.numel():
        return id(tensor)
    return tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def places(root: nn.Module) -> dict[Hashable, list[Place]]:
    """All places of each tensor that a module holds, by its `identity`; parameters and buffers first."""
    found: dict[Hashable, list[Place]] = {}
    for table in ("_parameters", "_buffers"):
        for path, module in members.named_modules(root):
            for name, tensor in module.__dict__[table].items():
                if tensor is not None:
                    found.setdefault(identity(tensor), []).append((f"{path}.{name}" if path else name, ()))
    for name, value in named_attributes(root):
        if isinstance(value, Tensor):
            found.setdefault(identity(value), []).append((name, ()))
        else:
            for keys, tensor in held(value):
                found.setdefault(identity(tensor), []).append((name, keys))
    return found


def lookup(module: nn.Module, name: str, keys: Keys = ()) -> Any:
    """The attribute of a module by qualified name, or what is in it; None where there is none."""
    value: Any = module
    for part in _parts(name):
        value = attribute(value, part)
    for key in keys:
        value = item(value, key)
    return value


def attribute(owner: Any, name: str) -> Any:
    """An attribute of a module, or what it has registered under that name."""
    own = owner.__dict__ if isinstance(owner, nn.Module) else {}
    for table in _TABLES:
        if name in own.get(table, ()):
            return own[table][name]
    return getattr(owner, name, None)


@functools.lru_cache(maxsize=4096)
def split(name: str) -> tuple[str, str]:
    """The path of a module, and the name of its attribute."""
    path, _, last = name.rpartition(".")
    return path, last


@functools.lru_cache(maxsize=4096)
def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))
