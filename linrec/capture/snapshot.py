"""What forward can change besides its tensors: attributes of modules, and the containers and objects that it reaches
through them, through its arguments, and through the globals, classes and defaults that its code reads."""

from __future__ import annotations

import collections
import functools
import operator
import types
import weakref
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from linrec.capture.beside import State, changed, put_back, states
from linrec.capture.cached import is_cache, set_aside
from linrec.capture.frozen import is_object
from linrec.capture.surroundings import caches, points
from linrec.ir import members
from linrec.ir.fields import attributes, exact, slots
from linrec.ir.held import DEPTH, Keys, is_open, items
from linrec.ir.obstruction import refuse
from linrec.ir.results import can_be_opened

PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device)
_TABLES = ("_parameters", "_buffers", "_modules")
_KINDS: tuple[Any, ...] = (list, collections.OrderedDict, dict, set, collections.deque)
_FIXED: tuple[Any, ...] = (tuple, frozenset)
_FREQUENT = frozenset((*_KINDS, *_FIXED))
_NUMBERS = frozenset(PLAIN)
_ENDS = frozenset((Tensor, nn.Parameter, type, types.FunctionType, types.ModuleType))
"""What leads to nothing."""
_MOST = 20_000
"""Objects that are looked at."""
_LISTED = frozenset(("_flat_weights", "_flat_weight_refs"))
"""Where torch's RNNs list their parameters, anew where these are others, as they are while they are traced."""

Held = list[tuple[str, Any, Any]]
"""Containers with the names by which they are found and their content."""


@dataclass
class Snapshot:
    """How everything was.

    Attributes:
        modules: each submodule with its attributes, its tables, and the containers that its attributes hold.
        bindings: names that the code reads elsewhere: what they had, what reads them, and what sets them.
        outside: the containers that are found by these names.
        beside: arrays and generators that are found by any of these ways.
        caches: what puts back the results that functions keep (`functools.lru_cache`).
    """

    modules: list[tuple[nn.Module, dict[str, Any], dict[str, dict[str, Any]], Held]]
    bindings: list[tuple[str, Any, Callable[[], Any], Callable[[Any], Any]]]
    outside: Held
    beside: list[State]
    caches: list[Callable[[], None]] = field(default_factory=list)


def snapshot_attributes(module: nn.Module) -> Snapshot:
    """A copy of every submodule's attributes, of its parameter, buffer and module tables, and of the containers that
    its attributes hold or its code reads elsewhere. Functions that keep tensors as their results forget these."""
    every = members.modules(module)
    own = frozenset(map(id, every))
    seen = dict[int, Any].fromkeys(own)
    saved = []
    for sub in every:
        state = dict(sub.__dict__)
        tables = {table: _copied(sub.__dict__[table]) for table in _TABLES}
        held = [(n, c) for n, v in state.items() if n not in _TABLES for c in _containers(v, seen)]
        saved.append((sub, state, tables, [(n, c, _copied(c)) for n, c in held]))
    found = points(every)
    outside = [(name, c, _copied(c)) for name, read, _ in found for c in containers(read(), own)]
    bindings = [(name, read(), read, write) for name, read, write in found if write is not None]
    reached = list(reachable(module))
    keeping = [*caches(every), *(x for _, x in reached if is_cache(x))]
    return Snapshot(saved, bindings, outside, states(reached), set_aside(keeping))


