"""What forward has changed: what a plan replays, what it may do without, and what is a reason to leave a model alone."""

from __future__ import annotations

import collections
import dataclasses
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from linrec.capture import snapshot
from linrec.capture.frozen import GONE
from linrec.capture.snapshot import (
    Memos,
    Snapshot,
    assigned,
    in_both,
    memos,
    nothing_of_data,
    restore_attributes,
    snapshot_attributes,
    touched,
)
from linrec.ir.held import DEPTH
from linrec.ir.obstruction import Refused


class Plain:
    def __init__(self, value: Any = None) -> None:
        self.value = value


class Slotted:
    __slots__ = ("other", "value")

    def __init__(self, value: Any) -> None:
        self.value = value


@dataclasses.dataclass
class Fields:
    h: Any = None
    n: Any = 1


class Model(nn.Module):
    count = 0
    kept: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.child = nn.Linear(2, 2)
        self.child.register_buffer("mean", torch.zeros(2))
        self.register_buffer("state", torch.zeros(2))
        self.register_buffer("none", None)
        self.register_buffer("last", torch.zeros(2))
        self.n: Any = 1
        self.zero, self.name, self.dtype, self.h, self.held = 0.0, "a", torch.float32, torch.zeros(1), [torch.zeros(1)]
        self.table: Any = {"h": torch.zeros(1), "n": 1, "deep": [{"x": 1.0}]}
        self.fields, self.pair = Fields(), (1, [torch.zeros(1)])
        self.plain, self.seen, self.large = Plain([1.0]), {1}, collections.deque([1.0, 2.0], maxlen=2)
        self.by_number = {0: torch.zeros(1), "a": torch.zeros(1)}


NEW = torch.ones(1)


def after(change: Callable[[Any], Any]) -> list[tuple[str, str, Any, Any]]:
    """What counts as assigned after a change; and everything is as it was when it is undone."""
    model = Model()
    saved = snapshot_attributes(model)
    before = everything(model)
    assert assigned(saved, model, Memos()) == []
    change(model)
    try:
        return assigned(saved, model, Memos())
    finally:
        restore_attributes(saved)
        assert assigned(saved, model, Memos()) == [] and everything(model) == before


def everything(model: nn.Module) -> list[Any]:
    """The attributes and tables of all modules, by identity."""
    found = [(n, id(v)) for m in model.modules() for n, v in m.__dict__.items()]
    tables = [m.__dict__[t] for m in model.modules() for t in ("_parameters", "_buffers", "_modules")]
    return [*sorted(found), *((n, id(v)) for table in tables for n, v in table.items())]


