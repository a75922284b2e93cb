"""Steps that read a few indices at once: of the buffer that they write, of a list that grows, of the input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import linrec

ORDER = 3
Program = Callable[[Tensor, Tensor], Tensor]


def filtered(x: Tensor, a: Tensor) -> Tensor:
    """An IIR filter that reads its window from the buffer of its results, the place to be written included."""
    fed = F.conv1d(F.pad(x, (0, 0, ORDER, 0)).mT, a.abs().expand(x.shape[2], 1, ORDER + 1), groups=x.shape[2]).mT
    out = x.new_zeros(x.shape[0], x.shape[1] + ORDER, x.shape[2])
    for i in range(x.shape[1]):
        window = out[:, i : i + ORDER + 1].clone()
        out[:, i + ORDER] = fed[:, i] - (window * a[:, None]).sum(1)
    return out[:, ORDER:]


def appended(x: Tensor, a: Tensor) -> Tensor:
    y = x[:, :ORDER]
    for t in range(ORDER, x.shape[1]):
        y = torch.cat([y, (x[:, t] + (y[:, -ORDER:] * a[:ORDER, None]).sum(1))[:, None]], 1)
    return y


def from_nothing(x: Tensor, a: Tensor) -> Tensor:
    y = torch.tensor([], dtype=x.dtype)
    for t in range(x.shape[1]):
        new = x[:, t] + (a[0] * y[:, -2:].sum(1) if t > 1 else 0.0)
        y = torch.cat([y, new[:, None]], 1)
    return y


def averaged(x: Tensor, a: Tensor) -> Tensor:
    out = torch.zeros_like(x)
    out[:, 0], out[:, 1] = x[:, 0], x[:, 1] * a[0]
    for t in range(2, x.shape[1]):
        out[:, t] = x[:, t] + torch.einsum("bnd,n->bd", out[:, t - 2 : t].clone(), a[:2])
    return out


def twice_written(x: Tensor, a: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[2])
    for t in range(x.shape[1]):
        out[:, t + 1] = x[:, t] + a[0] * out[:, t].clone()
        out[:, t + 1] = out[:, t + 1].clone() + a[1] * out[:, t : t + 2].clone().sum(1)
    return out[:, 1:]


def squashed(x: Tensor, a: Tensor) -> Tensor:
    out = x.new_zeros(x.shape[0], x.shape[1] + ORDER, x.shape[2])
    for t in range(x.shape[1]):
        out[:, t + ORDER] = torch.tanh((out[:, t : t + ORDER].clone() * a[:ORDER, None]).sum(1)) + x[:, t]
    return out


def predicted(x: Tensor, a: Tensor) -> Tensor:
    """Errors of a prediction from the two steps of the input before, in a stack."""
    e, out = torch.zeros_like(x[:, 0]), []
    for t in range(2, x.shape[1]):
        e = x[:, t] - (torch.stack([x[:, t - 1 - i] for i in range(2)], -1) * a[:2]).sum(-1) - a[2] * e
        out.append(e)
    return torch.stack(out, 1)


def of_two(x: Tensor, a: Tensor) -> Tensor:
    e, out = torch.zeros_like(x[:, 0]), []
    for t in range(2, x.shape[1]):
        e = (torch.cat([x[:, t, None], x[:, t - 2, None]], 1) * a[:2, None]).sum(1) + a[2] * e
        out.append(e)
    return torch.stack(out, 1)


def fading(x: Tensor, a: Tensor) -> Tensor:
    """Looks like a window, and grows."""
    out = x.new_zeros(x.shape[0], x.shape[1] + 1, x.shape[2])
    for t in range(x.shape[1]):
        out[:, t + 1] = x[:, t] + a[0] * out[:, : t + 1].clone().mean(1)
    return out


def wider(x: Tensor, a: Tensor) -> Tensor:
    """Reads one more from some step on."""
    out = x.new_zeros(x.shape[0], x.shape[1] + ORDER, x.shape[2])
    for t in range(x.shape[1]):
        n = 2 if t < 33 else 3
        out[:, t + ORDER] = x[:, t] + a[0] * out[:, t + ORDER - n : t + ORDER].clone().sum(1)
    return out


PROGRAMS: dict[Any, bool] = {
    filtered: True,
    appended: True,
    from_nothing: True,
    averaged: True,
    twice_written: True,
    predicted: True,
    of_two: True,
    squashed: False,
    fading: False,
    wider: True,
}
"""Whether the loop becomes parallel, at the lengths that short ones tell of."""


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda p: p.__name__)
def test_values_and_gradients(program: Program, recwarn: pytest.WarningsRecorder) -> None:
    model = linrec.parallelize(program)
    a = torch.tensor([0.2, -0.3, 0.1, 0.25], dtype=torch.float64, requires_grad=True)
    for batch, length in ((2, 24), (3, 31), (1, 70), (4, 12)):
        torch.manual_seed(length)
        x = torch.randn(batch, length, 2, dtype=torch.float64, requires_grad=True)
        found = []
        for run in (model, program):
            y = run(x, a)
            weights = torch.linspace(0.5, 1.5, y.numel(), dtype=torch.float64).view_as(y)
            found.append([y, *torch.autograd.grad((y * weights).sum(), [x, a])])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
    recurrences = [r for r in linrec.report(model).recurrences if r.states]
    assert any(r.parallel for r in recurrences) == PROGRAMS[program]
