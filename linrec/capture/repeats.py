"""After how many steps the operators of runs repeat, told from where their arguments come from and from the integers
among them: more than their numbers tell. Which period is tried is told from this; whether it is right, the traces and
their validation have to show."""

from __future__ import annotations

import functools
import itertools
import re
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, cast

import torch

from linrec.capture.recorders import Record

_INTEGER = re.compile(r"-?\d+")

_MANY = 8
"""An operator with more arguments than these takes those of all steps, as a `stack` does."""

_STARTS = 16
"""From how many lengths on the growth over a period is compared, at most."""

_MOST = 600
"""The most operators of a period that is told from a single run."""

_MOSTLY = 0.6
"""How much of what repeats in any way has to repeat after a period."""


class _Event(NamedTuple):
    """An operator of a run.

    Attributes:
        head: what it is, with the arguments that are neither made in the run nor count anything.
        made: what made the others: the number of an operator, and which of its results.
        integers: those among the arguments that may count something; many: how many arguments, where that may grow.
    """

    head: Hashable
    made: tuple[tuple[int, int], ...]
    integers: tuple[int, ...]
    many: int


def _events(run: Record) -> list[_Event]:
    found = []
    for name, floats, inputs, *kinds in run.events:
        given: tuple[Any, ...] = inputs  # type: ignore[assignment]
        if len(given) > _MANY:
            found.append(_Event((name, floats, *kinds), (), (), len(given)))
            continue
        made = tuple(x for x in given if _is_made(x))
        integers = tuple(int(x) for x in given if _counts(x))
        found.append(_Event((name, floats, tuple(map(_own, given)), *kinds), made, integers, 0))
    return found


def _is_made(x: Any) -> bool:
    return type(x) is tuple and type(x[0]) is int


def _counts(x: Any) -> bool:
    """Whether an argument may be a step's number. Where it is counted from the end it is no other at other lengths."""
    return type(x) is str and _INTEGER.fullmatch(x) is not None and not x.startswith("-")


def _own(x: Any) -> Any:
    if _is_made(x):
        return "made"
    if _counts(x):
        return "integer"
    return "unknown" if type(x) is tuple and x[0] == "unknown" else x


class Repeats:
    """What runs of forward at several lengths say.

    Args:
        run: what forward does at a length, with its operators.
    """

    def __init__(self, run: Callable[[int], Record]) -> None:
        self._run = functools.cache(run)
        self._events = functools.cache(lambda length: _events(self._run(length)))

    def agree(self, period: int, shortest: int, length: int) -> bool:
        """Whether each `period` steps more add the same operators, with arguments from as far back, and integers that
        grow evenly.

        Args:
            period: how many steps; shortest: the shortest length at which forward runs; length: that of the call.
        """
        back = len(self._events(shortest + 2 * period)) - len(self._events(shortest))
        first = max(shortest + 2 * period, _MANY + 1)
        first += (length - first) % period
        starts = sorted({first + k * max(period, _STARTS) // _STARTS for k in range(_STARTS + 1)})
        growth = [_less(self._amounts(n + period, back)[0], self._amounts(n, back)[0]) for n in starts]
        if not growth[0] or any(other != growth[0] for other in growth):
            return False
        sums = [self._amounts(first + k * period, back)[1] for k in range(6 if period <= _STARTS else 4)]
        for _ in range(3):  # sums of the numbers of steps have no third differences
            sums = [_less(b, a) for a, b in itertools.pairwise(sums)]
        return not any(sums)

    def _amounts(self, length: int, back: int) -> tuple[dict[Hashable, int], dict[Hashable, int]]:
        """How often there is which operator, and the sums of its integers; what it takes of up to `back` operators ago
        is told from what it takes of others."""
        events = self._events(length)
        counts: Counter[Hashable] = Counter()
        sums: Counter[Hashable] = Counter()

        def place(at: int, made: tuple[int, int]) -> Hashable:
            number, which = made
            ago = at + 1 - number
            return (ago if ago <= back else _name(events[number - 1]), which)

        for at, event in enumerate(events):
            key = (event.head, tuple(place(at, made) for made in event.made))
            counts[key] += 1
            for k, x in enumerate((*event.integers, event.many)):
                sums[key, k] += x
        structure, leaves = cast("tuple[str, tuple[Any, ...]]", self._run(length).result or ("", ()))
        for k, x in enumerate(leaves):
            if _counts(x):
                sums["result", k] += int(x)
            counts["result", structure, k, place(len(events), x) if _is_made(x) else _own(x)] += 1
        return counts, sums

    def long_periods(self, length: int, shortest: int) -> list[int]:
        """After how many steps the operators of a single run may repeat, of which it shows three times as many.

        Args:
            length: that of the run; shortest: the shortest length at which forward runs.

        Returns:
            the likeliest first; none where every step is alike, or none is.
        """
        events = self._events(length)
        half = (length + shortest) // 2
        per_step = (len(events) - len(self._events(half))) / max(length - half, 1)
        names: dict[Hashable, int] = {}
        heads = torch.tensor([names.setdefault((e.head, bool(e.many)), len(names)) for e in events])
        stretches: list[tuple[int, int, int]] = []
        for distance in range(1, min(len(events) // 3, _MOST) + 1):
            same = torch.cat([_NO, (heads[distance:] == heads[:-distance]).to(torch.int8), _NO])
            edges = same.diff().nonzero().flatten().view(-1, 2)
            if len(edges):
                start, stop = edges[int((edges[:, 1] - edges[:, 0]).argmax())].tolist()
                stretches.append((distance, start, stop))
        longest = max((stop - start + distance for distance, start, stop in stretches), default=0)
        for distance, start, stop in stretches:
            # Of the steps between two that differ from the others each is like the next one, but they are few.
            if stop - start + distance < _MOSTLY * longest or stop - start < 2 * distance or per_step <= 0:
                continue
            if all(_continues(events, at, distance) for at in range(start + distance, stop)):
                steps = round(distance / per_step)
                return [k for k in (steps, steps - 1, steps + 1) if 1 < k <= length // 3] if steps > 1 else []
        return []


_NO = torch.zeros(1, dtype=torch.int8)


def _continues(events: list[_Event], at: int, distance: int) -> bool:
    """Whether an operator is to the one a period later what that of a period earlier is to it."""
    one, two, three = (events[at + k * distance] for k in (-1, 0, 1))
    integers = zip(one.integers, two.integers, three.integers, strict=True)
    if any(b - a != c - b for a, b, c in integers):
        return False
    for a, b, c in zip(one.made, two.made, three.made, strict=True):
        steady = a == b == c
        carried = b[0] - a[0] == c[0] - b[0] == distance and a[1] == b[1] == c[1]
        if not steady and not carried:
            return False
    return True


def _name(event: _Event) -> Hashable:
    return cast("tuple[Hashable, ...]", event.head)[0]


def _less(more: dict[Hashable, int], fewer: dict[Hashable, int]) -> dict[Hashable, int]:
    every = {key: more.get(key, 0) - fewer.get(key, 0) for key in more.keys() | fewer.keys()}
    return {key: n for key, n in every.items() if n}