REPLAYED: dict[str, tuple[Callable[[Any], Any], list[tuple[str, str, tuple[Any, ...], Any]]]] = {
    "a tensor": (lambda m: setattr(m, "h", NEW), [("", "h", (), NEW)]),
    "of a submodule": (lambda m: setattr(m.child, "extra", NEW), [("child", "extra", (), NEW)]),
    "a new attribute": (lambda m: setattr(m, "extra", 3.0), [("", "extra", (), 3.0)]),
    "none to a number": (lambda m: setattr(m, "kept", 2), [("", "kept", (), 2)]),
    "a tensor to none": (lambda m: setattr(m, "h", None), [("", "h", (), None)]),
    "a number to a tensor": (lambda m: setattr(m, "n", NEW), [("", "n", (), NEW)]),
    "the kind of a number": (lambda m: setattr(m, "n", 1.0), [("", "n", (), 1.0)]),
    "one to true": (lambda m: setattr(m, "n", True), [("", "n", (), True)]),
    "minus zero": (lambda m: setattr(m, "zero", -0.0), [("", "zero", (), -0.0)]),
    "another dtype": (lambda m: setattr(m, "dtype", torch.float64), [("", "dtype", (), torch.float64)]),
    "the same": (lambda m: setattr(m, "n", 1), []),
    "an equal number": (lambda m: setattr(m, "zero", float("0")), []),
    "an equal text": (lambda m: setattr(m, "name", "".join(["a"])), []),
    "as the class has it": (lambda m: setattr(m, "count", 0), []),
    "a buffer": (lambda m: setattr(m, "state", NEW), [("", "state", (), NEW)]),
    "a buffer of a submodule": (lambda m: setattr(m.child, "mean", NEW), [("child", "mean", (), NEW)]),
    "a buffer to none": (lambda m: setattr(m, "state", None), [("", "state", (), None)]),
    "none to a buffer": (lambda m: setattr(m, "none", NEW), [("", "none", (), NEW)]),
    "two buffers": (
        lambda m: (setattr(m, "none", NEW), setattr(m, "state", None)),
        [("", "state", (), None), ("", "none", (), NEW)],
    ),
    "in a list": (lambda m: m.held.__setitem__(0, NEW), [("", "held", (0,), NEW)]),
    "in a tuple": (lambda m: m.pair[1].__setitem__(0, NEW), [("", "pair", (1, 0), NEW)]),
    "in a dict": (lambda m: m.table.update(h=NEW), [("", "table", ("h",), NEW)]),
    "a new key": (lambda m: m.table.update(a=NEW, h=NEW), [("", "table", ("h",), NEW), ("", "table", ("a",), NEW)]),
    "a number in a dict": (lambda m: m.table.update(n=NEW), [("", "table", ("n",), NEW)]),
    "an equal number in a dict": (lambda m: m.table.update(n=int("1")), []),
    "in a field": (lambda m: setattr(m.fields, "h", NEW), [("", "fields", ("h",), NEW)]),
    "all of a deque": (
        lambda m: m.large.extend([NEW, NEW]),
        [("", "large", (0,), NEW), ("", "large", (1,), NEW)],
    ),
    "a new key among numbers": (lambda m: m.by_number.update({1: NEW}), [("", "by_number", (1,), NEW)]),
}


@pytest.mark.parametrize("name", REPLAYED)
def test_what_is_replayed(name: str) -> None:
    change, expected = REPLAYED[name]
    assert repr(after(change)) == repr(expected)


def empty(m: Any) -> None:
    m._buffers = None


