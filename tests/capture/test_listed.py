"""Which results are gathered, how they are marked, and what is assembled of the marks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from linrec.capture.listed import ItemOf, Items, Slot, assembled, gathered, marked_lists

A, B = torch.ones(2), torch.zeros(2)


def leaves(value: Any, length: int = 5) -> list[Any]:
    return pytree.tree_flatten(gathered(value, length))[0]


@pytest.mark.parametrize("count", [4, 5, 6])
@pytest.mark.parametrize("kind", [list, tuple])
def test_lists_of_all_steps(count: int, kind: type) -> None:
    assert len(leaves(kind([A] * count))) == 1
    assert len(leaves({"y": kind([(A, B)] * count), "h": A})) == 2


@pytest.mark.parametrize(
    "value",
    [
        [A] * 3,
        [A] * 7,
        {k: A for k in range(5)},
        [1] * 5,
        [()] * 5,
        [A, A, A, A, torch.ones(3)],
        [A, A, A, A, A.double()],
        [A, A, A, A, [A]],
        [(A, 1)] * 5,
        [A.to_sparse()] * 5,
    ],
    ids=repr,
)
def test_others_stay(value: Any) -> None:
    assert len(leaves(value)) == len(pytree.tree_flatten(value)[0])


def test_one_item_is_no_list_of_steps() -> None:
    assert leaves([A], 1) == [A]
    assert leaves([A], 2) == [A]


def test_marks_and_what_they_stand_for() -> None:
    rows = [(torch.full((2,), float(k)), torch.full((1,), -float(k))) for k in range(5)]
    outputs: list[Tensor] = [A]

    def put(x: Tensor) -> int:
        outputs.append(x)
        return len(outputs) - 1

    value = {"all": rows, "first": rows[0][1], "last": rows[-1][0], "other": rows[2][0], "h": A}
    flat, spec = pytree.tree_flatten(gathered(value, 5))
    marks = marked_lists(flat, put)
    assert [type(m) for m in marks[:3]] == [Items, ItemOf, ItemOf]
    assert marks[0].positions == (1, 2) and marks[0].position == 1
    assert (marks[1].position, marks[1].index, marks[1].leaf) == (1, 0, 1)
    assert (marks[2].position, marks[2].index, marks[2].leaf) == (1, -1, 0)
    assert marks[3] is rows[2][0]
    marks[3:] = [Slot(0), "plain"]
    found = assembled(spec, marks, outputs)
    assert torch.equal(outputs[1], torch.stack([a for a, _ in rows]))
    for (a, b), (c, d) in zip(found["all"], rows, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert found["first"] is found["all"][0][1] and found["last"] is found["all"][-1][0]
    assert found["other"] is A and found["h"] == "plain"


def test_a_single_result() -> None:
    spec = pytree.tree_flatten(A)[1]
    assert assembled(spec, [Slot(1)], [A, B]) is B
    assert assembled(spec, [3], [A]) == 3
    assert assembled(pytree.tree_flatten([A])[1], [Slot(0)], [A]) == [A]
    assert assembled(pytree.tree_flatten((A, B))[1], [Slot(1), Slot(0)], [A, B]) == (B, A)
