"""Numbers that Python computes: another in every step, or one for each number of steps."""

from __future__ import annotations

import cmath
import copy
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import linrec

from .samples import WIDTH, agree, same, series, steps_of

Step = Callable[[Any, Tensor, Tensor, int, int], Tensor]
"""The next state, of the module, the state, the input, the number of the step and that of all steps."""


class Loop(nn.Module):
    def __init__(self, step: Step) -> None:
        super().__init__()
        self.step = step
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.w = nn.Parameter(
            0.3 * torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
        )
        self.decay = 0.9
        self.schedule = [1 / (1 + 0.1 * t * t) for t in range(200)]

    def forward(self, x: Tensor) -> Tensor:
        h, out, length = torch.zeros_like(x[:, 0]), [], x.shape[1]
        for t in range(length):
            h = self.step(self, h, x[:, t], t, length)
            out.append(h)
        return torch.stack(out, 1)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="linrec keeps the original code")
        yield


LINEAR: dict[str, Step] = {
    "factor of the input": lambda m, h, x, t, T: m.a * h + x * 0.95**t,
    "factor of the state": lambda m, h, x, t, T: (1 - 1 / (t + 2)) * h + x,
    "divisor": lambda m, h, x, t, T: m.a * h + x / 1.05**t,
    "added": lambda m, h, x, t, T: m.a * h + x + math.sin(0.3 * t),
    "subtracted from": lambda m, h, x, t, T: m.a * h + (0.9**t - x),
    "divided": lambda m, h, x, t, T: m.a * h + 0.9**t / (1 + x * x),
    "exponent": lambda m, h, x, t, T: m.a * h + (1 + x * x) ** (0.9**t),
    "base": lambda m, h, x, t, T: m.a * h + (1 + 0.9**t) ** x,
    "square": lambda m, h, x, t, T: m.a * h + x * (t * t),
    "power of two": lambda m, h, x, t, T: m.a * h + x / 2 ** (t // 4),
    "remainder": lambda m, h, x, t, T: m.a * h + x * (t % 3),
    "share of all": lambda m, h, x, t, T: m.a * (1 - t / T) * h + x * (t / T),
    "step of time": lambda m, h, x, t, T: h + 1.0 / T * (x - m.a * h),
    "root of the length": lambda m, h, x, t, T: m.a * h + x / math.sqrt(T),
    "length": lambda m, h, x, t, T: m.a * h + x * T,
    "cosine schedule": lambda m, h, x, t, T: m.a * h + 0.5 * (1 + math.cos(math.pi * t / T)) * x,
    "two": lambda m, h, x, t, T: 0.9**t * m.a * h + 0.8**t * x,
    "the same twice": lambda m, h, x, t, T: 0.9**t * m.a * h + 0.9**t * x,
    "comparison": lambda m, h, x, t, T: m.a * h + (x > math.sin(t)) * x,
    "largest": lambda m, h, x, t, T: m.a * h + x.clamp(max=0.9**t),
    "between": lambda m, h, x, t, T: m.a * h + x.clamp(-1, 0.9**t),
    "alpha": lambda m, h, x, t, T: torch.add(m.a * h, x, alpha=0.9**t),
    "addcmul": lambda m, h, x, t, T: torch.addcmul(m.a * h, x, m.a, value=0.9**t),
    "addcdiv": lambda m, h, x, t, T: torch.addcdiv(m.a * h, x, 1 + m.a, value=0.9**t),
    "lerp": lambda m, h, x, t, T: torch.lerp(h, x, 1 / (t + 1)),
    "where": lambda m, h, x, t, T: m.a * h + torch.where(x > 0, x, 0.9**t),
    "tensor": lambda m, h, x, t, T: m.a * h + x * torch.tensor(0.9**t, dtype=x.dtype),
    "tensor in single precision": lambda m, h, x, t, T: m.a * h + x * torch.tensor(0.9**t),
    "tensor of a rounded integer": lambda m, h, x, t, T: m.a * h + torch.tensor(t, dtype=x.dtype).sin() * x,
    "tensor of one": lambda m, h, x, t, T: m.a * h + x * torch.tensor([0.9**t], dtype=x.dtype).exp(),
    "tensor of an integer": lambda m, h, x, t, T: m.a * h + 1 / (1 + torch.tensor(t * t)) * x,
    "full": lambda m, h, x, t, T: m.a * h + x * torch.full((WIDTH,), 0.9**t, dtype=x.dtype),
    "like": lambda m, h, x, t, T: m.a * h + x * (0.9**t * torch.ones_like(x)),
    "numpy": lambda m, h, x, t, T: m.a * h + x * numpy.exp(-0.1 * t),
    "numpy, single": lambda m, h, x, t, T: m.a * h + x * numpy.float32(0.9**t),
    "in place": lambda m, h, x, t, T: (m.a * h).add_(x, alpha=0.9**t).mul_(0.9**t),
    "matrix": lambda m, h, x, t, T: h - (h @ m.w.T) / (t + 1.0) + x / (t + 1.0),
    "attribute": lambda m, h, x, t, T: m.decay ** (T - 1 - t) * m.a * h + x,
    "list": lambda m, h, x, t, T: m.schedule[t] * m.a * h + (1 - m.schedule[t]) * x,
    "producer": lambda m, h, x, t, T: m.a * h + torch.tanh(x * 0.9**t) @ m.w,
    "inner loop": lambda m, h, x, t, T: m.a * h + sum((x * 0.9 ** (t + k) for k in range(3)), torch.zeros_like(x)),
    "function": lambda m, h, x, t, T: m.a * h + F.linear(x * 0.9**t, m.w),
    "clock of a tensor": lambda m, h, x, t, T: m.a * h + x * (t % PERIODS == 0),
    "remainder by a tensor": lambda m, h, x, t, T: m.a * h + x * torch.remainder(t, PERIODS),
    "quotient by a tensor": lambda m, h, x, t, T: m.a * h + x * ((t // PERIODS) % 2),
    "rounded quotient": lambda m, h, x, t, T: m.a * h + torch.div(PERIODS * 9, t + 1, rounding_mode="floor") * x,
    "bits": lambda m, h, x, t, T: m.a * h + x * (PERIODS & t) + x * (t ^ PERIODS),
    "shifted bits": lambda m, h, x, t, T: m.a * h + x * ((PERIODS << (t % 3)) % 4),
    "subtracted from, twice": lambda m, h, x, t, T: m.a * h + torch.rsub(x, 0.1 * t, alpha=2),
    "product with a logarithm": lambda m, h, x, t, T: m.a * h + torch.xlogy(0.1 * t, PERIODS.double()) * x,
    "sign": lambda m, h, x, t, T: m.a * h + torch.copysign(x, t - 4.0),
}
PERIODS = torch.arange(1, WIDTH + 1)


@pytest.mark.parametrize("name", LINEAR)
def test_linear(name: str) -> None:
    oracle = Loop(LINEAR[name])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (3, 40), (1, 9), (2, 17), (2, 64)):
        same(model, oracle, series(batch, length))
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
    assert not report.obstructions
    x = series(2, 40).requires_grad_()
    assert steps_of(lambda: model(x)) < 30


def test_a_nonlinear_step() -> None:
    oracle = Loop(lambda m, h, x, t, T: torch.tanh(h @ m.w + x * 0.9**t))
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    assert [r.parallel for r in linrec.report(model).recurrences] == [False]


def test_complex_numbers() -> None:
    def step(m: Any, h: Tensor, x: Tensor, t: int, T: int) -> Tensor:
        return h * 0.9 + x * cmath.exp(0.2j * t)

    class Complex(Loop):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(super().forward(x + 0j))

    oracle = Complex(step)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    assert all(r.parallel for r in linrec.report(model).recurrences) and linrec.report(model).recurrences


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_low_precision(dtype: torch.dtype) -> None:
    """A number is not rounded to the precision of what it is multiplied with."""
    oracle = Loop(lambda m, h, x, t, T: m.a * h + x * (1 + 0.01 * t) / 1.01**t).to(dtype)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    x = series(2, 40, dtype=dtype)
    model(x.requires_grad_())
    exact = copy.deepcopy(oracle).double()(x.double())
    error, own = ((m(x).double() - exact).abs().max() for m in (model, oracle))
    assert error <= 1.5 * own + 1e-7
    assert model(x).dtype == dtype
    assert all(r.parallel for r in linrec.report(model).recurrences) and linrec.report(model).recurrences


def late(value: Callable[[int, int], float]) -> Step:
    return lambda m, h, x, t, T: value(t, T) * h + x


@pytest.mark.parametrize(
    "value",
    [
        lambda t, T: 0.9**t if t < 50 else 0.5,
        lambda t, T: 0.9 if t < 50 else 0.5,
        lambda t, T: 0.9**t if T < 50 else 0.5,
        lambda t, T: max(0, 1 - t / 50),
        lambda t, T: 0.9 ** min(t, 45),
        lambda t, T: 0.9 ** (t % 20),
        lambda t, T: 0.99 ** (T - t),
    ],
)
def test_numbers_that_change_later(value: Callable[[int, int], float]) -> None:
    """Whatever rule they follow, they are those of the loop."""
    oracle = Loop(late(value))
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 60, 55, 45, 80, 17):
        same(model, oracle, series(2, length))


def test_another_constant_beside_them() -> None:
    """A number that is the same in short runs is checked as ever."""
    oracle = Loop(lambda m, h, x, t, T: (0.5 if t < 50 else 0.4) * h + x * 0.9**t)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 60, 55, 45):
        same(model, oracle, series(2, length))


