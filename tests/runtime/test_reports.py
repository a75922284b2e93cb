"""`example_inputs`, `explain`, `report` and `graph`: compiling ahead changes nothing that a program can see, explaining
changes nothing at all, and what is said is right and can be read."""

from __future__ import annotations

import inspect
import random
import re
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import linrec

from .samples import (
    KINDS,
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
    traces,
)


class Effects(Gated):
    """Everything that a call may change, and two things that cannot be copied."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.lock = threading.Lock()
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        y = nn.functional.dropout(super().forward(x), 0.2, self.training)
        self.last = y[:, -1]
        return y


def state(model: nn.Module) -> list[Any]:
    """Everything that a module holds, tensors with their values."""
    tables = [dict(sub.__dict__) for sub in model.modules()]
    for table in tables:
        for name in ("_parameters", "_buffers", "_modules", "_forward_hooks"):
            table[name] = dict(table[name])
    values = [t.detach().clone() for t in (*model.parameters(), *model.buffers())]
    return [tables, [t.tolist() for t in values], [p.grad for p in model.parameters()]]


def test_explain_changes_nothing() -> None:
    model = build(Effects)
    model(series())  # leaves a tensor with a history in `last`, which cannot be copied deeply
    hooked: list[str] = []
    model.register_forward_hook(lambda m, args, y: hooked.append("hook"))
    x = series().requires_grad_()
    kept, process, generator = state(model), traces(), random.getstate()
    values = x.detach().clone()
    report = linrec.explain(model, x)
    assert report.recurrences
    assert all(each.parallel for each in report.recurrences), str(report)
    assert state(model) == kept
    assert traces() == process
    assert random.getstate() == generator
    assert torch.equal(x, values)
    assert x.grad is None
    assert hooked == []
    assert steps_of(lambda: model(series())) == 12


def test_explain_of_each_kind() -> None:
    for factory in (Nested, Elman):
        model = build(factory)
        kept = state(model)
        report = linrec.explain(model, series())
        assert state(model) == kept
        assert [each.parallel for each in report.recurrences] == ([True, True] if factory is Nested else [False])


def test_explain_of_a_compiled_model() -> None:
    """It neither uses nor disturbs what was compiled; in eval mode too it says what training would do."""
    model = compiled(Gated)
    kept = state(model)
    assert linrec.explain(model, series(3, 9)).parallel
    model.eval()
    assert linrec.explain(model, x=series(3, 9)).parallel
    model.train()
    assert state(model) == kept
    with counted_exports() as exports:
        assert steps_of(lambda: model(series())) == 0
        assert exports[0] == 0


def test_explain_of_a_function() -> None:
    layer = build(Gated)
    kept = state(layer)
    report = linrec.explain(lambda x: layer(x) * 2, series())
    assert [each.parallel for each in report.recurrences] == [True]
    assert state(layer) == kept


class Started(Gated):
    def forward(self, x: Tensor, h0: Tensor) -> Tensor:
        return super().forward(x) + h0[:, None]


@pytest.mark.parametrize(
    "factory, example, args, kwargs",
    [
        (Effects, series(), (series(),), {}),
        (Started, (series(), series()[:, 0]), (series(), series()[:, 0]), {}),
        (Started, {"x": series(), "h0": series()[:, 0]}, (), {"x": series(), "h0": series()[:, 0]}),
    ],
    ids=["tensor", "tuple", "dict"],
)
def test_example_inputs(factory: type[Gated], example: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The first call finds everything compiled, and nothing used up."""
    model = build(factory)
    before, process = state(model), traces()
    assert linrec.parallelize(model, example) is model
    assert_parallel(model)
    assert traces() == process
    after = state(model)
    for table in after[0]:
        table.pop("forward", None)
    assert after == before
    with counted_exports() as exports:
        assert steps_of(lambda: model(*args, **kwargs)) == 0
        assert exports[0] == 0


def test_example_inputs_of_nested_layers() -> None:
    model = linrec.parallelize(build(Nested), series())
    assert [each.parallel for each in linrec.report(model).recurrences] == [True, True]
    with counted_exports() as exports:
        assert steps_of(lambda: model(series())) == 0
        assert exports[0] == 0
    same(model, build(Nested), series(3, 9))


@pytest.fixture(scope="module")
def nested() -> nn.Module:
    return compiled(Nested)


def line_of(owner: Any, text: str) -> str:
    """Where a statement of the samples stands."""
    lines, first = inspect.getsourcelines(owner)
    (offset,) = [k for k, line in enumerate(lines) if text in line]
    return f"samples.py:{first + offset}"


PLACES = (line_of(Gated.step, "self.drive(x)"), line_of(Gated.forward, "self.step("))
"""Where the state is updated: in the helper, or where the loop calls it."""


