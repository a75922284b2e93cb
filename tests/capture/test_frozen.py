"""What code finds elsewhere, and a module's own attributes, compare equal as long as nothing in them has changed."""

from __future__ import annotations

import argparse
import array
import collections
import functools
import queue
import types
import weakref
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from linrec.capture.frozen import GONE, Kept, is_object
from linrec.ir.fields import attributes, set_slots, slots
from linrec.ir.members import InFront
from linrec.runtime.state import Frozen, Seen, frozen_state, submodules


class Plain:
    def __init__(self) -> None:
        self.a: Any = 1.0

    def __call__(self) -> None:
        pass

    def put(self) -> None:
        pass

    def take(self) -> None:
        pass


class Noted(Fraction):
    """Each may have attributes of its own."""


class Slotted:
    __slots__ = ("__weakref__", "a", "b")

    def __init__(self) -> None:
        self.a: Any = 1.0


class Both(Slotted):
    def __init__(self) -> None:
        super().__init__()
        self.c = [1.0]


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


class Named(collections.OrderedDict[str, Any]):
    """A dict with attributes."""


def function() -> None:
    pass


def noted() -> Any:
    def inner() -> None:
        pass

    inner.gain, inner.gains = 1.0, [1.0]  # type: ignore[attr-defined]
    return inner


def put(x: Any) -> None:
    x.a += 1.0


def hook(x: nn.Module) -> None:
    x.register_forward_hook(lambda *_: None)


def nested(depth: int) -> Any:
    found: Any = [1.0]
    for _ in range(depth):
        found = Holder(found)
    return found


def innermost(x: Any) -> None:
    while isinstance(x, Holder):
        x = x.value
    x[0] = 2.0


