"""Tensors that modules hold: states from call to call in tuples, dicts, lists and dataclasses, parameters in containers,
one tensor under several names, and what a first call notes once."""

from __future__ import annotations

import collections
import copy
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import counted_exports

D = 3


class Pair(NamedTuple):
    """Both states, as a named tuple."""

    h: Tensor
    g: Tensor


@dataclasses.dataclass
class Record:
    """Both states, as a dataclass."""

    h: Tensor
    g: Tensor


def series(seed: int = 0, batch: int = 2) -> Tensor:
    return torch.randn(batch, 12 + seed, D, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Stateful(nn.Module):
    """Goes on from the states of the last call."""

    def __init__(self, get: Callable[[Any], Any], put: Callable[[Any, Tensor, Tensor], None], first: Any) -> None:
        super().__init__()
        self.drive = nn.Linear(D, D)
        self.get, self.put = get, put
        self.kept = first

    def forward(self, x: Tensor) -> Tensor:
        found = self.get(self)
        h, g = found if found is not None else (torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]))
        u, out = self.drive(x), []
        for t in range(x.shape[1]):
            h = 0.9 * h + u[:, t]
            g = 0.5 * g + h
            out.append(h + g)
        self.put(self, h.detach(), g.detach())
        return torch.stack(out, 1)


def _whole(make: Callable[[Tensor, Tensor], Any]) -> Callable[[Any, Tensor, Tensor], None]:
    def put(m: Any, h: Tensor, g: Tensor) -> None:
        m.kept = make(h, g)

    return put


def _into(*keys: Any) -> Callable[[Any, Tensor, Tensor], None]:
    def put(m: Any, h: Tensor, g: Tensor) -> None:
        target = m.kept
        for key in keys[:-2]:
            target = target[key]
        target[keys[-2]], target[keys[-1]] = h, g

    return put


def _fields(m: Any, h: Tensor, g: Tensor) -> None:
    m.kept.h, m.kept.g = h, g


def _refilled(m: Any, h: Tensor, g: Tensor) -> None:
    m.kept[:] = [h, g]


WAYS: dict[str, tuple[Any, Any, Any]] = {
    "tuple": (lambda m: m.kept, _whole(lambda h, g: (h, g)), None),
    "list": (lambda m: m.kept, _whole(lambda h, g: [h, g]), None),
    "named tuple": (lambda m: m.kept, _whole(Pair), None),
    "dict": (lambda m: m.kept and (m.kept["h"], m.kept["g"]), _whole(lambda h, g: {"h": h, "g": g}), None),
    "nested": (lambda m: m.kept and m.kept["a"][1], _whole(lambda h, g: {"a": [1, (h, g)]}), None),
    "dataclass": (lambda m: m.kept and (m.kept.h, m.kept.g), _whole(Record), None),
    "items of a dict": (lambda m: (m.kept["h"], m.kept["g"]) if m.kept else None, _into("h", "g"), {}),
    "items of an ordered dict": (
        lambda m: (m.kept["h"], m.kept["g"]) if m.kept else None,
        _into("h", "g"),
        collections.OrderedDict(),
    ),
    "items of a list": (lambda m: m.kept if m.kept[0] is not None else None, _into(0, 1), [None, None]),
    "items within": (
        lambda m: m.kept["a"] if m.kept["a"][0] is not None else None,
        _into("a", 0, 1),
        {"a": [None] * 2},
    ),
    "refilled list": (lambda m: m.kept if m.kept else None, _refilled, []),
    "fields": (lambda m: (m.kept.h, m.kept.g), _fields, Record(torch.zeros(2, D).double(), torch.ones(2, D).double())),
}


def gradients(model: nn.Module, x: Tensor) -> list[Tensor | None]:
    model.zero_grad()
    x = x.clone().requires_grad_()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in model.parameters())]


@pytest.mark.parametrize("way", WAYS)
def test_states_from_call_to_call(way: str) -> None:
    torch.manual_seed(0)
    loop = Stateful(*WAYS[way]).double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for k in range(6):
        torch.testing.assert_close(gradients(fast, series(k)), gradients(loop, series(k)))
        torch.testing.assert_close(fast.get(fast), loop.get(loop))
    assert type(fast.kept) is type(loop.kept)
    with counted_exports() as exports:
        gradients(fast, series(7))
    assert not exports[0]
    assert linrec.report(fast).parallel, linrec.report(fast)
    fast.kept, loop.kept = copy.deepcopy(WAYS[way][2]), copy.deepcopy(WAYS[way][2])
    torch.testing.assert_close(gradients(fast, series(1)), gradients(loop, series(1)))


