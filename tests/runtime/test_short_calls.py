"""Calls of so few steps that the loop is expected to be faster run the loop, and longer ones the plan."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.lowering.cost import pays_from


class Leaky(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Linear(3, 3)

    def forward(self, x: Tensor, start: Tensor | None = None) -> Tensor:
        rate = torch.sigmoid(self.rate(x))
        h = torch.zeros_like(x[:, 0]) if start is None else start
        out = []
        for t in range(x.shape[1]):
            h = rate[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LINREC_SHORTEST")


def runs_a_plan(model: nn.Module, *args: Tensor) -> bool:
    dispatcher = model.__dict__["forward"]
    dispatcher.last_plan = None
    expected = type(model).forward(model, *args)
    assert torch.allclose(model(*args), expected, rtol=1e-5, atol=1e-6)
    return dispatcher.last_plan is not None


def test_the_estimate(estimated: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pays_from(6, 11, 1) > pays_from(30, 11, 1) >= 1
    assert pays_from(6, 11, 1) < pays_from(6, 11, 3) < pays_from(6, 300, 3) <= 64
    assert pays_from(0, 1000, 50) == 64
    monkeypatch.setenv("LINREC_SHORTEST", "7")
    assert pays_from(6, 11, 1) == 7


def test_short_calls_run_the_loop(estimated: None) -> None:
    model = linrec.parallelize(Leaky())
    assert runs_a_plan(model, torch.randn(2, 40, 3))
    least = model.__dict__["forward"].last_plan.pays_from
    assert 4 < least < 40
    for batch in (2, 5):
        assert not runs_a_plan(model, torch.randn(batch, least - 1, 3))
        assert runs_a_plan(model, torch.randn(batch, least, 3))
    # Another signature: its plan is made by a long call, and what is short is told by what both say.
    x, start = torch.randn(2, 40, 3), torch.randn(2, 3)
    assert runs_a_plan(model, x, start)
    assert not runs_a_plan(model, x[:, : least - 1], start) or model.__dict__["forward"].last_plan.pays_from < least
    assert linrec.report(model).parallel


def test_a_short_first_call_finds_the_recurrence(estimated: None) -> None:
    model = linrec.parallelize(Leaky())
    assert not runs_a_plan(model, torch.randn(2, 6, 3))
    assert linrec.report(model).parallel
    assert runs_a_plan(model, torch.randn(2, 50, 3))


def test_time_elsewhere_and_by_name(estimated: None) -> None:
    """Which argument tells the length is noted for calls by position only; others are looked up in full."""
    model = linrec.parallelize(Leaky())
    dispatcher = model.__dict__["forward"]
    model(x=torch.randn(2, 40, 3))
    assert dispatcher.brief is None
    dispatcher.last_plan = None
    model(x=torch.randn(2, 5, 3))
    assert dispatcher.last_plan is None
    model(torch.randn(2, 40, 3))
    assert dispatcher.brief is None


def test_copies_know_nothing_of_it(estimated: None) -> None:
    model = linrec.parallelize(Leaky())
    model(torch.randn(2, 40, 3))
    assert model.__dict__["forward"].brief is not None
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other.__dict__["forward"].brief is None
        assert runs_a_plan(other, torch.randn(2, 40, 3))
