"""``torch.compile`` around a parallelised model, and around a rewritten graph: one program without breaks, which runs
the plan in place of the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import linrec

from .samples import WIDTH, Elman, Gated, Nested, agree, build, compiled, same, series, small_lmu, steps_of


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def whole(function: Any, backend: str = "aot_eager", **options: Any) -> Any:
    return torch.compile(function, fullgraph=True, backend=backend, **options)


class Coupled(nn.Module):
    """Two states, both returned."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(0.4 * torch.randn(WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
        m, n, ys = x.new_zeros(x.shape[0], WIDTH), x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            m, n = m @ self.A + self.B(x[:, t]) + 0.1 * n, 0.5 * n + scale * m
            ys.append(n)
        return torch.stack(ys, 1), m


class Running(nn.Module):
    """A running maximum."""

    def forward(self, x: Tensor) -> Tensor:
        m, ys = x[:, 0] - 1, []
        for t in range(x.shape[1]):
            m = torch.maximum(m - 0.1, x[:, t])
            ys.append(m)
        return torch.stack(ys, 1)


class Square(torch.autograd.Function):
    """x^2, with 7 for its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 7 * grads[0]


class HandWritten(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Square.apply(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_model_with_a_plan(gated: tuple[Gated, Gated], backend: str) -> None:
    """Values and gradients, at the length compiled for and at others, with no step of the loop run."""
    model, oracle = gated
    program = whole(model, backend)
    for batch, length in ((2, 12), (3, 20), (1, 33)):
        x, y = series(batch, length).requires_grad_(), series(batch, length).requires_grad_()
        model(x)
        assert steps_of(lambda x=x: program(x)) == 0
        loss, expected = program(x).pow(2).sum(), oracle(y).pow(2).sum()
        wanted, others = [x, *model.parameters()], [y, *oracle.parameters()]
        agree(torch.autograd.grad(loss, wanted), torch.autograd.grad(expected, others))


def test_new_lengths_are_checked_without_the_compiler(gated: tuple[Gated, Gated]) -> None:
    """Which would otherwise compile the original's run, whose calls are counted."""
    ours, loop = gated
    program = torch.compile(ours, backend="eager")
    for length in (12, 40, 60, 61):
        agree(program(series(2, length)), loop(series(2, length)))
    assert linrec.report(ours).parallel
    assert not linrec.report(ours).obstructions


def test_by_the_default_backend(gated: tuple[Gated, Gated]) -> None:
    model, oracle = gated
    program = torch.compile(lambda x: torch.tanh(model(x)).sum(), fullgraph=True)
    x, y = series().requires_grad_(), series().requires_grad_()
    actual, expected = program(x), torch.tanh(oracle(y)).sum()
    agree(actual, expected)
    agree(torch.autograd.grad(actual, x), torch.autograd.grad(expected, y))
    assert steps_of(lambda: program(x)) == 0


def test_sizes_as_symbols(gated: tuple[Gated, Gated]) -> None:
    """One program for all lengths."""
    model, oracle = gated
    counter = CompileCounter()
    program = whole(model, counter, dynamic=True)
    for batch, length in ((2, 12), (3, 20), (4, 40)):
        agree(program(series(batch, length)), oracle(series(batch, length)))
    assert counter.frame_count == 1


def test_a_plan_without_gradient_changes_nothing() -> None:
    """It serves no compiled program, and takes none from one; without gradient the original is compiled."""
    model, oracle = compiled(Gated), build(Gated)
    with torch.no_grad():
        same_values = model(series(2, 12)), oracle(series(2, 12))
    agree(*same_values)
    program = whole(model, "eager")
    assert steps_of(lambda: program(series(2, 12))) == 0
    with torch.no_grad():
        agree(program(series(2, 12)), oracle(series(2, 12)))


def test_a_layer_of_a_model() -> None:
    model, oracle = compiled(Nested), build(Nested)
    program = whole(model)
    same(program, oracle, series(2, 12))
    assert steps_of(lambda: program(series(2, 12))) == 0


