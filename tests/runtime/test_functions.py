"""Functions in place of modules: closures, partials, bound methods, lambdas, decorators, and what they capture."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, Elman, Gated, agree, assert_parallel, build, same, series, steps_of


def ema(x: Tensor, rate: float = 0.9, h: Tensor | None = None) -> Tensor:
    """The exponential moving average of x (B, T, 3)."""
    h = torch.zeros_like(x[:, 0]) if h is None else h
    out = []
    for t in range(x.shape[1]):
        h = rate * h + (1 - rate) * x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def gated_with(weight: Tensor) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(x[:, t] @ weight) * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    return run


class Cell:
    """No module: a plain object with a weight."""

    def __init__(self) -> None:
        self.weight = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64))
        self.factor = 1.0

    def run(self, x: Tensor) -> Tensor:
        return gated_with(self.weight)(x) * self.factor


def matrix(seed: int = 0) -> Tensor:
    return torch.randn(WIDTH, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def with_gradients(function: Callable[..., Any], x: Tensor, others: list[Tensor]) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = function(x)
    return [y.detach(), *torch.autograd.grad(y.pow(2).sum(), [x, *others])]


def test_a_function() -> None:
    """It keeps its name, text and arguments, and comes back by `revert`."""
    ours = linrec.parallelize(ema)
    assert (ours.__name__, ours.__doc__) == ("ema", ema.__doc__)
    for batch, length in ((2, 12), (3, 20), (2, 3)):
        same(ours, ema, series(batch, length))
    agree(
        ours(series(), h=torch.ones(2, WIDTH, dtype=torch.float64)), ema(series(), 0.9, torch.ones(2, WIDTH).double())
    )
    agree(ours(series(), 0.5), ema(series(), 0.5))
    assert_parallel(ours)
    (first, *_) = linrec.report(ours).recurrences
    assert first.location.startswith("test_functions.py:")
    assert "ema" in str(linrec.report(ours))
    assert linrec.revert(ours) is ema
    again = linrec.parallelize(ours)
    assert linrec.revert(again) is ema


def test_a_partial() -> None:
    ours, theirs = linrec.parallelize(functools.partial(ema, rate=0.5)), functools.partial(ema, rate=0.5)
    same(ours, theirs, series())
    assert_parallel(ours)


def test_a_decorator() -> None:
    @linrec.parallelize
    def decorated(x: Tensor) -> Tensor:
        return ema(x, 0.7)

    same(decorated, lambda x: ema(x, 0.7), series())
    assert_parallel(decorated)


def test_a_decorated_method() -> None:
    class Decorated(Gated):
        @linrec.parallelize
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(
        linrec.LinrecError, match=r"Decorated.forward was decorated .* call linrec.parallelize\(model\)"
    ):
        Decorated()(series())


def test_a_lambda_over_modules() -> None:
    """The modules that it calls keep nothing of linrec after `revert`."""
    layers, expected = [build(Gated), build(Gated)], [build(Gated), build(Gated)]
    before = [dict(sub.__dict__) for layer in layers for sub in layer.modules()]
    function = lambda x: layers[1](2 * layers[0](x))  # noqa: E731
    ours = linrec.parallelize(function)
    weights = [p for layer in layers for p in layer.parameters()]
    theirs = [p for layer in expected for p in layer.parameters()]
    for length in (12, 20):
        agree(
            with_gradients(ours, series(2, length), weights),
            with_gradients(lambda x: expected[1](2 * expected[0](x)), series(2, length), theirs),
        )
    assert_parallel(ours)
    assert steps_of(lambda: ours(series())) == 0
    assert linrec.revert(ours) is function
    assert [dict(sub.__dict__) for layer in layers for sub in layer.modules()] == before
    assert steps_of(lambda: function(series())) == 24


def test_a_closure_over_a_weight() -> None:
    weight = matrix().requires_grad_()
    ours, theirs = linrec.parallelize(gated_with(weight)), gated_with(weight)
    for length in (12, 20):
        agree(with_gradients(ours, series(2, length), [weight]), with_gradients(theirs, series(2, length), [weight]))
    with torch.no_grad():
        weight.mul_(-2)
    agree(with_gradients(ours, series(), [weight]), with_gradients(theirs, series(), [weight]))


def test_a_closure_is_bound_again() -> None:
    """Descent as functions do it: a new weight at each step, under the old name."""
    weight = matrix().requires_grad_()

    def run(x: Tensor) -> Tensor:
        return gated_with(weight)(x)

    ours = linrec.parallelize(run)
    for _ in range(3):
        (gradient,) = torch.autograd.grad(ours(series()).pow(2).mean(), weight)
        (expected,) = torch.autograd.grad(run(series()).pow(2).mean(), weight)
        agree(gradient, expected)
        weight = (weight - 0.1 * gradient).detach().requires_grad_()
    agree(ours(series()), run(series()))


FACTOR = 1.0


def test_a_global_is_bound_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(x: Tensor) -> Tensor:
        return ema(x) * FACTOR

    ours = linrec.parallelize(run)
    agree(ours(series()), run(series()))
    monkeypatch.setitem(globals(), "FACTOR", 3.0)
    agree(ours(series()), run(series()))


def test_a_bound_method_of_an_object() -> None:
    cell, other = Cell(), Cell()
    ours = linrec.parallelize(cell.run)
    for each in (cell, other):
        each.factor = 1.0
    for step in range(3):
        actual = with_gradients(ours, series(), [cell.weight])
        agree(actual, with_gradients(other.run, series(), [other.weight]))
        for each in (cell, other):
            if step == 0:
                each.factor = 3.0
            else:
                each.weight = nn.Parameter(matrix(1))


def test_a_bound_method_of_a_module() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = Gated()

        def encode(self, x: Tensor) -> Tensor:
            return self.cell(x) + 1

    model, oracle = build(Model), build(Model)
    ours = linrec.parallelize(model.encode)
    agree(
        with_gradients(ours, series(), list(model.parameters())),
        with_gradients(oracle.encode, series(), list(oracle.parameters())),
    )
    assert_parallel(ours)
    linrec.revert(ours)
    assert "forward" not in model.cell.__dict__


def test_a_callable_object() -> None:
    class Callable_:
        def __call__(self, x: Tensor) -> Tensor:
            return ema(x, 0.8)

    ours = linrec.parallelize(Callable_())
    same(ours, lambda x: ema(x, 0.8), series())


def test_a_function_that_has_to_stay() -> None:
    model = build(Elman)

    def run(x: Tensor) -> Tensor:
        return model(x)

    ours = linrec.parallelize(run)
    agree(ours(series()), run(series()))
    report = linrec.report(ours)
    assert [each.parallel for each in report.recurrences] == [False]
    assert "tanh" in str(report)
    linrec.revert(ours)
    with pytest.raises(linrec.NotParallelizable, match="LR003"):
        linrec.parallelize(run, series(), strict=True)


def test_a_function_without_a_loop() -> None:
    ours = linrec.parallelize(torch.tanh)
    agree(ours(series()), torch.tanh(series()))
    assert "no loop over time" in str(linrec.report(ours))


def test_example_inputs_of_a_function() -> None:
    ours = linrec.parallelize(ema, (series(), 0.5))
    assert_parallel(ours)
    assert linrec.explain(ema, series()).recurrences
