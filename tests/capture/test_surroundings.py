"""What code reads from elsewhere: what values lead to, what names stand for, which functions have the code that ran."""

from __future__ import annotations

import collections
import contextvars
import copy
import functools
import math
import random
import re
import sys
import types
import weakref
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from linrec.capture import code_names, surroundings
from linrec.capture.frozen import GONE, MAX_ITEMS, MAX_OBJECTS
from linrec.capture.surroundings import reached

GAIN = 0.5
OTHER = [0.5]
THIRD = {"n": 1}
INIT = 0.25
VARIABLE: contextvars.ContextVar[int] = contextvars.ContextVar("VARIABLE")


def plain() -> Any:
    return OTHER


class Thing:
    """Has an attribute of every kind."""

    kept = plain

    def __init__(self, value: Any = None) -> None:
        self.value = INIT if value is None else value

    def method(self) -> Any:
        return THIRD


class Many(list[Any]):
    pass


class Noted(list[Any]):
    note: Any = None


class Empty:
    __slots__ = ()


class Cell(nn.Module):
    def forward(self) -> Any:
        return plain()


def holding(**values: Any) -> Cell:
    found = Cell()
    found.__dict__.update(values)
    return found


@functools.lru_cache
def cached() -> Any:
    return GAIN


MINE = types.ModuleType("mine")
THING = Thing(1.0)
NOTED = Noted()
NOTED.note = plain
VALUES: dict[str, tuple[Any, set[Any]]] = {
    "function": (plain, {plain}),
    "class": (Thing, {Thing}),
    "module of Python": (MINE, {MINE}),
    "of others": ([math, torch.Tensor, copy.deepcopy, nn.Linear(1, 1), re.compile("a"), 2, "b"], set()),
    "method": (THING.method, {Thing.method, Thing}),
    "method of a container": ([plain].append, {plain}),
    "function of Python's": (len, set()),
    "partial": (functools.partial(plain, THING, key=Many), {plain, Thing, Many}),
    "cached": (cached, {cached.__wrapped__}),
    "reference": (weakref.ref(THING), {Thing}),
    "view": (types.MappingProxyType({"a": plain}), {plain}),
    "list": ([plain, [THING]], {plain, Thing}),
    "tuple": ((plain, 1), {plain}),
    "set": ({plain}, {plain}),
    "dict": ({"a": plain}, {plain}),
    "deque": (collections.deque([plain]), {plain}),
    "ordered": (collections.OrderedDict(a=plain), {plain}),
    "own list": (Many([plain]), {Many, plain}),
    "attribute of a list": (NOTED, {Noted, plain}),
    "as many as are looked into": ([plain] * MAX_ITEMS, {plain}),
    "more": ([plain] * (MAX_ITEMS + 1), set()),
    "object": (Thing(plain), {Thing, plain}),
    "space": (types.SimpleNamespace(a=plain), {types.SimpleNamespace, plain}),
    "nothing inside": (Empty(), set()),
    "module": (holding(f=plain), {Cell, plain}),
    "plain things beside": ([plain, *map(str, range(500)), *map(torch.tensor, range(300))], {plain}),
}


@pytest.mark.parametrize("name", VALUES)
def test_what_a_value_leads_to(name: str) -> None:
    value, expected = VALUES[name]
    assert surroundings._reached([value], set()) == expected


def test_what_leads_to_itself() -> None:
    ring: list[Any] = [plain]
    ring.append(ring)
    assert surroundings._reached([ring], set()) == {plain}


@pytest.mark.parametrize("beyond", [0, 1])
def test_how_far_values_lead(beyond: int) -> None:
    nested: list[Any] = [plain]
    for _ in range(MAX_OBJECTS - 1 + beyond):
        nested = [nested]
    assert surroundings._reached([nested], set()) == (set() if beyond else {plain})


def test_what_modules_hold() -> None:
    inner = holding(f=plain)
    outer = holding(table=[inner, THING])
    outer.add_module("part", nn.Linear(1, 1))
    assert reached([outer]) == {Cell, Thing, plain}
    assert reached([outer, inner]) == {Thing, plain}


def seen_by(names: surroundings._Names) -> dict[str, Any]:
    return {name: read() for name, read, _ in names.found.values()}


def with_everything(box: list[Any], count: int) -> Callable[..., Any]:
    def inner(a: int = 1, b: Any = len, c: Any = THING, *, d: Any = OTHER) -> Any:
        return box, count

    return inner


def test_what_a_function_has_of_its_own() -> None:
    names, box = surroundings._Names(), [plain]
    function: Any = with_everything(box, 3)
    function.note = Many()
    names.function(function)
    assert names.found[id(function), "defaults"][1]() == (len, THING, OTHER)
    assert names.found[id(function), "attributes"][1]() == {"note": function.note}
    cells = {name: point for (_, name), point in names.found.items() if name in ("box", "count")}
    assert {name: read() for name, (_, read, _) in cells.items()} == {"box": box, "count": 3}
    cells["count"][2](4)  # type: ignore[misc]
    assert function()[1] == cells["count"][1]() == 4
    assert set(names.pending) == {Thing, Many, plain}
    assert {space for space, name in names.found if name == "box"} == {id(function.__closure__[0])}


