"""Containers of the user's classes have attributes, and the items of sets and the keys of dicts may, too: what is frozen
of them changes with these. Constants are told apart by what they are."""

from __future__ import annotations

import collections
import decimal
import fractions
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from linrec.capture.frozen import Kept, beside_items, is_array, is_fixed, is_key, is_object
from linrec.runtime.state import Seen, frozen_state


class Plain:
    def __init__(self, n: Any = 0.0) -> None:
        self.n = n

    def method(self) -> None: ...


class Numbers(list[Any]):
    n = 0.0


class Table(dict[Any, Any]):
    n = 0.0


class Ordered(collections.OrderedDict[Any, Any]):
    n = 0.0


class Row(tuple[Any, ...]):
    n = 0.0


class Names(set[Any]):
    n = 0.0


class Fixed(frozenset[Any]):
    n = 0.0


class Last(collections.deque[Any]):
    n = 0.0


class Slots(list[Any]):
    __slots__ = ("n",)


def count(x: Any) -> None:
    x.n = getattr(x, "n", 0.0) + 1.0


def first(x: Any) -> Any:
    return next(iter(x))


CHANGES: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "list": (lambda: Numbers([1.0]), count),
    "dict": (lambda: Table(a=1.0), count),
    "ordered dict": (lambda: Ordered(a=1.0), count),
    "tuple": (lambda: Row([1.0]), count),
    "set": (lambda: Names([1.0]), count),
    "frozen set": (lambda: Fixed([1.0]), count),
    "deque": (lambda: Last([1.0]), count),
    "slots": (lambda: Slots([1.0]), count),
    "of a list that holds others": (lambda: Numbers([Plain()]), count),
    "within": (lambda: [Numbers([Plain()])], lambda x: count(x[0])),
    "in a set": (lambda: {Plain()}, lambda x: count(first(x))),
    "in a frozen set": (lambda: frozenset([Plain()]), lambda x: count(first(x))),
    "in a key": (lambda: {Plain(): 1.0}, lambda x: count(first(x))),
    "in one key of two": (lambda: {"a": 2.0, Plain(): 1.0}, lambda x: count([*x][1])),
    "in a key, with others": (lambda: {Plain(): [1.0]}, lambda x: count(first(x))),
    "in a view's key": (lambda: types.MappingProxyType({Plain(): 1.0}), lambda x: count(first(x))),
    "a set's item": (lambda: {1, "a"}, lambda x: (x.discard(1), x.add(True))),
    "a set's sign": (lambda: {0.0}, lambda x: (x.clear(), x.add(-0.0))),
    "a key of another kind": (lambda: {1: 1.0}, lambda x: (x.clear(), x.update({True: 1.0}))),
    "an object in an array": (lambda: numpy.array([None, "a"], dtype=object), lambda x: x.__setitem__(0, "b")),
    "attribute of Python's": (collections.OrderedDict, lambda x: setattr(x, "n", 1.0)),
    "items still count": (lambda: Numbers([1.0]), lambda x: x.append(2.0)),
    "items of a dict still count": (lambda: Table(a=1.0), lambda x: x.update(a=2.0)),
    "deep in an attribute": (lambda: Numbers([]), lambda x: setattr(x, "n", [1.0])),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("how", ["elsewhere", "attribute", "within"])
def test_changes_that_count(name: str, how: str) -> None:
    make, change = CHANGES[name]
    value = make()
    owner = nn.Identity()
    owner.held = [value] if how == "within" else value
    seen = Seen()
    before, kept, frozen = frozen_state(owner), Kept(owner.held), seen.frozen([owner])
    assert frozen_state(owner) == before and kept.still(owner.held) and seen.frozen([owner]) == frozen
    hash(before)
    change(value)
    assert not kept.still(owner.held) and seen.frozen([owner]) != frozen
    assert frozen_state(owner) != before


def test_how_deep_attributes_of_containers_are_looked_into() -> None:
    def nested(depth: int) -> tuple[Any, Any]:
        inner = found = Numbers()
        for _ in range(depth):
            outer = Numbers()
            outer.n = found
            found = outer
        return found, inner

    for depth in range(12):
        value, inner = nested(depth)
        owner = nn.Identity()
        owner.held = value
        before, kept = frozen_state(owner), Kept(value)
        inner.n = 1.0
        assert (frozen_state(owner) != before) is (depth < 8) and kept.still(value) is (depth >= 6)


def test_how_deep_objects_of_methods_are_looked_into() -> None:
    for depth in range(12):
        inner = outer = Plain()
        for _ in range(depth):
            outer = Plain(outer.method)
        owner = nn.Identity()
        owner.held = outer
        before = frozen_state(owner)
        inner.n = 1.0
        assert (frozen_state(owner) != before) is (depth < 4)


