"""One compiled model at lengths and batch sizes that it was not compiled for: short, empty, growing, and such at which
the loop itself turns out to be another one."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import TALLY, WIDTH, Gated, agree, assert_parallel, build, compiled, same, series, steps_of

Pair = tuple[nn.Module, nn.Module]


@pytest.fixture(params=["gated", "lmu"])
def pair(request: pytest.FixtureRequest) -> Pair:
    found: Pair = request.getfixturevalue(request.param)
    return found


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="linrec keeps the original code")
        yield


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 7])
@pytest.mark.parametrize("batch", [1, 2, 3])
def test_short(pair: Pair, batch: int, length: int) -> None:
    same(*pair, series(batch, length))


def test_no_step_at_all(pair: Pair) -> None:
    """The stack of no outputs is an error, the same one."""
    with pytest.raises(RuntimeError) as expected:
        pair[1](series(2, 0))
    with pytest.raises(RuntimeError) as actual:
        pair[0](series(2, 0))
    assert str(actual.value) == str(expected.value)


def test_an_empty_batch(pair: Pair) -> None:
    for batch in (0, 2, 0):
        same(*pair, series(batch, 12))


def test_growing(pair: Pair) -> None:
    for length in (13, 16, 31, 64, 65, 100, 33, 257, 12):
        same(*pair, series(1 + length % 3, length))
    assert_parallel(pair[0])


def test_not_a_number_in_a_scan() -> None:
    """It spreads where the loop spreads it, forward in time from where it is, in its own row; also in a first call."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    for value in (float("nan"), float("inf"), -float("inf")):
        for length in (20, 40, 50):
            x = series(2, length)
            x[1, 7, 0] = value
            actual, expected = model(x), oracle(x)
            assert torch.equal(actual.isnan(), expected.isnan())
            assert torch.equal(actual.isinf(), expected.isinf())
            agree(actual, expected)
    same(model, oracle, series(2, 60))
    assert steps_of(lambda: model(series(2, 60))) == 0