def test_a_function_with_nothing_of_its_own() -> None:
    names = surroundings._Names()
    for function in (plain, lambda a=1, b=len: a, lambda *, a="": a):
        names.function(function)
    assert not names.found and not names.pending


def test_a_variable_that_is_not_set() -> None:
    def outer() -> Any:
        def inner() -> Any:
            return late

        yield inner
        late = 1
        yield inner

    steps = outer()
    names, inner = surroundings._Names(), next(steps)
    assert surroundings._content(inner.__closure__[0]) is GONE
    names.function(inner)
    next(steps)
    names.function(inner)
    assert seen_by(names) == {"late": 1}


def test_what_names_stand_for_among_globals() -> None:
    space: dict[str, Any] = {"GAIN": 0.5, "plain": plain, "THING": THING, "cached": cached, "object": object()}
    code = compile("GAIN, plain, THING, cached, object, nowhere", "x", "eval")
    names = surroundings._Names()
    names.code(code, space)
    found = {name: point for (where, name), point in names.found.items() if where == id(space)}
    assert found.keys() == {"GAIN", "plain", "THING", "nowhere"}
    assert found["nowhere"][1]() is GONE
    assert Thing in names.pending and plain in names.pending and cached.__wrapped__ in names.pending
    found["plain"][2](3)  # type: ignore[misc]
    assert space["plain"] == found["plain"][1]() == 3
    del space["plain"]
    assert found["plain"][1]() is GONE


def test_globals_that_code_is_still_to_make() -> None:
    space: dict[str, Any] = {"there": 1}
    names = surroundings._Names()
    inner = "def g():\n  global inner\n  inner = 1\n"
    names.code(code_of(f"global later, there\nlater = there = 1\nlocal = 2\nx.attribute = 3\n{inner}"), space)
    assert seen_by(names) == {"later": GONE, "there": 1, "inner": GONE, "x": GONE}
    _, read, write = names.found[id(space), "later"]
    assert write is not None
    for value in (2, GONE, GONE):
        write(value)
        assert read() == value and space == ({"there": 1, "later": 2} if value == 2 else {"there": 1})


def test_what_code_asks_for_and_is_not_there() -> None:
    names = surroundings._Names()
    names.code(code_of("getattr(x, 'boost', 1)\n'other name'\nlen(x)"), {})
    assert names.asked >= {"boost"} and "other name" not in names.asked
    names.absent(Thing)
    _, read, write = names.found[id(Thing), "boost"]
    assert read() is GONE and write is not None
    write(3)
    assert read() == 3
    write(GONE)
    assert read() is GONE
    names = surroundings._Names()
    names.code(code_of("'boost'"), {})
    assert not names.asked


def test_what_was_not_set_is_taken_away_again() -> None:
    def outer() -> Any:
        def inner() -> Any:
            nonlocal late
            late = 1
            return late

        late: Any
        return inner

    names, inner = surroundings._Names(), outer()
    names.value(0, "late", GONE, *late_point(inner))
    _, read, write = names.found[0, "late"]
    assert read() is GONE and inner() == 1 and read() == 1 and write is not None
    write(GONE)
    assert read() is GONE
    write(2)
    assert read() == 2

    class Owner:
        x = 1

    _, read, write = surroundings._attribute(Owner, "x", 1)
    assert write is not None
    write(GONE)
    assert read() is GONE and "x" not in vars(Owner)
    write(3)
    assert vars(Owner)["x"] == 3


def late_point(function: Any) -> tuple[Callable[[], Any], Callable[[Any], Any]]:
    names = surroundings._Names()
    names.function(function)
    ((_, read, write),) = names.found.values()
    assert write is not None
    return read, write


def test_what_a_cached_function_read() -> None:
    names = surroundings._Names()
    names.code(compile("cached", "x", "eval"), {"cached": cached})
    assert names.found.keys() == {(id(globals()), "GAIN")}


def test_the_environment_is_read_by_either_name() -> None:
    for text in ("environ", "getenv('A')"):
        names = surroundings._Names()
        names.code(compile(text, "x", "eval"), {})
        assert {name for where, name in names.found if where == 0} == {"environ"}
        assert dict(names.found[0, "environ"][1]())["PATH"]


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> dict[str, types.ModuleType]:
    found = {n: types.ModuleType(n) for n in ("alpha", "alpha.one", "alpha.beta", "alpha.beta.two", "three")}
    for name, module in found.items():
        monkeypatch.setitem(sys.modules, name, module)
    return found


def code_of(text: str) -> types.CodeType:
    """Of a function with this body."""
    space: dict[str, Any] = {}
    exec("def f():\n" + "".join(f"  {line}\n" for line in text.split("\n")), space)
    return space["f"].__code__  # type: ignore[no-any-return]


