"""What forward changes, and what others change for it, in places where few look: the model does what its code does."""

from __future__ import annotations

import collections
import dataclasses
import decimal
import math
import weakref
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import series


class Plain:
    def __init__(self) -> None:
        self.n = 0.0


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0.0


@dataclasses.dataclass
class Fields:
    n: float = 0.0


class Numbers(list[Any]):
    n = 0.0


class Row(tuple[Any, ...]):
    n = 0.0


OBJECT = Plain()


class Model(nn.Module):
    def __init__(self, act: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.act = act
        self.flag, self.zero, self.one = 1.0, 0.0, 1
        self.table: Any = collections.OrderedDict(a=1.0, b=2.0)
        self.plain: Any = {"a": 1.0, "b": 2.0}
        self.frozen, self.keys, self.members = frozenset([Plain()]), {Plain(): 1}, {Plain()}
        self.numbers, self.row = Numbers([1.0, 2.0]), Row([1.0])
        self.kinds: set[Any] = {1.0}
        self.slotted, self.fields = Slotted(), Fields()
        self.reference = weakref.ref(OBJECT)
        self.part: Any = slice(0, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.act(self, x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def deletes(m: Any, x: Tensor) -> float:
    if hasattr(m, "flag"):
        del m.flag
        return 5.0
    return 0.0


def turns_the_sign(m: Any, x: Tensor) -> float:
    m.zero = -m.zero
    return math.copysign(1.0, m.zero)


def turns_the_sign_in(name: str) -> Callable[[Any, Tensor], float]:
    def act(m: Any, x: Tensor) -> float:
        owner = getattr(m, name)
        owner.n = -owner.n
        return math.copysign(1.0, owner.n)

    return act


def moves_to_the_end(m: Any, x: Tensor) -> float:
    name, found = next(iter(m.table.items()))
    m.table.move_to_end(name)
    return float(found)


def puts_in_again(m: Any, x: Tensor) -> float:
    name = next(iter(m.plain))
    m.plain[name] = m.plain.pop(name)
    return float(m.plain[name])


def counts(find: Callable[[Any], Any], used: bool) -> Callable[[Any, Tensor], float]:
    def act(m: Any, x: Tensor) -> float:
        find(m).n += 1.0
        return float(find(m).n) if used else 0.0

    return act


def another_kind(m: Any, x: Tensor) -> float:
    found = type(next(iter(m.kinds)))
    m.kinds.clear()
    m.kinds.add(1 if found is float else 1.0)
    return 2.0 if found is float else 3.0


def goes_to_and_fro(m: Any, x: Tensor) -> float:
    global SWITCH
    SWITCH = not SWITCH
    return 0.0


def makes_a_global(m: Any, x: Tensor) -> float:
    global MADE
    try:
        MADE += 1
    except NameError:
        MADE = 1
    return 0.0


def keeps_the_first_mean(m: Any, x: Tensor) -> Tensor:
    global MEAN
    try:
        return MEAN
    except NameError:
        MEAN = x.mean().detach()
    return MEAN


SWITCH = False

ACTS: dict[str, tuple[Callable[[Any, Tensor], Any], Callable[[Any], Any]]] = {
    "deletes": (deletes, lambda m: hasattr(m, "flag")),
    "sign": (turns_the_sign, lambda m: m.zero),
    "sign in slots": (turns_the_sign_in("slotted"), lambda m: m.slotted.n),
    "sign in a field": (turns_the_sign_in("fields"), lambda m: m.fields.n),
    "order": (moves_to_the_end, lambda m: list(m.table)),
    "order of a dict": (puts_in_again, lambda m: list(m.plain)),
    "kind in a set": (another_kind, lambda m: m.kinds),
    "to and fro": (goes_to_and_fro, lambda m: SWITCH),
    "a new global": (makes_a_global, lambda m: globals().get("MADE")),
    "a new global tensor": (keeps_the_first_mean, lambda m: globals().get("MEAN")),
}
PLACES: dict[str, Callable[[Any], Any]] = {
    "frozen set": lambda m: next(iter(m.frozen)),
    "set": lambda m: next(iter(m.members)),
    "key": lambda m: next(iter(m.keys)),
    "list": lambda m: m.numbers,
    "tuple": lambda m: m.row,
    "reference": lambda m: m.reference(),
}
for _name, _find in PLACES.items():
    ACTS[f"counts, {_name}"] = counts(_find, True), lambda m, find=_find: find(m).n  # type: ignore[misc]
    ACTS[f"counts unused, {_name}"] = counts(_find, False), lambda m, find=_find: find(m).n  # type: ignore[misc]


def reset() -> None:
    globals().pop("MADE", None)
    globals().pop("MEAN", None)
    globals().update(SWITCH=False)
    OBJECT.n = 0.0


def history(model: Any, after: Callable[[Any], Any]) -> list[Any]:
    found = []
    for k, length in enumerate((17, 23, 17, 17)):
        found.append(model(series(2, length, seed=k)).detach())
        found.append(repr(after(model)))
    return found


def alike(a: list[Any], b: list[Any]) -> None:
    for x, y in zip(a, b, strict=True):
        if isinstance(x, Tensor):
            torch.testing.assert_close(x, y)
        else:
            assert x == y


@pytest.mark.parametrize("name", ACTS)
def test_what_forward_changes(name: str) -> None:
    act, read = ACTS[name]
    reset()
    expected = history(Model(act), read)
    reset()
    alike(history(linrec.parallelize(Model(act), when="always"), read), expected)
    reset()


SETTING: Any = None
SETTINGS: dict[str, tuple[Any, Any, Callable[[Any, Tensor], Any]]] = {
    "dtype": (torch.float64, torch.float16, lambda s, x: x.to(s).double()),
    "device": (torch.device("cpu"), torch.device("meta"), lambda s, x: 1.0 if s.type == "cpu" else 2.0),
    "slice": (slice(0, 2), slice(1, 3), lambda s, x: x[:, :, s].sum(-1, True)),
    "range": (range(2), range(3), lambda s, x: float(len(s))),
    "decimal": (decimal.Decimal(1), decimal.Decimal(2), lambda s, x: float(s)),
    "number of numpy's": (numpy.int64(1), numpy.int64(2), lambda s, x: float(s)),
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("own", [False, True])
def test_what_others_set(name: str, own: bool) -> None:
    first, second, use = SETTINGS[name]

    def of_module(m: Any, x: Tensor) -> Any:
        return use(m.part, x)

    def of_file(m: Any, x: Tensor) -> Any:
        return use(SETTING, x)

    def put(m: Any) -> None:
        if own:
            m.part = second if m.part == first else first
        else:
            globals()["SETTING"] = second if SETTING == first else first

    results = []
    for wrap in (lambda m: m, lambda m: linrec.parallelize(m, when="always")):
        model: Any = wrap(Model(of_module if own else of_file))
        model.part = first
        globals()["SETTING"] = first
        results.append(history(model, put))
    alike(*results)
    reset()


@pytest.mark.parametrize("name", [n for n in PLACES if n != "reference"])
def test_what_others_count(name: str) -> None:
    find, results = PLACES[name], []

    def count(m: Any) -> None:
        find(m).n += 1.0

    for wrap in (lambda m: m, lambda m: linrec.parallelize(m, when="always")):
        results.append(history(wrap(Model(lambda m, x: find(m).n)), count))
    alike(*results)
