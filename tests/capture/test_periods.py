"""After how many steps the steps of a loop repeat, told from how many operators run at which length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch

from linrec.capture.affine import AffineInt, affine_through, turns_of
from linrec.capture.periods import lengths_of, periods_of
from linrec.capture.recorders import Record
from linrec.capture.repeats import Repeats

AMOUNTS: dict[str, tuple[Callable[[int], int], int]] = {
    "every other step": (lambda n: n + n // 2, 2),
    "every third step, from the second on": (lambda n: 3 * n + (n + 1) // 3, 3),
    "every second and every third": (lambda n: n + n // 2 + n // 3, 6),
    "every sixteenth": (lambda n: n + n // 16, 16),
    "every sixty-fourth": (lambda n: -(-n // 64), 64),
    "once": (lambda n: n + (n > 13), 1),
    "up to a limit": (lambda n: min(n, 12), 1),
    "more and more": (lambda n: n * n, 1),
    "every ninth and every fifth": (lambda n: n + n // 9 + n // 5, 1),
    "too much to be traced": (lambda n: 500 * n + n // 2, 1),
}


@pytest.mark.parametrize("name", list(AMOUNTS))
def test_period(name: str) -> None:
    amount, period = AMOUNTS[name]
    found = periods_of(lambda n: Record(calls=Counter({("add", (), True): amount(n)})), 5, 400)
    assert next(found, 1) == period


def test_periods_of_results() -> None:
    def run(n: int) -> Record:
        return Record(calls=Counter({("add", (), True): n}), output=[torch.zeros(2, -(-n // 4), 3), "name", None])

    assert next(periods_of(run, 5, 400)) == 4


def test_long_periods_are_looked_for_in_long_calls_only() -> None:
    lengths: list[int] = []

    def run(n: int) -> Record:
        lengths.append(n)
        return Record(calls=Counter({("add", (), True): -(-n // 64)}), output=torch.zeros(n))

    assert not list(periods_of(run, 5, 100))
    assert max(lengths) < 100


@pytest.mark.parametrize("period", [2, 3, 16])
@pytest.mark.parametrize("length", [3, 40, 41, 57])
def test_lengths_to_trace(period: int, length: int) -> None:
    first, second = lengths_of(period, length, 4)
    assert (length - first) % period == 0 and second - first == 2 * period
    assert 4 * period <= first < 5 * period and lengths_of(period, length, 90)[0] >= 90


def test_integers_at_every_so_many_lengths() -> None:
    assert affine_through(4, 6, 8, 12) is None
    half = affine_through(4, 6, 8, 12, 2)
    assert half == AffineInt(1, 0, 2) and [half.at(n) for n in (8, 10, 12, 40)] == [4, 5, 6, 20]
    odd = affine_through(5, 7, 9, 13, 2)
    assert odd == AffineInt(1, 1, 2) and [odd.at(n) for n in (9, 11, 13)] == [5, 6, 7]
    assert affine_through(7, 11, 8, 12, 2) == AffineInt(1, -1) and affine_through(0, 1, 8, 12, 2) is None
    assert affine_through(20, 14, 9, 15, 3) == AffineInt(-1, 29)


def steps(kinds: Callable[[int, int], tuple[Any, ...]], count: int) -> Record:
    """A run whose steps are two operators each: one with the given arguments, and one that adds it to the state."""
    events: list[Any] = [("zeros", (), (), ())]
    for t in range(count):
        events.append(("mul", (), kinds(t, count), ()))
        events.append(("add", (), ((2 * t + 1, 0), (2 * t + 2, 0)), ()))
    return Record(events=events, result=("tensor", ((len(events), 0),)))


REPEATING: dict[str, tuple[Callable[[int, int], tuple[Any, ...]], int]] = {
    "all alike": (lambda t, n: (("input", 0), str(t)), 1),
    "from the end": (lambda t, n: (("input", 0), str(n - 1 - t)), 1),
    "parameters in turns": (lambda t, n: (("state", "abc"[t % 3]), str(t)), 3),
    "positions in turns": (lambda t, n: (("input", 0), str(t - t % 4)), 4),
    "by the length": (lambda t, n: (("input", int(n % 2 and t == n - 1)), str(t)), 2),
    "an earlier state in every fifth step": (lambda t, n: ((max(2 * t - 2 * (t % 5 == 4) + 1, 1), 0),), 5),
    "every twentieth": (lambda t, n: (("input", t % 20 == 19), str(t)), 20),
    "longer and longer": (lambda t, n: (("input", t**2),), 0),
}


@pytest.mark.parametrize("name", list(REPEATING))
def test_after_how_many_steps_runs_repeat(name: str) -> None:
    kinds, period = REPEATING[name]
    repeats = Repeats(lambda n: steps(kinds, n))
    found = [p for p in range(1, 17) if repeats.agree(p, 5, 200)]
    if period != 20:  # which short runs do not show
        assert found == ([p for p in range(1, 17) if p % period == 0] if period else [])
    assert repeats.agree(20, 5, 200) == (period > 0 and 20 % period == 0)
    in_one_run = period > 1 and name != "by the length"
    assert repeats.long_periods(200, 5)[:1] == ([period] if in_one_run else [])


def test_integers_that_take_turns() -> None:
    assert turns_of([0, 3, 6, 9]) == turns_of([5, 4, 3]) == 1
    assert turns_of([0, 1, 4, 5, 8, 9]) == 2 and turns_of([0, 1, 4, 5, 8]) == 0
    assert turns_of([0, 1, 3, 6]) == 0 and turns_of([0, 1]) == 0
