"""What the code of a module reads from elsewhere: globals of its file, attributes of classes, defaults of arguments,
variables of the function that a class is defined in, and the objects and containers that it finds there. A plan takes
them for fixed, so it holds while they are what they were."""

from __future__ import annotations

import builtins
import contextvars
import functools
import gc
import os
import re
import types
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from torch import Tensor, nn

from linrec.capture.beside import draws, is_foreign, is_one_way
from linrec.capture.cached import is_cache
from linrec.capture.code_names import (
    ASKING,
    BY_STRING,
    assigned_names,
    code_names,
    global_names,
    imported,
    loaded_names,
    strings,
)
from linrec.capture.frozen import (
    BUFFERS,
    CODE,
    CONSTANTS,
    CONTAINERS,
    GONE,
    MAX_ITEMS,
    MAX_OBJECTS,
    PLAIN,
    Kept,
    is_array,
    is_object,
    notes,
)
from linrec.capture.ran import Ran
from linrec.ir import members
from linrec.ir.fields import attributes

_MAX_POINTS = 256
"""Of those that are near by their names."""

Point = tuple[str, Callable[[], Any], Callable[[Any], Any] | None]
"""A name, what reads the value, and what sets it."""
Reached = frozenset[Any]
"""Functions, classes and Python modules."""


def points(modules: list[nn.Module]) -> tuple[Point, ...]:
    """Where the code of these modules may read values besides their own attributes: all that its names lead to, as far
    as that is near, and what it was seen to read."""
    key, (found, _) = _searched(modules)
    return (*found, *_read.get(key[0], ()))


def caches(modules: list[nn.Module]) -> tuple[Any, ...]:
    """The functions under `functools.lru_cache` that the code of these modules leads to."""
    return _searched(modules)[1][1]


def _searched(modules: list[nn.Module]) -> tuple[Any, tuple[tuple[Point, ...], tuple[Any, ...]]]:
    key = frozenset([type(m) for m in modules]), reached(modules)
    found = _known.get(key)
    if found is None:
        if len(_known) >= 128:
            _known.clear()
        search = _Search(*key)
        found = _known[key] = tuple(search.found.values()), tuple(search.caches.values())
    return key, found


def reached(modules: list[nn.Module]) -> Reached:
    """The functions that attributes of modules hold, the classes of objects that they hold, and Python modules: code
    that forward may run, and that may read values of its own."""
    every = set(map(id, modules))
    held = [v for m in modules for n, v in m.__dict__.items() if n not in _TABLES]
    return frozenset(_reached([*held, *map(members.own_forward, modules)], every))


_TABLES = ("_parameters", "_buffers", "_modules", "forward")
_DULL = frozenset([*PLAIN, Tensor, nn.Parameter, *BUFFERS])


def _reached(values: list[Any], seen: set[int]) -> set[Any]:
    found: set[Any] = set()
    pending = list(values)
    while pending and len(seen) < MAX_OBJECTS + len(values):
        value = pending.pop()
        kind = type(value)
        if kind in _DULL or id(value) in seen:
            continue
        if kind is types.FunctionType or isinstance(value, (type, types.ModuleType)):
            if not is_foreign(_module_of(value)):
                found.add(value)
            continue
        seen.add(id(value))
        if kind is types.MethodType:
            pending += [value.__func__, value.__self__]
        elif kind is types.BuiltinMethodType:
            pending += [] if isinstance(value.__self__, types.ModuleType) else [value.__self__]
        elif kind is functools.partial:
            pending += [value.func, *value.args, *value.keywords.values()]
        elif kind is _CACHED:
            pending.append(value.__wrapped__)
        elif isinstance(value, weakref.ref):
            pending.append(value())
        elif kind is types.MappingProxyType:
            pending += value.values()
        elif isinstance(value, CONTAINERS):
            if len(value) <= MAX_ITEMS:
                pending += dict.values(value) if isinstance(value, dict) else value
            if not is_foreign(kind.__module__) and kind not in CONTAINERS:
                found.add(kind)
                pending += attributes(value).values()
        elif is_object(value) or (isinstance(value, nn.Module) and not is_foreign(kind.__module__)):
            found.add(kind)
            pending += attributes(value).values()
    return found