def reachable(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """What the attributes of a module and the names in its code lead to, by name."""
    every = members.modules(module)
    own = frozenset(map(id, every))
    values = [(n, v) for sub in every for n, v in sub.__dict__.items() if n not in _TABLES]
    seen = dict[int, Any].fromkeys(own)
    for name, value in [*values, *((name, read()) for name, read, _ in points(every))]:
        yield from ((name, x) for x in _visited(value, seen))


def _kind(container: Any) -> Any:
    """Which of Python's own containers it is: their methods do nothing else."""
    kind = type(container)
    return kind if kind in _FREQUENT else next(k for k in (*_KINDS, *_FIXED) if isinstance(container, k))


def _copied(container: Any) -> Any:
    """The content of a container, whatever its class makes of copies."""
    kind = _kind(container)
    return kind(kind.items(container) if issubclass(kind, dict) else kind.__iter__(container))


def containers(value: Any, own: frozenset[int] = frozenset()) -> list[Any]:
    """The lists, dicts, sets and deques in a value, itself included, however deep; for objects of the user's classes,
    and for modules, the dicts of their attributes.

    Args:
        value: the value; own: the ids of modules that are looked after otherwise.
    """
    return _containers(value, dict[int, Any].fromkeys(own))


def _containers(value: Any, seen: dict[int, Any]) -> list[Any]:
    return [x for x in _visited(value, seen) if isinstance(x, _KINDS)]


def _visited(value: Any, seen: dict[int, Any]) -> Iterator[Any]:
    """A value and what it leads to, each once, however deep; not what was `seen` before, by id."""
    pending, most = [value], len(seen) + _MOST
    while pending and len(seen) < most:
        value = pending.pop()
        kind = type(value)
        if kind in _NUMBERS or id(value) in seen:
            continue
        seen[id(value)] = value  # which keeps it, so that no other one gets its id
        if kind in _ENDS:
            yield value
            continue
        if isinstance(value, _FIXED):
            most += 1
        else:
            yield value
        if kind in _FREQUENT:
            if value:
                pending += _inside(value)
            continue
        if isinstance(value, (*_KINDS, *_FIXED)):
            pending += _inside(value)
        if isinstance(value, nn.Module) or is_object(value):
            pending += [*slots(value).values(), getattr(value, "__dict__", None)]
        elif isinstance(value, weakref.ref):
            pending.append(value())
        elif isinstance(value, members.InFront):
            pending.append(value.own)
        elif isinstance(value, types.MappingProxyType):
            pending += value.values()
        elif isinstance(value, (types.MethodType, types.BuiltinMethodType)):
            pending.append(value.__self__)
        elif isinstance(value, functools.partial):
            pending += [value.func, *value.args, *value.keywords.values()]


def _inside(container: Any) -> list[Any]:
    """The items of a container, keys included, whatever its class makes of them."""
    kind = _kind(container)
    if issubclass(kind, dict):
        return [*kind.keys(container), *kind.values(container)]
    return list(kind.__iter__(container))


def same_items(a: Any, b: Any) -> bool:
    """Whether two containers hold the same objects, in the same order if they have one."""
    kind = _kind(a)
    if issubclass(kind, dict):
        same_keys = list(kind.keys(a)) == list(kind.keys(b))
        return same_keys and all(map(operator.is_, kind.values(a), kind.values(b)))
    if kind is set:
        return set(map(_which, _inside(a))) == set(map(_which, _inside(b)))
    return list(map(id, _inside(a))) == list(map(id, _inside(b)))


def _which(value: Any) -> Hashable:
    """What tells an item of a set from others: one and true are equal, but not the same."""
    return exact(value) if type(value) in PLAIN else id(value)


def restore_attributes(saved: Snapshot) -> None:
    """Undo every assignment, and every change of a container, since the snapshot."""
    for put_back_results in saved.caches:
        put_back_results()
    for _, old, read, write in saved.bindings:
        if read() is not old:
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
    put_back(saved.beside)


def _refill(container: Any, content: Any) -> None:
    if not same_items(container, content):
        kind = _kind(container)
        if not (issubclass(kind, dict) and list(kind.keys(container)) == list(content)):
            kind.clear(container)  # otherwise nothing is missing at any time: another thread may look
        (kind.extend if kind in (list, collections.deque) else kind.update)(container, content)


def touched(held: Held, known: Memos | None = None) -> tuple[str, str] | None:
    """The name and the kind of a container that has changed, if one has, other than a memo that has grown."""
    for name, container, content in held:
        if not same_items(container, content):
            if known is not None and id(container) in known.containers and _only_added(content, _copied(container)):
                continue
            return name, type(container).__name__
    return None


@dataclass(frozen=True)
class Memos:
    """What forward writes when it first runs, and not when it runs again on other inputs: what it has found out, or has
    said once. A plan may do without.

    Attributes:
        containers: the ids of dicts and sets that it adds to.
        bindings: the names that it sets.
    """

    containers: frozenset[int] = frozenset()
    bindings: frozenset[str] = frozenset()


def memos(before: Snapshot, first: Snapshot) -> Memos:
    """What forward has changed between two snapshots, and not since the second."""
    earlier = {id(c): content for _, c, content in _held(before)}
    added = {
        id(c)
        for _, c, content in _held(first)
        if same_items(c, content) and id(c) in earlier and _only_added(earlier[id(c)], content, nothing_of_data)
    }
    names, others = set(), set()
    pairs = zip(before.bindings, first.bindings, strict=False)
    for (name, old, _, _), (same, now, read, _) in pairs:
        if name != same:  # what the names lead to has changed
            break
        if now is not old and type(now) in (bool, str, type(None)) and read() is now:
            names.add(name)
        elif read() is not old:  # another variable may have the same name
            others.add(name)
    return Memos(frozenset(added), frozenset(names - others))


def in_both(a: Memos, b: Memos) -> Memos:
    """The memos of two that are memos of both."""
    return Memos(a.containers & b.containers, a.bindings & b.bindings)


def _held(snapshot: Snapshot) -> Held:
    return [*snapshot.outside, *(each for _, _, _, held in snapshot.modules for each in held)]


def _only_added(before: Any, after: Any, fits: Callable[[Any], bool] = lambda x: True) -> bool:
    """Whether a dict or a set has only grown, by what `fits`."""
    if isinstance(before, dict):
        kept = all(k in after and after[k] is v for k, v in before.items())
        return kept and all(k in before or (fits(k) and fits(v)) for k, v in after.items())
    return isinstance(before, set) and before <= after and all(map(fits, after - before))


def nothing_of_data(value: Any) -> bool:
    """Whether a value holds no number and no tensor, which might come of the inputs that it was made with."""
    every = list(_visited(value, {}))
    inside = [x for c in every if isinstance(c, _KINDS) for x in _inside(c)]
    inside += [x for c in every if is_object(c) for x in slots(c).values()]
    return all(map(_is_no_data, (value, *every, *inside)))


_NO_DATA = (str, bool, bytes, type(None), type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)


def _is_no_data(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_no_data, value))
    return isinstance(value, (*_NO_DATA, *_KINDS)) or is_object(value)