def cyclic() -> Any:
    found = Holder([1.0])
    found.value.append(found)
    return found


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: [1.0, 2.0], lambda x: x.__setitem__(1, 3.0)),
    "list that grows": (lambda: [1.0, 2.0], lambda x: x.append(1.0)),
    "list, another type": (lambda: [1.0, 2.0], lambda x: x.__setitem__(0, 1)),
    "list with an object": (lambda: [Plain(), 1.0], lambda x: put(x[0])),
    "list with an object first": (lambda: [1.0, Plain()], lambda x: put(x[1])),
    "tuple with a list": (lambda: (1.0, [2.0]), lambda x: x[1].append(1.0)),
    "long list": (lambda: [0.0] * 5000, lambda x: x.__setitem__(4000, 1.0)),
    "list of objects": (lambda: [Plain() for _ in range(100)], lambda x: put(x[99])),
    "list of tensors": (lambda: [torch.zeros(2)], lambda x: x.__setitem__(0, torch.zeros(2))),
    "dict": (lambda: {"a": 1.0, "b": 2.0}, lambda x: x.__setitem__("b", 3.0)),
    "dict of one": (lambda: {"a": 1.0}, lambda x: x.__setitem__("a", 2.0)),
    "dict, another key": (lambda: {"a": 1.0}, lambda x: x.__setitem__("b", x.pop("a"))),
    "dict with an object": (lambda: {"a": Plain(), "b": 1.0}, lambda x: put(x["a"])),
    "dict that shrinks": (lambda: {"a": 1.0, "b": 2.0}, lambda x: x.pop("b")),
    "ordered dict with another order": (
        lambda: collections.OrderedDict(a=1.0, b=1.0),
        lambda x: x.move_to_end("a"),
    ),
    "set": (lambda: {1, 2}, lambda x: x.add(3)),
    "deque": (lambda: collections.deque([1.0]), lambda x: x.append(2.0)),
    "bytes": (lambda: bytearray(b"ab"), lambda x: x.__setitem__(0, 1)),
    "array": (lambda: array.array("d", [1.0]), lambda x: x.__setitem__(0, 2.0)),
    "numpy": (lambda: numpy.zeros(3), lambda x: x.__setitem__(2, 1.0)),
    "object": (Plain, put),
    "object with another attribute": (Plain, lambda x: setattr(x, "b", 1.0)),
    "object with an attribute less": (Plain, lambda x: delattr(x, "a")),
    "slots": (Slotted, put),
    "a slot that is set later": (Slotted, lambda x: setattr(x, "b", 1.0)),
    "slots and attributes": (Both, lambda x: x.c.append(1.0)),
    "slots of a base": (Both, put),
    "names": (lambda: types.SimpleNamespace(a=1.0), put),
    "arguments": (lambda: argparse.Namespace(a=1.0), put),
    "six deep": (lambda: nested(4), innermost),
    "a cycle": (cyclic, lambda x: x.value.__setitem__(0, 2.0)),
    "weak reference": (lambda: Holder([weakref.ref(STRONG)]), lambda x: put(STRONG)),
    "view": (lambda: types.MappingProxyType(TABLE), lambda x: TABLE.__setitem__("a", TABLE["a"] + 1)),
    "one view of two": (
        lambda: [types.MappingProxyType({"a": 1.0}), types.MappingProxyType(TABLE)],
        lambda x: TABLE.__setitem__("a", TABLE["a"] + 1),
    ),
    "user dict": (lambda: collections.UserDict(a=1.0), lambda x: x.update(a=2.0)),
    "notes on a function": (noted, lambda x: setattr(x, "gain", 2.0)),
    "list on a function": (noted, lambda x: x.gains.append(1.0)),
    "arguments of a partial": (lambda: Holder(functools.partial(function, [1.0])), lambda x: x.value.args[0].append(1)),
    "keywords of a partial": (
        lambda: Holder(functools.partial(function, a=[1.0])),
        lambda x: x.value.keywords["a"].pop(),
    ),
    "module": (lambda: nn.Dropout(0.5), lambda x: setattr(x, "p", 0.1)),
    "module in training": (lambda: nn.Dropout(0.5), lambda x: x.eval()),
    "module within": (lambda: nn.Sequential(nn.Dropout(0.5)), lambda x: x[0].eval()),
    "object of a method": (lambda: Holder(Plain().put), lambda x: put(x.value.__self__)),
    "list of a method": (lambda: Holder([1.0].__getitem__), lambda x: x.value.__self__.append(1.0)),
    "object of a partial": (lambda: Holder(functools.partial(Plain())), lambda x: put(x.value.func)),
    "method of an object": (lambda: Holder(Plain().put), lambda x: setattr(x, "value", x.value.__self__.take)),
    "partial replaced": (
        lambda: Holder(functools.partial(function)),
        lambda x: setattr(x, "value", functools.partial(function)),
    ),
    "hook": (lambda: nn.Sequential(nn.Identity()), lambda x: hook(x[0])),
    "module replaced": (lambda: nn.Sequential(nn.Identity()), lambda x: x.__setitem__(0, nn.Identity())),
}
STRONG = Plain()
TABLE = {"a": 1.0}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_found_elsewhere(name: str) -> None:
    make, change = CHANGES[name]
    value = make()
    kept = Kept(value)
    assert kept.still(value) and kept.still(value)
    change(value)
    assert not kept.still(value)
    assert Kept(value).still(value)


@pytest.mark.parametrize("name", [n for n in CHANGES if "function" not in n])
def test_attributes_of_a_module(name: str) -> None:
    make, change = CHANGES[name]
    owner = nn.Identity()
    owner.held = [make()]
    before = frozen_state(owner)
    assert frozen_state(owner) == before
    change(owner.held[0])
    if name == "list of tensors":  # those are looked up at every call
        assert frozen_state(owner) == before
    else:
        assert frozen_state(owner) != before


