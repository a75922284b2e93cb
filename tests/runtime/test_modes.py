"""Which code runs in which mode: the original in eval mode and in every context that the compiler does not handle,
the rewritten graph in training; and what is refused by an error."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import (
    WIDTH,
    Elman,
    Gated,
    Nested,
    agree,
    assert_parallel,
    build,
    compiled,
    counted_exports,
    same,
    series,
    steps_of,
)


@pytest.fixture
def model(gated: tuple[Gated, Gated]) -> Gated:
    return gated[0]


@pytest.fixture
def oracle() -> Gated:
    return build(Gated)


def test_eval_mode_runs_the_original(model: Gated, oracle: Gated) -> None:
    assert steps_of(lambda: model(series())) == 0
    model.eval()
    try:
        assert steps_of(lambda: model(series())) == 12
        assert torch.equal(model(series()), oracle.eval()(series()))
    finally:
        model.train()
    assert steps_of(lambda: model(series())) == 0


def test_compiled_in_eval_mode_first() -> None:
    """Nothing is traced before training begins."""
    model = linrec.parallelize(build(Gated)).eval()
    with counted_exports() as exports:
        assert steps_of(lambda: model(series())) == 12
        assert exports[0] == 0
    model.train()
    model(series())
    assert_parallel(model)


def test_always() -> None:
    model, oracle = linrec.parallelize(build(Nested).eval(), when="always"), build(Nested).eval()
    agree(model(series()), oracle(series()))
    assert steps_of(lambda: model(series())) == 0
    same(model, oracle, series(3, 9))
    assert_parallel(model)
    assert not model.training


def test_a_part_in_eval_mode() -> None:
    """The loops of a layer in eval mode run as they were written, the other layer's do not."""
    model, oracle = compiled(Nested), build(Nested)
    for each in (model, oracle):
        each.layers[0].eval()
    model(series())
    assert steps_of(lambda: model(series())) == 12
    same(model, oracle, series())


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_contexts(context: Callable[[], Any]) -> None:
    """First inside, then outside, then inside again: each time the original's result, and parallel outside."""
    model, oracle = linrec.parallelize(build(Gated, torch.float32)), build(Gated, torch.float32)
    x = series(dtype=torch.float32)
    for inside in (True, False, True):
        with context() if inside else contextlib.nullcontext():
            actual, expected = model(x), oracle(x)
        assert actual.dtype == expected.dtype
        assert actual.requires_grad == expected.requires_grad
        assert actual.is_inference() == expected.is_inference()
        agree(actual, expected, 1e-6)
    assert steps_of(lambda: model(x)) == 0
    same(model, oracle, x, tolerance=1e-5)


def test_gradient_modes_of_the_input(model: Gated, oracle: Gated) -> None:
    """With and without gradient of the input, and of the parameters only."""
    x = series()
    for each in (x, x.clone().requires_grad_()):
        left, right = model(each), oracle(each)
        agree(left, right)
        assert left.requires_grad
        found = (torch.autograd.grad(y.pow(2).sum(), list(m.parameters())) for y, m in ((left, model), (right, oracle)))
        agree(*found)


class Dropped(Gated):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.randn(1, dtype=x.dtype)
        return nn.functional.dropout(super().forward(x * noise), 0.3, self.training)


def test_random_draws() -> None:
    """The same seed gives the same numbers, in the call that compiles and later; and the generator goes on likewise."""
    model, oracle = linrec.parallelize(build(Dropped)), build(Dropped)
    for length in (12, 12, 20):
        drawn = []
        for each in (model, oracle):
            torch.manual_seed(7)
            drawn.append((each(series(2, length)), torch.rand(3)))
        agree(drawn[0], drawn[1])
    assert_parallel(model)


class LayerDrop(Gated):
    """Python's own random numbers decide, as in stochastic depth."""

    def forward(self, x: Tensor) -> Tensor:
        import random

        return x if random.random() < 0.3 else super().forward(x)


def test_random_decisions_of_python() -> None:
    import random

    model, oracle = linrec.parallelize(build(LayerDrop)), build(LayerDrop)
    drawn: list[list[Any]] = []
    for each in (model, oracle):
        random.seed(5)
        drawn.append([each(series(seed=k)) for k in range(8)])
        drawn[-1].append(random.random())
    agree(drawn[0], drawn[1])