_known: dict[Hashable, tuple[tuple[Point, ...], tuple[Any, ...]]] = {}
_read: dict[Hashable, tuple[Point, ...]] = {}


_CACHED: Any = functools._lru_cache_wrapper


class _Names:
    """Points that names stand for.

    Attributes:
        found: the points, by the space of names and the name.
        pending: functions, classes and Python modules that values lead to.
        names: all names that were looked up; asked: those that code may ask for whether they are there.
        caches: the functions that keep their results.
    """

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], Point] = {}
        self.pending: list[Any] = []
        self.names: set[str] = set()
        self.asked: set[str] = set()
        self.caches: dict[int, Any] = {}

    def cached(self, value: Any) -> None:
        """Note a function that keeps its results."""
        if isinstance(value, (staticmethod, classmethod)):
            value = value.__func__
        if is_cache(value):
            self.caches[id(value)] = value

    def function(self, function: types.FunctionType) -> None:
        """What a function has of its own."""
        for cell, name in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
            read, write = functools.partial(_content, cell), functools.partial(_set_attribute, cell, "cell_contents")
            self.value(id(cell), name, _content(cell), read, write)
        if any(map(_is_state, _defaults(function))):
            self.pending += _reached(list(_defaults(function)), set())
            self.found[id(function), "defaults"] = (function.__name__, functools.partial(_defaults, function), None)
        if notes(function):
            self.pending += _reached(list(notes(function).values()), set())
            self.found[id(function), "attributes"] = (function.__name__, functools.partial(vars, function), None)

    def code(self, code: types.CodeType, space: dict[str, Any]) -> None:
        """What the names in code stand for among its globals, and in Python modules that it imports when it runs."""
        names = set(code_names(code))
        self.names |= names
        self.pending += imported(code, str(space.get("__package__") or ""))
        if names & {"environ", "getenv"}:
            self.found[0, "environ"] = ("os.environ", lambda: tuple(sorted(os.environ.items())), None)
        asked = strings(code) if names & ASKING else frozenset()
        self.asked |= asked
        absent = (loaded_names(code) | (asked if names & BY_STRING else frozenset())) - vars(builtins).keys()
        for name in sorted((global_names(code) & space.keys()) | assigned_names(code) | absent):
            read, write = functools.partial(space.get, name, GONE), functools.partial(_set_global, space, name)
            self.value(id(space), name, read(), read, write)

    def value(self, space: int, name: str, value: Any, read: Callable[[], Any], write: Callable[[Any], Any]) -> None:
        """What a name stands for in a space of names."""
        self.pending += _reached([value], set())
        self.cached(value)
        if type(value) is _CACHED:  # what it gives may be older than what it would read
            for function in _functions_of(value):
                self.function(function)
                self.code(function.__code__, function.__globals__)
        if _is_state(value) or isinstance(value, CODE):
            self.found[space, name] = _point(name, value, read, write)

    def attributes(self, owner: Any, base: Any = None) -> None:
        """What the names that were looked up stand for in a Python module, or in a class by one of its bases."""
        for name in sorted(self.names & vars(base or owner).keys()):
            value = vars(base or owner)[name]
            self.cached(value)
            if (id(owner), name) not in self.found:
                self.pending += _reached([value], set())
                if isinstance(value, CODE) or (_is_state(value) and not name.startswith("__")):
                    self.found[id(owner), name] = _attribute(owner, name, value)
        if base is None:
            self.absent(owner)

    def absent(self, owner: Any) -> None:
        """What code may ask a class, or a Python module, for, and what that does not have."""
        for name in sorted(self.asked):
            if (id(owner), name) not in self.found and _has_of(owner, name) is GONE:
                self.found[id(owner), name] = _attribute(owner, name, GONE)


