"""What forward can change besides its tensors: what is looked at, that it is put back, and what counts as a change."""

from __future__ import annotations

import collections
import functools
import types
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from linrec.capture import snapshot
from linrec.capture.frozen import GONE
from linrec.capture.snapshot import (
    Memos,
    assigned,
    containers,
    reachable,
    restore_attributes,
    same_items,
    snapshot_attributes,
    touched,
)
from linrec.ir.members import InFront
from linrec.ir.obstruction import Refused


class Plain:
    def __init__(self, value: Any = None) -> None:
        self.value = value

    def method(self) -> None:
        pass


class Slotted:
    __slots__ = ("__weakref__", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


class Numbers(list[Any]):
    """A list of the user's that makes something else of everything."""

    def __iter__(self) -> Any:
        return iter([])

    def _never(self, *_: Any) -> Any:
        raise AssertionError

    clear = extend = copy = __getitem__ = __eq__ = _never  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Table(dict[Any, Any]):
    def _never(self, *_: Any) -> Any:
        raise AssertionError

    __iter__ = __getitem__ = keys = values = items = clear = update = copy = __eq__ = _never  # type: ignore
    __contains__ = get = _never  # type: ignore[assignment]
    __hash__ = None  # type: ignore[assignment]


class Names(set[Any]):
    def _never(self, *_: Any) -> Any:
        raise AssertionError

    clear = update = copy = __eq__ = __contains__ = __le__ = __sub__ = _never  # type: ignore
    __hash__ = None  # type: ignore[assignment]


class Row(tuple[Any, ...]):
    """A tuple with attributes."""


def holding(kind: type, value: Any) -> Any:
    found = kind()
    found.value = value
    return found


def in_front(value: Any) -> InFront:
    found = InFront()
    found.own = value
    return found


def function(*_: Any, **__: Any) -> None:
    pass


def with_module(value: Any) -> nn.Module:
    found = nn.Identity()
    found.value = value
    return found


OWNERS = [Plain([1.0]), Plain([2.0])]
LEADS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda x: x,
    "list": lambda x: [x],
    "tuple": lambda x: (1, (x,)),
    "dict": lambda x: {"a": x},
    "ordered dict": lambda x: collections.OrderedDict(a=x),
    "deque": lambda x: collections.deque([x]),
    "set": lambda x: {Plain(x)},
    "frozen set": lambda x: frozenset([Plain(x)]),
    "key": lambda x: {Plain(x): 1},
    "object": Plain,
    "slots": Slotted,
    "module": with_module,
    "view": lambda x: types.MappingProxyType({"a": x}),
    "method": lambda x: Plain(x).method,
    "method of Python's": lambda x: x.append,
    "partial": lambda x: functools.partial(Plain(x).method),
    "argument of a partial": lambda x: functools.partial(function, x),
    "keyword of a partial": lambda x: functools.partial(function, a=x),
    "own forward": in_front,
    "own list": lambda x: Numbers([x]),
    "own dict": lambda x: Table(a=x),
    "attribute of a list": lambda x: holding(Numbers, x),
    "attribute of a dict": lambda x: holding(Table, x),
    "attribute of a tuple": lambda x: holding(Row, x),
    "attribute of a counter": lambda x: holding(collections.Counter, x),
    "user list": lambda x: collections.UserList([x]),
}


def among(x: Any, found: Any) -> bool:
    return any(x is each for each in found)


@pytest.mark.parametrize("name", LEADS)
def test_what_a_value_leads_to(name: str) -> None:
    inner = [1.0]
    assert among(inner, containers(LEADS[name](inner)))
    inside: list[Any] = [2.0]
    inside.append(LEADS[name](inside))  # and it ends
    assert len([x for x in containers(inside) if x is inside]) == 1


def test_references_lead_to_what_is_there() -> None:
    owner = Plain([1.0])
    assert among(owner.value, containers([weakref.ref(owner)]))


@pytest.mark.parametrize(
    "value", [1.0, "ab", None, torch.zeros(2), torch.float32, numpy.zeros(2), function, Plain, (), types]
)
def test_what_holds_nothing(value: Any) -> None:
    assert containers(value) == []


def test_what_many_share_is_seen_once() -> None:
    shared: Any = ([1.0],)
    for _ in range(60):
        shared = (shared, shared)
    assert containers(shared) == [[1.0]]


def test_modules_that_are_looked_after_otherwise() -> None:
    own, other = with_module([1.0]), with_module([2.0])
    found = containers([own, other], frozenset([id(own)]))
    assert among(other.value, found) and not among(own.value, found)