@pytest.mark.parametrize("thing", [3, None, "model", [nn.Linear(1, 1)], torch.zeros(2)], ids=repr)
def test_wrong_types(thing: Any) -> None:
    for entry in (
        linrec.parallelize,
        linrec.revert,
        linrec.report,
        linrec.graph,
        lambda m: linrec.explain(m, series()),
    ):
        with pytest.raises(TypeError, match=type(thing).__name__):
            entry(thing)


@pytest.mark.parametrize("when", ["eval", "Training", "", None, True])
def test_wrong_when(when: Any) -> None:
    model = build(Gated)
    with pytest.raises(ValueError, match=r"'training'.*'always'"):
        linrec.parallelize(model, when=when)
    assert "forward" not in model.__dict__


def test_strict() -> None:
    """The error names the operator's line; without strictness the same model trains as it is."""
    model, oracle = linrec.parallelize(build(Elman), strict=True), build(Elman)
    for _ in range(2):
        with pytest.raises(linrec.NotParallelizable) as caught:
            model(series())
        (obstruction,) = caught.value.obstructions
        assert obstruction.id == "LR003"
        file, line = obstruction.location.split(":")
        with open(__file__.replace("test_modes.py", "samples.py")) as source:
            assert file == "samples.py"
            assert "torch.tanh" in source.read().splitlines()[int(line) - 1]
        assert obstruction.id in str(caught.value)
        assert obstruction.location in str(caught.value)
    with pytest.raises(linrec.NotParallelizable):
        linrec.parallelize(build(Elman), series(), strict=True)
    assert issubclass(linrec.NotParallelizable, linrec.LinrecError)
    agree(model.eval()(series()), oracle.eval()(series()))
    same(linrec.revert(model).train(), oracle, series())


def test_strict_where_nothing_stays() -> None:
    model = linrec.parallelize(build(Nested), strict=True)
    same(model, build(Nested), series())
    same(model, build(Nested), series(2, 2))
    plain = linrec.parallelize(nn.Sequential(nn.Linear(WIDTH, 2)).double(), series(), strict=True)
    assert plain(series()).shape == (2, 12, 2)


def test_no_loop_over_time() -> None:
    """The model is left alone, and the report says so to somebody who does not know the word recurrence."""
    model = nn.Sequential(nn.Linear(WIDTH, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    before = [dict(m.__dict__) for m in model.modules()]
    assert linrec.parallelize(model) is model
    with counted_exports() as exports:
        x = series().requires_grad_()
        model(x).sum().backward()
        assert exports[0] == 0
    report = linrec.report(model)
    assert report.recurrences == []
    assert not report.parallel
    assert "no loop over time" in str(report)
    linrec.revert(model)
    assert [dict(m.__dict__) for m in model.modules()] == before


def test_original_errors_are_the_users(model: Gated, oracle: Gated) -> None:
    """What a call raises is what it raised before, and the model goes on."""
    wrong: list[tuple[Any, ...]] = [
        (),
        (series(), 1),
        (series()[0, 0],),
        (series()[..., :2],),
        ("x",),
        (series().float(),),
    ]
    for args in wrong:
        with pytest.raises(Exception) as expected:
            oracle(*args)
        with pytest.raises(expected.type) as actual:
            model(*args)
        assert str(actual.value).splitlines()[:1] == str(expected.value).splitlines()[:1]
    assert steps_of(lambda: model(series())) == 0
    same(model, oracle, series())


class Weighted(nn.Module):
    """Does otherwise where a derivative by its input is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1) * (2.0 if x.requires_grad else 1.0)


@pytest.mark.parametrize("first", [True, False])
def test_branches_on_whether_inputs_require_gradient(first: bool) -> None:
    loop, model = Weighted(), linrec.parallelize(Weighted())
    for batch, length in ((2, 24), (3, 41)):
        for wanted in (first, not first, first):
            x = torch.randn(batch, length, 3, dtype=torch.float64).requires_grad_(wanted)
            found = []
            for m in (model, loop):
                y = m(x)
                found.append([y, *torch.autograd.grad(y.square().sum(), [m.w, *([x] if wanted else [])])])
            for a, b in zip(*found, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
    report = linrec.report(model)
    assert not report.obstructions and all(r.parallel for r in report.recurrences)
