"""Loops whose steps take turns: every other step keeps its output, every eighth detaches the state. What a whole period
of steps does is a step then, at lengths that are whole periods more or less than that of the call."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterator
from typing import NamedTuple

from torch import Tensor
from torch.utils import _pytree as pytree

from linrec.capture.recorders import Record

_PERIODS = (*range(2, 17), 20, 24, 25, 30, 32, 40, 48, 50, 60, 64, 80, 96, 100, 120, 128, 256)
"""Those that are looked for."""

ALL = 16
"""Up to which period every one is looked for, at every length and not at a few of them."""

_CALLS = 600
"""The most calls of a period, which is traced six times."""


def periods_of(run: Callable[[int], Record], shortest: int, length: int) -> Iterator[int]:
    """After how many steps more the same number of operators is added at every length, and of elements to the results.

    Args:
        run: what forward does at a length; shortest: the shortest length at which it runs; length: that of the call.

    Yields:
        those of `_PERIODS` of which that is true, the shortest one first, as far as a period can be traced.
    """

    @functools.cache
    def amounts(length: int) -> Counter[Hashable]:
        found = run(length)
        sizes = [x.shape if isinstance(x, Tensor) else () for x in pytree.tree_leaves(found.output)]
        counts: Counter[Hashable] = Counter(found.calls)
        counts.update({_Size(k, d): n for k, size in enumerate(sizes) for d, n in enumerate(size)})
        return counts

    def is_period(period: int) -> bool:
        growth = _difference(amounts(shortest + period), amounts(shortest))
        later = [*range(1, 2 * period + 1, period // 7), period] if period > ALL else range(1, ALL + 1)
        return _calls(growth) > 0 and all(
            _difference(amounts(shortest + n + period), amounts(shortest + n)) == growth for n in later
        )

    for period in _PERIODS:
        if lengths_of(period, length, shortest)[0] > max(length, 5 * ALL):
            return  # of no use to this call, and it would take long to see
        if is_period(period):
            if _calls(_difference(amounts(shortest + period), amounts(shortest))) > _CALLS:
                return
            yield period


class _Size(NamedTuple):
    """A dimension of a result."""

    leaf: int
    dim: int


def _calls(amounts: dict[Hashable, int]) -> int:
    return sum(n for key, n in amounts.items() if not isinstance(key, _Size))


def _difference(more: Counter[Hashable], fewer: Counter[Hashable]) -> dict[Hashable, int]:
    every = {key: more[key] - fewer[key] for key in more | fewer}
    return {key: n for key, n in every.items() if n}


def lengths_of(period: int, length: int, shortest: int) -> tuple[int, int]:
    """The two lengths to trace for calls of a length: three periods show what they have in common, and the first and
    the last one often differ from the others; of long ones the first and the last step."""
    least = max(shortest, 4 * period if period <= ALL else 3 * period + 4)
    first = least + (length - least) % period
    return first, first + 2 * period