_UNNAMED = re.compile("__(?!init|new|post_init|setstate|getstate|reduce|copy|deepcopy|repr|str|del)")
"""Methods that run without being called by name."""


class _Search(_Names):
    """Follows code from forward on: names to what they stand for, values to their classes, classes to those of their
    methods that a name calls."""

    def __init__(self, classes: frozenset[type], reach: Reached) -> None:
        super().__init__()
        self.pending = [*sorted(classes, key=lambda c: f"{c.__module__}.{c.__qualname__}"), *reach]
        self.seen: set[int] = set()
        self.names.add("forward")
        self.made = classes
        self.members: list[tuple[type, str, Any]] = []
        self.modules: list[types.ModuleType] = []
        self.classes: list[type] = []
        while self.pending and len(self.found) < _MAX_POINTS:
            value = self.pending.pop(0)  # what is near comes first
            if id(value) not in self.seen:
                self.seen.add(id(value))
                if isinstance(value, type):
                    self.classes.append(value)
                    bases = [b for b in value.__mro__ if not is_foreign(b.__module__)]
                    self.members += [(value, n, x) for b in bases for n, x in list(vars(b).items())]
                elif isinstance(value, types.ModuleType):
                    self.modules.append(value)
                elif not is_foreign(value.__module__ or ""):
                    self.function(value)
                    if id(value.__code__) not in self.seen:
                        self.seen.add(id(value.__code__))
                        self.code(value.__code__, value.__globals__)
            if not self.pending:
                self._by_name()
                self.pending = [x for x in self.pending if id(x) not in self.seen]

    def _by_name(self) -> None:
        """What the names that were seen so far stand for in classes and Python modules."""
        for module in self.modules:
            self.attributes(module)
        for cls in self.classes:
            self.absent(cls)
        waiting, self.members = self.members, []
        for cls, name, value in waiting:
            named = name in self.names or _UNNAMED.match(name)
            if not named and not (name == "__init__" and cls not in self.made and cls.__name__ in self.names):
                self.members.append((cls, name, value))
                continue
            self.pending += _functions_of(value)
            self.cached(value)
            if not name.startswith("__") and _is_state(value):
                self.pending += _reached([value], set())
                self.found[id(cls), name] = _attribute(cls, name, value)


class Watch:
    """What code that ran has read from elsewhere, as it was: as long as that holds, the same code runs again."""

    def __init__(self, modules: list[nn.Module], ran: Ran | None) -> None:
        found = _that_ran(modules, ran) if ran is not None else points(modules)
        if ran is not None:
            if len(_read) >= 128:
                _read.clear()
            _read[frozenset([type(m) for m in modules])] = found
        own = frozenset(map(id, modules))
        self._kept = [(read, Kept(read(), own)) for _, read, _ in found]

    def holds(self) -> bool:
        """Whether all of it is as it was."""
        for read, kept in self._kept:
            value = read()
            if value is not kept.same and not kept.still(value):
                return False
        return True


def _that_ran(modules: list[nn.Module], ran: Ran) -> tuple[Point, ...]:
    search = _Names()
    search.names |= {"forward", *(code.co_name for code in ran)}  # called by others than code that ran
    for code, (space, _) in ran.items():
        search.code(code, space)
    classes = {type(m) for m in modules}.union(*(kinds for _, kinds in ran.values()))
    search.pending += [*classes, *reached(modules)]
    for function in _functions_with(ran, list(search.pending)):
        search.function(function)
        read = functools.partial(getattr, function, "__code__")
        search.found[id(function), "code"] = (function.__name__, read, None)
    seen: set[int] = set()
    while search.pending:
        owner = search.pending.pop()
        if id(owner) in seen:
            continue
        seen.add(id(owner))
        if isinstance(owner, types.ModuleType):
            search.attributes(owner)
        elif isinstance(owner, type):
            for base in owner.__mro__:
                if not is_foreign(base.__module__):
                    search.attributes(owner, base)
            if not is_foreign(owner.__module__):
                search.absent(owner)
    return tuple(search.found.values())


