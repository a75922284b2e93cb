"""Numbers that forward reads through objects of every kind that holds something: a change between two calls is seen."""

from __future__ import annotations

import collections
import configparser
import copy
import dataclasses
import sys
import types
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .test_surroundings import Leaky, same, series


@dataclasses.dataclass(slots=True)
class Slotted:
    gain: float = 0.5


@dataclasses.dataclass
class Plain:
    gain: float = 0.5


class Tree:
    __slots__ = ("__weakref__", "leaf")

    def __init__(self) -> None:
        self.leaf = Slotted()


class Called:
    __slots__ = ("gain",)

    def __init__(self) -> None:
        self.gain = 0.5

    def __call__(self) -> float:
        return self.gain


def _parser() -> configparser.ConfigParser:
    found = configparser.ConfigParser()
    found["model"] = {"gain": "0.5"}
    return found


def _dropout() -> nn.Module:
    return nn.Dropout(0.5)


def _set(name: str, value: Any = 0.8) -> Callable[[Any], Any]:
    return lambda x: setattr(x, name, value)


def _hook(x: Any) -> None:
    x.register_forward_hook(lambda module, args, result: 0.8 * result)


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "slots": (Slotted, lambda x: x.gain, _set("gain")),
    "slots within slots": (Tree, lambda x: x.leaf.gain, lambda x: setattr(x.leaf, "gain", 0.8)),
    "slots of what is called": (Called, lambda x: x(), _set("gain")),
    "module": (_dropout, lambda x: x.p, _set("p")),
    "module in training": (_dropout, lambda x: 0.5 if x.training else 0.8, lambda x: x.eval()),
    "hook": (nn.Identity, lambda x: x(torch.tensor(0.5)), _hook),
    "long list": (lambda: [0.5] * 100, lambda x: x[80], lambda x: x.__setitem__(80, 0.8)),
    "user dict": (lambda: collections.UserDict(gain=0.5), lambda x: x["gain"], lambda x: x.update(gain=0.8)),
    "user list": (lambda: collections.UserList([0.5]), lambda x: x[0], lambda x: x.__setitem__(0, 0.8)),
    "chain": (lambda: collections.ChainMap({}, {"gain": 0.5}), lambda x: x["gain"], lambda x: x.update(gain=0.8)),
    "parser": (_parser, lambda x: float(x["model"]["gain"]), lambda x: x.set("model", "gain", "0.8")),
}
THING: Any = None


@pytest.mark.parametrize("where", ["global", "attribute", "list", "closure"])
@pytest.mark.parametrize("kind", HELD)
def test_what_is_held_may_change(kind: str, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, read, change = HELD[kind]
    thing = make()
    monkeypatch.setitem(globals(), "THING", thing)

    class Reads(Leaky):
        def __init__(self) -> None:
            super().__init__()
            if where == "attribute" and not isinstance(thing, nn.Module):
                self.thing = thing
            self.things = [thing] if where in ("attribute", "list") else []

        def gain(self) -> Any:
            if where == "global":
                return read(THING)
            if where == "closure":
                return read(thing)
            return read(self.thing if "thing" in vars(self) else self.things[0])

    ours, oracle = linrec.parallelize(Reads()), Reads()
    same(ours, oracle, series())
    assert linrec.report(ours).parallel, linrec.report(ours)
    before = linrec.graph(ours)
    same(ours, oracle, series())
    assert linrec.graph(ours) is before
    change(thing)
    same(ours, oracle, series())


def test_a_view_of_a_dict_may_change() -> None:
    table = {"gain": 0.5}
    view = types.MappingProxyType(table)

    class Reads(Leaky):
        def gain(self) -> Any:
            return view["gain"]

    ours, oracle = linrec.parallelize(Reads()), Reads()
    same(ours, oracle, series())
    table["gain"] = 0.8
    same(ours, oracle, series())


def test_what_a_weak_reference_leads_to_may_change() -> None:
    thing = Plain()
    table = weakref.WeakValueDictionary(a=thing)

    class Reads(Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.thing = weakref.ref(thing)

        def gain(self) -> Any:
            return self.thing().gain * table["a"].gain

    ours, oracle = linrec.parallelize(Reads()), Reads()
    same(ours, oracle, series())
    assert linrec.report(ours).parallel
    thing.gain = 0.8
    same(ours, oracle, series())


def test_a_python_module_that_is_imported_within_forward(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = types.ModuleType("settings_of_a_leaky_model")
    settings.gain = 0.5  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, settings.__name__, settings)

    class Reads(Leaky):
        def gain(self) -> Any:
            import settings_of_a_leaky_model  # type: ignore[import-not-found]

            return settings_of_a_leaky_model.gain

    ours, oracle = linrec.parallelize(Reads()), Reads()
    same(ours, oracle, series())
    settings.gain = 0.8  # type: ignore[attr-defined]
    same(ours, oracle, series())


class Recorder:
    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last = 0.0


def test_a_slot_that_forward_writes() -> None:
    class Writes(Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.recorder = Recorder()

        def forward(self, x: Tensor) -> Tensor:
            self.recorder.last += 1.0
            return super().forward(x)

    ours, oracle = linrec.parallelize(Writes()), Writes()
    for _ in range(3):
        same(ours, oracle, series())
    assert ours.recorder.last == oracle.recorder.last == 3.0
    assert {o.id for o in linrec.report(ours).obstructions} == {"LR013"}


def test_a_state_in_slots() -> None:
    @dataclasses.dataclass(slots=True)
    class State:
        h: Tensor
        kind: str = "leaky"

    class Carried(Leaky):
        def forward(self, x: Tensor) -> Any:
            state, out = State(torch.zeros_like(x[:, 0])), []
            for t in range(x.shape[1]):
                state = State(0.5 * state.h * self.w + x[:, t])
                out.append(state.h)
            return torch.stack(out, 1), state

    ours, oracle = linrec.parallelize(Carried()), Carried()
    for length in (30, 41):
        x = series(length=length)
        (y, state), (wanted, other) = ours(x), oracle(x)
        torch.testing.assert_close((y, state.h), (wanted, other.h), rtol=1e-10, atol=1e-10)
        assert type(state) is State and state.kind == other.kind
    assert linrec.report(ours).parallel


def test_copies_of_a_model_with_slots() -> None:
    class Reads(Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.settings = Slotted()

        def gain(self) -> Any:
            return self.settings.gain

    ours, oracle = linrec.parallelize(Reads()), Reads()
    same(ours, oracle, series())
    other = copy.deepcopy(ours)
    other.settings.gain = oracle.settings.gain = 0.8
    same(other, oracle, series())
    oracle.settings.gain = 0.5
    same(ours, oracle, series())


def test_a_closure_over_the_model_itself() -> None:
    """What the model keeps from call to call is looked after otherwise: no call is like another by that."""

    class Closed(Leaky):
        def __init__(self) -> None:
            super().__init__()
            self.last: Any = ()
            self.scale = lambda: self.w * 0.5

        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = self.scale() * h + x[:, t]
                out.append(h)
            self.last = (h.detach(),)
            return torch.stack(out, 1)

    ours, oracle = linrec.parallelize(Closed()), Closed()
    same(ours, oracle, series())
    same(ours, oracle, series())
    assert linrec.report(ours).parallel, linrec.report(ours)
    before = linrec.graph(ours)
    for _ in range(3):
        same(ours, oracle, series())
        torch.testing.assert_close(ours.last, oracle.last)
    assert linrec.graph(ours) is before