REFUSED: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a number": (lambda m: setattr(m, "n", 2), r"self\.n \(from 1 to 2\)"),
    "of a class": (lambda m: setattr(m, "count", 1), r"self\.count \(from 0 to 1\)"),
    "a number to none": (lambda m: setattr(m, "n", None), r"self\.n \(from 1 to None\)"),
    "a text": (lambda m: setattr(m, "name", "b"), r"self\.name \(from 'a' to 'b'\)"),
    "a number in a dict": (lambda m: m.table.update(n=2), r"self\.table\['n'\] \(from 1 to 2\)"),
    "a number further in": (lambda m: m.table["deep"][0].update(x=2.0), r"self\.table\['x'\] \(from 1.0 to 2.0\)"),
    "deleted": (lambda m: delattr(m, "n"), r"deletes self\.n"),
    "deleted in a submodule": (lambda m: delattr(m.child, "in_features"), r"deletes self\.in_features"),
    "list that grows": (lambda m: m.held.append(NEW), r"the list self\.held in place"),
    "list that shrinks": (lambda m: m.held.clear(), r"the list self\.held in place"),
    "dict that shrinks": (lambda m: m.table.pop("h"), r"the dict self\.table in place"),
    "dict in another order": (lambda m: m.table.update(h=m.table.pop("h")), r"the dict self\.table in place"),
    "dict, another first key": (lambda m: m.fields.__dict__.update(h=m.fields.__dict__.pop("h")), r"self\.fields in"),
    "object": (lambda m: setattr(m.plain, "value", NEW), r"the dict self\.plain in place"),
    "in an object": (lambda m: m.plain.value.__setitem__(0, NEW), r"the list self\.plain in place"),
    "deque that is turned": (lambda m: m.large.rotate(), r"self\.large\[0\] \(from 1.0 to 2.0\)"),
    "set": (lambda m: m.seen.add(2), r"the set self\.seen in place"),
    "parameter": (lambda m: setattr(m.child, "weight", nn.Parameter(NEW)), r"assigns the parameter 'child\.weight'"),
    "new parameter": (lambda m: setattr(m, "w", nn.Parameter(NEW)), r"assigns the parameter 'w'"),
    "parameter gone": (lambda m: delattr(m.child, "bias"), r"assigns the parameter 'child\.bias'"),
    "submodule": (lambda m: setattr(m, "child", nn.Linear(2, 2)), r"assigns the submodule 'child'"),
    "new submodule": (lambda m: setattr(m, "other", nn.Linear(2, 2)), r"assigns the submodule 'other'"),
    "submodule gone": (lambda m: delattr(m, "child"), r"assigns the submodule 'child'"),
    "new buffer": (lambda m: m.register_buffer("b", NEW), r"assigns the buffer 'b'"),
    "buffer gone": (lambda m: delattr(m, "state"), r"assigns the buffer 'state'"),
    "a new buffer and a changed one": (
        lambda m: (setattr(m, "state", NEW), m.register_buffer("b", NEW)),
        r"assigns the buffer 'b'",
    ),
    "a changed buffer and one gone": (
        lambda m: (setattr(m, "state", NEW), delattr(m, "last")),
        r"assigns the buffer 'last'",
    ),
    "one buffer gone, another one changed": (
        lambda m: (m._buffers.pop("none"), m._buffers.update(none=NEW), m._buffers.pop("state")),
        r"assigns the buffer 'state'",
    ),
    "another table": (lambda m: setattr(m, "_buffers", {**m._buffers, "state": NEW}), r"assigns the buffer 'state'"),
    "the same in another table": (lambda m: setattr(m, "_buffers", dict(m._buffers)), r"assigns the buffer ''"),
    "no tensor as a buffer": (lambda m: m._buffers.update(state=1.0, none=NEW), r"assigns the buffer 'state'"),
    "no tensors as buffers": (lambda m: m._buffers.update(none=1.0), r"assigns the buffer 'none'"),
    "no table": (empty, r"assigns the buffer 'state'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    change, text = REFUSED[name]
    with pytest.raises(Refused, match=text) as error:
        after(change)
    assert error.value.obstruction.id == "LR013"


def test_tables_that_are_ordered_dicts() -> None:
    """As those of modules that an older torch has saved."""
    model = Model()
    for table in ("_parameters", "_buffers", "_modules"):
        model.__dict__[table] = collections.OrderedDict(model.__dict__[table])
    saved, before = snapshot_attributes(model), everything(model)
    assert assigned(saved, model, Memos()) == []
    model.state = NEW
    assert assigned(saved, model, Memos()) == [("", "state", (), NEW)]
    model.register_buffer("more", NEW)
    with pytest.raises(Refused, match=r"assigns the buffer 'more'"):
        assigned(saved, model, Memos())
    restore_attributes(saved)
    assert everything(model) == before


def test_containers_deeper_than_what_is_looked_up_are_refused() -> None:
    for depth in range(1, DEPTH + 3):
        model, inner = Model(), [torch.zeros(1)]
        model.held = inner
        for _ in range(depth - 1):
            model.held = [model.held]
        saved = snapshot_attributes(model)
        inner[0] = NEW
        if depth <= DEPTH:
            assert [found[2] for found in assigned(saved, model, Memos())] == [(0,) * depth]
        else:
            with pytest.raises(Refused, match=r"the list self\.held in place"):
                assigned(saved, model, Memos())


def test_a_container_that_is_replaced_within_another() -> None:
    """What the old one was given is not lost unnoticed."""

    def change(m: Any) -> None:
        m.table["deep"][0]["y"] = NEW
        m.table["deep"] = [NEW]

    found = after(change)
    assert [(name, keys) for _, name, keys, _ in found] == [("table", ("deep",)), ("table", ("deep", 0, "y"))]


def grown(m: Any) -> dict[str, Any]:
    m.cache = {"a": Plain()}
    m.said = {"a"}
    m.listed = ["a"]
    found: dict[str, Any] = m.__dict__
    return found


def found_out(first: Callable[[Any], Any], later: Callable[[Any], Any] = lambda m: None) -> set[str]:
    """The attributes that hold memos after one run and others."""
    model = Model()
    held = grown(model)
    before = snapshot_attributes(model)
    first(model)
    then = snapshot_attributes(model)
    later(model)
    found = memos(before, then)
    return {n for n, v in held.items() if id(v) in found.containers}


def test_memos_are_what_is_added_once() -> None:
    assert {"cache", "said"} <= found_out(lambda m: None) and "listed" not in found_out(lambda m: None)
    assert "cache" in found_out(lambda m: m.cache.update(b=Plain("text")))
    assert "said" in found_out(lambda m: m.said.add("b"))
    assert "listed" not in found_out(lambda m: m.listed.append("b"))
    assert "cache" not in found_out(lambda m: m.cache.update(b="b"), lambda m: m.cache.update(c="c"))
    assert "said" not in found_out(lambda m: m.said.add("b"), lambda m: m.said.add("c"))
    for change in (
        lambda m: m.cache.update(a=Plain()),
        lambda m: m.cache.clear(),
        lambda m: m.cache.update(b=1),
        lambda m: m.cache.update(b=NEW),
        lambda m: m.cache.update({1: "b"}),
        lambda m: m.cache.update(b="b", c=1),
        lambda m: m.cache.update(a=None, b="b"),
        lambda m: (m.cache.pop("a"), m.cache.update(b="b")),
    ):
        assert "cache" not in found_out(change)
    for change in (lambda m: m.said.clear(), lambda m: m.said.add(1), lambda m: m.said.update([1, "b"])):
        assert "said" not in found_out(change)
    assert "later" not in found_out(lambda m: setattr(m, "later", {"a": "b"}))


def test_memos_may_have_held_numbers_before() -> None:
    def prepared(m: Any) -> None:
        m.cache["b"] = "b"

    model = Model()
    grown(model)
    model.cache["n"] = 1.0
    before = snapshot_attributes(model)
    prepared(model)
    assert id(model.cache) in memos(before, snapshot_attributes(model)).containers


def test_sets_of_numbers_may_be_memos_that_grow_by_others() -> None:
    assert "seen" in found_out(lambda m: m.seen.add("b")) and "seen" in found_out(lambda m: None)


def bound(*pairs: tuple[str, Any, Any, Any]) -> Memos:
    """The memos among variables, each with a name and what it had before, after one run, and after others."""
    before = Snapshot([], [(n, old, lambda: None, print) for n, old, _, _ in pairs], [], [])
    first = Snapshot([], [(n, now, lambda last=last: last, print) for n, _, now, last in pairs], [], [])
    return memos(before, first)


def test_variables_that_are_set_once() -> None:
    assert bound(("a", False, True, True), ("b", None, "x", "x"), ("c", 1, None, None)).bindings == {"a", "b", "c"}
    assert bound(("a", GONE, True, True)).bindings == {"a"}
    assert not bound(("a", True, True, True), ("b", False, True, False), ("c", None, "x", "y")).bindings
    assert not bound(("a", None, 1, 1), ("b", None, 1.0, 1.0), ("c", None, NEW, NEW), ("d", None, (), ())).bindings
    assert not bound(("a", False, True, True), ("a", 1, 2, 2)).bindings  # two variables of one name
    assert not bound(("a", 1, 2, 2), ("a", False, True, True)).bindings
    assert bound(("a", False, True, True), ("a", 1, 1, 1), ("b", 1, 2, 3)).bindings == {"a"}


def test_variables_that_are_not_the_same() -> None:
    names = [("a", False, print, print), ("b", False, print, print)]
    other = [("a", True, lambda: True, print), ("c", True, lambda: True, print), ("b", True, lambda: True, print)]
    assert memos(Snapshot([], names, [], []), Snapshot([], other, [], [])).bindings == {"a"}


def test_memos_of_both() -> None:
    found = in_both(Memos(frozenset([1, 2]), frozenset("ab")), Memos(frozenset([2, 3]), frozenset("bc")))
    assert found == Memos(frozenset([2]), frozenset("b"))


class Reads(nn.Module):
    def forward(self) -> Any:
        return SAID, COUNT, CACHE


SAID, COUNT = False, 0
CACHE: dict[str, Any] = {}


def test_memos_are_no_reason_to_refuse() -> None:
    model, space = Reads(), globals()
    saved = snapshot_attributes(model)
    known = Memos(frozenset([id(CACHE)]), frozenset(["SAID"]))
    space["SAID"] = True
    CACHE["a"] = 1.0
    assert assigned(saved, model, known) == []
    with pytest.raises(Refused, match="changes 'SAID'"):
        assigned(saved, model, Memos(known.containers))
    with pytest.raises(Refused, match="changes 'CACHE'"):
        assigned(saved, model, Memos(bindings=known.bindings))
    space["COUNT"] = 1
    with pytest.raises(Refused, match="changes 'COUNT'"):
        assigned(saved, model, known)
    restore_attributes(saved)
    assert (SAID, COUNT, CACHE) == (False, 0, {})


def test_memos_of_modules_are_no_reason_to_refuse() -> None:
    model = Model()
    known = Memos(frozenset([id(model.table), id(model.seen), id(model.held)]))
    saved = snapshot_attributes(model)
    model.table["new"] = NEW
    model.seen.add(2)
    assert assigned(saved, model, known) == []
    assert touched([("n", model.table, saved.modules[0][1])], None) == ("n", "dict")
    with pytest.raises(Refused):
        assigned(saved, model, Memos())
    model.table["n"] = NEW
    assert [found[2] for found in assigned(saved, model, known)] == [("n",), ("new",)]
    model.held.append(NEW)
    with pytest.raises(Refused, match=r"self\.held in place"):
        assigned(saved, model, known)


class Silent(dict[str, Any]):
    """A dict of the user's that tells nothing."""

    def __getitem__(self, key: str) -> Any:
        return None

    def __contains__(self, key: object) -> bool:
        return True

    def items(self) -> Any:
        return [].__iter__()


def test_memos_whose_class_makes_something_else_of_items() -> None:
    value = Silent(a=1.0)
    content = snapshot._copied(value)
    known = Memos(frozenset([id(value)]))
    dict.update(value, b=1.0)
    assert touched([("n", value, content)], known) is None
    dict.update(value, a=2.0)
    assert touched([("n", value, content)], known) == ("n", "Silent")


def test_what_else_has_grown_is_no_memo() -> None:
    value, other = {"a": 1}, {"a": 1}
    known = Memos(frozenset([id(other)]))
    value["b"] = 2
    assert touched([("n", value, {"a": 1})], known) == ("n", "dict")
    assert touched([("m", other, {"a": 1}), ("n", value, {"a": 1})], known) == ("n", "dict")
    other["b"] = 2
    assert touched([("m", other, {"a": 1})], known) is None and touched([("m", other, {"a": 1})]) == ("m", "dict")


OF_DATA = [1, 1.0, 1j, NEW, (1,), ("a", (NEW,)), [1.0], {"a": 1}, {1: "a"}, {"a": [NEW]}, {2}, collections.deque([1])]
OF_DATA += [
    Plain(1),
    Plain(Plain(NEW)),
    Slotted(1),
    Slotted([NEW]),
    Plain(Slotted(1)),
    ("a", [1]),
    nn.Identity(),
    range(2),
]
OF_DATA += [collections.Counter(a=1), [Slotted((1, "a"))], frozenset([1]), types.MappingProxyType({"a": 1})]
NOTHING = ["a", True, None, b"a", Plain, types, pytest.fixture, len, ("a", ("b",)), ["a", ("b", None)], {"a": Plain}]
NOTHING += [
    {Plain: Plain()},
    {"a"},
    Plain("a"),
    Plain(Plain()),
    Slotted("a"),
    Slotted(Plain),
    (),
    collections.deque(["a"]),
]


@pytest.mark.parametrize("value", OF_DATA)
def test_what_may_come_of_the_inputs(value: Any) -> None:
    assert not nothing_of_data(value) and not nothing_of_data([value, "a"]) and not nothing_of_data(["a", value])


@pytest.mark.parametrize("value", NOTHING)
def test_what_does_not_come_of_the_inputs(value: Any) -> None:
    assert nothing_of_data(value) and nothing_of_data([value, value])