def test_attributes_that_change() -> None:
    oracle = Loop(lambda m, h, x, t, T: m.decay**t * h + m.schedule[t] * x)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    same(model, oracle, series(2, 17))
    for m in (model, oracle):
        m.decay = 0.7
    same(model, oracle, series(2, 17))
    for m in (model, oracle):
        m.schedule[12] = 5.0
    same(model, oracle, series(2, 17))


def test_layers_that_differ_late() -> None:
    """Plans are shared by layers that run the same at short lengths; their numbers are not."""

    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            step = LINEAR["list"]
            self.layers = nn.Sequential(Loop(step), Loop(step))
            self.layers[1].schedule = [*self.layers[0].schedule[:20], *(0.1 * t for t in range(180))]

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    oracle = Stack()
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 25):
        same(model, oracle, series(2, length))


def test_random_numbers_are_refused() -> None:
    import random

    model = linrec.parallelize(Loop(lambda m, h, x, t, T: m.a * h + x * random.random()), when="always")
    model(series(2, 17))
    assert [o.id for o in linrec.report(model).obstructions] == ["LR009"]


def test_two_loops() -> None:
    class Two(Loop):
        def forward(self, x: Tensor) -> Tensor:
            h, first = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = self.a * h + 0.9**t * x[:, t]
                first.append(h)
            h, out = torch.zeros_like(x[:, 0]), []
            for t in reversed(range(x.shape[1])):
                h = 0.9**t * h + math.cos(t) * first[t]
                out.insert(0, h)
            return torch.stack(out, 1) / x.shape[1] ** 0.5

    oracle = Two(LINEAR["list"])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    report = linrec.report(model)
    assert len(report.recurrences) == 2 and all(r.parallel for r in report.recurrences), report


