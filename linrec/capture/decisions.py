"""Branches on tensors that always go the same way: checks of arguments, of finite numbers, early stops that do not
come. A plan is for the way that they went when it was made, and asks at every call whether they do: around the loop
once, in a step for all steps together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from linrec.ir.obstruction import refuse

Asked = Sequence[tuple[bool, str]]
"""How the branches of a run went, in order, and which lines asked."""


_APART = 2
"""In how many first steps a branch may go another way than in the others."""

_COMPARISONS: dict[str, Callable[..., Tensor]] = {
    "equal": lambda a, b: (a == b).all(),
    "allclose": lambda a, b, *rest, **given: torch.isclose(a, b, *rest, **given).all(),
}


def is_asked(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a call tells something of the numbers in tensors as a truth value: `bool` of one, and `equal` or
    `allclose` of two."""
    name = getattr(func, "__name__", "")
    if name == "__bool__":
        return isinstance(args[0], Tensor)
    tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
    return name in _COMPARISONS and len(tensors) == 2 and tensors[0].shape == tensors[1].shape


def condition_of(func: Any, args: Any, kwargs: Any) -> Tensor:
    """What such a call asks for, as a tensor."""
    if func.__name__ in _COMPARISONS:
        return _COMPARISONS[func.__name__](*args, **kwargs)
    condition: Tensor = args[0].clone()  # as it is now: it may be written into later
    return condition


@dataclass(frozen=True)
class Decision:
    """A branch on a tensor.

    Attributes:
        condition: what holds the condition: a tensor, or its `Slot`; for all steps in the order in which they asked.
        outcome: how it went; in a step, how in all steps but the first ones.
        lines: which lines asked, the user's first.
        index: which of those that the same lines ask it is.
        period: how many the same lines ask in one step; 0 around the loop.
        before: how it went in the first steps, where that was otherwise: a state that is still zero.
    """

    condition: Any
    outcome: bool
    lines: str
    index: int = 0
    period: int = 0
    before: tuple[bool, ...] = ()

    @property
    def way(self) -> tuple[bool, tuple[bool, ...]]:
        """How it went, in the first steps and in the others."""
        return self.outcome, self.before

    @property
    def location(self) -> str:
        """The user's line."""
        return self.lines.partition(" ")[0]

    @property
    def otherwise(self) -> str:
        """What there is to say of a call in which it goes the other way."""
        return f"the branch at {self.location} goes otherwise than when it was compiled"

    def holds(self, condition: Tensor) -> bool:
        """Whether it goes as it did."""
        if not self.period:
            return bool(condition) is self.outcome
        if self.before:
            if condition[: len(self.before)].tolist() != list(self.before):
                return False
            condition = condition[len(self.before) :]
        return bool(condition.all()) if self.outcome else not bool(condition.any())

    def expects(self, asked: int) -> bool:
        """How it should go where the same lines were asked so many times before."""
        step = asked // self.period if self.period else 0
        return self.before[step] if step < len(self.before) else self.outcome


def per_step(shorter: Asked, longer: Asked, growth: int) -> dict[str, int]:
    """How many branches each of the lines asks in one step, from runs of two lengths.

    Raises:
        Refused: LR015 where that is not the same in all steps.
    """
    counts = [Counter(lines for _, lines in asked) for asked in (shorter, longer)]
    found = {}
    for lines in {**counts[0], **counts[1]}:
        more = counts[1][lines] - counts[0][lines]
        if more < 0 or more % growth:
            raise refuse("LR015", "A step branches on a tensor.", lines.partition(" ")[0])
        found[lines] = more // growth
    return found


def grouped(decided: Sequence[Decision], asked: Asked, periods: dict[str, int]) -> list[Decision]:
    """One decision for each branch around the loop, and for each in a step.

    Raises:
        Refused: LR015 where a branch goes one way in some steps and the other way in others.
    """
    found: dict[tuple[str, int], list[Decision]] = {}
    seen: Counter[str] = Counter()
    for decision, (_, lines) in zip(decided, asked, strict=True):
        period = periods.get(lines, 0)
        index = seen[lines] % period if period else seen[lines]
        seen[lines] += 1
        found.setdefault((lines, index), []).append(replace(decision, lines=lines, index=index, period=period))
    return [_together(group) for group in found.values()]


def _together(group: list[Decision]) -> Decision:
    first = group[0]
    if not first.period:
        return first
    ways = [d.outcome for d in group]
    apart = next((k for k in range(len(ways)) if len(set(ways[k:])) == 1), 0)
    if apart > min(_APART, len(ways) - 2) or any(d.condition.numel() != 1 for d in group):
        raise refuse("LR015", "A step branches on a tensor.", first.location)
    conditions = [d.condition if d.condition.dtype is torch.bool else d.condition != 0 for d in group]
    whole = torch.stack([c.reshape(()) for c in conditions])
    return replace(first, condition=whole, outcome=ways[-1], before=tuple(ways[:apart]))


def first_otherwise(decisions: Sequence[Decision], asked: Asked) -> Decision | None:
    """The first branch of a run that goes otherwise, or is another one."""
    known = {(d.lines, d.index): d for d in decisions}
    periods = {d.lines: d.period for d in decisions}
    seen: Counter[str] = Counter()
    for outcome, lines in asked:
        period = periods.get(lines, 0)
        decision = known.get((lines, seen[lines] % period if period else seen[lines]))
        if decision is None or decision.expects(seen[lines]) is not outcome:
            return decision or decisions[-1]
        seen[lines] += 1
    missing = [d for d in decisions if d.index >= seen[d.lines]]
    return missing[0] if missing else None
