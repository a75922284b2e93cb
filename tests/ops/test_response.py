"""Kept impulse responses follow what the matrices hold, at any length."""

from __future__ import annotations

import torch

from linrec.ops.powers import impulse_response
from linrec.ops.response import backwards, response


def test_kept_responses_are_those_of_the_matrices() -> None:
    torch.manual_seed(0)
    A, B = 0.3 * torch.randn(4, 4, dtype=torch.float64), torch.randn(4, 2, dtype=torch.float64)
    for change in range(3):
        for length in (5, 9, 3, 9):
            expected = impulse_response(A, B, length)
            torch.testing.assert_close(response(A, B, length), expected)
            torch.testing.assert_close(backwards(A, B, length), expected.flip(0).transpose(-1, -2))
        # Also by ways that no version counter sees.
        (A.data if change else A).mul_(0.5)
        B.numpy()[0] += 1.0


def test_learned_matrices_keep_their_derivatives() -> None:
    A = (0.3 * torch.randn(3, 3, dtype=torch.float64)).requires_grad_()
    B = torch.randn(3, 1, dtype=torch.float64)
    with torch.no_grad():
        response(A, B, 6)
    (found,) = torch.autograd.grad(response(A, B, 6).square().sum(), A)
    (expected,) = torch.autograd.grad(impulse_response(A, B, 6).square().sum(), A)
    torch.testing.assert_close(found, expected)
