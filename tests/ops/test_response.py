"""Kept impulse responses follow what the matrices hold, at any length."""

from __future__ import annotations

import pytest
import torch

from linrec.ops import response as kept
from linrec.ops.powers import impulse_response
from linrec.ops.response import backwards, backwards_and_sum, response


def test_kept_responses_are_those_of_the_matrices() -> None:
    torch.manual_seed(0)
    A, B = 0.3 * torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    for change in range(3):
        for length in (5, 9, 3, 9):
            expected = impulse_response(A, B, length)
            torch.testing.assert_close(response(A, B, length), expected)
            torch.testing.assert_close(backwards(A, B, length), expected.flip(0).transpose(-1, -2))
            found = backwards_and_sum(A, B, length)
            assert found is not None
            torch.testing.assert_close(found[0], expected.flip(0).transpose(-1, -2))
            torch.testing.assert_close(found[1], expected.sum(0).mT)
        # Also by ways that no version counter sees.
        (A.data if change else A).mul_(0.5)
        B.numpy()[0] += 1.0


def test_sums_for_many_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "_SUMS", 2)
    A, B = 0.3 * torch.randn(3, 3), torch.randn(3, 1)
    for length in (9, 3, 5, 3, 9, 4, 5):
        found = backwards_and_sum(A, B, length)
        assert found is not None
        torch.testing.assert_close(found[1], impulse_response(A, B, length).sum(0).mT)


def test_learned_matrices_keep_their_derivatives() -> None:
    A = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    B = torch.randn(3, 1, dtype=torch.float64)
    with torch.no_grad():
        response(A, B, 6)
    assert backwards_and_sum(A, B, 6) is None
    (found,) = torch.autograd.grad(response(A, B, 6).square().sum(), A)
    (expected,) = torch.autograd.grad(impulse_response(A, B, 6).square().sum(), A)
    torch.testing.assert_close(found, expected)