@pytest.mark.parametrize(
    "old, new, same",
    [
        (1.0, 1.0, True),
        (1.0, 1, False),
        (1, True, False),
        (0.5, 0.7, False),
        ("a", "a", True),
        (None, None, True),
        (None, 0, False),
        (GONE, GONE, True),
        (GONE, None, False),
        (function, function, True),
        (function, noted, False),
        (Plain, Plain, True),
        (Plain, Slotted, False),
        (tuple([1.0, "a"]), tuple([1.0, "a"]), True),  # as the defaults of arguments, which are made one at every look
        (tuple([1.0]), tuple([1]), False),
        (tuple([1.0]), tuple([1.0, 2.0]), False),
        (tuple([1.0, 2.0]), tuple([1.0]), False),
        (tuple([torch.float32, (1,)]), tuple([torch.float32, tuple([1])]), True),
        (tuple([torch.float32]), tuple([torch.float64]), False),
        (tuple([Plain]), tuple([Slotted]), False),
        (tuple([1.0]), [1.0], False),
        (float("1.5"), float("1.5"), True),
        (range(1), tuple([0]), False),
        (1.0, tuple([1.0]), False),
        (tuple([1.0, 2.0]), tuple([1.0, 3.0]), False),
        (tuple([1.0, 2.0]), tuple([3.0, 2.0]), False),
        (slice(1, int("2")), slice(1, 2), True),
        (slice(1, 2), slice(1, 3), False),
        (Fraction(1, 2), Fraction(2, 4), True),
        (Fraction(1, 2), Noted(1, 2), False),
        (Noted(1, 2), Noted(1, 2), False),
        ([1.0], [1.0], True),
        ([1.0], [1], False),
        ({"a": 1}, {"a": 1}, True),
        (b"a", bytearray(b"a"), False),
        (math_module := types.ModuleType("math_module"), math_module, True),
    ],
)
def test_another_value(old: Any, new: Any, same: bool) -> None:
    assert Kept(old).still(new) is same


def test_what_is_too_large_counts_as_one_object() -> None:
    large = [Plain() for _ in range(3000)]
    kept = Kept(large)
    put(large[2999])
    assert kept.still(large)
    large.append(Plain())
    assert not kept.still(large)
    other = [0.0] * (1 << 17)
    kept = Kept(other)
    assert kept.still(other) and not kept.still(other[:-1])


def test_modules_that_are_looked_after_otherwise() -> None:
    own = nn.Dropout(0.5)
    kept = Kept([own, 1.0], frozenset([id(own)]))
    own.p = 0.1
    assert kept.still([own, 1.0]) and not kept.still([nn.Dropout(0.5), 1.0])


def test_what_has_attributes() -> None:
    assert is_object(Plain()) and is_object(Slotted()) and is_object(collections.UserList()) and is_object(Both())
    assert not any(map(is_object, (1.0, Plain, function, torch.zeros(1), nn.Identity(), types, queue.Queue(), print)))

    class Kind(type):
        """A class of classes of the user's."""

    assert not is_object(Kind("Made", (), {})) and not is_object(types.ModuleType("made"))
    assert not is_object(functools.partial(function)) and not is_object(numpy.random.default_rng(0))


def test_slots() -> None:
    x = Both()
    assert attributes(x).keys() == {"a", "c", "__weakref__"} or attributes(x).keys() == {"a", "c"}
    before = slots(x)
    x.a, x.b = 5.0, 6.0
    set_slots(x, before)
    assert x.a == 1.0 and not hasattr(x, "b")

    class Constant(Slotted):
        a = property(lambda self: 7.0)  # type: ignore[assignment]

        def __init__(self) -> None:
            self.b = 1.0

    constant = Constant()
    before = slots(constant)
    constant.b = 2.0
    set_slots(constant, before)
    assert constant.b == 1.0 and constant.a == 7.0
    plain = Plain()
    assert attributes(plain) is vars(plain) and attributes(1.0) == {}


