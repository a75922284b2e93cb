"""Forward writes into a buffer or an input, and the call gives it the same memory under another name: then it reads what
it has just written, which no plan does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linrec import parallelize
from linrec.runtime.dispatcher import Dispatcher

from .samples import series


def used(module: nn.Module) -> bool:
    """Whether a plan was used since this was asked last."""
    dispatcher: Any = module.__dict__["forward"]
    assert isinstance(dispatcher, Dispatcher)
    plan, dispatcher.last_plan = dispatcher.last_plan, None
    return plan is not None


def loop(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.5 * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


class Kept(nn.Module):
    """Keeps its last state in a buffer, and reads the state that it begins with once more after that."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        h, out = h0, []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out.append(h)
        with torch.no_grad():
            self.last.copy_(h.detach())
        return torch.stack(out, 1) + h0[:, None]


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.detach()], ids=["it", "detached"])
def test_a_state_that_is_the_buffer(view: Callable[[Tensor], Tensor]) -> None:
    module, other = parallelize(Kept()), Kept()
    first = series(2, 12)
    h0 = torch.randn(2, 3, dtype=torch.float64)
    assert torch.allclose(module(first, h0), other(first, h0)) and used(module)
    for _ in range(2):
        x = torch.randn_like(first)
        assert torch.allclose(module(x, view(module.last)), other(x, view(other.last))) and not used(module)
    assert torch.allclose(module(first, h0), other(first, h0)) and used(module)
    compiled: Any = module.__dict__["forward"].compiled
    assert [len(found.plans) for found in compiled.values()] == [1]


class Doubled(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        x.mul_(2.0)
        return loop(x) + loop(y)


def test_an_input_that_is_written_and_is_another_one() -> None:
    module, other = parallelize(Doubled()), Doubled()
    x, y = series(2, 12), series(2, 12).flip(1)
    assert torch.allclose(module(x.clone(), y), other(x.clone(), y)) and used(module)
    mine, its = x.clone(), x.clone()
    assert torch.allclose(module(mine, mine), other(its, its)) and not used(module)
    assert torch.equal(mine, its)
