"""A class of recurrences in one file that registers it and touches nothing else: `examples/circulant.py`."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import linrec
from examples.circulant import Circulant, Ring
from linrec.extend import isolated, register


class Uneven(Ring):
    """A weight of its own for each cell: no circulant."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.w = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], self.width), []
        for t in range(x.shape[1]):
            h = 0.5 * self.w * torch.roll(h, 1, -1) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("kind, used", [(Ring, True), (Uneven, False)])
def test_a_class_takes_one_file(kind: type[Ring], used: bool) -> None:
    torch.manual_seed(0)
    loop = kind(6).double()
    with isolated():
        register(Circulant())
        model = linrec.parallelize(copy.deepcopy(loop))
        for batch, length in ((2, 9), (3, 40), (2, 100)):
            x = torch.randn(batch, length, 6, dtype=torch.float64, requires_grad=True)
            expected, found = loop(x), model(x)
            weight = torch.randn_like(expected)
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
            for f, e in zip(
                torch.autograd.grad(found, [x, *model.parameters()], weight, allow_unused=True),
                torch.autograd.grad(expected, [x, *loop.parameters()], weight, allow_unused=True),
                strict=True,
            ):
                assert (f is None) == (e is None)
                if e is not None:
                    torch.testing.assert_close(f, e, rtol=1e-9, atol=1e-9)
        (entry,) = linrec.report(model).recurrences
        assert entry.parallel
        assert (entry.lowering == "circulant by FFT") == used
    assert linrec.report(linrec.parallelize(copy.deepcopy(loop), x)).recurrences[0].lowering != "circulant by FFT"
