"""What forward does to other things than its results: done once a call, as the loop does it, whatever trial runs the
compiler makes of it."""

from __future__ import annotations

import array
import collections
import copy
import itertools
import queue
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.runtime import dispatcher

D = 3
COUNTS: collections.Counter[str] = collections.Counter()
RECENT: collections.deque[int] = collections.deque(maxlen=100)
TOTAL, BYTES, NUMBERS = np.zeros(1), bytearray(1), array.array("d", [0.0])
STATISTICS = {"n": 0}
SEEN: list[int] = []
TENSOR, TENSORS = torch.zeros(1), [torch.zeros(1)]


def track() -> None:
    track.n += 1  # type: ignore[attr-defined]


class Meter:
    """An object of the user's that counts elsewhere."""

    total = 0

    def bump_class(self) -> None:
        Meter.total += 1

    def bump_global(self) -> None:
        STATISTICS["n"] += 1


METER = Meter()


class Model(nn.Module):
    def __init__(self, act: Callable[[Any], Any], source: Any = None) -> None:
        super().__init__()
        self.drive, self.w = nn.Linear(D, D), nn.Parameter(torch.linspace(0.1, 0.9, D))
        self.act, self.source = act, source
        self.numbers, self.meter, self.plain, self.held = np.zeros(1), Meter(), torch.zeros(1), {"t": torch.zeros(1)}
        self.note = SEEN.append

    def forward(self, x: Tensor) -> Tensor:
        found = self.act(self)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = h * self.w + self.drive(x[:, t])
            out.append(h)
        y = torch.stack(out, 1)
        return y * found if isinstance(found, float) else y


def _add(to: Any) -> None:
    to[0] += 1


def _no_grad(change: Callable[[Any], Any]) -> Callable[[Any], None]:
    def act(m: Any) -> None:
        with torch.no_grad():
            change(m)

    return act


CHANGES: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "counter": (lambda m: COUNTS.update(k=1), lambda m: COUNTS["k"]),
    "deque": (lambda m: RECENT.append(1), lambda m: len(RECENT)),
    "array": (lambda m: _add(TOTAL), lambda m: TOTAL[0]),
    "array of the module": (lambda m: _add(m.numbers), lambda m: m.numbers[0]),
    "bytes": (lambda m: _add(BYTES), lambda m: BYTES[0]),
    "array of Python's": (lambda m: _add(NUMBERS), lambda m: NUMBERS[0]),
    "function's attribute": (lambda m: track(), lambda m: track.n),  # type: ignore[attr-defined]
    "class attribute by an object": (lambda m: m.meter.bump_class(), lambda m: Meter.total),
    "global by an object": (lambda m: m.meter.bump_global(), lambda m: STATISTICS["n"]),
    "global by a global object": (lambda m: METER.bump_global(), lambda m: STATISTICS["n"]),
    "method of a list": (lambda m: m.note(1), lambda m: len(SEEN)),
    "parameter": (_no_grad(lambda m: m.drive.weight.mul_(0.9)), lambda m: m.drive.weight.sum().item()),
    "parameter, copied": (_no_grad(lambda m: m.w.copy_(m.w * 0.9)), lambda m: m.w.sum().item()),
    "parameter, by out": (_no_grad(lambda m: torch.mul(m.w, 0.9, out=m.w)), lambda m: m.w.sum().item()),
    "tensor of the module": (lambda m: m.plain.add_(1), lambda m: m.plain.item()),
    "tensor in a dict": (lambda m: m.held["t"].add_(1), lambda m: m.held["t"].item()),
    "global tensor": (lambda m: TENSOR.add_(1), lambda m: TENSOR.item()),
    "global tensor in a list": (lambda m: TENSORS[0].add_(1), lambda m: TENSORS[0].item()),
}


def _reset() -> None:
    COUNTS.clear()
    RECENT.clear()
    SEEN.clear()
    STATISTICS["n"] = Meter.total = track.n = 0  # type: ignore[attr-defined]
    TOTAL[0] = BYTES[0] = NUMBERS[0] = 0
    TENSOR.zero_()
    TENSORS[0].zero_()


def _history(act: Any, read: Any, make: Callable[[Any], Any]) -> list[float]:
    _reset()
    torch.manual_seed(0)
    found: list[float] = []
    model = make(Model(act))
    for k in range(3):
        y = model(torch.ones(2, 12 + k, D))
        found += [float(read(model)), y.sum().item()]
    return found


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_made_once(name: str) -> None:
    act, read = CHANGES[name]
    fast: list[Any] = []

    def parallelized(model: Any) -> Any:
        fast.append(linrec.parallelize(model))
        return fast[0]

    assert _history(act, read, parallelized) == pytest.approx(_history(act, read, lambda m: m), rel=1e-5)
    assert [o.id for o in linrec.report(fast[0]).obstructions][:1] == ["LR013"], linrec.report(fast[0])


def _powers() -> Any:
    value = 1.0
    while True:
        yield value
        value *= 2