def _functions_with(ran: Ran, roots: Iterable[Any]) -> list[types.FunctionType]:
    """The functions that have code: those that classes, names and values lead to, and others that exist. Code within
    other code that ran is left out: its functions are made anew each time.

    Args:
        ran: the code; roots: functions and classes.
    """
    inner = {c for code in ran for c in code.co_consts if isinstance(c, types.CodeType)}
    wanted = {c for c in ran if c not in inner}
    found: list[types.FunctionType] = []
    seen: set[int] = set()
    pending = list(roots)
    while pending:
        value = pending.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, type):
            bases = [b for b in value.__mro__ if not is_foreign(b.__module__)]
            pending += [f for base in bases for x in list(vars(base).values()) for f in _functions_of(x)]
        elif isinstance(value, types.FunctionType):
            if value.__code__ in wanted:
                found.append(value)
            pending += _reached([_content(cell) for cell in value.__closure__ or ()], set())
    rest = [c for c in wanted.difference(f.__code__ for f in found) if c.co_freevars]
    if rest:
        found += [f for f in gc.get_referrers(*rest) if isinstance(f, types.FunctionType)]
    return found


def _point(name: str, value: Any, read: Callable[[], Any], write: Callable[[Any], Any]) -> Point:
    """A point; of a context variable it is what that has."""
    if isinstance(value, contextvars.ContextVar):
        return name, functools.partial(_of_context, value), functools.partial(_set_context, value)
    return name, read, write


def _attribute(owner: Any, name: str, value: Any) -> Point:
    read, write = functools.partial(_has_of, owner, name), functools.partial(_set_attribute, owner, name)
    return _point(name, value, read, write)


def _set_global(space: dict[str, Any], name: str, value: Any) -> None:
    if value is GONE:
        space.pop(name, None)
    else:
        space[name] = value


def _set_attribute(owner: Any, name: str, value: Any) -> None:
    if value is GONE:
        delattr(owner, name)
    else:
        setattr(owner, name, value)


def _set_context(variable: contextvars.ContextVar[Any], value: Any) -> None:
    if value is not GONE:  # of which nobody can take a value away
        variable.set(value)


def _has_of(owner: Any, name: str) -> Any:
    """What a class, or a Python module, has under a name: the thing itself, not what it gives as an attribute."""
    for space in owner.__mro__ if isinstance(owner, type) else (owner,):
        if name in space.__dict__:
            return space.__dict__[name]
    return GONE


def _defaults(function: types.FunctionType) -> tuple[Any, ...]:
    """The defaults of a function's arguments that can be changed."""
    every = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    return tuple(x for x in every if type(x) not in PLAIN)


def _module_of(value: Any) -> str:
    return str(value.__name__ if isinstance(value, types.ModuleType) else value.__module__)


def _functions_of(value: Any) -> list[types.FunctionType]:
    """The Python functions that a value is or wraps."""
    if isinstance(value, (staticmethod, classmethod)):
        value = value.__func__
    if isinstance(value, (property, functools.cached_property)):
        value = value.fget if isinstance(value, property) else value.func
    found = []
    while value is not None and not isinstance(value, type):
        if isinstance(value, types.FunctionType):
            found.append(value)
        if isinstance(value, functools.partial):
            value = value.func
        else:
            notes = vars(value) if isinstance(value, (types.FunctionType, _CACHED)) else {}
            value = notes.get("__wrapped__")
    return found


def _is_state(value: Any) -> bool:
    if isinstance(value, type):
        return False
    kinds = (
        *PLAIN,
        *CONSTANTS,
        *CONTAINERS,
        *BUFFERS,
        Tensor,
        nn.Module,
        contextvars.ContextVar,
        weakref.ref,
        types.MappingProxyType,
    )
    return isinstance(value, kinds) or is_array(value) or is_one_way(value) or draws(value) or is_object(value)


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