@pytest.mark.parametrize("own", [frozenset[int](), frozenset(range(20))])
@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: [(x,)], lambda x: [((x,), 1.0)]])
def test_how_many_objects_are_looked_at(own: frozenset[int], wrap: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_MOST", 3)
    value: list[Any] = []
    for _ in range(9):
        value = wrap(value)
    assert len(containers(value, own)) == 3


KINDS: dict[str, tuple[Any, Any, Callable[[Any], Any]]] = {
    "list, another": (list, [1.0, 2.0], lambda x: x.__setitem__(1, 3.0)),
    "list, first": (list, [1.0, 2.0], lambda x: x.__setitem__(0, 3.0)),
    "list, more": (list, [1.0], lambda x: x.append(1.0)),
    "list, less": (list, [1.0, 2.0], lambda x: x.pop()),
    "deque, another": (collections.deque, [1.0, 2.0], lambda x: x.rotate()),
    "deque, more": (collections.deque, [1.0], lambda x: x.append(2.0)),
    "dict, another": (dict, {"a": 1.0, "b": 2.0}, lambda x: x.update(a=3.0)),
    "dict, last": (dict, {"a": 1.0, "b": 2.0}, lambda x: x.update(b=3.0)),
    "dict, more": (dict, {"a": 1.0}, lambda x: x.update(b=3.0)),
    "dict, less": (dict, {"a": 1.0, "b": 2.0}, lambda x: x.pop("b")),
    "dict, other key": (dict, {"a": None}, lambda x: x.update(b=x.pop("a"))),
    "dict, order": (dict, {"a": 1.0, "b": 1.0}, lambda x: x.update(a=x.pop("a"))),
    "ordered dict, another": (collections.OrderedDict, {"a": 1.0}, lambda x: x.update(a=3.0)),
    "ordered dict, order": (collections.OrderedDict, {"a": None, "b": None}, lambda x: x.move_to_end("a")),
    "set, more": (set, {1.0}, lambda x: x.add(2.0)),
    "set, less": (set, {1.0, 2.0}, lambda x: x.discard(1.0)),
    "set, equal": (set, {1, "a"}, lambda x: (x.discard(1), x.add(True))),
    "set, minus zero": (set, {0.0}, lambda x: (x.clear(), x.add(-0.0))),
    "own list": (Numbers, [1.0, 2.0], lambda x: list.append(x, 3.0)),
    "own list, less": (Numbers, [1.0, 2.0], lambda x: list.clear(x)),
    "own dict": (Table, {"a": 1.0}, lambda x: dict.update(x, b=3.0)),
    "own dict, another": (Table, {"a": 1.0}, lambda x: dict.update(x, a=3.0)),
    "own set": (Names, {1.0}, lambda x: set.add(x, 2.0)),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("how", ["attribute", "within", "outside"])
def test_changes_of_containers_are_seen_and_undone(name: str, how: str) -> None:
    kind, content, change = KINDS[name]
    value, expected = kind(content), repr(snapshot._copied(kind(content)))
    module: nn.Module = Reads() if how == "outside" else with_module(value if how == "attribute" else (1, [value]))
    OUTSIDE[:] = [value]
    saved = snapshot_attributes(module)
    copied = snapshot._copied(value)
    assert same_items(value, copied) and assigned(saved, module, Memos()) == []
    restore_attributes(saved)
    assert repr(snapshot._copied(value)) == expected
    change(value)
    assert not same_items(value, copied) and not same_items(copied, value)
    assert touched([("n", value, copied)]) == ("n", kind.__name__)
    try:
        assert assigned(saved, module, Memos())
    except Refused as refused:
        assert refused.obstruction.id == "LR013" and ("OUTSIDE" if how == "outside" else "value") in str(refused)
    restore_attributes(saved)
    assert repr(snapshot._copied(value)) == expected and touched([("n", value, copied)]) is None
    OUTSIDE.clear()


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict])
def test_equal_keys_are_the_same(kind: Any) -> None:
    value = object()
    assert same_items(kind({(1, 2): value}), kind({tuple([1, 2]): value}))


def test_containers_of_python_have_no_attributes() -> None:
    assert len(containers([collections.OrderedDict(a=1), {}, collections.deque()])) == 4


def test_sets_have_no_order() -> None:
    assert list({0, 8}) != list({8, 0}) and same_items({0, 8}, {8, 0})
    assert same_items({float("1.5"), None}, {None, float("1.5")})


