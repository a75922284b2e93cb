"""The operators of the time axis, beyond what every rewritten graph shows of them."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from linrec.ir.timeaxis import linear, steps


@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("part", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_linear_of_all_steps(rank: int, dim: int, part: bool, bias: bool) -> None:
    if dim == 1 and rank == 2:
        dim = 0
    torch.manual_seed(0)
    shape = [4, 5, 2, 3][: rank - 1] + [6]
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    b = torch.randn(7, dtype=torch.float64, requires_grad=True) if bias else None
    length = shape[dim] - part
    xs = steps(x, dim, 0, 1, length)
    got, expected = linear(xs, w, b), F.linear(xs, w, b)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)
    weights = torch.randn(got.shape, dtype=torch.float64)
    wanted = [x, w, *([b] if b is not None else [])]
    mine, theirs = (torch.autograd.grad((y * weights).sum(), wanted, retain_graph=True) for y in (got, expected))
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_linear_leaves_time_where_it_is_in_memory() -> None:
    x = torch.randn(3, 8, 4)
    y = linear(steps(x, 1, 0, 1, 8), torch.randn(5, 4), torch.randn(5))
    assert y.shape == (8, 3, 5) and y.transpose(0, 1).is_contiguous()
    assert linear(x, torch.randn(5, 4)).is_contiguous()
