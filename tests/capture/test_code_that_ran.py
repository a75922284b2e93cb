"""From forward on: what the search of names finds, which code is noted while it runs, and what is watched of it."""

from __future__ import annotations

import copy
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from linrec.capture import surroundings
from linrec.capture.ran import Ran, code_that_runs
from linrec.capture.surroundings import Watch, points

NEAR, FAR, FARTHER = 0.5, [0.5], 0.25
INIT = {"n": 1}
OWN = [1]
UNNAMED = [2]
INDEXED = [3]
SHARED = [4]


def near() -> Any:
    return FAR


class Made:
    """The step makes one."""

    def __init__(self) -> None:
        self.n = INIT

    def unnamed(self) -> Any:
        return UNNAMED

    def __getitem__(self, key: Any) -> Any:
        return INDEXED


class Given:
    """The module has one; its name is nowhere in the step."""

    def __init__(self) -> None:
        self.n = FARTHER

    def named(self) -> Any:
        return SHARED


GIVEN = Given()


class Base(nn.Module):
    level = 0.5
    held = GIVEN
    copied = copy.deepcopy

    def __init__(self) -> None:
        super().__init__()
        self.n = OWN


class Step(Base):
    def forward(self, x: Any) -> Any:
        return NEAR, near(), self.level, self.held.named(), self.copied, Made()[x], isinstance(x, Step)


@pytest.fixture(autouse=True)
def nothing_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", {})
    monkeypatch.setattr(surroundings, "_read", {})


def read(found: tuple[surroundings.Point, ...]) -> dict[str, Any]:
    return {name: get() for name, get, _ in found}


def test_what_a_search_finds() -> None:
    found = read(points([Step()]))
    expected = {"NEAR": 0.5, "FAR": FAR, "INIT": INIT, "INDEXED": INDEXED, "SHARED": SHARED, "level": 0.5}
    assert {name: found.get(name) for name in expected} == expected
    assert not found.keys() & {"OWN", "UNNAMED", "FARTHER", "_deepcopy_dispatch", "training", "forward", "__doc__"}
    assert found["held"] is GIVEN and found["near"] is near and found["Made"] is Made


def test_what_is_near_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chain(nn.Module):
        def forward(self) -> Any:
            return NEAR, near

    for limit, expected in ((2, {"NEAR", "near"}), (3, {"NEAR", "near", "FAR"})):
        monkeypatch.setattr(surroundings, "_MAX_POINTS", limit)
        surroundings._known.clear()
        assert read(points([Chain()])).keys() == expected


def test_two_functions_of_one_code_have_variables_of_their_own() -> None:
    def make(box: list[int]) -> Callable[[], Any]:
        return lambda: (box, NEAR)

    one, two = make([1]), make([2])

    class Both(nn.Module):
        def forward(self) -> Any:
            return one(), two()

    boxes = [get() for name, get, _ in points([Both()]) if name == "box"]
    assert sorted(boxes) == [[1], [2]]


def test_a_function_of_no_module() -> None:
    lost = types.FunctionType(near.__code__, globals(), "lost")
    lost.__module__ = None  # type: ignore[assignment]

    class Lost(nn.Module):
        call = staticmethod(lost)

        def forward(self) -> Any:
            return self.call()

    assert "FAR" in read(points([Lost()]))


def test_searches_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_known", {k: () for k in range(127)})
    found = points([Step()])
    assert len(surroundings._known) == 128
    again = points([Step()])
    assert [a is b for a, b in zip(found, again, strict=True)] == [True] * len(found)
    points([Base()])
    assert len(surroundings._known) == 1, "forgotten, to be found anew"
    more = ("more", lambda: 1, None)
    surroundings._read[frozenset([Step])] = (more,)
    assert points([Step()])[-1] is more and more not in points([Base()])


def frame(function: Any, back: Any = None, name: str = __name__, **local: Any) -> Any:
    return types.SimpleNamespace(f_code=function.__code__, f_globals={"__name__": name}, f_locals=local, f_back=back)


class Noted:
    def method(self, other: Any) -> None: ...

    @classmethod
    def of_class(cls) -> None: ...


def test_code_is_noted_with_the_classes_that_it_is_called_on() -> None:
    with code_that_runs() as found:
        note: Any = sys.gettrace() or sys.getprofile()
    assert found is not None
    found.clear()
    method, of_class = Noted.method, Noted.of_class.__func__  # type: ignore[attr-defined]
    for event in ("return", "line", "c_call"):
        note(frame(near), event, None)
    assert not found
    note(frame(near), "call", None)
    for this in (Noted(), Noted(), GIVEN):
        note(frame(method, self=this, other=1), "call", None)
    note(frame(of_class, cls=Noted), "call", None)
    note(frame(copy.deepcopy, name="copy", x=1), "call", None)
    assert {code: kinds for code, (_, kinds) in found.items()} == {
        near.__code__: set(),
        method.__code__: {Noted, Given},
        of_class.__code__: {Noted},
    }
    assert found[near.__code__][0] == {"__name__": __name__}


