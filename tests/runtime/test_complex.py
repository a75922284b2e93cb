"""Complex numbers and Fourier transforms in a loop, from the user's side: one plan serves every batch size."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import linrec


class Spectral(nn.Module):
    """A complex memory with gates computed per step, started from and read through a transform."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width // 2 + 1)
        self.angle = nn.Linear(width, width // 2 + 1)

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.polar(torch.sigmoid(self.gate(x)), self.angle(x))
        h, out = torch.zeros_like(keep[:, 0]), []
        for t in range(x.shape[1]):
            h = keep[:, t] * h + torch.fft.rfft(x[:, t])
            out.append(torch.fft.irfft(h, n=x.shape[2]))
        return torch.stack(out, 1)


class Reflected(nn.Module):
    """Linear over the real numbers only, with a convolution along the channels by a transform."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pole = nn.Parameter(torch.polar(torch.rand(width), torch.randn(width)))
        self.kernel = nn.Parameter(torch.randn(width, 2) / 2)

    def forward(self, x: Tensor) -> Tensor:
        kernel = torch.view_as_complex(self.kernel)
        h, m, out = torch.zeros_like(x[:, 0]) * self.pole, torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            h = self.pole * h.conj() + torch.complex(x_t, -x_t)
            m = torch.fft.ifft(torch.fft.fft(m) * kernel).real * 0.5 + h.imag
            out.append(m + h.real)
        return torch.stack(out, 1)


@pytest.mark.parametrize("kind", [Spectral, Reflected])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_one_plan_for_all_batches(kind: type[nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    torch.set_default_dtype(dtype)
    try:
        loop = kind(6)
    finally:
        torch.set_default_dtype(torch.float32)
    model = linrec.parallelize(copy.deepcopy(loop))
    plans = []
    slack = 1e-9 if dtype is torch.float64 else 2e-4
    for batch, length in ((2, 20), (3, 33), (5, 64)):
        results = []
        for each in (loop, model):
            x = torch.linspace(-1, 1, batch * length * 6, dtype=dtype).view(batch, length, 6).sin().requires_grad_()
            y = each(x)
            found = torch.autograd.grad(y.square().sum(), [x, *each.parameters()])
            results.append([y, *found])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=slack, atol=slack * a.abs().max().item())
        plans.append(linrec.graph(model))
    assert all(p is plans[0] for p in plans)
    report = linrec.report(model)
    assert report.parallel, str(report)
