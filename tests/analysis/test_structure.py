"""The verdict on a step: affine or not, with terms that cancel; the transition's class; what is blamed otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from linrec.analysis.equation import equation
from linrec.analysis.stategraph import components
from linrec.analysis.structure import recurrence_of
from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import LinearRecurrence
from linrec.passes.simplify import merge_equal

from .graphs import BATCH, evaluate, traced
from .numeric import Numbers

B = BATCH
Step = Callable[..., Any]


def verdict(
    function: Step,
    states: int | list[Tensor] = 1,
    xs: int | list[Tensor] = 1,
    consts: list[Tensor] | None = None,
    symbolic: bool = True,
) -> LinearRecurrence | Obstruction:
    """What the analysis says about the only component of a step; an affine one is rebuilt from its polynomials."""
    torch.manual_seed(0)
    groups = [x if isinstance(x, list) else [torch.randn(B, 3).double() for _ in range(x)] for x in (states, xs)]
    consts = consts or []
    tensors = [*groups[0], *groups[1], *consts]
    step = traced(function, *tensors, symbolic=symbolic)
    merge_equal(step.graph)
    (component,) = [c for c in components(step, len(groups[0])) if c.recurrent]
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    series = placeholders[len(groups[0]) :][: len(groups[1])]
    found = recurrence_of(step, component, series)
    if isinstance(found, LinearRecurrence):
        sizes = [BATCH] * (len(placeholders) - len(tensors))
        values = evaluate(step.graph, dict(zip(placeholders, [*tensors, *sizes], strict=True)))
        _holds(found, step, values, component.carries)
    return found


def _holds(found: LinearRecurrence, step: fx.GraphModule, values: dict[fx.Node, Any], carries: tuple[int, ...]) -> None:
    """Each polynomial is its update in numbers, and at most linear in the states."""
    output = next(n for n in step.graph.nodes if n.op == "output")
    numbers = Numbers(found.algebra.space, values, BATCH)
    for i, p in zip(carries, found.updates, strict=True):
        assert all(len(m.of_kind("state")) <= 1 and not m.of_kind("opaque") for m in p.terms)
        expected = values[output.args[0][i]]
        torch.testing.assert_close(numbers.tensor(p, expected.dtype), expected, rtol=1e-10, atol=1e-10)


def affine(function: Step, *args: Any, **kwargs: Any) -> LinearRecurrence:
    found = verdict(function, *args, **kwargs)
    assert isinstance(found, LinearRecurrence), str(found)
    return found


def not_affine(function: Step, *args: Any, **kwargs: Any) -> Obstruction:
    found = verdict(function, *args, **kwargs)
    assert isinstance(found, Obstruction), str(found.updates)
    return found


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, dtype=dtype)


AFFINE: dict[str, Step] = {
    "a square that cancels": lambda h, g: ((h + g) ** 2 - h**2 - g**2,),
    "a square that cancels, multiplied out": lambda h, g: ((h + g) * (h + g) - h * h - g * g,),
    "a product that cancels": lambda h, x: ((h + h * h) - h * h + x,),
    "a product that cancels to nothing": lambda h, x: (h * h - h * h + x,),
    "a cube that cancels": lambda h, x: ((h + x) ** 3 - h**3 - 3 * h * h * x - 3 * h * x * x,),
    "a nonlinearity that cancels": lambda h, x: (torch.tanh(h) * x + h - x * torch.tanh(h),),
    "the difference of two squares": lambda h, x: ((h + x) * (h - x) - h * h,),
    "an interpolation": lambda h, x: (torch.lerp(x, h, 0.25),),
    "a gate on both sides": lambda h, x: (torch.sigmoid(x) * h + (1 - torch.sigmoid(x)) * x,),
    "a mask with the state on both sides": lambda h, x: (torch.where(x > 0, h, 0.5 * h + x),),
    "a mask that kills a square": lambda h, x: (torch.where(x > 0, h, 0) * torch.where(x > 0, 0, h) + h,),
    "division by something free": lambda h, x: (h / (1 + x * x) + x / 2,),
    "the state as a matrix, seen as one": lambda h, x: (h.reshape(-1, 3, 1).expand(-1, 3, 2).mean(-1) + x,),
    "a sum that is spread again": lambda h, x: (h.sum(-1, keepdim=True) + x,),
    "a projection onto a key": lambda h, k: (h - k * (k * h).sum(-1, keepdim=True),),
    "a normalised free value": lambda h, x: (h + torch.nn.functional.normalize(x, dim=-1),),
    "a clamp of something free": lambda h, x: (h * x.clamp(0, 1) + x,),
    "padding that is multiplied away": lambda h, x: (h + h.tanh() * 0 + x,),
}


@pytest.mark.parametrize("name", AFFINE)
def test_affine(name: str) -> None:
    affine(AFFINE[name])


NOT_AFFINE: dict[str, Step] = {
    "tanh": lambda h, x: (torch.tanh(h) + x,),
    "square": lambda h, x: (h * h + x,),
    "square by an operator": lambda h, x: (h.square() + x,),
    "pow": lambda h, x: (h**2 + x,),
    "square root": lambda h, x: (h**0.5 + x,),
    "clamp": lambda h, x: ((h + x).clamp(-1, 1),),
    "relu": lambda h, x: (torch.relu(h + x),),
    "abs": lambda h, x: (h.abs() + x,),
    "a rounding cast": lambda h, x: ((h + x).float().double(),),
    "a rounding cast to bfloat16": lambda h, x: (h.bfloat16().double() + x,),
    "a cast to integers": lambda h, x: ((h + x).long().double(),),
    "rounding": lambda h, x: (h.round() + x,),
    "remainder": lambda h, x: (h % 1.0 + x,),
    "a mask that reads the state": lambda h, x: (torch.where(h > 1, 0.0, h + x),),
    "a mask that reads the state, filled": lambda h, x: ((h + x).masked_fill(h > 1, 0.0),),
    "a comparison as a number": lambda h, x: (h + x - (h > 1).double(),),
    "division by the state": lambda h, x: (x / (1 + h),),
    "division by the norm of the state": lambda h, x: (h / h.norm(dim=-1, keepdim=True) + x,),
    "division of the state by itself": lambda h, x: (h / h + x,),
    "softmax over the state": lambda h, x: (h.softmax(-1) + x,),
    "layer norm of the state": lambda h, x: (torch.nn.functional.layer_norm(h, [3]) + x,),
    "maximum": lambda h, x: (torch.maximum(h, x) * 0.5,),
    "a gate that reads the state": lambda h, x: (torch.sigmoid(h + x) * h + x,),
    "the state times a view of itself": lambda h, x: (h * h.flip(-1) + x,),
    "the state times its sum": lambda h, x: (h * h.sum(-1, keepdim=True) + x,),
    "a sum of squares": lambda h, x: ((h * h).sum(-1, keepdim=True) + x,),
    "squares that do not cancel": lambda h, x: ((h + x) ** 2 - h**2 * 0.5 - x**2,),
    "squares of different elements": lambda h, x: (h * h - h.flip(-1) * h.flip(-1) + x,),
    "an exponential that does not cancel": lambda h, x: (torch.exp(h) * x - torch.exp(h) + h,),
    "cumulative maximum": lambda h, x: (h.cummax(-1).values + x,),
    "sorting": lambda h, x: (h.sort(-1).values + x,),
    "an index by the state": lambda h, x: (x.gather(-1, h.argmax(-1, keepdim=True)) + h,),
    "the power of a free base": lambda h, x: (0.5**h + x,),
}


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_not_affine(name: str) -> None:
    found = not_affine(NOT_AFFINE[name])
    assert found.id == "LR003"


def test_detach_is_affine_in_value_only() -> None:
    found = not_affine(lambda h, x: (0.5 * h.detach() + x,))
    assert found.id == "LR007"


def test_detach_of_something_free_is_no_obstacle() -> None:
    affine(lambda h, x: (0.5 * h + x.detach(),))


def test_detach_beside_the_recurrence_is_no_obstacle() -> None:
    affine(lambda h, x: (0.5 * h + x, h.detach() * 2))


def kinds(found: LinearRecurrence) -> tuple[str, bool]:
    return found.transition.kind, found.transition.time_invariant


def test_identity() -> None:
    assert kinds(affine(lambda h, x: (h + x,))) == ("identity", True)
    assert kinds(affine(lambda h, x: (x - (-h),))) == ("identity", True)
    assert kinds(affine(lambda h, x: (2 * h - h + x,))) == ("identity", True)


def test_diagonal_constant() -> None:
    assert kinds(affine(lambda h, x: (0.9 * h + x,))) == ("diagonal", True)
    assert kinds(affine(lambda h, x: (-h + x,))) == ("diagonal", True)
    assert kinds(affine(lambda h, x, w: (torch.exp(-w) * h + x,), consts=[draw(3)])) == ("diagonal", True)
    assert kinds(affine(lambda h, x: (h + h + x,))) == ("diagonal", True)


def test_diagonal_time_varying() -> None:
    assert kinds(affine(lambda h, x: (x * h + 1,))) == ("diagonal", False)
    assert kinds(affine(lambda h, x: (h.masked_fill(x > 0, 0.0) + 1,))) == ("diagonal", False)
    assert kinds(affine(lambda h, x: (h / (1 + x.exp()),))) == ("diagonal", False)


def test_a_gate_per_row_is_diagonal() -> None:
    assert kinds(affine(lambda h, x: (x[:, :1] * h + x,))) == ("diagonal", False)


def test_a_counter_makes_a_transition_time_varying() -> None:
    count = torch.tensor(3)
    found = affine(lambda h, x, t: (h * (t / (t + 1)) + x,), xs=[draw(B, 3), count])
    assert kinds(found) == ("diagonal", False)


def test_a_drive_that_changes_leaves_the_transition_constant() -> None:
    found = affine(lambda h, x, w: (h * w + x * w,), consts=[draw(3)])
    assert kinds(found) == ("diagonal", True)


def test_complex_states() -> None:
    states, inputs = [draw(B, 3, dtype=torch.complex128)], [draw(B, 3)]
    found = affine(lambda h, x, w: (torch.exp(1j * w) * h + x,), states, inputs, [draw(3)])
    assert kinds(found) == ("diagonal", True)
    assert found.transition.is_complex
    assert not affine(lambda h, x: (h * 0.5 + x,)).transition.is_complex


def test_conjugation_is_not_affine_over_the_complex_numbers() -> None:
    not_affine(lambda h, x: (h.conj() * 0.5 + x,), [draw(B, 3, dtype=torch.complex128)])
    not_affine(lambda h, x: (h.real * 0.5 + x + 0j,), [draw(B, 3, dtype=torch.complex128)])


@pytest.mark.parametrize("symbolic", [False, True])
def test_dense(symbolic: bool) -> None:
    matrix, weights = draw(3, 3), [draw(3, 3)]
    steps: list[tuple[Step, list[Tensor]]] = [
        (lambda h, x, a: (h @ a + x,), [matrix]),
        (lambda h, x, a: (h @ a.T + x,), [matrix]),
        (lambda h, x, w: (torch.nn.functional.linear(h, w) + x,), weights),
        (lambda h, x, w: (torch.einsum("bi,ij->bj", h, w) + x,), weights),
        (lambda h, x, w: (h + 0.1 * (h @ w) + x,), weights),
        (lambda h, x, w: (h.unsqueeze(1).matmul(w).squeeze(1) + x,), weights),
    ]
    for step, consts in steps:
        found = affine(step, consts=consts, symbolic=symbolic)
        assert kinds(found) == ("dense", True)
        assert (found.transition.axis, len(found.transition.column)) == (1, 1)


def test_dense_on_another_axis() -> None:
    states, inputs = [draw(B, 3, 4)], [draw(B, 3, 4)]
    found = affine(lambda h, x, a: (a @ h + x,), states, inputs, [draw(3, 3)])
    assert kinds(found) == ("dense", True)
    assert found.transition.axis == 1


def test_dense_time_varying() -> None:
    states, inputs = [draw(B, 3)], [draw(B, 3, 3)]
    found = affine(lambda h, a: (torch.einsum("bi,bij->bj", h, a),), states, inputs)
    assert kinds(found) == ("dense", False)


def test_a_sum_over_the_state_is_dense() -> None:
    found = affine(lambda h, x: (h - h.mean(-1, keepdim=True) + x,))
    assert kinds(found) == ("dense", True)


def test_a_sum_over_the_batch_is_not_diagonal() -> None:
    for symbolic in (False, True):
        found = affine(lambda h, x: (h - h.sum(0, keepdim=True) + x,), symbolic=symbolic)
        assert kinds(found)[0] in ("dense", "other")


def test_householder_products_are_dense_and_time_varying() -> None:
    states, inputs = [draw(B, 3, 4)], [draw(B, 3), draw(B, 4)]

    def delta(s: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        return (s + torch.einsum("bk,bv->bkv", k, v - torch.einsum("bk,bkv->bv", k, s)),)

    assert kinds(affine(delta, states, inputs)) == ("dense", False)


def test_two_axes_contracted_are_something_else() -> None:
    states, inputs = [draw(B, 3, 4)], [draw(B, 3, 4)]
    found = affine(lambda h, x, a, b: (a @ h @ b + x,), states, inputs, [draw(3, 3), draw(4, 4)])
    assert kinds(found) == ("other", True)


def test_a_transposed_state_is_something_else() -> None:
    states, inputs = [draw(B, 3, 3)], [draw(B, 3, 3)]
    assert kinds(affine(lambda h, x: (0.5 * h.mT + x,), states, inputs)) == ("other", True)


def test_block() -> None:
    found = affine(lambda a, b, x: (0.8 * a - 0.6 * b + x, 0.6 * a + 0.8 * b), states=2)
    assert kinds(found) == ("block", True)
    found = affine(lambda a, b, x: (a * x + b, a), states=2)
    assert kinds(found) == ("block", False)


def test_coupled_states_of_different_shape() -> None:
    states, inputs = [draw(B, 3, 4), draw(B, 4)], [draw(B, 3)]

    def step(s: Tensor, z: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        return s + x[:, :, None] * z[:, None, :], 0.5 * z + torch.einsum("bi,bij->bj", x, s)

    assert kinds(affine(step, states, inputs)) == ("block", False)


def test_the_cycle_of_the_coupled_lmu_is_named() -> None:
    def forward(h: Tensor, m: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        u = x + h + m
        m = 0.9 * m + u
        h = torch.tanh(x + m)
        return h, m

    found = not_affine(forward, states=2)
    assert "'tanh' reads the states 'h', 'm'" in found.explanation
    assert "h -> m -> h" in found.explanation
    assert found.location.startswith("test_structure.py:")


def test_the_operator_to_blame_is_named() -> None:
    def forward(h: Tensor, x: Tensor) -> tuple[Tensor, ...]:
        h = torch.sigmoid(h) * 0.5 + x
        return (h,)

    found = not_affine(forward)
    assert "'sigmoid' reads the state" in found.explanation
    product = not_affine(lambda h, x: (h * h + x,))
    assert "'mul' multiplies the state 'h' with itself" in product.explanation


def test_an_equation_explains_its_letters() -> None:
    """A traced function of the test has no names to take; what a letter stands for is said beside."""

    def forward(h: Tensor, x: Tensor, decay: Tensor) -> tuple[Tensor, ...]:
        return (torch.sigmoid(x) * h + torch.tanh(x),)

    found = affine(forward, consts=[draw(3)])
    formula = equation(found, ("h",))
    assert "h[t-1]" in formula.text
    assert {symbol for symbol, _ in formula.where} <= {"a[t]", "b[t]"}


def test_integers_add_up() -> None:
    states, inputs = [torch.ones(B, 3, dtype=torch.int64)], [torch.ones(B, 3, dtype=torch.int64)]
    assert kinds(affine(lambda h, x: (h + x,), states, inputs)) == ("identity", True)


def test_integer_division_is_not_affine() -> None:
    states, inputs = [torch.ones(B, 3, dtype=torch.int64)], [torch.ones(B, 3, dtype=torch.int64)]
    not_affine(lambda h, x: ((h + x) // 2,), states, inputs)


def test_sums_of_truth_values_are_not_sums() -> None:
    states, inputs = [torch.zeros(B, 3, dtype=torch.bool)], [torch.rand(B, 3) < 0.5]
    not_affine(lambda h, x: (h + x,), states, inputs)
    not_affine(lambda h, x: (h | x,), states, inputs)
    not_affine(lambda h, x: ((h.double() + x).bool(),), states, inputs)
