"""States that one matrix mixes over a dimension whose size is not known: the batch, the nodes of a graph."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import linrec


class Mixed(nn.Module):
    """h[t] = d h[t-1] + w A h[t-1] + x[t] over the batch, with A made of the input, or its mean."""

    def __init__(self, own: float, ones: bool) -> None:
        super().__init__()
        self.own, self.ones, self.w = own, ones, nn.Parameter(torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        m = x.mean(1)
        A = torch.softmax(m @ m.T, -1)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            mixed = h.sum(0, keepdim=True).expand_as(h) if self.ones else A @ h
            h = self.w * mixed + x[:, t] if self.own == 0 else self.own * h + self.w * mixed + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize(("own", "ones"), [(0.0, False), (0.5, False), (0.0, True)])
def test_values_and_gradients(own: float, ones: bool) -> None:
    torch.manual_seed(0)
    loop = Mixed(own, ones).double()
    model = linrec.parallelize(copy.deepcopy(loop))
    for batch, length in ((2, 24), (3, 41), (1, 20), (5, 9)):
        x = (0.1 * torch.randn(batch, length, 5, dtype=torch.float64)).requires_grad_()
        weights = torch.randn(batch, length, 5, dtype=torch.float64)
        found = [[y, *torch.autograd.grad((y * weights).sum(), [x, m.w])] for m in (model, loop) for y in (m(x),)]
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    report = linrec.report(model)
    assert not report.obstructions and any(r.lowering == "chunked powers" for r in report.recurrences)