def test_report_entries(nested: nn.Module) -> None:
    report = linrec.report(nested)
    assert report.parallel
    assert [each.module for each in report] == ["layers.0", "layers.1"]
    for each in report:
        assert each.location in PLACES
        assert each.states == ("h",)
        assert each.lowering == "diagonal scan"
        assert "diagonal" in each.transition
        assert not each.time_invariant
        assert each.obstructions == []
        assert isinstance(each.graph, fx.GraphModule)


def test_an_equation_names_each_thing_once(nested: nn.Module) -> None:
    """What multiplies the state and what is added to it have names other than the state's."""
    for model in (nested, compiled(KINDS["lmu"])):
        for each in linrec.report(model):
            (state,) = each.states
            left, right = each.equation.split(" = ", 1)
            assert left == f"{state}[t]"
            assert f"{state}[t-1]" in right
            assert not re.search(rf"\b{state}\[t\]", right), each.equation


def test_report_text(nested: nn.Module) -> None:
    text = str(linrec.report(nested))
    assert "2 of 2 recurrences parallel" in text
    assert "layers.0" in text
    assert "layers.1" in text
    assert "diagonal scan" in text
    assert any(place in text for place in PLACES)
    assert all(len(line) < 160 for line in text.splitlines())


def test_report_of_what_stays() -> None:
    model = linrec.parallelize(build(Elman), series())
    report = linrec.report(model)
    assert not report.parallel
    (recurrence,) = report.recurrences
    (obstruction,) = recurrence.obstructions
    assert obstruction.location == line_of(Elman, "torch.tanh")
    for part in ("LR003", "tanh", "'h'", obstruction.location, obstruction.hint, "0 of 1", "stays a loop"):
        assert part in str(report), part


def test_report_before_anything_has_happened() -> None:
    for model in (build(Gated), linrec.parallelize(build(Gated))):
        report = linrec.report(model)
        assert report.recurrences == []
        assert not report.parallel
        assert str(report).startswith("linrec: ")


def test_report_does_not_repeat_itself(nested: nn.Module) -> None:
    """A second signature of the same layers adds nothing to read."""
    before = str(linrec.report(nested))
    with torch.no_grad():
        nested(series(1, 12))
    nested(series(3, 20))
    assert str(linrec.report(nested)) == before


def test_graph(nested: nn.Module) -> None:
    """Of the model where layers share it, of a layer, of a function; a few nodes, however long the series."""
    graph = linrec.graph(nested)
    assert isinstance(graph, fx.GraphModule)
    assert linrec.graph(nested.layers[0]) is graph
    graph.graph.lint()
    assert len(graph.graph.nodes) < 60
    assert not [node for node in graph.graph.nodes if "select" in str(node.target)]


def test_graph_where_there_is_none() -> None:
    model = linrec.parallelize(build(Gated))
    with pytest.raises(linrec.LinrecError, match="training mode"):
        linrec.graph(model)
    with pytest.raises(linrec.LinrecError):
        linrec.graph(build(Gated))


def test_graph_where_there_are_several() -> None:
    def stack() -> nn.Module:
        return nn.Sequential(Gated(), Gated(torch.tanh))

    model = linrec.parallelize(build(stack))
    model(series())
    with pytest.raises(linrec.LinrecError, match=r"'0'.*'1'"):
        linrec.graph(model)
    assert linrec.graph(model[0]) is not linrec.graph(model[1])


class Indented(nn.Module):
    """Two loops in one forward, one of which has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        h = s = x.new_zeros(x.shape[0], WIDTH)
        for t in range(x.shape[1]):
            s = 0.9 * s + x[:, t]
            h = torch.tanh(h @ self.weight + s)
        return h


def test_report_of_a_part() -> None:
    model, oracle = linrec.parallelize(build(Indented)), build(Indented)
    same(model, oracle, series(2, 15))
    report = linrec.report(model)
    assert {each.states: each.parallel for each in report} == {("s",): True, ("h",): False}
    assert not report.parallel
    assert "1 of 2" in str(report)
    agree(model(series()), oracle(series()))


def test_what_is_registered_in_forward_is_named() -> None:
    """A buffer may be assigned, as stateful neurons do with their membrane; one more is another model."""

    class Neuron(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("membrane", torch.zeros(0), persistent=False)

        def forward(self, x: Tensor, h: Tensor) -> Tensor:
            self.register_buffer("spikes", torch.zeros_like(x))
            self.membrane = 0.9 * h + x
            return self.membrane

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.neuron = Neuron()

        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = self.neuron(x[:, t], h)
                out.append(h)
            return torch.stack(out, 1)

    model = linrec.parallelize(Net())
    same(model, Net(), series(2, 12))
    (problem,) = linrec.report(model).obstructions
    assert problem.id == "LR013"
    assert "the buffer 'neuron.spikes'" in problem.explanation