def test_what_a_module_was_at_its_last_call() -> None:
    """Modules whose attributes cannot change are compared by identity; the others are frozen anew."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    modules = list(model.modules())
    seen = Seen()
    first = seen.frozen(modules)
    assert seen.frozen(modules) == first and not first[1]
    model[1].p = 0.1
    second = seen.frozen(modules)
    assert second != first and seen.frozen(modules) == second
    model[0].extra = (1.0, [2.0])
    third = seen.frozen(modules)
    assert third[1] == [model[0]] and third != second
    model[0].extra[1][0] = 3.0
    assert seen.frozen(modules) != third
    model[0].forward = types.MethodType(lambda self, x: x, model[0])
    fourth = seen.frozen(modules)
    model[0].forward = types.MethodType(lambda self, x: 2 * x, model[0])
    assert seen.frozen(modules) != fourth
    assert Seen().frozen(modules[:2]) != Seen().frozen(modules)


def test_frozen_values() -> None:
    one, same, other = Frozen((1, "a")), Frozen((1, "a")), Frozen((1, "b"))
    assert one == same and one == one and hash(one) == hash(same)
    assert one != other and one != (1, "a") and other != one
    alike = Frozen((1, "b"))
    alike.hash = one.hash  # numbers that meet by chance
    assert one != alike


def test_which_attributes_count() -> None:
    owner = nn.Identity()
    owner.a, owner.b, owner.c = 1.0, torch.zeros(2), [1.0]

    def changed(name: str, value: Any, only: set[str] | None = None) -> bool:
        before, old = frozen_state(owner, only), owner.__dict__.get(name)
        owner.__dict__[name] = value
        after = frozen_state(owner, only)
        owner.__dict__[name] = old
        return before != after

    for only in (None, {"a", "c"}):
        assert changed("a", 2.0, only) and changed("c", [2.0], only) and changed("a", 1, only)
    assert not changed("b", torch.ones(2)) and changed("b", 1.0) and not changed("b", 1.0, {"a"})
    assert not changed("c", [2.0], {"a"}) and not changed("a", 2.0, {"c"})
    for table in ("_forward_hooks", "_is_full_backward_hook"):
        assert not changed(table, collections.OrderedDict(x=1.0))
    for table in ("_parameters", "_buffers"):  # by which names there are tensors, and by which there is none
        assert changed(table, collections.OrderedDict(x=None)) and changed(table, collections.OrderedDict(x=1.0))
        assert not changed(table, collections.OrderedDict(x=None), {"a"})
    assert changed("forward", function) and changed("forward", types.MethodType(function, owner), {"a"})
    front = InFront()
    for front.own in (None, function):
        assert changed("forward", front) is (front.own is not None)
    assert changed("forward", torch.tanh) and changed("forward", Plain())
    assert not changed("other", function, {"a"}) and changed("other", function)


def test_tensors_in_containers() -> None:
    """Where they are looked up at every call, that there is one is what counts; deeper ones are constants."""

    def within(depth: int) -> tuple[nn.Module, list[Any]]:
        inner: list[Any] = [torch.zeros(2)]
        found = inner
        for _ in range(depth):
            found = [found]
        owner = nn.Identity()
        owner.held = found
        return owner, inner

    for depth in range(6):
        owner, inner = within(depth)
        before = frozen_state(owner)
        inner[0] = torch.ones(2)
        assert (frozen_state(owner) == before) is (depth < 4)
    owner, inner = within(5)
    before = frozen_state(owner)
    inner[0].add_(1)
    assert frozen_state(owner) != before
    owner = nn.Identity()
    owner.held = Holder([torch.zeros(2)])  # an object: no place leads into it
    before = frozen_state(owner)
    owner.held.value[0].add_(1)
    assert frozen_state(owner) != before


def test_modules_with_the_same_attributes() -> None:
    class Other(nn.Identity):
        pass

    seen, one = Seen(), nn.Identity()
    other = object.__new__(Other)
    other.__dict__ = one.__dict__
    first = seen.frozen([one])
    assert seen.frozen([other]) != first
    assert seen.frozen([one]) == first
    one.__class__ = Other
    assert seen.frozen([one]) != first


def test_submodules() -> None:
    shared = nn.Linear(2, 2)
    model = nn.Sequential(nn.Sequential(shared, nn.Tanh()), shared, nn.ReLU())
    model.register_module("none", None)
    assert submodules(model) == list(model.modules())


def with_note(value: Any) -> Any:
    def inner() -> None:
        pass

    inner.note = value  # type: ignore[attr-defined]
    return inner


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "list": lambda x: [x],
    "dict": lambda x: {"a": x},
    "object": Holder,
    "view": lambda x: types.MappingProxyType({"a": x}),
    "partial": lambda x: functools.partial(function, x),
    "note": with_note,
}
LEVELS = {
    "list": (7, 5),
    "dict": (7, 5),
    "object": (7, 5),
    "module": (7, 5),
    "view": (7, 5),
    "partial": (4, 3),
    "note": (1, 5),
}
"""From which depth on a change is not seen, in a module's attributes and in what is found elsewhere."""


