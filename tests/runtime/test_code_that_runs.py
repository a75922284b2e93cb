"""What the code that runs reads elsewhere, however it is reached; code that is replaced; other ways to ask for lengths."""

from __future__ import annotations

import collections
import copy
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linrec

from .test_surroundings import Leaky, same, series

STEP = {"n": 0.5}
ARRAY = np.full(1, 0.5)
QUEUE = collections.deque([0.5])


def _plain_gain() -> float:
    return STEP["n"]


def _noted_gain() -> float:
    return _noted_gain.gain  # type: ignore[attr-defined, no-any-return]


_noted_gain.gain = 0.5  # type: ignore[attr-defined]
FUNCTIONS: dict[str, Callable[[], float]] = {"gain": _plain_gain}


@functools.lru_cache
def _cached_gain() -> float:
    return STEP["n"]


class Schedule:
    """An object of the user's whose methods read elsewhere."""

    def __call__(self) -> float:
        return STEP["n"]

    def get(self) -> float:
        return STEP["n"]

    @property
    def now(self) -> float:
        return STEP["n"]

    def __getitem__(self, key: int) -> float:
        return STEP["n"]

    def __float__(self) -> float:
        return STEP["n"]

    def __iter__(self) -> Any:
        yield STEP["n"]

    def __enter__(self) -> float:
        return STEP["n"]

    def __exit__(self, *args: object) -> None:
        pass


SCHEDULE = Schedule()


class Wrapped:
    """A descriptor in the place of a method."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def __get__(self, owner: Any, kind: Any) -> Any:
        return functools.partial(self.function, owner)


def _entered(schedule: Schedule) -> float:
    with schedule as gain:
        return gain


READS: dict[str, Callable[[Any], float]] = {
    "object": lambda m: m.schedule(),
    "method": lambda m: m.schedule.get(),
    "property": lambda m: m.schedule.now,
    "item": lambda m: m.schedule[0],
    "number": lambda m: float(m.schedule),
    "iteration": lambda m: sum(m.schedule),
    "context": lambda m: _entered(m.schedule),
    "object in a list": lambda m: m.held[0].get(),
    "global object": lambda m: SCHEDULE.get(),
    "new object": lambda m: Schedule().get(),
    "table of functions": lambda m: FUNCTIONS["gain"](),
    "cached": lambda m: _cached_gain(),
    "by name": lambda m: float(globals()["STEP"]["n"]),
    "array": lambda m: float(ARRAY[0]),
    "deque": lambda m: QUEUE[-1],
    "deque of the module": lambda m: m.queue[-1],
    "attribute of a function": lambda m: _noted_gain(),
    "helper": lambda m: helper_of_many(),
}


def helper_of_many() -> float:
    return STEP["n"]


def _set(value: float, *models: Any) -> None:
    STEP["n"] = value
    ARRAY[0] = value
    QUEUE.append(value)
    _noted_gain.gain = value  # type: ignore[attr-defined]
    _cached_gain.cache_clear()
    for m in models:
        m.queue.append(value)


class Reading(Leaky):
    def __init__(self, read: Callable[[Any], float]) -> None:
        super().__init__()
        self.read, self.schedule, self.held = read, Schedule(), [Schedule()]
        self.queue = collections.deque([0.5])

    def gain(self) -> Any:
        return self.read(self)


@pytest.mark.parametrize("name", READS)
def test_what_code_that_runs_reads(name: str) -> None:
    """However it is reached."""
    _set(0.5)
    oracle = Reading(READS[name])
    ours = linrec.parallelize(copy.deepcopy(oracle))
    for value in (0.5, 0.9, 0.7, 0.7, 0.5):
        _set(value, oracle, ours)
        same(ours, oracle, series())
    assert linrec.report(ours).parallel


class Described(Leaky):
    @Wrapped
    def forward(self, x: Tensor) -> Tensor:
        return Leaky.forward(self, x) * STEP["n"]


def test_a_forward_that_is_no_function() -> None:
    ours, oracle = linrec.parallelize(Described()), Described()
    for value in (0.5, 0.9):
        _set(value)
        same(ours, oracle, series())
    assert linrec.report(ours).parallel


class Stepping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return self.w * h + x


class Stepped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = Stepping()

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(helper_code(h))
        return torch.stack(out, 1)


def helper_code(h: Tensor) -> Tensor:
    return h


def _other_code(h: Tensor) -> Tensor:
    return 2 * h


def _other_forward(self: Any, x: Tensor, h: Tensor) -> Tensor:
    return 0.5 * h + self.w * x


@pytest.mark.parametrize("how", ["instance", "class", "class of the child", "code"])
def test_code_that_is_replaced(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours, oracle = linrec.parallelize(Stepped()), Stepped()
    x = series()
    before = oracle(x)
    same(ours, oracle, x)
    if how == "class":
        monkeypatch.setattr(Stepping, "forward", _other_forward)
    elif how == "code":
        monkeypatch.setattr(helper_code, "__code__", _other_code.__code__)
    for m in (ours, oracle):
        if how == "instance":
            m.cell.forward = functools.partial(_other_forward, m.cell)
        elif how == "class of the child":
            m.cell.__class__ = type("Other", (Stepping,), {"forward": _other_forward})
    assert not torch.allclose(oracle(x), before)
    for each in (x, series(2, 25)):
        same(ours, oracle, each)


def test_the_default_dtype() -> None:
    def forward(x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t].to(h.dtype)
            out.append(h)
        return torch.stack(out, 1)

    fast = linrec.parallelize(forward)
    try:
        for dtype in (torch.float32, torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            x = series()
            torch.testing.assert_close(fast(x), forward(x))
    finally:
        torch.set_default_dtype(torch.float32)


LENGTHS: dict[str, Callable[[Tensor, Tensor], int]] = {
    "numel": lambda x, y: x.numel() // 6,
    "numel as it is": lambda x, y: 17 if x.numel() == 102 else 0,
    "nelement": lambda x, y: x.nelement() // 6,
    "bytes": lambda x, y: x.nbytes // 48,
    "flattened": lambda x, y: x.flatten().shape[0] // 6,
    "of the result": lambda x, y: y.numel() // 6,
    "product": lambda x, y: math.prod(x.shape) // 6,
}


@pytest.mark.parametrize("name", LENGTHS)
def test_lengths_by_other_ways(name: str) -> None:
    class Asking(Leaky):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * (2.0 if LENGTHS[name](x, y) == 17 else 1.0)

    ours, oracle = linrec.parallelize(Asking()), Asking()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (60, 17, 30, 17, 16):
            same(ours, oracle, series(2, length))