def test_code_that_runs_whenever_it_is_time_is_not_noted() -> None:
    def callback(*_: Any) -> None:
        near()

    gc.callbacks.append(callback)
    try:
        with code_that_runs() as found:
            note: Any = sys.gettrace() or sys.getprofile()
    finally:
        gc.callbacks.remove(callback)
    assert found is not None
    found.clear()
    around = frame(callback, frame(Noted.method))
    note(around, "call", None)
    note(frame(near, frame(copy.copy, around)), "call", None)
    assert not found
    note(frame(near, frame(Noted.method)), "call", None)
    assert found.keys() == {near.__code__}


def in_a_thread(work: Callable[[], Any]) -> Any:
    """Where nobody watches."""
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def watched() -> Any:
    with code_that_runs() as found:
        ways = sys.getprofile(), sys.gettrace()
        near()
    return ways, found, (sys.getprofile(), sys.gettrace())


def test_the_code_of_the_users_is_noted_by_whichever_way_is_free() -> None:
    def mine(*_: Any) -> None: ...

    def profiled() -> Any:
        sys.setprofile(mine)
        return watched()

    def both() -> Any:
        sys.setprofile(mine)
        sys.settrace(mine)
        return watched()

    assert near.__code__ in watched()[1]
    ways, found, after = in_a_thread(watched)
    assert ways[0] is not None and ways[1] is None and after == (None, None)
    assert near.__code__ in found and not any("contextlib" in code.co_filename for code in found)
    ways, found, after = in_a_thread(profiled)
    assert ways[0] is mine and ways[1] is not None and after == (mine, None) and near.__code__ in found
    ways, found, after = in_a_thread(both)
    assert ways == after == (mine, mine) and found is None


def ran(*functions: Any, on: tuple[type, ...] = ()) -> Ran:
    return {f.__code__: (f.__globals__, set(on)) for f in functions}


class Watched(Base):
    shared = 0.5

    def forward(self) -> Any:
        return NEAR, FAR, self.shared, self.level, self.dump_patches


def test_a_watch_holds_while_everything_is_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    for way in (None, ran(Watched.forward, on=(Watched,))):
        for name, new in (("NEAR", 0.6), ("FAR", [0.6])):
            watch = Watch([Watched()], way)
            assert watch.holds()
            with monkeypatch.context() as change:
                change.setitem(globals(), name, new)
                assert not watch.holds()
            assert watch.holds()
        for owner, name in ((Watched, "shared"), (Base, "level")):
            with monkeypatch.context() as change:
                change.setattr(owner, name, 0.6)
                assert not watch.holds()
        assert watch.holds()


def test_what_ran_is_searched_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "_read", {k: () for k in range(127)})
    Watch([Watched()], None)
    assert len(surroundings._read) == 127
    Watch([Watched()], ran(near))
    assert len(surroundings._read) == 128
    assert "FAR" in read(surroundings._read[frozenset([Watched])])
    Watch([Watched()], ran(near))
    assert len(surroundings._read) == 1


def test_modules_are_looked_after_otherwise() -> None:
    class Holding(nn.Module):
        def forward(self) -> Any:
            return module

    module: Any = Holding()
    module.n = 1
    watch = Watch([module], None)
    module.n = 2
    assert watch.holds()


def test_what_is_read_of_code_that_ran() -> None:
    found = read(surroundings._that_ran([Watched()], ran(Watched.forward, Noted.method, on=(Watched, Made))))
    assert {n: found.get(n) for n in ("NEAR", "shared", "level")} == {"NEAR": 0.5, "shared": 0.5, "level": 0.5}
    assert not found.keys() & {"dump_patches", "INIT"}


def test_what_leads_to_itself_ends() -> None:
    class Ring:
        pass

    Ring.__ring__ = Ring()  # type: ignore[attr-defined]

    def look() -> Any:
        return Ring.__ring__  # type: ignore[attr-defined]

    look.ring = Ring()  # type: ignore[attr-defined]
    assert read(surroundings._that_ran([Base()], ran(look, on=(Ring,)))).keys() >= {"look"}


def test_code_that_is_replaced_is_seen() -> None:
    def first() -> int:
        return 1

    def second() -> int:
        return 2

    class Calls(nn.Module):
        call = staticmethod(first)

        def forward(self) -> int:
            return self.call()

    watch = Watch([Calls()], ran(Calls.forward, first))
    assert watch.holds()
    first.__code__ = second.__code__
    assert not watch.holds()


def around(function: Any) -> Any:
    return functools.wraps(function)(lambda *args: function(*args))


def test_functions_that_have_code() -> None:
    def lone() -> Any:
        return again, NEAR

    again = lone
    hidden = around(lone)

    class Parent:
        def method(self) -> Any: ...

    class Child(Parent, nn.Module):
        pass

    find = surroundings._functions_with
    assert find(ran(Parent.method), [Child]) == [Parent.method]
    assert find(ran(nn.Module.train), [Child]) == []
    assert find(ran(near), [near, near]) == [near]
    assert find(ran(near), [lone]) == []
    assert find(ran(near), [around(near)]) == [near]
    assert find(ran(lone), [hidden]) == [lone]
    assert find(ran(lone), []) == [lone], "by what refers to its code"


def test_functions_that_are_made_within_code_that_ran() -> None:
    def outer(x: int) -> Any:
        return lambda: x

    inner = outer(1)
    assert surroundings._functions_with(ran(outer, inner), [outer, inner]) == [outer]
