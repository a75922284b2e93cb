"""Whether another plan may help where none serves a call, as far as what was compiled before tells."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence

from torch import Tensor, nn

from linrec.capture.periods import ALL
from linrec.runtime.compile import LONGER, Compiled

Known = tuple[Hashable, Compiled] | None
"""What was compiled for calls like one, and what makes them alike."""

MOST_PLANS, MOST_LONG = 16, 4
"""How many plans there are for one signature; how many of them for periods that take long to trace."""

AS_SHORT = ("LR010", "LR011")
"""What is said of calls that do otherwise than short ones."""

_TRIES = 3
"""For how many calls, each of them longer, it is asked after how many steps the steps repeat."""


def may_help(found: Compiled, module: nn.Module, tensors: Sequence[Tensor]) -> bool:
    """Whether there may be another plan for a call that none of those serves that there are.

    Args:
        found: what there is; module: its module; tensors: those of the call, in order.
    """
    if found.plans:
        return not _too_short(found, module, tensors)
    return _shows_more(found, tensors) and all(o.id in AS_SHORT for o in found.obstructions)


def _too_short(found: Compiled, module: nn.Module, tensors: Sequence[Tensor]) -> bool:
    """Whether a new plan would not help: the call is shorter than what is traced, a plan broke at its length, one for
    such a call was not found, or what is written has memory in common with something else."""
    failed = [tuple(x.shape) for x in tensors] in found.failed or len(found.failed) >= MOST_PLANS
    if failed and ended(found, tensors):
        return True
    for plan in found.plans:
        length = plan.length(tensors)
        if plan.only_length not in (None, length):
            return True
        same = (length - plan.min_length) % plan.period == 0
        if length <= plan.min_length - (0 if same else plan.period) and length != plan.min_length:
            return True
        if plan.broken_from is not None and length >= plan.broken_from[0] and not _shows_more(found, tensors):
            return True
        if plan.shares_what_it_writes(module, tensors):
            return True
    return len(found.plans) >= MOST_PLANS or sum(p.period > ALL for p in found.plans) >= MOST_LONG


def _shows_more(found: Compiled, tensors: Sequence[Tensor]) -> bool:
    """Whether a call is so much longer than those for which nothing was found that its steps may show more."""
    if not 0 < len(found.failed) <= _TRIES:
        return False
    most = [max(sizes) for sizes in zip(*(itertools.chain(*then) for then in found.failed), strict=True)]
    return any(n >= LONGER * m for n, m in zip(itertools.chain(*(x.shape for x in tensors)), most, strict=True))


def ended(found: Compiled, tensors: Sequence[Tensor]) -> bool:
    """Whether a plan is not for a call as long as this one, and would be if that did as shorter ones do.

    Args:
        found: what there is; tensors: those of the call, in order.
    """
    lengths = [(plan, plan.length(tensors)) for plan in found.plans]
    until = [(p.until if p.broken_from is None else p.broken_from[0], n) for p, n in lengths]
    return any(least is not None and n >= least for least, n in until)


def until_longer(found: Compiled) -> None:
    """Where there is a plan for calls as long as those that did otherwise: that is no longer a reason to have none, and
    plans that broke because of it are for shorter calls."""
    found.obstructions = [o for o in found.obstructions if o.id not in AS_SHORT]
    for plan in found.plans:
        if plan.broken_from is not None and plan.broken_from[1].id in AS_SHORT:
            plan.until, plan.broken_from = plan.broken_from[0], None