@pytest.mark.parametrize("shape", [(12, 12), (3, 3), (1, 1), (0, 12)], ids=str)
def test_first_call(shape: tuple[int, int]) -> None:
    """Whatever the sizes of the first call, equal to one another or too short: later calls are right, and parallel."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    for batch, length in (shape, (2, 12), (7, 7), (5, 3), (3, 14), (14, 14)):
        same(model, oracle, series(batch, length))
    assert steps_of(lambda: model(series(2, 12))) == 0
    assert_parallel(model)


class Late(Gated):
    """Another step from some step on."""

    def __init__(self, late: int = 50) -> None:
        super().__init__()
        self.late = late

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            if t >= self.late:
                h = 2 * h
            out.append(h)
        return torch.stack(out, 1)


class Capped(Gated):
    """No more than so many steps."""

    def __init__(self, cap: int = 50) -> None:
        super().__init__()
        self.cap = cap

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(min(x.shape[1], self.cap)):
            h = self.step(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


class Stopping(Gated):
    """Breaks out of the loop."""

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], WIDTH)
        for t, x_t in enumerate(x.unbind(1)):
            h = self.step(x_t, h)
            if t == 49:
                break
        return h


class OneStep(Gated):
    """A branch on one step, that is just not seen by short traces, or by longer ones either."""

    def __init__(self, special: int) -> None:
        super().__init__()
        self.special = special

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t] * 2.0 if t == self.special else x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


def test_a_branch_within_the_lengths_of_validation() -> None:
    """The reason given is the branch, and not that the compiler should be mended."""
    ours, oracle = (build(lambda: OneStep(17)) for _ in range(2))
    linrec.parallelize(ours)
    same(ours, oracle, series(2, 40))
    assert [each.id for each in linrec.report(ours).obstructions] == ["LR011"]


def test_a_branch_that_longer_traces_show() -> None:
    ours, oracle = (build(lambda: OneStep(7)) for _ in range(2))
    linrec.parallelize(ours)
    for length in (40, 5, 7, 8, 9, 13, 15, 33, 100):
        same(ours, oracle, series(2, length))
    assert_parallel(ours)


@pytest.mark.parametrize("model, first", [(Late, 51), (Capped, 51), (Stopping, 51)])
def test_a_loop_that_changes_at_a_length(model: type[Gated], first: int) -> None:
    """Found out at the first call that is long enough; below that length the plan still serves."""
    ours, oracle = linrec.parallelize(build(model)), build(model)
    for length in (12, first - 1, first, first + 9, 2 * first, first - 2, 12):
        same(ours, oracle, series(2, length))
    report = linrec.report(ours)
    assert "LR011" in [each.id for each in report.obstructions]
    assert "LR011" in str(report)
    assert str(first) in str(report)
    assert steps_of(lambda: ours(series(2, 12))) == 0


def test_a_low_cap() -> None:
    """Met by the lengths at which the plan is validated: nothing is rewritten, or it holds below the cap only."""
    model, oracle = linrec.parallelize(build(lambda: Capped(20))), build(lambda: Capped(20))
    for length in (12, 20, 21, 30, 19):
        same(model, oracle, series(2, length))
    assert linrec.report(model).obstructions


def test_it_says_so_once() -> None:
    """A warning when the model turns out slower than it was, and an error where that was asked for."""
    model = linrec.parallelize(build(Late))
    model(series(2, 12))
    with pytest.warns(UserWarning, match="LR011"):
        model(series(2, 60))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(series(2, 60))
    strict = linrec.parallelize(build(Late), strict=True)
    strict(series(2, 12))
    with pytest.raises(linrec.NotParallelizable, match="LR011"):
        strict(series(2, 60))


def test_a_long_first_call() -> None:
    """The loop that is another one at 50 steps is met at 60."""
    model, oracle = linrec.parallelize(build(Late)), build(Late)
    for length in (60, 30, 55):
        same(model, oracle, series(2, length))


class Limited(Gated):
    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] > 30:
            raise ValueError("the sequence is too long")
        return super().forward(x)


def test_the_users_limit() -> None:
    model, oracle = compiled(Limited), build(Limited)
    for length in (31, 40, 31):
        with pytest.raises(ValueError, match="too long"):
            model(series(2, length))
    same(model, oracle, series(2, 30))
    assert steps_of(lambda: model(series(2, 30))) == 0


class AnyWidth(nn.Module):
    """A loop without parameters, for inputs of any width; `mixing` reads the state at positions along it."""

    def __init__(self, mixing: bool) -> None:
        super().__init__()
        self.mixing = mixing

    def forward(self, x: Tensor) -> Tensor:
        """The states of all steps: x (B, T, width) -> (B, T, width)."""
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            TALLY.step()
            h = 0.5 * (h.roll(1, -1) if self.mixing else h) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("mixing", [False, True])
def test_other_widths(mixing: bool) -> None:
    """The first plan is for the width of its call; the next serves every width, unless the width must be known."""
    model, oracle = linrec.parallelize(AnyWidth(mixing)), AnyWidth(mixing)
    for width in (3, 5, 3):
        call = torch.randn(2, 12, width, dtype=torch.float64)
        same(model, oracle, call)
        assert steps_of(lambda call=call: model(call)) == 0
    if not mixing:
        assert steps_of(lambda: model(torch.randn(3, 12, 7, dtype=torch.float64))) == 0
    assert_parallel(model)


def test_layers_of_two_widths() -> None:
    """Equal layers share a plan only where it is made for their width."""

    class Layers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(AnyWidth(True) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            for k, layer in enumerate(self.layers):
                x = torch.cat([x, x[..., :1]], -1) if k % 2 else x[..., :WIDTH]
                x = layer(x)
            return x

    model, oracle = linrec.parallelize(Layers()), Layers()
    same(model, oracle, series(2, 12))
    assert steps_of(lambda: model(series(2, 12))) == 0
    assert_parallel(model)


class Thresholds(nn.Module):
    """Does otherwise from a step on that short runs do not reach; where it is read depends on an attribute."""

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which, self.here, self.there = which, 60, 16
        self.decay = nn.Parameter(torch.tensor(0.7, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        late = self.here if self.which == "here" else self.there
        h, out = x[:, 0] * 0, []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            if t >= late:
                h = h * 0.5
            out.append(h)
        return torch.stack(out, 1)


def test_layers_that_read_other_attributes() -> None:
    def stack() -> nn.Module:
        return nn.Sequential(Thresholds("here"), Thresholds("there"), Thresholds("here"))

    model, oracle = linrec.parallelize(stack()), stack()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (30, 12, 70):
            same(model, oracle, series(2, length))


class Weekly(Thresholds):
    """Where its attribute says so, asks for the length."""

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        h, out = x[:, 0] * 0, []
        for t in range(length):
            h = self.decay * h + x[:, t]
            out.append(h)
        found = torch.stack(out, 1)
        return found * 2 if self.which == "there" and length % 7 == 0 else found


def test_of_layers_with_one_plan_one_asks_for_the_length() -> None:
    def stack() -> nn.Module:
        return nn.Sequential(Weekly("here"), Weekly("there"))

    model, oracle = linrec.parallelize(stack()), stack()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (30, 71, 70, 72, 35):
            same(model, oracle, series(2, length))


class Advantages(nn.Module):
    """Generalised advantages, backwards in time: rewards (T, B), values (T + 1, B)."""

    def forward(self, rewards: Tensor, values: Tensor) -> Tensor:
        deltas = rewards + 0.9 * values[1:] - values[:-1]
        h, out = torch.zeros_like(rewards[0]), []
        for t in reversed(range(rewards.shape[0])):
            h = deltas[t] + 0.8 * h
            out.insert(0, h)
        return torch.stack(out) + values[:-1]


def test_an_input_with_one_step_more() -> None:
    ours, oracle = linrec.parallelize(Advantages()), Advantages()
    for length, batch in ((24, 2), (37, 3), (60, 2)):
        x, v = (torch.randn(n, batch, dtype=torch.float64, requires_grad=True) for n in (length, length + 1))
        found = [torch.autograd.grad(each(x, v).square().sum(), (x, v)) for each in (ours, oracle)]
        agree(*found)
    assert linrec.report(ours).parallel, str(linrec.report(ours))


class Seasoned(nn.Module):
    """Starts after some steps, of which it takes the mean."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first = first
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = x[:, : self.first].mean(1), []
        for t in range(self.first, x.shape[1]):
            h = self.w * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("first", [1, 3, 4, 7, 12, 24])
def test_a_loop_that_begins_late(first: int) -> None:
    model, oracle = linrec.parallelize(Seasoned(first), when="always"), Seasoned(first)
    for length in (96, 64, 120):
        same(model, oracle, series(2, length))
    assert_parallel(model)