def test_other_changes_of_containers_are_refused() -> None:
    def grown(m: Any, h: Tensor, g: Tensor) -> None:
        m.kept.append(h)

    def cleared(m: Any, h: Tensor, g: Tensor) -> None:
        m.kept.pop("h", None)
        m.kept["g"] = g

    def counted(m: Any, h: Tensor, g: Tensor) -> None:
        m.kept["n"] += 1

    for put, first, refused in (
        (grown, [], True),
        (cleared, {"h": torch.zeros(2, D)}, False),
        (counted, {"n": 0}, True),
    ):
        loop = Stateful(lambda m: None, put, first).double()
        fast = linrec.parallelize(copy.deepcopy(loop))
        for k in range(3):
            torch.testing.assert_close(gradients(fast, series(k)), gradients(loop, series(k)))
            assert len(fast.kept) == len(loop.kept)
        torch.testing.assert_close(fast.kept, loop.kept)
        # A key that is gone after the first call is no change at the second.
        assert {o.id for o in linrec.report(fast).obstructions} == ({"LR013"} if refused else set())


class Shared(nn.Module):
    """The same tensor under two names."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, D, bias=False), nn.Linear(D, D, bias=False)
        ones = torch.ones(D)
        self.how = how
        if how == "parameter":
            self.b.weight = self.a.weight
        self.register_buffer("p", ones)
        self.register_buffer("q", ones if how == "buffer" else ones.clone())
        zeros = torch.zeros(2, D, dtype=torch.float64)
        self.h: Tensor = zeros
        self.g = zeros if how == "attribute" else zeros.clone()
        self.both = [zeros, zeros] if how == "list" else [zeros.clone(), zeros.clone()]
        self.table = {"w": self.a.weight}

    def forward(self, x: Tensor) -> Tensor:
        h, g, out = self.h + self.both[0], self.g - 2 * self.both[1], []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.a(x[:, t]) * self.p
            g = 0.5 * g + x[:, t] @ self.table["w"]
            out.append(self.b(h) * self.q + g)
        return torch.stack(out, 1)


@pytest.mark.parametrize("how", ["parameter", "buffer", "attribute", "list", "dict"])
def test_one_tensor_under_two_names_that_becomes_two(how: str) -> None:
    torch.manual_seed(0)
    loop = Shared(how).double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    torch.testing.assert_close(gradients(fast, series()), gradients(loop, series()))
    for model in (fast, loop):
        new = torch.arange(D * D, dtype=torch.float64).view(D, D)
        if how == "parameter":
            model.b.weight = nn.Parameter(new.clone())
        elif how == "buffer":
            model.q = new[0].clone()
        elif how == "attribute":
            model.g = new[:2].clone()
        elif how == "list":
            model.both[1] = new[:2].clone()
        else:
            model.table["w"] = new.clone()
    torch.testing.assert_close(gradients(fast, series(1)), gradients(loop, series(1)))
    assert linrec.report(fast).parallel


class Once(nn.Module):
    """Notes at its first call that it was called."""

    def __init__(self, note: Callable[[Any], None]) -> None:
        super().__init__()
        self.drive = nn.Linear(D, D)
        self.note, self.called, self.calls = note, False, 0

    def forward(self, x: Tensor) -> Tensor:
        self.note(self)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + self.drive(x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def _flag(m: Any) -> None:
    m.called = True


def _count(m: Any) -> None:
    m.calls += 1


@pytest.mark.parametrize("note, parallel", [(_flag, True), (_count, False)])
def test_what_a_first_call_notes(note: Callable[[Any], None], parallel: bool) -> None:
    torch.manual_seed(0)
    loop = Once(note).double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for k in range(4):
        torch.testing.assert_close(gradients(fast, series(k)), gradients(loop, series(k)))
        assert (fast.called, fast.calls) == (loop.called, loop.calls)
    assert bool(linrec.report(fast).parallel) is parallel
    with counted_exports() as exports:
        gradients(fast, series(5))
    assert not exports[0]
    new = Once(note).double()
    assert bool(linrec.explain(new, series()).parallel) is parallel
    assert (new.called, new.calls) == (False, 0)
