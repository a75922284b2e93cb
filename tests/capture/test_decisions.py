"""Branches on tensors: how many of them a step asks, what is one branch, and when a call takes another way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linrec.capture.decisions import (
    Decision,
    condition_of,
    first_otherwise,
    grouped,
    is_asked,
    per_step,
)
from linrec.ir.obstruction import Refused

A, B = "model.py:3", "model.py:7 model.py:5"


def asked(*outcomes: bool, lines: str = A) -> list[tuple[bool, str]]:
    return [(outcome, lines) for outcome in outcomes]


def equal(a: object, b: object) -> None:
    """Has the name of a function of torch's."""


def decision(outcome: bool = True, numbers: int = 1) -> Decision:
    return Decision(torch.full((numbers,), outcome), outcome, "")


def test_how_many_a_step_asks() -> None:
    around, twice = asked(True, lines=B), asked(True, False)
    assert per_step([*around, *5 * twice], [*around, *7 * twice], 2) == {B: 0, A: 2}
    assert per_step(asked(*[True] * 4), asked(*[True] * 6), 2) == {A: 1}
    for shorter, longer in (([True] * 4, [True] * 5), ([True] * 5, [True] * 3)):
        with pytest.raises(Refused, match="A step branches on a tensor") as refused:
            per_step(asked(*shorter), asked(*longer, lines=A), 2)
        assert refused.value.obstruction.location == A
    assert per_step([], asked(True, True), 2) == {A: 1}
    with pytest.raises(Refused, match="A step branches on a tensor"):
        per_step(asked(True), [], 2)


def test_branches_around_the_loop_are_told_apart() -> None:
    found = grouped([decision(True), decision(False)], asked(True, False), {})
    assert [(d.outcome, d.index, d.period, d.lines) for d in found] == [(True, 0, 0, A), (False, 1, 0, A)]
    assert found[1].location == A and found[0].way == (True, ())


def test_those_of_a_step_are_one() -> None:
    outcomes = [True, False] * 4
    found = grouped([decision(o) for o in outcomes], asked(*outcomes), {A: 2})
    assert [(d.outcome, d.index, d.period) for d in found] == [(True, 0, 2), (False, 1, 2)]
    assert [d.condition.tolist() for d in found] == [[True] * 4, [False] * 4]


@pytest.mark.parametrize("first", [1, 2])
def test_first_steps_may_go_otherwise(first: int) -> None:
    outcomes = [True] * first + [False] * 4
    (found,) = grouped([decision(o) for o in outcomes], asked(*outcomes), {A: 1})
    assert found.way == (False, (True,) * first)
    assert [found.expects(k) for k in range(len(outcomes))] == outcomes
    assert found.holds(torch.tensor(outcomes)) and found.holds(torch.tensor([*outcomes, False]))
    assert not found.holds(torch.tensor([False] * len(outcomes)))
    assert not found.holds(torch.tensor([*outcomes, True]))


@pytest.mark.parametrize(
    "outcomes", [[True] * 3 + [False] * 3, [True, False] * 3, [False] * 5 + [True], [True, True, False]]
)
def test_steps_that_go_either_way_are_refused(outcomes: list[bool]) -> None:
    with pytest.raises(Refused, match="A step branches on a tensor"):
        grouped([decision(o) for o in outcomes], asked(*outcomes), {A: 1})


def test_first_steps_that_ask_twice() -> None:
    outcomes = [True, True, True, False, False, False, False, False]
    found = grouped([decision(o) for o in outcomes], asked(*outcomes), {A: 2})
    assert [d.way for d in found] == [(False, (True, True)), (False, (True,))]
    assert [found[0].expects(k) for k in range(0, 8, 2)] == outcomes[::2]
    assert [found[1].expects(k) for k in range(1, 8, 2)] == outcomes[1::2]


def test_conditions_of_several_numbers_are_refused() -> None:
    with pytest.raises(Refused, match="A step branches on a tensor"):
        grouped([decision(), decision(numbers=2), decision(), decision()], asked(*[True] * 4), {A: 1})


def test_numbers_as_conditions() -> None:
    values = [Decision(torch.tensor(1.0), True, ""), Decision(torch.tensor([0.5]), True, "")]
    (found,) = grouped([*values, *values], asked(*[True] * 4), {A: 1})
    assert found.condition.tolist() == [True] * 4
    one = Decision(torch.tensor(2.0), True, A)
    assert one.holds(torch.tensor(-1.0)) and not one.holds(torch.tensor(0.0))


def test_whether_a_call_goes_the_same_way() -> None:
    steady = Decision(None, True, A, period=1)
    assert steady.holds(torch.tensor([True, True])) and not steady.holds(torch.tensor([True, False]))
    never = Decision(None, False, A, period=1)
    assert never.holds(torch.tensor([False, False])) and not never.holds(torch.tensor([False, True]))


def test_the_first_branch_that_goes_otherwise() -> None:
    outcomes = [True, False] * 3
    known = grouped([decision(o) for o in outcomes], asked(*outcomes), {A: 2})
    known += grouped([decision(True)], asked(True, lines=B), {})
    end = asked(True, lines=B)
    assert first_otherwise(known, [*asked(*outcomes), *end]) is None
    assert first_otherwise(known, [*asked(*outcomes, *outcomes), *end]) is None
    assert first_otherwise(known, [*asked(True, True), *end]) is known[1]
    assert first_otherwise(known, [*asked(False, False), *end]) is known[0]
    assert first_otherwise(known, [*asked(*outcomes), *asked(False, lines=B)]) is known[2]
    assert first_otherwise(known, asked(*outcomes)) is known[2]  # it was not even asked
    assert first_otherwise(known, [*asked(*outcomes), *end, *asked(True, lines="other.py:1")]) is known[2]
    assert "the branch at model.py:7 goes otherwise" in known[2].otherwise


def test_what_asks() -> None:
    x = torch.ones(2)
    assert is_asked(Tensor.__bool__, (x,), {}) and not is_asked(Tensor.__len__, (x,), {})
    assert is_asked(torch.equal, (x, x), {}) and is_asked(torch.allclose, (x,), {"other": x})
    assert not is_asked(torch.equal, (x, torch.ones(3)), {}) and not is_asked(torch.add, (x, x), {})
    assert not is_asked(equal, (x, 1.0), {})
    assert not is_asked(bool.__bool__ if hasattr(bool, "__bool__") else int.__bool__, (True,), {})
    assert bool(condition_of(torch.equal, (x, x), {})) and not bool(condition_of(torch.equal, (x, 2 * x), {}))
    assert bool(condition_of(torch.allclose, (x, x + 1e-3), {"atol": 1e-2}))
    truth = condition_of(Tensor.__bool__, (x[0],), {})
    x.zero_()
    assert bool(truth)
