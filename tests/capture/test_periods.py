"""After how many steps the steps of a loop repeat, told from how many operators run at which length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
import torch

from linrec.capture.affine import AffineInt, affine_through
from linrec.capture.periods import lengths_of, period_of
from linrec.capture.recorders import Record

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
    assert period_of(lambda n: Record(calls=Counter({("add", (), True): amount(n)})), 5, 400) == period


def test_periods_of_results() -> None:
    def run(n: int) -> Record:
        return Record(calls=Counter({("add", (), True): n}), output=[torch.zeros(2, -(-n // 4), 3), "name", None])

    assert period_of(run, 5, 400) == 4


def test_long_periods_are_looked_for_in_long_calls_only() -> None:
    lengths: list[int] = []

    def run(n: int) -> Record:
        lengths.append(n)
        return Record(calls=Counter({("add", (), True): -(-n // 64)}), output=torch.zeros(n))

    assert period_of(run, 5, 100) == 1
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
