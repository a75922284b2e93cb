"""Every rule of the polynomial domain against the operator itself: the polynomial that it returns, in numbers, is what
the operator computes; and what the domain then calls affine, or not.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.rules import MOVES, RULES, Algebra

from .graphs import BATCH, StepGraph
from .numeric import Numbers
from .rule_cases import CASES, Arg, Case, N

aten = torch.ops.aten


@dataclass
class Built:
    """A graph of one operator, and what running it gives."""

    step: StepGraph
    node: fx.Node
    values: dict[fx.Node, Any]
    states: set[fx.Node]

    def polynomial(self, expand: bool) -> tuple[Polynomial, Algebra]:
        core = set(self.states)
        for node in self.step.graph.nodes:
            if any(n in core for n in node.all_input_nodes):
                core.add(node)
        algebra = Algebra(self.states, core - self.states, expand)
        return algebra.of(self.node), algebra


def build(c: Case, symbolic: bool) -> Built:
    torch.manual_seed(0)
    step = StepGraph(symbolic)
    states: set[fx.Node] = set()

    def place(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [place(y) for y in x]
        if x is N:
            return step.batch()
        if not isinstance(x, Arg):
            return x
        node = step.input(x.draw())
        if x.kind == "joined":
            state = step.input(torch.randn(x.shape, dtype=torch.float64))
            states.add(state)
            return step.call(aten.mul.Tensor, node, state)
        if x.kind == "state":
            states.add(node)
        return node

    args = [place(x) for x in c.args]
    node = step.call(c.target, *args, **{name: place(x) for name, x in c.kwargs.items()})
    step.finish(node)
    return Built(step, node, step.values, states)


# Their meta implementations take no symbolic sizes where an operand is broadcast.
_FIXED_ONLY = {aten.addcmul.default, aten.addcdiv.default, aten.lerp.Tensor, aten.baddbmm.default}


def _sizes(c: Case) -> list[bool]:
    """Whether the batch is a symbol: both, for operators that take sizes; else the harder of the two."""
    if c.target in _FIXED_ONLY or "5" not in repr(c):
        return [False]
    return [False, True] if "B" in repr(c) else [True]


@pytest.mark.parametrize("c", CASES, ids=repr)
def test_rule(c: Case) -> None:
    for symbolic in _sizes(c):
        check(c, symbolic)


def check(c: Case, symbolic: bool) -> None:
    built = build(c, symbolic)
    expected = built.values[built.node]
    for expand in (False, True):
        p, algebra = built.polynomial(expand)
        assert not any(m.of_kind("opaque") for m in p.terms), f"the rule gave up: {p}"
        found = Numbers(algebra.space, built.values, BATCH).tensor(p, expected.dtype)
        assert found.shape == expected.shape
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_every_rule_has_a_case() -> None:
    assert set(RULES) - {c.target for c in CASES} == {operator.getitem}, "see test_selection.py"


@pytest.mark.parametrize("c", [c for c in CASES if c.target in MOVES], ids=repr)
def test_what_moves_elements_makes_no_new_ones(c: Case) -> None:
    """Which is why such a rule holds over other semirings, whose zero is not 0: every number was there before."""
    built = build(c, False)
    leaves = [*built.values.values(), *pytree.tree_leaves((c.args, c.kwargs))]
    given = {
        x for n, v in built.values.items() if n is not built.node and isinstance(v, torch.Tensor) for x in numbers(v)
    }
    given |= {float(x) for x in leaves if type(x) in (int, float)}
    made = {x for v in pytree.tree_leaves(built.values[built.node]) for x in numbers(v)}
    assert made <= given


def numbers(x: torch.Tensor) -> list[Any]:
    return [complex(y) if isinstance(y, complex) else float(y) for y in x.flatten().tolist()]


def test_what_fills_with_zeros_moves_more_than_elements() -> None:
    assert not {aten.pad.default, aten.constant_pad_nd.default, aten.tril.default, aten.zeros_like.default} & MOVES
    assert {aten.cat.default, aten.roll.default, aten.where.self, aten.permute.default} <= MOVES