def test_how_deep_keys_and_items_are_looked_into() -> None:
    for wrap in (lambda x: {Plain(x): 1.0}, lambda x: {Plain(x)}):
        for depth in range(9):
            inner = Plain()
            value: Any = inner
            for _ in range(depth):
                value = wrap(value)
            owner = nn.Identity()
            owner.held = value
            before, kept = frozen_state(owner), Kept(value)
            inner.n = 1.0
            assert (frozen_state(owner) != before) is (depth < 4) and kept.still(value) is (depth >= 3)


CONSTANTS: list[tuple[Callable[[], Any], Callable[[], Any]]] = [
    (lambda: slice(0, 2), lambda: slice(1, 2)),
    (lambda: range(2), lambda: range(3)),
    (lambda: torch.float32, lambda: torch.float64),
    (lambda: torch.device("cpu"), lambda: torch.device("meta")),
    (lambda: torch.strided, lambda: torch.sparse_coo),
    (lambda: torch.contiguous_format, lambda: torch.channels_last),
    (lambda: decimal.Decimal("1.5"), lambda: decimal.Decimal("2.5")),
    (lambda: fractions.Fraction(1, 2), lambda: fractions.Fraction(1, 3)),
    (lambda: numpy.int64(1), lambda: numpy.int64(2)),
    (lambda: numpy.float32(1.5), lambda: numpy.float32(2.5)),
    (lambda: numpy.bool_(True), lambda: numpy.bool_(False)),
]


@pytest.mark.parametrize("make, other", CONSTANTS)
def test_constants(make: Callable[[], Any], other: Callable[[], Any]) -> None:
    owner = nn.Identity()
    for wrap in (lambda x: x, lambda x: [x], lambda x: {"a": [x, Plain()]}):
        value = wrap(make())
        owner.held = value
        before, kept = frozen_state(owner), Kept(value)
        assert kept.still(value)
        owner.held = wrap(other())
        assert frozen_state(owner) != before and not kept.still(owner.held)
    owner.held, before = make(), frozen_state(owner)
    owner.held = [make()]
    before = frozen_state(owner)
    owner.held = [make()]
    assert frozen_state(owner) == before


def test_constants_that_come_and_go() -> None:
    """Their memory is used again; what they are is what counts."""
    owner = nn.Identity()
    owner.held = [slice(0, 1), Plain()]
    before, kept = frozen_state(owner), Kept(owner.held)
    for k in range(2, 50):
        owner.held[0] = slice(0, k)
        assert frozen_state(owner) != before and not kept.still(owner.held)
    owner.held[0] = slice(0, 1)
    assert frozen_state(owner) == before and kept.still(owner.held)


def test_what_is_fixed() -> None:
    assert is_fixed(Plain.method) and is_fixed(len) and not is_fixed(Plain().method) and not is_fixed([1.0].append)
    assert all(is_fixed(make()) for make, _ in CONSTANTS[:8]) and is_fixed((1, slice(0, 1)))
    assert not is_fixed(Row([1.0])) and not is_fixed(Numbers())


def test_what_has_attributes_besides_items() -> None:
    value = Numbers([1.0])
    value.n = 2.0
    assert beside_items(value) == {"n": 2.0} and beside_items(Row()) == {}
    for other in ([1.0], {}, (), collections.OrderedDict(), Plain(), 1.0, nn.Identity(), types.MappingProxyType({})):
        assert beside_items(other) == {}
    assert is_key(Plain()) and not any(map(is_key, (1, "a", None, Plain, (1, 2), torch.float32)))


def test_what_is_an_array() -> None:
    assert is_array(numpy.zeros(1)) and is_array(numpy.int64(1)) and not is_array(1.0) and not is_array(torch.zeros(1))


def test_methods_of_modules() -> None:
    """They are frozen anew at every call."""
    for value in ([1.0].append, Plain().method):
        for name in ("held", "forward"):
            owner, seen = nn.Identity(), Seen()
            owner.__dict__[name] = value
            before = seen.frozen([owner])
            assert before[1] == [owner] and seen.frozen([owner]) == before
    owner, seen = nn.Identity(), Seen()
    owner.held, owner.other = len, function
    assert not seen.frozen([owner])[1]


def function() -> None: ...


def test_references_are_no_objects() -> None:
    owner = Plain()
    assert not is_object(weakref.ref(owner)) and is_object(weakref.WeakValueDictionary())


def test_arrays_of_objects() -> None:
    owner = nn.Identity()
    owner.held = [numpy.array([[1.0], None], dtype=object)]
    before = frozen_state(owner)
    assert frozen_state(owner) == before and Kept(owner.held).still(owner.held)


def test_containers_as_attributes() -> None:
    for value, change in (
        ([1.0], lambda x: x.append(2.0)),
        (([2.0],), lambda x: x[0].append(1.0)),
        ((1.0, [2.0]), lambda x: x[1].append(1.0)),
    ):
        seen, owner = Seen(), nn.Identity()
        owner.held = value
        before = seen.frozen([owner])
        assert seen.frozen([owner]) == before
        change(value)
        assert seen.frozen([owner]) != before
