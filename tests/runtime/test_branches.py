"""Branches on tensors around the loop: a plan is for the way that they went when it was made, and asks at every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import TALLY, WIDTH, agree, gradients, same, series, steps_of


class Checked(nn.Module):
    def __init__(self, before: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.limit = torch.tensor(50.0, dtype=torch.float64)
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self, x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w * h + x[:, t]
            out.append(h)
        self.last = h.detach()
        self.count.add_(1.0)
        return torch.stack(out, 1)


def asserted(m: Any, x: Tensor) -> Tensor:
    assert torch.isfinite(x).all(), "not finite"
    return x


def raised(m: Any, x: Tensor) -> Tensor:
    if (x.abs() > m.limit).any():
        raise ValueError("too large")
    return x


def scaled(m: Any, x: Tensor) -> Tensor:
    if x.abs().amax() > m.limit:
        x = x / x.abs().amax()
    return x


def of_a_parameter(m: Any, x: Tensor) -> Tensor:
    return x * 2 if m.w.sum() > 2.5 else x


def compared(m: Any, x: Tensor) -> Tensor:
    assert torch.allclose(x, x.clone(), equal_nan=True)
    assert not torch.equal(x, x[:, :1])
    if torch.equal(m.limit, torch.full_like(m.limit, 50.0)):
        x = 2 * x
    return x


def twice(m: Any, x: Tensor) -> Tensor:
    x = scaled(m, x)
    if not x.abs().mean() < 10 and x.abs().min() >= 0:
        x = x.tanh()
    return x


def overwritten(m: Any, x: Tensor) -> Tensor:
    """Writes into the condition once it has been asked."""
    large = x.abs().amax() > m.limit
    if large:
        x = x / x.abs().amax()
    large.zero_()
    return x


@pytest.mark.filterwarnings("ignore:linrec runs the original code")
@pytest.mark.parametrize("before", [asserted, raised, scaled, of_a_parameter, compared, twice, overwritten])
def test_a_branch_before_the_loop(before: Callable[[Any, Tensor], Tensor]) -> None:
    oracle = Checked(before)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")

    def both(x: Tensor) -> None:
        found: list[Any] = []
        for m in (model, oracle):
            try:
                found.append(gradients(m, x))
            except (AssertionError, ValueError) as error:
                found.append(error)
        if isinstance(found[1], Exception):
            texts = [str(error).partition("\n")[0] for error in found]
            assert type(found[0]) is type(found[1]) and texts[0] == texts[1]
            return
        for actual, expected in zip(*found, strict=True):
            agree(actual, expected)
        agree(model.count, oracle.count)
        agree(model.last, oracle.last)

    for length in (17, 40, 9):
        both(series(2, length))
        both(1000 * series(2, length))
        bad = series(2, length)
        bad[0, 3] = float("inf")
        if before is asserted:
            both(bad)
        both(series(3, length))
    with torch.no_grad():
        for m in (model, oracle):
            m.w.copy_(torch.tensor([0.9, 0.8, 0.95]))
            m.limit.fill_(0.1)
    for length in (17, 40, 64):
        both(series(2, length))
        both(0.01 * series(2, length))
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
    assert not report.obstructions


def test_it_says_once_that_the_original_runs() -> None:
    model = linrec.parallelize(Checked(scaled), when="always")
    for _ in range(2):  # `last` is a tensor from the second call on
        model(series(2, 17))
    with pytest.warns(UserWarning, match=r"where the branch at test_branches\.py:\d+ goes otherwise") as told:
        for _ in range(3):
            model(1000 * series(2, 17))
    assert len(told) == 1


def test_it_is_parallel() -> None:
    model = linrec.parallelize(Checked(asserted), when="always")
    x = series(2, 40).requires_grad_()
    model(x)
    assert steps_of(lambda: model(x)) < 40


@pytest.mark.filterwarnings("ignore:linrec (runs|keeps) the original code")
def test_a_plan_that_is_never_for_a_call_is_given_up() -> None:
    """Short runs go one way, every call goes the other: nothing must be run twice for ever."""

    def long(m: Any, x: Tensor) -> Tensor:
        return x * 2 if x.abs().sum() > 120 else x

    oracle = Checked(long)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    x = torch.ones(2, 40, WIDTH, dtype=torch.float64)
    for _ in range(8):
        same(model, oracle, x)
    assert "LR015" in {o.id for o in linrec.report(model).obstructions}
    calls = 0

    def counting(m: Any, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return long(m, x)

    model.before = counting
    for _ in range(8):
        model(x)
    before = calls
    model(x)
    assert calls == before + 1


def test_a_branch_in_every_step() -> None:
    class Reset(Checked):
        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = x[:, t] if x[:, t].sum() > 1 else self.w * h + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

    oracle = Reset(asserted)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40):
        agree(model(series(2, length)), oracle(series(2, length)))
    (found,) = linrec.report(model).obstructions
    assert found.id == "LR015" and found.location.startswith("test_branches.py")


@pytest.mark.filterwarnings("ignore:linrec runs the original code")
def test_another_loop_in_the_other_branch() -> None:
    """Only the branch that was taken is known."""

    class Either(Checked):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return super().forward(x)
            h, out = torch.zeros_like(x[:, 0]), []
            for t in reversed(range(x.shape[1])):
                h = 0.5 * h + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

    oracle = Either(asserted)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        x = series(2, length).abs()
        for y in (x, -x, x):
            same(model, oracle, y)


class Step(nn.Module):
    """Branches in every step, in ways that go the same way in all of them."""

    def __init__(self, step: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.step = step
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.register_buffer("damping", torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            TALLY.step()
            h = self.step(self, h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def _finite(m: Any, h: Tensor, x: Tensor) -> Tensor:
    h = m.w * h + x
    assert torch.isfinite(h).all(), "not finite"
    return h


def _switch(m: Any, h: Tensor, x: Tensor) -> Tensor:
    return m.w * h / (1 + m.damping) + x if m.damping > 0 else m.w * h + x


def _two(m: Any, h: Tensor, x: Tensor) -> Tensor:
    if h.abs().max() > 100:
        h = h / h.abs().max()
    if not x.abs().mean() < 10:
        x = x.tanh()
    return m.w * h + x


def _drawn(m: Any, h: Tensor, x: Tensor) -> Tensor:
    return m.w * h + torch.distributions.Normal(x, torch.ones_like(x)).rsample()


def _score(m: Any, h: Tensor, x: Tensor) -> Tensor:
    return m.w * h + torch.distributions.Normal(x.tanh(), 1 + x.exp()).log_prob(x)


@pytest.mark.filterwarnings("ignore:linrec runs the original code")
@pytest.mark.parametrize("step", [_finite, _switch, _two, _drawn, _score])
def test_branches_in_a_step_that_go_one_way(step: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
    oracle = Step(step)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")

    def both(x: Tensor) -> None:
        found: list[Any] = []
        for m in (model, oracle):
            torch.manual_seed(0)
            try:
                found.append([*gradients(m, x), torch.get_rng_state()])
            except (AssertionError, ValueError) as error:
                found.append(error)
        if isinstance(found[1], Exception):
            assert type(found[0]) is type(found[1])
            return
        for actual, expected in zip(*found, strict=True):
            agree(actual, expected)

    for length in (17, 40, 9):
        both(series(2, length))
        both(1000 * series(3, length))
        bad = series(2, length)
        bad[1, -1] = float("nan")
        both(bad)
    assert steps_of(lambda: model(series(2, 40))) == 0
    assert steps_of(lambda: oracle(series(2, 40))) == 40
    with torch.no_grad():
        for m in (model, oracle):
            m.damping.fill_(-0.5)
    both(series(2, 17))
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
    assert not report.obstructions


def test_branches_in_a_step_that_go_both_ways() -> None:
    oracle = Step(lambda m, h, x: m.w * h + x if x.sum() > 0 else h)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40):
        same(model, oracle, series(2, length))
    assert [o.id for o in linrec.report(model).obstructions] == ["LR015"]


def test_an_early_stop() -> None:
    class Stops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = 0.9 * h + x[:, t]
                if h.abs().max() > 3.5:
                    break
            return h

    model = linrec.parallelize(Stops(), when="always")
    for k in range(12):
        torch.manual_seed(k)
        x = torch.randn(2, 12 + k, WIDTH, dtype=torch.float64)
        agree(model(x), Stops()(x))


def _reset(h: Tensor, x: Tensor) -> Tensor:
    h = h.clone()
    h[x[:, 0] > 0] = 0.0
    return 0.9 * h + x


def _put(h: Tensor, x: Tensor) -> Tensor:
    h, mask = h.clone(), x[:, 0] > 0
    h[mask] = x[mask]
    return 0.9 * h


def _columns(h: Tensor, x: Tensor) -> Tensor:
    h = 0.9 * h + x
    h[:, torch.tensor([True, False, True])] = 0.5
    return h


def _elements(h: Tensor, x: Tensor) -> Tensor:
    h = 0.9 * h + x
    h[x > 0.5] = -1.0
    return h


@pytest.mark.parametrize("step", [_reset, _put, _columns, _elements])
def test_writes_by_a_mask(step: Callable[[Tensor, Tensor], Tensor]) -> None:
    oracle = Step(lambda m, h, x: step(h, m.w * x))
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (3, 40), (2, 9)):
        same(model, oracle, series(batch, length))
    assert linrec.report(model).parallel, linrec.report(model)


class Started(nn.Module):
    """As in xlstm's sLSTM: what a state is compared with, it does not have in the first step."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        out = []
        for t in range(x.shape[1]):
            h = x[:, t] if torch.all(h == 0.0) else torch.maximum(h - self.a, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def test_a_branch_that_goes_otherwise_in_the_first_step() -> None:
    oracle = Started()
    model: Any = linrec.parallelize(copy.deepcopy(oracle))
    zero, started = torch.zeros(2, WIDTH, dtype=torch.float64), torch.ones(2, WIDTH, dtype=torch.float64)
    for length in (20, 9, 33):
        same(model, oracle, series(2, length), zero)
    assert [r.parallel for r in linrec.report(model).recurrences] == [True]
    with pytest.warns(UserWarning, match="goes otherwise"):
        same(model, oracle, series(2, 20), started)
    late = series(2, 20)
    late[:, :3] = 0.0
    same(model, oracle, late, zero)
    late[:, 10:12] = -1e9
    same(model, oracle, late, zero)
    same(model, oracle, series(2, 20), zero)