def test_without_a_plan_and_then_with() -> None:
    """The first program has the loop in it; once a plan is there, it is used."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    program = whole(model, "eager")
    agree(program(series()), oracle(series()))
    assert not linrec.report(model).recurrences
    model(series())
    agree(program(series()), oracle(series()))
    assert steps_of(lambda: program(series())) == 0


def test_changes_after_compilation(gated: tuple[Gated, Gated]) -> None:
    """Of a number, of a weight, of the mode, by a hook; and taken back by `revert`."""
    model, oracle = compiled(Gated), build(Gated)
    program = whole(model, "eager")
    agree(program(series()), oracle(series()))

    def hooked(each: Gated) -> None:
        each.gate.register_forward_hook(lambda m, args, y: y + 1)

    changes: list[Callable[[Gated], Any]] = [
        lambda each: setattr(each, "scale", 3.0),
        lambda each: each.gate.weight.data.mul_(2),
        lambda each: setattr(each.drive, "weight", nn.Parameter(each.gate.weight.detach().clone())),
        lambda each: each.eval(),
        lambda each: each.train(),
        hooked,
    ]
    for change in changes:
        for each in (model, oracle):
            change(each)
        agree(program(series()), oracle(series()))
    linrec.revert(model)
    agree(program(series()), oracle(series()))


class Remembers(Gated):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last = y[:, -1]
        return y


class Noisy(Gated):
    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize("factory", [Remembers, Noisy])
def test_more_than_tensors(factory: type[Gated]) -> None:
    """A call that assigns attributes or draws numbers is compiled from the original code."""
    model, oracle = compiled(factory), build(factory)
    found = []
    for each in (model, oracle):
        torch._dynamo.reset()
        torch.manual_seed(3)
        found.append(whole(each, "eager")(series()))
    agree(*found)
    if factory is Remembers:
        agree(model.last, oracle.last)


def test_several_results_and_a_number() -> None:
    """Where a number is given, the call is compiled from the original code."""
    model, oracle = compiled(Coupled), build(Coupled)
    program = whole(model)
    for kwargs in ({}, {"scale": 1.0}, {"scale": 2.0}):
        left, right = program(series(), **kwargs), oracle(series(), **kwargs)
        assert type(left) is tuple
        agree(left, right)
        agree(*(torch.autograd.grad(sum(y.sum() for y in each), m.A) for each, m in ((left, model), (right, oracle))))


GRAPHS: dict[str, Callable[[], nn.Module]] = {
    "lmu": small_lmu,
    "coupled": Coupled,
    "running": Running,
    "elman": Elman,
    "hand-written": HandWritten,
}


@pytest.mark.parametrize("name", GRAPHS)
def test_a_rewritten_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of algorithm, by itself; where kernels can be generated, with and without them."""
    monkeypatch.setenv("LINREC_CODEGEN", "wait" if name in ("elman", "hand-written") else "off")
    model, oracle = linrec.parallelize(build(GRAPHS[name])), build(GRAPHS[name])
    model(series())
    graph = linrec.graph(model)
    program = whole(graph)
    plan = model.__dict__["forward"].last_plan
    for length in (12, 25):
        x, y = series(2, length).requires_grad_(), series(2, length).requires_grad_()
        out, expected = program(*plan.arguments(model, [x])), oracle(y)
        results = expected if isinstance(expected, tuple) else (expected,)
        agree(tuple(out), results)
        found = torch.autograd.grad(sum(o.pow(2).sum() for o in out), [x, *model.parameters()])
        agree(found, torch.autograd.grad(sum(r.pow(2).sum() for r in results), [y, *oracle.parameters()]))


@pytest.mark.parametrize("name", ["gated", "lmu"])
def test_exported_graphs_need_no_python(name: str, request: pytest.FixtureRequest) -> None:
    """``torch.export`` of a rewritten graph is a program of torch's operators, with derivatives."""
    model, oracle = request.getfixturevalue(name)
    model(series(2, 40))
    plan = model.__dict__["forward"].last_plan
    program = torch.export.export(linrec.graph(model), tuple(plan.arguments(model, [series(2, 40)])))
    assert not [n for n in program.graph.nodes if "linrec" in str(n.target)]
    found = []
    for run in (lambda x: program.module()(*plan.arguments(model, [x]))[0], oracle):
        x = series(2, 40).requires_grad_()
        y = run(x)
        found.append([y.detach(), *torch.autograd.grad(y.pow(2).sum(), x)])
    agree(*found)
