"""Generalisation over length: what may differ between two traces, and what is refused, by id and text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.capture.affine import AffineInt, affine_through
from linrec.ir.obstruction import Obstruction, Refused
from tests.analysis.graphs import BATCH as B

from .rolled import finish, roll, unrolled

X = torch.randn(B, 8, 3, dtype=torch.float64)


def refusal(function: Callable[..., Any], lengths: tuple[int, int] = (4, 6), *rest: Tensor) -> Obstruction:
    time = [1, *[None] * len(rest)]
    pair = unrolled(function, [X, *rest], time, lengths[0]), unrolled(function, [X, *rest], time, lengths[1])
    with pytest.raises(Refused) as caught:
        finish(pair, time)
    return caught.value.obstruction


def running(x: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
    h = torch.zeros_like(x[:, 0])
    for t in range(start, x.shape[1] if stop is None else stop):
        h = 0.9 * h + x[:, t]
    return h


def test_affine_functions_of_the_length() -> None:
    assert affine_through(5, 7, 4, 6) == AffineInt(1, 1)
    assert affine_through(8, 12, 4, 6) == AffineInt(2, 0)
    assert affine_through(3, 3, 4, 6) == AffineInt(0, 3)
    assert affine_through(3, 1, 4, 6) == AffineInt(-1, 7)
    assert affine_through(2, 3, 4, 6) is None
    assert AffineInt(-2, 3).at(10) == -17


def test_a_slice_of_half_the_length_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        return running(x) + x[:, : x.shape[1] // 2].sum(1)

    found = refusal(forward)
    assert found.id == "LR005"
    assert "2 at length 4" in found.explanation
    assert "3 at 6" in found.explanation
    assert found.location.startswith("test_generalize.py:")


def test_a_float_of_the_length_is_refused() -> None:
    found = refusal(lambda x: running(x) * (0.5 / x.shape[1]))
    assert found.id == "LR005"
    assert "0.125 at length 4" in found.explanation


def test_an_integer_of_the_length_in_a_product_is_no_obstacle() -> None:
    roll(lambda x: running(x) * (3 * x.shape[1] - 1), X)
    roll(lambda x: x[:, : x.shape[1] - 1].sum(1) + running(x), X)
    roll(lambda x: running(x).unsqueeze(1).expand(-1, x.shape[1], -1) + x, X)


def test_a_branch_on_the_step_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(h) + x[:, t] if t % 2 else 0.9 * h
        return torch.exp(h)

    def late(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            if t == 4:
                h = torch.tanh(h)
        return h

    assert refusal(late).id == "LR004"
    assert refusal(forward, (5, 6)).id == "LR004"


def test_a_branch_on_the_length_is_refused() -> None:
    found = refusal(lambda x: torch.tanh(running(x)) if x.shape[1] > 4 else running(x))
    assert found.id == "LR004"


def test_a_loop_that_grows_with_the_square_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            for s in range(t):
                h = 0.5 * h + x[:, s]
        return h

    assert refusal(forward).id == "LR004"


def test_a_scalar_power_of_the_step_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t] * 0.5**t
        return h

    assert refusal(forward).id in ("LR004", "LR005")


def test_a_constant_tensor_of_the_length_is_refused() -> None:
    def forward(x: Tensor) -> Tensor:
        return running(x) + torch.full_like(x[:, 0], 1.5) * torch.tensor(2.0 / x.shape[1])

    assert refusal(forward).id in ("LR004", "LR005")


def test_another_structure_of_the_result_is_refused() -> None:
    def forward(x: Tensor) -> list[Tensor]:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            out.append(h)
        return out

    assert refusal(forward).id == "LR004"


def test_a_window_as_wide_as_the_sequence_is_refused_or_right() -> None:
    def forward(x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, : t + 1].sum(1)
        return h

    assert refusal(forward).id == "LR004"


def test_a_cap_on_the_steps_shows_when_it_is_below_the_lengths() -> None:
    assert refusal(lambda x: running(x, stop=min(x.shape[1], 5))).id == "LR004"


def test_a_fixed_number_of_steps_is_no_loop_over_time() -> None:
    assert roll(lambda x: running(x, stop=3), X).scans == []