SOURCES: dict[str, tuple[Callable[[], Any], Callable[[Any], float], str]] = {
    "random": (lambda: random.Random(0), lambda m: m.source.random(), "LR009"),
    "numpy": (lambda: np.random.default_rng(0), lambda m: float(m.source.random()), "LR009"),
    "numpy, old": (lambda: np.random.RandomState(0), lambda m: float(m.source.rand()), "LR009"),
    "count": (lambda: itertools.count(1.0), lambda m: next(m.source), "LR013"),
    "iterator": (lambda: iter([float(i) for i in range(1, 99)]), lambda m: next(m.source), "LR013"),
    "generator": (_powers, lambda m: next(m.source), "LR013"),
    "queue": (queue.SimpleQueue, lambda m: (m.source.put(1), float(m.source.qsize()))[1], "LR013"),
}


@pytest.mark.parametrize("name", SOURCES)
def test_sources_are_drawn_from_once(name: str) -> None:
    make, draw, reason = SOURCES[name]
    torch.manual_seed(0)
    loop = Model(draw)
    fast = linrec.parallelize(copy.deepcopy(loop))
    loop.source, fast.source = make(), make()
    for k in range(3):
        x = torch.ones(2, 12 + k, D)
        torch.testing.assert_close(fast(x), loop(x))
    assert reason in [o.id for o in linrec.report(fast).obstructions], linrec.report(fast)


def test_explain_changes_nothing() -> None:
    """Not even by the one call that it makes."""
    _reset()
    model = Model(lambda m: TENSOR.add_(1))
    assert [o.id for o in linrec.explain(model, torch.ones(2, 12, D)).obstructions] == ["LR013"]
    assert TENSOR.item() == 0
    model = Model(lambda m: next(m.source), itertools.count(1.0))
    assert [o.id for o in linrec.explain(model, torch.ones(2, 12, D)).obstructions] == ["LR013"]
    assert next(model.source) == 1.0


def test_a_buffer_that_is_written_and_returned() -> None:
    class Counts(Model):
        def __init__(self) -> None:
            super().__init__(lambda m: None)
            self.register_buffer("mean", torch.zeros(D))

        def forward(self, x: Tensor) -> Any:
            self.mean += x.mean((0, 1)).detach()
            return super().forward(x), self.mean

    loop = Counts().double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (12, 30, 9):
        x = torch.randn(2, length, D, dtype=torch.float64)
        torch.testing.assert_close(fast(x), loop(x))
        torch.testing.assert_close(fast.mean, loop.mean)
    assert linrec.report(fast).parallel


def test_an_input_that_is_changed_and_returned() -> None:
    def forward(x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        out = []
        for t in range(x.shape[1]):
            h += x[:, t]
            h *= 0.5
            out.append(h.clone())
        return torch.stack(out, 1), h

    fast = linrec.parallelize(forward)
    for length in (30, 20, 40):
        x, mine = torch.randn(2, length, D, dtype=torch.float64), torch.randn(2, D, dtype=torch.float64)
        theirs = mine.clone()
        torch.testing.assert_close(fast(x, mine), forward(x, theirs))
        torch.testing.assert_close(mine, theirs)
    assert linrec.report(fast).parallel


ASKS: dict[str, Callable[[Tensor], float]] = {
    "is_contiguous": lambda x: 2.0 if x.is_contiguous() else 1.0,
    "stride": lambda x: float(x.stride(0)),
    "storage_offset": lambda x: 1.0 + x.storage_offset(),
    "version": lambda x: 1.0 + x._version,
    "attribute": lambda x: 1.0 + getattr(x, "tag", 0),
}


@pytest.mark.parametrize("name", ASKS)
def test_questions_about_memory(name: str) -> None:
    ask = ASKS[name]

    def forward(x: Tensor) -> Tensor:
        k = ask(x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1) * k

    fast = linrec.parallelize(forward)
    x = torch.randn(2, 20, 4)
    tagged = x.clone()
    tagged.tag = 5  # type: ignore[attr-defined]
    kinds = [x, x.transpose(0, 1).contiguous().transpose(0, 1), torch.cat([x, x])[2:], x.clone().add_(0), tagged]
    for _ in range(2):
        for each in kinds:
            torch.testing.assert_close(fast(each), forward(each))


class Walking(nn.Module):
    """Masks drawn once, the next ones taken at each call: a number that moves with the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.position = 0
        self.register_buffer("masks", torch.ones(500, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        m = self.masks[self.position : self.position + x.shape[0]]  # type: ignore[index]
        self.position += x.shape[0]
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h * m + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def test_a_number_that_moves_at_every_call_is_found_out_twice_and_not_again(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(
        dispatcher, "compile_call", lambda *args, real=dispatcher.compile_call: compiled.append(0) or real(*args)
    )
    model = linrec.parallelize(nn.Sequential(Walking()))
    for _ in range(120):
        model(torch.ones(2, 9, 3, dtype=torch.float64))
    assert len(compiled) <= 2 and model[0].position == 240
    assert {o.id for o in linrec.report(model).obstructions} == {"LR013"}
    assert len(model.forward.looked) <= 96
