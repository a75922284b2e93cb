"""After how many steps the steps of a call repeat: asked where no plan is found for which every step does the same, or
where it turns out at a longer call that they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from linrec.capture.discover import TimeAxis
from linrec.capture.periods import ALL, lengths_of, periods_of
from linrec.capture.probe import differentiable, record, resize
from linrec.capture.recorders import Record
from linrec.capture.repeats import Repeats
from linrec.runtime.shortruns import counted

_SHOWS = 512
"""The most steps of a run in which a long period is looked for."""


def find_period(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis, surely: bool, long: bool
) -> int:
    """After how many steps the steps of forward repeat.

    Args:
        module: the module; forward: its unwrapped forward; spec, leaves: of the call; axis: its time dimension.
        surely: only where all that operators take says that they do, and that they do not after every step.
        long: whether few steps are known not to show it: then it is read off a run of this length first.

    Returns:
        the number of steps, a multiple of the axis' unit; that where it cannot be said.
    """
    unit = axis.unit
    length = (leaves[axis.leaf].shape[axis.dim] - axis.dims[axis.leaf][axis.dim]) // unit

    def number(n: int) -> Record:
        return counted(module, forward, spec, resize(leaves, axis.dims, unit * n))

    def closely(n: int) -> Record:
        found = record(module, forward, spec, differentiable(resize(leaves, axis.dims, unit * n), leaves))
        found.output = None
        return found

    shortest, repeats = axis.shown_at // unit + 1, Repeats(closely)
    try:
        found = _long(repeats, shortest, length) if long else 1
        return unit * (found if found > 1 else _short(number, repeats, shortest, length, surely or long))
    except Exception:  # Refused, and what the user's code raises at a length that it does not take
        return unit


def _short(number: Callable[[int], Record], repeats: Repeats, shortest: int, length: int, surely: bool) -> int:
    alike = repeats.agree(1, shortest, length)
    found = _long(repeats, shortest, length) if alike else 1  # where they are not, it is longer than these show
    if found > 1 or (alike and surely):
        return found
    likely = 1
    for period in periods_of(number, shortest, length):
        if period <= ALL and repeats.agree(period, shortest, length):
            return period
        likely = period if likely == 1 else likely  # the number of operators speaks for it, and nothing else does
        if period > ALL:
            break
    found = 1 if alike else _long(repeats, shortest, length)
    return found if found > 1 or surely else likely


def _long(repeats: Repeats, shortest: int, length: int) -> int:
    for period in repeats.long_periods(min(length, _SHOWS), shortest):
        if lengths_of(period, length, shortest)[0] <= length and repeats.agree(period, shortest, length):
            return period
    return 1