def wrapped(value: Any, kind: str, depth: int) -> Any:
    """A value within containers or objects of a kind."""
    for _ in range(depth):
        if kind == "module":
            value, inner = nn.Identity(), value
            value.inner = inner
        else:
            value = WRAPPERS[kind](value)
    return value


@pytest.mark.parametrize("kind", LEVELS)
def test_how_deep_it_is_looked(kind: str) -> None:
    """What is deeper is taken for the object that it is."""
    for depth in range(1, 13):
        inner = [1.0]
        owner = nn.Identity()
        owner.held = [wrapped(inner, kind, depth)]
        before, kept = frozen_state(owner), Kept(owner.held)
        inner[0] = 2.0
        assert (frozen_state(owner) != before) is (depth < LEVELS[kind][0])
        assert kept.still(owner.held) is (depth >= LEVELS[kind][1])


def test_equal_numbers() -> None:
    owner, other = nn.Identity(), nn.Identity()
    owner.held, other.held = [float("1.5"), "ab"], [float("1.5"), "".join(["a", "b"])]
    assert frozen_state(owner) == frozen_state(other)


@pytest.mark.parametrize("make", [lambda n: numpy.zeros(n, "int8"), bytearray], ids=["numpy", "bytes"])
def test_large_buffers(make: Callable[[int], Any]) -> None:
    """They are compared up to a size, at every call."""
    for size, seen in (((1 << 16) - 1, True), (1 << 16, True), ((1 << 16) + 1, False)):
        owner = nn.Identity()
        owner.held = [make(size)]
        before, kept = frozen_state(owner), Kept(owner.held)
        owner.held[0][0] = 1
        assert (frozen_state(owner) != before) is seen and kept.still(owner.held) is not seen


def test_sparse_tensors() -> None:
    owner = nn.Identity()
    owner.held = Holder(torch.eye(2).to_sparse())
    before = frozen_state(owner)
    assert frozen_state(owner) == before


def test_tensors_of_modules_elsewhere() -> None:
    """A plan reads their numbers at every call."""
    module = nn.Linear(2, 2)
    module.extra = torch.zeros(2)
    kept = Kept([module])
    module.weight = nn.Parameter(torch.ones(2, 2))
    module.extra = torch.ones(2)
    assert kept.still([module])


def test_how_deep_weak_references_lead() -> None:
    for depth in range(1, 12):
        things = [Plain()]
        for _ in range(depth):
            things.append(Plain())
            things[-1].a = weakref.ref(things[-2])
        owner = nn.Identity()
        owner.held = things[-1]
        before = frozen_state(owner)
        put(things[0])
        assert (frozen_state(owner) != before) is (depth < 4)
