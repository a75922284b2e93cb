"""What forward can change besides its tensors: attributes of modules, and the containers and objects that it reaches
through them, through its arguments, and through the globals, classes and defaults that its code reads."""

from __future__ import annotations

import collections
import copy
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from linrec.capture.surroundings import GONE, is_object, points
from linrec.ir.obstruction import refuse

PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_TABLES = ("_parameters", "_buffers", "_modules")
_CONTAINERS = (list, dict, set, collections.deque, collections.OrderedDict, collections.defaultdict)
_MOST = 20_000
"""Objects that are looked at."""

Held = list[tuple[str, Any, Any]]
"""Containers with the names by which they are found and their content."""


@dataclass
class Snapshot:
    """How everything was.

    Attributes:
        modules: each submodule with its attributes, its tables, and the containers that its attributes hold.
        bindings: names that the code reads elsewhere: what they had, what reads them, and what sets them.
        outside: the containers that are found by these names.
    """

    modules: list[tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]], Held]]
    bindings: list[tuple[str, Any, Callable[[], Any], Callable[[Any], Any]]]
    outside: Held


def snapshot_attributes(module: nn.Module) -> Snapshot:
    """A copy of every submodule's attributes, of its parameter, buffer and module tables, and of the containers that
    its attributes hold or its code reads elsewhere."""
    modules = list(module.modules())
    own = frozenset(map(id, modules))
    saved = []
    for sub in modules:
        state = dict(sub.__dict__)
        tables = {table: dict(sub.__dict__[table]) for table in _TABLES}
        held = [(n, c) for n, v in state.items() if n not in _TABLES for c in containers(v, own)]
        saved.append((sub, state, tables, [(n, c, copy.copy(c)) for n, c in held]))
    found = points(modules)
    outside = [(name, c, copy.copy(c)) for name, read, _ in found for c in containers(read(), own)]
    bindings = [(name, read(), read, write) for name, read, write in found if write is not None]
    return Snapshot(saved, bindings, outside)


def containers(value: Any, own: frozenset[int] = frozenset()) -> list[Any]:
    """The lists, dicts, sets and deques in a value, itself included, however deep; for objects of the user's classes,
    and for modules, the dicts of their attributes.

    Args:
        value: the value; own: the ids of modules that are looked after otherwise.
    """
    found: list[Any] = []
    pending, seen = [value], set(own)
    while pending and len(seen) < _MOST:
        value = pending.pop()
        if isinstance(value, tuple):
            pending.extend(value)
        elif id(value) in seen or type(value) in PLAIN or isinstance(value, Tensor):
            continue
        elif type(value) in _CONTAINERS:
            seen.add(id(value))
            found.append(value)
            pending.extend(value.values() if isinstance(value, dict) else value)
        elif isinstance(value, nn.Module) or is_object(value):
            seen.add(id(value))
            pending.append(vars(value))
        elif isinstance(value, types.MethodType):
            pending.append(value.__self__)
    return found


def same_items(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(a, dict):
        return list(a) == list(b) and all(a[k] is b[k] for k in a)
    if isinstance(a, set):
        return bool(a == b)
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def restore_attributes(saved: Snapshot) -> None:
    """Undo every assignment, and every change of a container, since the snapshot."""
    for _, old, read, write in saved.bindings:
        if read() is not old and old is not GONE:
            write(old)
    for _, container, content in saved.outside:
        _refill(container, content)
    for sub, state, tables, held in saved.modules:
        for _, container, content in held:
            _refill(container, content)
        for table, content in tables.items():
            _refill(state[table], content)
        for name in [n for n in sub.__dict__ if n not in state]:
            del sub.__dict__[name]
        for name, value in state.items():
            if sub.__dict__.get(name) is not value:
                sub.__dict__[name] = value


def _refill(container: Any, content: Any) -> None:
    if not same_items(container, content):
        if isinstance(container, dict) and list(container) == list(content):
            container.update(content)  # at no time is anything missing: another thread may look
            return
        container.clear()
        (container.update if isinstance(container, (dict, set)) else container.extend)(content)


def touched(held: Held) -> tuple[str, str] | None:
    """The name and the kind of a container that has changed, if one has."""
    for name, container, content in held:
        if not same_items(container, content):
            return name, type(container).__name__
    return None


def assigned(saved: Snapshot, module: nn.Module) -> list[tuple[str, str, Any]]:
    """The attributes that forward has assigned since the snapshot: path of the module, name, value.

    Raises:
        Refused: LR013 where it has changed something that cannot be replayed.
    """
    for name, old, read, _ in saved.bindings:
        now = read()
        if now is not old and not (type(now) in PLAIN and type(now) is type(old) and now == old):
            raise refuse("LR013", f"forward changes '{name}', which its code also reads.")
    other = touched(saved.outside)
    if other:
        raise refuse("LR013", f"forward changes '{other[0]}', or what it holds, which its code also reads.")
    paths = {id(sub): name for name, sub in module.named_modules()}
    found = []
    for sub, state, tables, held in saved.modules:
        other = touched(held)
        if other:
            raise refuse("LR013", f"forward changes the {other[1]} self.{other[0]} in place.")
        for table, kind in zip(_TABLES, ("parameter", "buffer", "submodule"), strict=True):
            live, old_items = sub.__dict__.get(table), tables[table]
            if live is not state[table] or not same_items(state[table], old_items):
                changed = [n for n in {**old_items, **(live or {})} if (live or {}).get(n) is not old_items.get(n)]
                where = ".".join(filter(None, (paths[id(sub)], *changed[:1])))
                raise refuse("LR013", f"forward assigns the {kind} {where!r}.")
        for name, value in sub.__dict__.items():
            old = state.get(name, getattr(type(sub), name, _Missing))
            if type(old) in (int, float, complex, bool, str) and type(value) in PLAIN and value != old:
                raise refuse("LR013", f"forward changes self.{name} (from {old!r} to {value!r}).")
            if value is old or (type(value) in PLAIN and type(value) is type(old) and value == old):
                continue
            found.append((paths[id(sub)], name, value))
    return found


class _Missing:
    """What an attribute has that there is not."""
