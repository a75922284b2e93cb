"""A loop stays where every algorithm for it is expected to take longer, unless one is named."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import linrec


class Diffusion(nn.Module):
    def __init__(self, varying: bool) -> None:
        super().__init__()
        self.varying = varying
        self.rate = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))
        kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]], dtype=torch.float64)
        self.register_buffer("kernel", kernel[None, None])

    def forward(self, u: Tensor, source: Tensor) -> Tensor:
        for t in range(source.shape[0]):
            change = self.rate * F.conv2d(u, self.kernel, padding=1)
            u = u + (change * source[t] if self.varying else change + source[t])
        return u


def grids(size: int, length: int) -> tuple[Tensor, Tensor]:
    u = torch.randn(2, 1, size, size, dtype=torch.float64)
    return u.requires_grad_(), torch.rand(length, 2, 1, size, size, dtype=torch.float64).requires_grad_()


def outcome(model: nn.Module, inputs: tuple[Tensor, Tensor]) -> list[Tensor]:
    out = model(*inputs)
    return [out, *torch.autograd.grad(out.sin().sum(), [*inputs, *model.parameters()])]


@pytest.mark.parametrize("varying", [False, True])
@pytest.mark.parametrize(
    ("size", "pin", "parallel"), [(24, "", False), (3, "", True), (6, "chunked affine scan", True)]
)
def test_grids(size: int, pin: str, parallel: bool, varying: bool) -> None:
    oracle = Diffusion(varying)
    options = {"lowering": pin} if pin else {}
    model = linrec.parallelize(copy.deepcopy(oracle), when="always", **options)
    for length in (17, 9):
        inputs = grids(size, length)
        torch.testing.assert_close(outcome(model, inputs), outcome(oracle, inputs), rtol=1e-8, atol=1e-8)
    (entry,) = linrec.report(model).recurrences
    assert entry.parallel == parallel
    assert [o.id for o in entry.obstructions] == ([] if parallel else ["LR017"])