def test_a_clock() -> None:
    """A number that the loop itself adds to."""

    class Euler(Loop):
        def forward(self, x: Tensor) -> Tensor:
            clock, dt = 0.0, 1.0 / x.shape[1]
            h, out = torch.zeros_like(x[:, 0]), []
            for xt in x.unbind(1):
                h = h + dt * (xt * math.sin(3 * clock) - self.a * h)
                clock += dt
                out.append(h)
            return torch.stack(out, 1)

    oracle = Euler(LINEAR["list"])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    assert all(r.parallel for r in linrec.report(model).recurrences) and linrec.report(model).recurrences


def test_without_validation() -> None:
    """The numbers are needed all the same."""
    oracle = Loop(LINEAR["factor of the input"])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always", validate=False)
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))


def test_transforms() -> None:
    """Of `torch.func`, at a length that was met, and at one that was not."""
    oracle = Loop(LINEAR["factor of the input"])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    model(series(2, 17).requires_grad_())
    for length in (17, 23):
        x = series(2, length)
        agree(torch.func.grad(lambda x: model(x).sin().sum())(x), torch.func.grad(lambda x: oracle(x).sin().sum())(x))


def test_compiled_by_torch() -> None:
    oracle = Loop(LINEAR["cosine schedule"])
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    model(series(2, 17).requires_grad_())
    program = torch.compile(model, backend="eager")
    for length in (17, 23, 17):
        agree(program(series(2, length)), oracle(series(2, length)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_of_numbers(dtype: torch.dtype) -> None:
    """Which forward makes: it is compared in double precision, where its own dtype would fit no other."""

    class Rotating(Loop):
        def forward(self, x: Tensor) -> Tensor:
            turn = torch.tensor([[0.8, -0.6, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 0.9]], dtype=x.dtype)
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = self.a * (h @ turn) + x[:, t] @ torch.tensor([[1.0, 0.5, 0.2]] * 3, dtype=x.dtype)
                out.append(h)
            return torch.stack(out, 1)

    oracle = Rotating(LINEAR["list"]).to(dtype)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length, dtype=dtype), tolerance=1e-8 if dtype is torch.float64 else 1e-4)
    assert linrec.report(model).parallel


