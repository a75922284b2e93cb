"""The state graph of a step: which carries read which, the components in the order in which they can be solved, and the
nodes that each of them needs.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from linrec.analysis.stategraph import Component, components, dependencies

from .graphs import traced


def step(function: Any, carries: int, xs: int = 1) -> fx.GraphModule:
    return traced(function, *(torch.randn(5, 3) for _ in range(carries + xs)))


def solved(function: Any, carries: int, xs: int = 1) -> list[Component]:
    return components(step(function, carries, xs), carries)


def members(found: list[Component]) -> list[tuple[tuple[int, ...], bool]]:
    return [(c.carries, c.recurrent) for c in found]


def test_one_state() -> None:
    assert members(solved(lambda h, x: (torch.tanh(h) + x,), 1)) == [((0,), True)]


def test_a_carry_that_is_not_read_is_a_delay() -> None:
    (only,) = solved(lambda previous, x: (x * 2, previous + x), 1)
    assert only == Component((0,), False, frozenset())


def test_a_chain_is_solved_from_its_source_whatever_the_order_of_the_carries() -> None:
    def chain(c: Tensor, b: Tensor, a: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return 0.5 * c + b, 0.5 * b + a, 0.5 * a + x

    assert members(solved(chain, 3)) == [((2,), True), ((1,), True), ((0,), True)]


def test_independent_states_keep_their_order() -> None:
    def apart(a: Tensor, b: Tensor, c: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return a + x, b + x, c + x

    assert [c.carries for c in solved(apart, 3)] == [(0,), (1,), (2,)]


def test_coupled_states_are_one_component() -> None:
    def rotation(re: Tensor, im: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return 0.8 * re - 0.6 * im + x, 0.6 * re + 0.8 * im

    assert members(solved(rotation, 2)) == [((0, 1), True)]


def test_the_lmu_of_2019_is_one_cycle() -> None:
    def coupled(h: Tensor, m: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        u = x + h + m
        m = 0.9 * m + u
        return torch.tanh(x + h + m), m

    assert members(solved(coupled, 2)) == [((0, 1), True)]


def test_two_cycles_and_a_reader_of_both() -> None:
    def mixed(a: Tensor, b: Tensor, c: Tensor, d: Tensor, e: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return b + x, a, d * x, c, a + c + e

    assert members(solved(mixed, 5)) == [((0, 1), True), ((2, 3), True), ((4,), True)]


def test_a_lag_of_two_is_a_recurrence_with_a_delay_inside() -> None:
    def autoregression(one: Tensor, two: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return 0.5 * one - 0.3 * two + x, one

    assert members(solved(autoregression, 2)) == [((0, 1), True)]


def test_a_shift_register_is_all_delays() -> None:
    def taps(one: Tensor, two: Tensor, three: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return x, one, two, x + one + two + three

    found = solved(taps, 3)
    assert members(found) == [((0,), False), ((1,), False), ((2,), False)]


def test_a_constant_carry_reads_itself() -> None:
    assert members(solved(lambda w, h, x: (w, h * w + x), 2)) == [((0,), True), ((1,), True)]


def test_the_core_is_what_lies_between_a_state_and_its_update() -> None:
    def gated(h: Tensor, g: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        gate = torch.sigmoid(x + g)
        h = gate * h + (1 - gate) * x
        return h, g + torch.tanh(x), torch.relu(h)

    first, second = solved(gated, 2)
    assert (first.carries, {str(n.target) for n in first.core}) == ((1,), {"aten.add.Tensor"})
    assert second.carries == (0,)
    assert sorted(str(n.target) for n in second.core) == ["aten.add.Tensor", "aten.mul.Tensor"]


def test_a_branch_that_does_not_return_to_the_state_is_not_core() -> None:
    def reads(h: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        y = torch.exp(h)
        return h + x, y

    (only,) = solved(reads, 1)
    assert [str(n.target) for n in only.core] == ["aten.add.Tensor"]


@pytest.mark.parametrize("carries", [1, 2])
def test_dependencies_are_those_of_one_step(carries: int) -> None:
    graph = step(lambda h, g, x: (h * x, g + h, torch.tanh(x)), 2)
    reads = dependencies(graph, carries)
    by_target = {str(n.target): reads[n] for n in graph.graph.nodes if n.op == "call_function"}
    expected = {"aten.mul.Tensor": {0}, "aten.add.Tensor": {0, 1} & set(range(carries)), "aten.tanh.default": set()}
    assert by_target == {k: frozenset(v) for k, v in expected.items()}


def test_no_carries() -> None:
    assert solved(lambda x: (torch.tanh(x),), 0) == []
