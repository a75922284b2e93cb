"""Lengths that Python counts, and what a model decides on them at some lengths only, which neither traces of a few
steps show nor a run at a greater length."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.capture import counted
from linrec.capture.counted import Records, differ

from .samples import agree, series

questions = sys.modules["linrec.capture.questions"]
TABLE = {41: 2.0}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="linrec keeps the original code")
        yield


Decision = Callable[[int, int, list[Tensor], Tensor], float]
DECISIONS: dict[str, Decision] = {
    "the last step": lambda t, n, out, x: 2.0 if t % 64 == 40 else 1.0,
    "a counter": lambda t, n, out, x: 2.0 if n % 64 == 41 else 1.0,
    "a list": lambda t, n, out, x: 2.0 if len(out) == 41 else 1.0,
    "a range": lambda t, n, out, x: 2.0 if len(range(x.shape[1])) == 41 else 1.0,
    "an array": lambda t, n, out, x: 2.0 if np.zeros(x.shape[1]).size == 41 else 1.0,
    "among some": lambda t, n, out, x: 2.0 if n in {3, 41} else 1.0,
    "as text": lambda t, n, out, x: 2.0 if str(n) == "41" else 1.0,
    "in a string": lambda t, n, out, x: 2.0 if f"{n:d}" == "41" else 1.0,
    "in a table": lambda t, n, out, x: TABLE.get(n, 1.0),
    "by a key": lambda t, n, out, x: TABLE[n] if n in TABLE else 1.0,
    "a difference": lambda t, n, out, x: 2.0 if not n - 41 else 1.0,
    "at most": lambda t, n, out, x: float(min(n, 30)),
    "a root": lambda t, n, out, x: float(math.isqrt(n)),
    "a part": lambda t, n, out, x: float(int(0.9 * n)),
    "a part of a size": lambda t, n, out, x: float(int(0.9 * x.shape[1])),
}


def model(decide: Decision) -> Callable[[Tensor], Tensor]:
    def forward(x: Tensor) -> Tensor:
        h, out, n, t = torch.zeros_like(x[:, 0]), [], 0, 0
        for t, u in enumerate(x.unbind(1)):
            h = 0.9 * h + u
            out.append(h)
            n += 1
        return torch.stack(out, 1) * decide(t, n, out, x)

    return forward


@pytest.mark.parametrize("name", DECISIONS)
def test_another_way_at_a_length_within_those_that_were_seen(name: str) -> None:
    loop = model(DECISIONS[name])
    ours = linrec.parallelize(loop)
    for length in (100, 41, 33, 105, 41):
        agree(ours(series(2, length)), loop(series(2, length)))


class Counter(nn.Module):
    """Counts in an attribute."""

    def forward(self, x: Tensor) -> Tensor:
        h, out, self.n = torch.zeros_like(x[:, 0]), [], 0
        for u in x.unbind(1):
            h = 0.9 * h + u
            out.append(h)
            self.n += 1
        self.n %= 41
        return torch.stack(out, 1) if self.n else -torch.stack(out, 1)


def test_a_counter_that_is_an_attribute() -> None:
    ours, loop = linrec.parallelize(Counter()), Counter()
    for length in (100, 82, 33, 41):
        agree(ours(series(2, length)), loop(series(2, length)))
        assert ours.n == loop.n


def test_steps_that_are_an_argument() -> None:
    def forward(x: Tensor, steps: int) -> Tensor:
        h, out = x, []
        for _ in range(steps):
            h = 0.9 * h + x
            out.append(h)
        return torch.stack(out, 1) * (2 if steps % 16 == 9 else 1)

    ours, x = linrec.parallelize(forward), torch.randn(2, 3)
    for steps in (100, 41, 20, 25):
        agree(ours(x, steps), forward(x, steps), 1e-5)


def settled(x: Tensor, scale: float = 1.0, gain: float | None = None) -> Any:
    """Everything that loops ask and that has one answer."""
    h, out, total, n = torch.zeros_like(x[:, 0]), [], torch.zeros_like(x[:, 0]), 0
    names = ["a", "b"]
    for t, u in enumerate(x.unbind(1)):
        if t > 0 and len(out) != 0:
            h = 0.9 * out[-1] + u * scale / 2
        h = h + 0.5 if t % 2 == 0 else h - 0.5
        out.append(h)
        total = total + h
        n += 1
    i = 0
    while i < n:
        total = total + out[i]
        i += 1
    assert x.shape[1] == x.clone().size(1) and x.shape[1] - 1 > 0
    assert n > 1 and len(out) == n and t == n - 1, f"{names[0]} {scale * 2}"
    if gain is not None and out:
        total = total * gain
    return torch.stack(out, 1), total / n, out[n - 1], out[len(out) - 2]


def test_what_has_one_answer_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[bool] = []
    monkeypatch.setattr(questions, "differ", lambda *args: found.append(differ(*args)) or found[-1])
    ours = linrec.parallelize(settled)
    for length in (40, 21, 64):
        agree(ours(series(2, length)), settled(series(2, length)))
    assert found and not any(found)


def test_whoever_traces_goes_on_doing_so() -> None:
    def trace(frame: Any, event: str, arg: Any) -> Any:
        return None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with counted.watched(Records()):
            assert sys.gettrace() is not trace
        assert sys.gettrace() is trace
    finally:
        sys.settrace(before)