def _agreed(model: Any, oracle: Any) -> Any:
    """The report of a model that has its oracle's values and gradients at several lengths."""
    for batch, length in ((2, 20), (3, 9), (2, 33)):
        same(model, oracle, series(batch, length))
    return linrec.report(model)


class Grown(nn.Module):
    """A first step that gives fewer numbers than the others: there is nothing to join its result to."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), None
        for t in range(x.shape[1]):
            h = 0.5 * (0.8**t * h + 0.3 / 1.1**t) + self.a * h * 0.9**t + x[:, t]
            out = h.unsqueeze(1) if out is None else torch.cat([out, h.unsqueeze(1)], 1)
        return out  # type: ignore[return-value]


def test_a_first_step_that_gives_fewer_numbers() -> None:
    model, oracle = linrec.parallelize(Grown()), Grown()
    report = _agreed(model, oracle)
    assert [r.parallel for r in report.recurrences] == [True] and not report.obstructions


class GrownFromTheEnd(nn.Module):
    """The first step's number is another one at every length, and two arguments have it."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice

    def forward(self, x: Tensor) -> Tensor:
        h, g, out = x.new_zeros(x.shape[0], 3), x.new_zeros(x.shape[0], 3), None
        for t in reversed(range(x.shape[1])):
            g = 0.8 * g * (0.9**t if self.twice else 0.9) + x[:, t]
            h = h * 0.9**t + 0.3 * g + x[:, t]
            out = h.unsqueeze(1) if out is None else torch.cat([out, h.unsqueeze(1)], 1)
        assert out is not None
        return out


@pytest.mark.parametrize("twice", [False, True])
def test_a_first_step_with_another_number_at_every_length(twice: bool) -> None:
    report = _agreed(linrec.parallelize(GrownFromTheEnd(twice)), GrownFromTheEnd(twice))
    assert report.parallel and not report.obstructions


class Unread(nn.Module):
    """States as they were before each update: nothing reads the last one, nor its number."""

    def __init__(self, linear: bool) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, s, out = torch.ones_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            out.append(h)
            s = s + x[:, t] * 0.9**t
            h = self.a * (h / (t + 1.5)) + (h if self.linear else torch.tanh(h)) * 0.3 + s / (1 - 0.9 ** (t + 1))
        return torch.stack(out, 1)


@pytest.mark.parametrize("linear", [True, False])
def test_numbers_of_a_last_step_that_nothing_reads(linear: bool) -> None:
    model, oracle = linrec.parallelize(Unread(linear)), Unread(linear)
    report = _agreed(model, oracle)
    assert not report.obstructions and all(r.parallel for r in report.recurrences) == linear


class LastSeen(nn.Module):
    """The step in which something was last seen, written in several ways."""

    def __init__(self, seen: Callable[[Tensor, Tensor, int], Tensor]) -> None:
        super().__init__()
        self.seen = seen
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        last, h, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            last = self.seen(last, x[:, t], t)
            h = self.a * h + x[:, t] * (t - last)
            out.append(h)
        return torch.stack(out, 1)


def _by_mask(last: Tensor, x: Tensor, t: int) -> Tensor:
    last = last.clone()
    last[x > 0] = t
    return last


SEEN: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "full_like": lambda last, x, t: torch.where(x > 0, torch.full_like(last, t), last),
    "new_full": lambda last, x, t: torch.where(x > 0, x.new_full((x.shape[0], WIDTH), 0.9**t), last),
    "masked_fill": lambda last, x, t: last.masked_fill(x > 0, t),
    "mask": _by_mask,
    "a number of another type": lambda last, x, t: torch.where(x > 0, float(t), last),
    "a tensor": lambda last, x, t: torch.where(x > 0, torch.tensor(float(t), dtype=x.dtype), last),
}


@pytest.mark.parametrize("name", SEEN)
def test_the_step_in_which_something_was_seen(name: str) -> None:
    model, oracle = linrec.parallelize(LastSeen(SEEN[name])), LastSeen(SEEN[name])
    report = _agreed(model, oracle)
    assert report.recurrences and all(r.parallel for r in report.recurrences) and not report.obstructions