def test_equal_objects_in_a_set_are_not_the_same() -> None:
    a, b = (1, 2), tuple([1, 2])
    assert same_items({a}, {a}) and not same_items({a}, {b})


def test_nothing_is_missing_while_a_dict_is_put_back() -> None:
    for kind in (dict, collections.OrderedDict):
        module = with_module(kind(a=1.0, b=2.0))
        saved = snapshot_attributes(module)
        module.value["a"] = 3.0
        reader = iter(module.value)
        next(reader)
        restore_attributes(saved)
        assert next(reader) == "b" and module.value["a"] == 1.0


OUTSIDE: list[Any] = []
FLAG: Any = None
OTHER: Any = 1.0
NUMBERS = numpy.zeros(2)
FOUND: dict[Any, Any] = {}


class Reads(nn.Module):
    shared: Any = 1.0

    def forward(self) -> Any:
        global LATER
        LATER = 1.0
        return OUTSIDE, FLAG, OTHER, NUMBERS, FOUND, Reads.shared


def here() -> dict[str, Any]:
    return globals()


BINDINGS: dict[str, Callable[[], Any]] = {
    "another": lambda: here().update(OTHER=2.0),
    "another kind": lambda: here().update(OTHER=True),
    "minus zero": lambda: here().update(ZERO=-0.0),
    "another container": lambda: here().update(OUTSIDE=[]),
    "set": lambda: here().update(FLAG=True),
    "gone": lambda: here().pop("OTHER"),
    "new": lambda: here().update(LATER=1.0),
    "of a class": lambda: setattr(Reads, "shared", 2.0),
    "an equal device": lambda: here().update(PLACE=torch.device("cuda")),
}
ZERO, PLACE = 0.0, torch.device("cpu")


class ReadsMore(Reads):
    def forward(self) -> Any:
        return super().forward(), ZERO, PLACE


@pytest.mark.parametrize("name", BINDINGS)
def test_names_that_stand_for_something_else(name: str) -> None:
    module = ReadsMore()
    before = {k: v for k, v in here().items() if k.isupper()}, Reads.shared
    saved = snapshot_attributes(module)
    assert assigned(saved, module, Memos()) == []
    BINDINGS[name]()
    with pytest.raises(Refused, match="which its code also reads"):
        assigned(saved, module, Memos())
    restore_attributes(saved)
    after = {k: v for k, v in here().items() if k.isupper()}
    assert after.keys() == before[0].keys() and all(v is before[0][k] for k, v in after.items())
    assert Reads.shared is before[1] and assigned(saved, module, Memos()) == []


def test_names_that_stand_for_the_same_again() -> None:
    module = ReadsMore()
    saved = snapshot_attributes(module)
    here().update(OTHER=float("1.0"), PLACE=torch.device("cpu"), ZERO=float("0.0"))
    assert assigned(saved, module, Memos()) == []
    here().update(OTHER=float("nan"))
    saved = snapshot_attributes(module)
    here().update(OTHER=float("nan"))
    assert assigned(saved, module, Memos()) == []
    here().update(OTHER=1.0)


def test_names_that_nobody_has_touched_are_not_set() -> None:
    """Another thread may have an eye on them."""
    written: list[Any] = []
    saved = snapshot_attributes(nn.Identity())
    saved.bindings[:] = [("a", GONE, lambda: GONE, written.append), ("b", 1.0, lambda: 2.0, written.append)]
    restore_attributes(saved)
    assert written == [1.0]


def test_arrays_are_seen_and_put_back() -> None:
    for change in (lambda m: NUMBERS.fill(1.0), lambda m: m.value[0].fill(1.0)):
        module = Reads()
        module.value = [numpy.zeros(2)]
        saved = snapshot_attributes(module)
        change(module)
        with pytest.raises(Refused, match="or what it holds"):
            assigned(saved, module, Memos())
        restore_attributes(saved)
        assert not NUMBERS.any() and not module.value[0].any()


def test_what_is_reachable() -> None:
    module = Reads()
    module.value = [module, Plain(inner := [1.0])]
    module.weight = nn.Parameter(torch.zeros(1))
    found = list(reachable(module))
    names = {name for name, _ in found}
    assert {"value", "OUTSIDE", "NUMBERS"} <= names and among(inner, [x for n, x in found if n == "value"])
    assert not names & {"_parameters", "_buffers", "_modules", "weight"}
    assert not among(module.weight, [x for _, x in found]) and not among(module, [x for _, x in found])
    assert len({id(x) for _, x in found}) == len(found)
