"""What evaluates the rules: which nodes it looks into, and what it does with results that cannot be right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx

from linrec.analysis.complex_rules import MAX_PARTS, parts
from linrec.analysis.polynomial import NoRule, Polynomial
from linrec.analysis.rules import RULES, Algebra
from linrec.capture.autocast import MARK

from .graphs import BATCH, StepGraph
from .numeric import Numbers

aten = torch.ops.aten


class Step:
    """One state (B, 3), a state-free value of its shape, and calls on them."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.graph = StepGraph()
        self.state, self.x = (self.graph.input(torch.randn(BATCH, 3, dtype=torch.float64)) for _ in range(2))
        self.core: set[fx.Node] = set()

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call(target, *args, **kwargs)
        if any(n is self.state or n in self.core for n in node.all_input_nodes):
            self.core.add(node)
        return node

    def input(self, tensor: Tensor) -> fx.Node:
        return self.graph.input(tensor)

    def polynomial(self, node: fx.Node, expand: bool = False) -> tuple[Polynomial, Tensor]:
        """What a node is, and in numbers."""
        algebra = Algebra({self.state}, self.core, expand)
        p = algebra.of(node)
        expected = self.graph.values[node]
        expected = expected if expected.is_complex() else expected.to(torch.float64)
        found = Numbers(algebra.space, self.graph.values, BATCH).tensor(p, expected.dtype)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        return p, found


def kinds(p: Polynomial) -> set[str]:
    return {f.atom.kind for m in p.terms for f in m.factors}


def test_a_result_of_fewer_dimensions_is_broadcast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, aten.ones_like.default, lambda algebra, node, a, **_: algebra.space.constant(1))
    step = Step()
    p, _ = step.polynomial(step.call(aten.ones_like.default, step.state))
    assert p.rank == 2 and [m.coefficient for m in p.terms] == [1] and not kinds(p)


def test_a_result_of_another_shape_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(algebra: Algebra, node: fx.Node, a: Any, *_: Any) -> Polynomial:
        return algebra.space.add(a, algebra.leaf("value", wider))

    monkeypatch.setitem(RULES, aten.sum.dim_IntList, lambda algebra, node, a, *_: a)
    monkeypatch.setitem(RULES, aten.neg.default, wrong)
    step = Step()
    wider = step.input(torch.randn(2, BATCH, 3, dtype=torch.float64))
    for node in (step.call(aten.sum.dim_IntList, step.state, [1], True), step.call(aten.neg.default, step.state)):
        assert kinds(step.polynomial(node)[0]) == {"opaque"}


@pytest.mark.parametrize("expand", [False, True])
def test_what_a_condition_or_divisor_computes_of_the_state_is_no_parameter(expand: bool) -> None:
    step = Step()
    moved = step.call(aten.add.Tensor, step.state, step.x)
    positive = step.call(aten.gt.Scalar, moved, 0)
    for node in (
        step.call(aten.div.Tensor, step.x, moved),
        step.call(aten.addcdiv.default, step.x, step.x, moved),
        step.call(aten.where.self, positive, step.x, step.state),
        step.call(aten.masked_fill.Scalar, step.x, positive, 0.5),
    ):
        assert kinds(step.polynomial(node, expand)[0]) == {"opaque"}


def test_truth_values_and_narrow_integers_are_not_looked_into() -> None:
    """A sum of truth values is their or, and bytes wrap: 200 + 100 is 44."""
    step = Step()
    masks = [step.input(torch.tensor(row)) for row in ([True, True, False], [True, False, False])]
    both = step.call(aten.add.Tensor, *masks)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        great = step.input(torch.full((3,), torch.iinfo(dtype).max, dtype=dtype))
        both = step.call(aten.mul.Tensor, both, step.call(aten.add.Scalar, great, 2))
    node = step.call(aten.mul.Tensor, step.state, both)
    for expand in (False, True):
        p, _ = step.polynomial(node, expand)
        assert kinds(p) == {"state", "value"}


def test_integers_of_full_width_are_looked_into() -> None:
    step = Step()
    number = step.input(torch.tensor([2, -3, 4]))
    node = step.call(aten.mul.Tensor, step.state, step.call(aten.sub.Tensor, number, number))
    assert step.polynomial(node, expand=True)[0].terms == ()


