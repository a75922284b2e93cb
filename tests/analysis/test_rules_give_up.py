"""Where the rules of the polynomial domain give up, and what they see besides tensors of one state."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.rules import Algebra, overloads

from .graphs import BATCH, StepGraph
from .numeric import Numbers
from .rule_cases import _LONG, _SINGLE, CASES, Case, F, M, N, S
from .test_rules import build

aten = torch.ops.aten
B = BATCH

_CURVED = ("tanh", "sigmoid", "relu", "abs", "exp", "sin", "sgn", "reciprocal", "sqrt", "gelu", "silu")
GIVES_UP = [
    *(Case(getattr(aten, name).default, (S(4, 3),), {}) for name in _CURVED),
    Case(aten.div.Tensor, (F(B, 3), S(B, 3)), {}),
    Case(aten.div.Tensor, (S(B, 3), S(3)), {}),
    Case(aten.div.Scalar, (S(B, 3), 0), {}),
    *(Case(target, (S(B, 3), N), {}) for target in (aten.div.Tensor, aten.mul.Tensor, aten.full_like.default)),
    *(Case(target, (S(B, 3), F(B, 3)), {"alpha": N}) for target in (aten.add.Tensor, aten.sub.Tensor)),
    Case(aten.pad.default, (S(B, 3), [1, 0], "constant", N), {}),
    Case(aten.addcdiv.default, (F(4, 3), F(4, 3), S(4, 3)), {}),
    Case(aten.where.self, (S(B, 3, dtype=torch.bool), F(B, 3), F(B, 3)), {}),
    Case(aten.where.ScalarOther, (S(B, 3, dtype=torch.bool), F(B, 3), 2.0), {}),
    Case(aten.masked_fill.Scalar, (F(B, 3), S(B, 3, dtype=torch.bool), 0.5), {}),
    Case(aten.masked_fill.Tensor, (F(B, 3), S(B, 3, dtype=torch.bool), F()), {}),
    *(Case(aten.pow.Tensor_Scalar, (S(4, 3), exponent), {}) for exponent in (0, -1, 0.5, 4)),
    Case(aten.einsum.default, ("...i,ij->...j", [S(4, 3), F(3, 4)]), {}),
    Case(aten.einsum.default, ("bii->bi", [S(4, 3, 3)]), {}),
    Case(aten.einsum.default, ("bii,bi->bi", [S(4, 3, 3), F(4, 3)]), {}),
    Case(aten.mean.dim, (S(B, 3), [0]), {}),
    Case(aten.mean.dim, (S(B, 3), None), {}),
    Case(aten.mean.dim, (S(4, 0), [1]), {}),
    *(Case(aten.sum.dim_IntList, (S(4, 3), [1]), {"dtype": dtype}) for dtype in (torch.int64, _SINGLE)),
    *(Case(aten.sum.default, (S(4, 3),), {"dtype": dtype}) for dtype in (torch.int64, _SINGLE)),
    *(Case(aten.cumsum.default, (S(4, 3), 1), {"dtype": dtype}) for dtype in (torch.int64, _SINGLE)),
    Case(aten.mean.dim, (S(4, 3), [1]), {"dtype": _SINGLE}),
    Case(aten.mean.default, (S(4, 3),), {"dtype": _SINGLE}),
    Case(aten.masked_fill.Tensor, (S(4, 3, dtype=_SINGLE), M(4, 3), F()), {}),
    Case(aten.addcmul.default, (S(3, dtype=_LONG), F(3, dtype=_LONG), F(3, dtype=_LONG)), {"value": 1.5}),
    *(
        Case(aten.addmv.default, (S(3, dtype=_LONG), F(3, 3, dtype=_LONG), F(3, dtype=_LONG)), {name: 1.5})
        for name in ("beta", "alpha")
    ),
    Case(aten._to_copy.default, (S(4, 3),), {"dtype": torch.float32}),
    Case(aten.to.dtype, (S(4, 3), torch.int64), {}),
    Case(aten.type_as.default, (S(4, 3), F(2, dtype=_SINGLE)), {}),
    Case(aten.to.device, (S(4, 3), torch.device("meta"), torch.float64), {}),
    Case(aten.slice.Tensor, (S(B, 3), 0, 1, 3), {}),
    Case(aten.narrow.default, (S(B, 3), 0, 1, 2), {}),
    Case(aten.select.int, (S(B, 3), 0, 1), {}),
    Case(aten.flip.default, (S(5000),), {"dims": [0]}),
    Case(aten.roll.default, (S(4, 3), [1]), {}),
    Case(aten.constant_pad_nd.default, (S(4, 3), [1, 0], 1.5), {}),
    Case(aten.pad.default, (S(4, 3), [1, 0], "constant", 1.5), {}),
    Case(aten.repeat_interleave.self_int, (S(4, 3), 2), {}),
    Case(aten.avg_pool1d.default, (S(4, 4, 6), [3], [1], [1], False, False), {}),
    Case(aten.avg_pool1d.default, (S(4, 4, 6), [3], [2], [0], True), {}),
    Case(aten.mean.default, (S(B, 3),), {}),
    Case(aten.linalg_solve.default, (S(3, 3), F(3)), {}),
    Case(aten.cumsum.default, (S(B, 3), 0), {}),
    Case(aten.real.default, (S(4, 3, dtype=torch.complex128),), {}),
    Case(aten._conj.default, (S(4, 3, dtype=torch.complex128),), {}),
    Case(aten.fft_irfft.default, (S(4, 3, dtype=torch.complex128),), {}),
]
"""Of the state, but not polynomial in it as far as the rule can tell: then it has to say so."""


@pytest.mark.parametrize("c", GIVES_UP, ids=repr)
def test_a_rule_gives_up(c: Case) -> None:
    built = build(c, "5" in repr(c).replace("5000", "").replace("0.5", "").replace("1.5", ""))
    for expand in (False, True):
        p, _ = built.polynomial(expand)
        assert any(m.of_kind("opaque") for m in p.terms), f"it is no polynomial: {p}"


def member(target: Any, index: int, *args: Any, **kwargs: Any) -> tuple[Polynomial, Tensor, Tensor]:
    """One member of what an operator makes of a state: its polynomial, what that is in numbers, and what it should be."""
    torch.manual_seed(0)
    step = StepGraph()
    state = step.input(torch.randn(BATCH, 6, dtype=torch.float64))
    several = step.call(target, state, *args, **kwargs)
    node = step.call(operator.getitem, several, index)
    step.finish(node)
    algebra = Algebra({state}, {several, node})
    p = algebra.of(node)
    return p, Numbers(algebra.space, step.values, BATCH).tensor(p, torch.float64), step.values[node]


@pytest.mark.parametrize("index", [0, 2, -1])
@pytest.mark.parametrize(
    ("target", "args", "kwargs"),
    [
        (aten.split.Tensor, (2, 1), {}),
        (aten.split.Tensor, (2,), {"dim": -1}),
        (aten.split_with_sizes.default, ([1, 2, 3], 1), {}),
        (aten.chunk.default, (3, -1), {}),
        (aten.unbind.int, (1,), {}),
        (aten.unbind.int, (), {"dim": -1}),
    ],
)
def test_a_member_of_several(target: Any, args: Any, kwargs: Any, index: int) -> None:
    p, found, expected = member(target, index, *args, **kwargs)
    assert not any(m.of_kind("opaque") for m in p.terms)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_member_of_something_else() -> None:
    assert all(m.of_kind("opaque") for m in member(aten.sort.default, 0, 1)[0].terms)


@pytest.mark.parametrize("c", [c for c in CASES if "zeros" in str(c.target)], ids=repr)
def test_zeros_are_known_to_be_zeros(c: Case) -> None:
    for expand in (False, True):
        assert build(c, symbolic=True).polynomial(expand)[0].terms == ()


def test_truth_values_of_a_state_are_opaque() -> None:
    """Logic on them may look like arithmetic: `mul` is `and`."""
    built = build(Case(aten.mul.Tensor, (S(B, 3, dtype=torch.bool), M(B, 3)), {}), symbolic=True)
    p, _ = built.polynomial(expand=False)
    assert any(m.of_kind("opaque") for m in p.terms)


def test_what_reads_no_state_is_looked_into_only_where_asked() -> None:
    step = StepGraph()
    state, a, b = (step.input(torch.randn(BATCH, 3, dtype=torch.float64)) for _ in range(3))
    product = step.call(aten.mul.Tensor, a, b)
    node = step.call(aten.mul.Tensor, state, product)
    step.finish(node)
    factors = {}
    for expand in (False, True):
        (term,) = Algebra({state}, {node}, expand).of(node).terms
        factors[expand] = {f.atom.node for f in term.factors}
    assert factors == {False: {state, product}, True: {state, a, b}}


def test_a_packet_stands_for_all_its_operators() -> None:
    assert overloads((aten.neg.default,)) == [aten.neg.default]
    assert {aten.mul.Tensor, aten.mul.Scalar} < set(overloads((aten.mul, operator.getitem)))
    assert overloads((operator.getitem,)) == [operator.getitem]