def assigned(saved: Snapshot, module: nn.Module, known: Memos) -> list[tuple[str, str, Keys, Any]]:
    """The attributes that forward has assigned since the snapshot, and what it has put into containers that they hold,
    its memos left out: path of the module, name of the attribute, keys that lead on from there, value.

    Raises:
        Refused: LR013 where it has changed something that cannot be replayed.
    """
    for name, old, read, _ in saved.bindings:
        now = read()
        if name not in known.bindings and not _is_same(old, now):
            raise refuse("LR013", f"forward changes '{name}', which its code also reads.")
    array = changed(saved.beside)
    if array is not None:
        raise refuse("LR013", f"forward changes '{array}', or what it holds.")
    other = touched(saved.outside, known)
    if other:
        raise refuse("LR013", f"forward changes '{other[0]}', or what it holds, which its code also reads.")
    paths = {id(sub): name for name, sub in members.named_modules(module)}
    found: list[tuple[str, str, Keys, Any]] = []
    for sub, state, tables, held in saved.modules:
        found += [(paths[id(sub)], *put) for put in _put(held, state, known)]
        for table, kind in zip(_TABLES, ("parameter", "buffer", "submodule"), strict=True):
            live, old_items = sub.__dict__.get(table), tables[table]
            if live is not state[table] or not same_items(state[table], old_items):
                if kind == "buffer" and live is state[table] and live.keys() == old_items.keys():
                    new = [(n, b) for n, b in live.items() if b is not old_items[n]]
                    if all(isinstance(b, Tensor) or b is None for _, b in new):
                        found += [(paths[id(sub)], name, (), value) for name, value in new]
                        continue
                renewed = [n for n in {**old_items, **(live or {})} if (live or {}).get(n) is not old_items.get(n)]
                renewed.sort(key=lambda n: n in old_items and n in (live or {}))  # what is new, or gone, first
                where = ".".join(filter(None, (paths[id(sub)], *renewed[:1])))
                raise refuse("LR013", f"forward assigns the {kind} {where!r}.")
        gone = next((name for name in state if name not in sub.__dict__), None)
        if gone is not None:
            raise refuse("LR013", f"forward deletes self.{gone}.")
        for name, value in sub.__dict__.items():
            if name in _LISTED and isinstance(sub, nn.RNNBase):
                continue
            old = state.get(name, getattr(type(sub), name, _Missing))
            if _is_other(old, value, f"self.{name}"):
                found.append((paths[id(sub)], name, (), value))
    return found


def _is_other(old: Any, value: Any, what: str) -> bool:
    """Whether something was replaced that a plan can replace, too."""
    if _is_same(old, value):
        return False
    if type(old) in (int, float, complex, bool, str) and type(value) in PLAIN and value != old:
        raise refuse("LR013", f"forward changes {what} (from {old!r} to {value!r}).")
    return True


def _is_same(old: Any, value: Any) -> bool:
    return value is old or (type(value) in PLAIN and exact(value) == exact(old))


def _put(held: Held, state: dict[str, Any], known: Memos) -> list[tuple[str, Keys, Any]]:
    """What has been put into the containers of a module: name of the attribute, keys, value.

    Raises:
        Refused: LR013 where something else has happened to one.
    """
    found: list[tuple[str, Keys, Any]] = []
    contents = {id(c): content for _, c, content in held}
    for name, container, content in held:
        if touched([(name, container, content)], known) is None:
            continue
        keys = next((keys for keys, c in _containers_of(state[name], contents) if c is container), None)
        old, new = dict(items(content)), dict(items(container))
        if keys is None or list(new)[: len(old)] != list(old) or _is_list_that_grew(old, new):
            raise refuse("LR013", f"forward changes the {type(container).__name__} self.{name} in place.")
        for key, value in new.items():
            if _is_other(old.get(key, _Missing), value, f"self.{name}[{key!r}]"):
                found.append((name, (*keys, key), value))
    return found


def _is_list_that_grew(old: dict[Any, Any], new: dict[Any, Any]) -> bool:
    return len(new) > len(old) and all(isinstance(key, int) for key in new)


def _containers_of(value: Any, contents: dict[int, Any], depth: int = DEPTH) -> Iterator[tuple[Keys, Any]]:
    """The containers that were in one before it changed; of a dataclass, the dict of its fields."""
    if depth and is_open(value):
        value = attributes(value) if can_be_opened(value) else value
        yield (), value
        for key, inner in items(contents.get(id(value), value)):
            yield from (((key, *rest), c) for rest, c in _containers_of(inner, contents, depth - 1))


class _Missing:
    """What an attribute has that there is not."""