def test_zeros_of_integers_are_zeros() -> None:
    step = Step()
    node = step.call(aten.zeros_like.default, step.x, dtype=torch.int32)
    assert step.polynomial(node)[0].terms == ()


def test_only_numbers_and_tensors_are_terms() -> None:
    algebra = Algebra(set(), set())
    one = algebra.lift(1)
    assert algebra.lift(one) is one
    for number in (2, -0.5, 1j):
        assert [m.coefficient for m in algebra.lift(number).terms] == [number]
    for other in (True, "1", None, torch.float64):
        with pytest.raises(NoRule):
            algebra.lift(other)


def test_what_is_no_tensor_is_itself() -> None:
    step = Step()
    size = step.graph.batch()
    algebra = Algebra({step.state}, set())
    assert algebra.of(size) is size
    assert algebra.of(3) == 3
    assert algebra.of(step.state) is algebra.of(step.state)


def test_a_cast_that_autocast_made_may_round() -> None:
    step = Step()
    node = step.call(aten._to_copy.default, step.state, dtype=torch.float32)
    assert kinds(Algebra({step.state}, step.core).of(node)) == {"opaque"}
    node.meta[MARK] = True
    assert kinds(Algebra({step.state}, step.core).of(node)) == {"state"}


@pytest.mark.parametrize("target", [aten.full_like.default, aten.masked_fill.Scalar])
def test_what_integers_are_filled_with_is_cut(target: Any) -> None:
    step = Step()
    whole = step.call(aten.zeros_like.default, step.x, dtype=torch.int64)
    mask = step.call(aten.gt.Scalar, step.x, 0)
    node = step.call(target, whole, *([mask] if target is aten.masked_fill.Scalar else []), -2.75)
    p, _ = step.polynomial(node, expand=True)
    assert [m.coefficient for m in p.terms] == [-2]


def complex_values(step: Step, count: int) -> list[fx.Node]:
    return [step.input(torch.randn(3, dtype=torch.complex128)) for _ in range(count)]


@pytest.mark.parametrize(("count", "known"), [(6, True), (7, False)])
def test_the_parts_of_a_product_of_many_complex_values(count: int, known: bool) -> None:
    assert (2**count <= MAX_PARTS) is known
    step = Step()
    node = step.state
    for factor in complex_values(step, count):
        node = step.call(aten.mul.Tensor, node, factor)
    assert ("opaque" not in kinds(step.polynomial(step.call(aten.real.default, node))[0])) is known


def repeated(step: Step) -> fx.Node:
    """The batch size times a part of the state."""
    row = step.call(aten.select.int, step.state, 1, 1)
    spread = step.call(aten.expand.default, step.call(aten.unsqueeze.default, row, 0), [step.graph.batch(), -1])
    return step.call(aten.sum.dim_IntList, spread, [0])


def test_the_parts_of_what_has_a_symbolic_coefficient() -> None:
    step = Step()
    node = repeated(step)
    algebra = Algebra({step.state}, step.core)
    with pytest.raises(NoRule, match="a symbolic size"):
        parts(algebra, algebra.of(node))


def test_the_conjugate_of_a_real_tensor_is_itself() -> None:
    step = Step()
    for target in (aten.conj.default, aten.conj_physical.default, aten.real.default):
        assert kinds(step.polynomial(step.call(target, repeated(step)))[0]) == {"state", "selection"}


def test_the_parts_of_infinite_numbers() -> None:
    step = Step()
    number = step.call(aten.mul.Tensor, step.state, complex(0, float("inf")))
    algebra = Algebra({step.state}, step.core)
    (term,) = algebra.of(step.call(aten.imag.default, number)).terms
    assert term.coefficient == float("inf")


def test_pairs_of_reals_are_two_selections() -> None:
    step = Step()
    value = step.call(aten.mul.Tensor, step.state, complex_values(step, 1)[0])
    p, _ = step.polynomial(step.call(aten.view_as_real.default, value))
    rows = {f.atom.rows for m in p.terms for f in m.factors if f.atom.kind == "selection"}
    assert rows == {(0, -1), (-1, 0)}


def test_single_pairs_of_reals() -> None:
    step = Step()
    two = step.call(aten.stack.default, [step.call(aten.sum.default, step.state)] * 2)
    whole = step.call(aten.view_as_complex.default, two)
    assert step.polynomial(whole)[0].rank == 0
    assert step.polynomial(step.call(aten.view_as_real.default, whole))[0].rank == 1