def test_modules_that_code_imports(packages: dict[str, types.ModuleType]) -> None:
    code = code_of("from . import two\nfrom .. import one\nimport three, math, nowhere\nx = lambda: 1")
    assert set(code_names.imported(code, "alpha.beta")) == {
        packages[n] for n in ("alpha.beta.two", "alpha.one", "three")
    }
    assert set(code_names.imported(code, "")) == {packages["three"]}
    names = surroundings._Names()
    names.code(code, {"__package__": "alpha.beta"})
    assert packages["alpha.one"] in names.pending
    assert code_names.imported(code_of("three.x"), "") == []


@pytest.mark.parametrize("before", range(6))
def test_imports_anywhere_in_code(before: int, packages: dict[str, types.ModuleType]) -> None:
    code = code_of("x = y\n" * before + "import three")
    assert code_names.imported(code, "") == [packages["three"]]
    assert code_names.imported(code_of(f"def g():\n  {'x = y;' * before} import three"), "") == [packages["three"]]


def test_names_in_code() -> None:
    code = code_of("a.b\nreturn getattr(c, 'd'), 'not e', 7, lambda: f.g")
    assert set(code_names.code_names(code)) >= {"a", "b", "getattr", "c", "d", "f", "g"}
    assert not any(" " in name for name in code_names.code_names(code))


class Base:
    inherited = 1.5
    overridden = 1
    nothing = object()
    held = THING
    __noted__ = 3

    def __call__(self) -> None: ...


class Derived(Base):
    overridden = 2


def test_what_names_stand_for_in_a_class_and_its_bases() -> None:
    names = surroundings._Names()
    names.names |= {"inherited", "overridden", "nothing", "held", "__noted__", "__call__", "__doc__"}
    for base in (Derived, Base):
        names.attributes(Derived, base)
    assert names.found.keys() == {(id(Derived), n) for n in ("inherited", "overridden", "held", "__call__")}
    assert seen_by(names) == {"inherited": 1.5, "overridden": 2, "held": THING, "__call__": Base.__call__}
    assert Thing in names.pending
    names.found[id(Derived), "inherited"][2](2.5)  # type: ignore[misc]
    assert Derived.inherited == 2.5 and Base.inherited == 1.5
    del Derived.inherited


def test_what_names_stand_for_in_a_module_of_pythons() -> None:
    module = types.ModuleType("mine")
    module.gain, module.call, module.unread = 0.5, plain, 3  # type: ignore[attr-defined]
    names = surroundings._Names()
    names.names |= {"gain", "call", "__name__"}
    names.attributes(module)
    assert seen_by(names) == {"gain": 0.5, "call": plain}
    del module.gain
    assert names.found[id(module), "gain"][1]() is GONE


def test_a_context_variable_is_what_it_has() -> None:
    name, read, write = surroundings._point("VARIABLE", VARIABLE, lambda: 1, print)
    assert name == "VARIABLE" and write is not None

    def inside() -> None:
        assert read() is GONE
        write(3)
        assert read() == 3
        write(GONE)  # nobody can take it away
        assert read() == 3

    contextvars.copy_context().run(inside)


def wraps(function: Any) -> Any:
    return functools.wraps(function)(lambda: None)


def test_functions_that_a_value_is_or_wraps() -> None:
    of = surroundings._functions_of
    for value in (plain, staticmethod(plain), classmethod(plain), property(plain), functools.partial(plain)):
        assert of(value) == [plain]
    assert of(functools.cached_property(plain)) == [plain]
    assert of(cached) == [cached.__wrapped__]
    wrapper = wraps(plain)
    assert of(wrapper) == [wrapper, plain]
    assert of(property()) == of(3) == of(Thing) == []


class _Iterated(type):
    def __next__(cls) -> int:
        return 1


def test_what_counts_as_a_state() -> None:
    for value in (1, "a", None, [], {}, bytearray(), torch.zeros(()), nn.Linear(1, 1), VARIABLE, weakref.ref(THING)):
        assert surroundings._is_state(value)
    for value in (slice(0, 1), range(2), torch.float32, torch.device("cpu"), np.int64(1), Fraction(1, 2), Decimal(1)):
        assert surroundings._is_state(value)
    for value in (types.MappingProxyType({}), np.zeros(1), iter([]), random.Random(), torch.Generator(), THING):
        assert surroundings._is_state(value)
    for value in (int, Thing, _Iterated("Kind", (), {}), plain, len, math, Empty(), object()):
        assert not surroundings._is_state(value)


def test_which_names_are_globals() -> None:
    """The functions themselves, not what they remember of code that is equal."""
    read, assigned = code_names.global_names.__wrapped__, code_names.assigned_names.__wrapped__
    code = code_of("global made\nmade = there.attribute\ndel gone.x\nlocal = 1\nlambda: inner.x")
    assert read(code) == {"made", "there", "gone", "inner"} and assigned(code) == {"made"}
    assert read(code_of("globals()['there'].x")) == {"globals", "there", "x"}
    assert assigned(code_of("def g():\n  global within\n  within = 1")) == {"within"}
