"""What is registered from outside: it is used, it cannot do harm where it is wrong, and errors name it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import linrec
from linrec import extend
from linrec.analysis.rules import RULES
from linrec.ir.scan import scan_nodes, scan_of
from linrec.lowering.registry import LOWERINGS

aten = torch.ops.aten
X = torch.randn(2, 12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    with extend.isolated():
        yield


def gated(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.sigmoid(x[:, t]) * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def elman(x: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = torch.tanh(h + x[:, t])
        out.append(h)
    return torch.stack(out, 1)


def running_min(x: Tensor) -> Tensor:
    m, out = torch.full_like(x[:, 0], 9.0), []
    for t in range(x.shape[1]):
        m = torch.minimum(m + 0.5 * x[:, t], x[:, t])
        out.append(m)
    return torch.stack(out, 1)


def doubling(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
    rows = []
    for t in range(a.shape[0]):
        h0 = a[t] * h0 + b[t]
        rows.append(h0)
    return torch.stack(rows)


def original_runs(function: Any) -> linrec.Report:
    """The report of a function that is called as it was written, with the right result."""
    parallel = linrec.parallelize(function)
    torch.testing.assert_close(parallel(X), function(X))
    report = linrec.report(parallel)
    assert not report.parallel
    return report


def test_a_wrong_rule_is_caught_and_named() -> None:
    @linrec.rule(aten.tanh.default)
    def tanh_is_linear(algebra: Any, node: fx.Node, x: Any) -> Any:
        return x

    text = str(original_runs(elman))
    for part in ("LR010", "the rule 'aten.tanh.default'", __name__):
        assert part in " ".join(text.split()), part


def test_a_failing_rule_is_named() -> None:
    @linrec.rule(aten.tanh.default)
    def broken(algebra: Any, node: fx.Node, x: Any) -> Any:
        raise KeyError("no such thing")

    text = " ".join(str(original_runs(elman)).split())
    for part in ("the rule 'aten.tanh.default'", __name__, "KeyError", "no such thing"):
        assert part in text, part


def test_a_rule_that_gives_up_is_no_error() -> None:
    @linrec.rule(aten.tanh.default)
    def gives_up(algebra: Any, node: fx.Node, x: Any) -> Any:
        raise linrec.NoRule("not polynomial")

    assert "LR003" in str(original_runs(elman))


def test_a_packet_stands_for_its_overloads() -> None:
    @linrec.rule(aten.fmod)
    def none(algebra: Any, node: fx.Node, *args: Any) -> Any:
        raise linrec.NoRule("not polynomial")

    assert {aten.fmod.Tensor, aten.fmod.Scalar} <= set(RULES)


def test_the_place_of_another_is_not_taken_silently() -> None:
    with pytest.raises(linrec.ExtensionError, match=r"a rule 'aten\.mul\.Tensor' already, from linrec"):
        linrec.rule(aten.mul.Tensor)(lambda algebra, node, a, b: a)
    with pytest.raises(linrec.ExtensionError, match="a lowering 'diagonal scan' already"):
        linrec.lowering("diagonal scan")(doubling)
    with pytest.raises(linrec.ExtensionError, match="vector rule"):
        linrec.vector_rule(aten.linear.default)(lambda v, node, *args: args[0])
    with pytest.raises(linrec.ExtensionError, match="max-plus"):
        linrec.semiring("mine", aten.maximum.default, join=torch.maximum)
    before = RULES[aten.mul.Tensor]
    linrec.rule(aten.mul.Tensor, replace=True)(lambda algebra, node, a, b: a)
    assert RULES[aten.mul.Tensor] is not before


def test_defining_the_same_anew_is_allowed() -> None:
    """As in a notebook, where a cell is run again."""
    for _ in range(2):

        @linrec.lowering("mine")
        def mine(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
            return doubling(a, b, h0)

    assert [x.name for x in LOWERINGS].count("mine") == 1


def test_a_kernel_is_used_where_it_is_cheapest_and_meets_its_requirements() -> None:
    calls = []

    @linrec.lowering("mine", cost=lambda elements, length: 1.0)
    def mine(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        calls.append((a.shape, b.shape, h0.shape))
        return doubling(a, b, h0)

    parallel = linrec.parallelize(gated)
    x = X.clone().requires_grad_()
    y = parallel(x)
    (expected,) = torch.autograd.grad(gated(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected)
    (entry,) = linrec.report(parallel).recurrences
    assert entry.lowering == "mine" and calls[-1] == ((12, 2, 3), (12, 2, 3), (2, 3))
    assert [e.name for e in entry.estimates][:2] == ["mine", "cumulative sum"] or entry.estimates[1].name != "mine"
    linrec.lowering("mine", cost=lambda elements, length: 1.0, requires=lambda r: False, replace=True)(mine)
    assert linrec.explain(gated, X).recurrences[0].lowering == "diagonal scan"


def test_a_dense_kernel() -> None:
    transition = 0.3 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    @linrec.lowering("mine", kind="dense", cost=lambda elements, length: 1.0)
    def mine(a: Tensor, b: Tensor, h0: Tensor) -> Tensor:
        rows = []
        for drive in b:
            h0 = h0 @ a.T + drive
            rows.append(h0)
        return torch.stack(rows)

    def memory(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = h @ transition.T + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    report = linrec.explain(memory, X)
    assert [r.lowering for r in report] == ["mine"], str(report)


@pytest.mark.parametrize(
    ("kernel", "says"),
    [
        (lambda a, b, h0: doubling(a, b, h0) + 1e-3, "LR010"),
        (lambda a, b, h0: doubling(a, b, h0)[1:], "in place of the states"),
        (lambda a, b, h0: b.nothing, "AttributeError"),
        (lambda a, b, h0: doubling(a.detach(), b, h0), "LR010"),
    ],
    ids=["value", "shape", "exception", "gradient"],
)
def test_a_wrong_kernel_is_caught_and_named(kernel: Any, says: str) -> None:
    linrec.lowering("mine", cost=lambda elements, length: 1.0)(kernel)
    text = " ".join(str(original_runs(gated)).split())
    for part in (says, "the lowering 'mine'", __name__):
        assert part in text, text


def test_a_semiring() -> None:
    def running_bits(x: Tensor) -> Tensor:
        m, out = torch.full_like(x[:, 0], -30.0), []
        for t in range(x.shape[1]):
            m = torch.logaddexp2(m - 0.5, x[:, t])
            out.append(m)
        return torch.stack(out, 1)

    assert not linrec.explain(running_bits, X).parallel
    linrec.semiring("log2-sum-exp2", aten.logaddexp2.default, join=torch.logaddexp2)
    parallel = linrec.parallelize(running_bits)
    x = X.clone().requires_grad_()
    y = parallel(x)
    (expected,) = torch.autograd.grad(running_bits(x).square().sum(), x)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), x)[0], expected)
    (entry,) = linrec.report(parallel).recurrences
    assert entry.parallel and entry.lowering == "log2-sum-exp2 scan"
    assert "m[t-1]" in entry.equation


@pytest.mark.parametrize(
    ("join", "scan", "says"),
    [
        (lambda x, y: x - y, None, "not associative"),
        (lambda x, y: x + y, None, "does not distribute"),
        (torch.minimum, lambda a, b, h0, dim=0: b, "differs from its loop at 1 steps"),
        (torch.minimum, lambda a, b, h0, dim=0: b[1:], "differs from its loop"),
    ],
)
def test_a_wrong_semiring_is_refused(join: Any, scan: Any, says: str) -> None:
    with pytest.raises(linrec.ExtensionError, match=f"the semiring 'mine' from .*{says}"):
        linrec.semiring("mine", aten.minimum.default, join=join, scan=scan)


class Noting(linrec.Pass):
    name = "noting"

    def __init__(self) -> None:
        self.seen: list[int] = []

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        self.seen.append(len(scan_nodes(graph_module)))
        return linrec.PassResult(graph_module, False)


@pytest.mark.parametrize("place", ["simplify", "split", "hoist", "lower"])
def test_a_pass_runs_in_its_place(place: str) -> None:
    linrec.add_pass(Noting(), before=place)
    names = [stage.name for stage in linrec.passes.trace(gated, X)]
    assert names[names.index("noting") + 1] == place
    linrec.add_pass(Noting(), after=place)
    names = [stage.name for stage in linrec.passes.trace(gated, X)]
    assert names[names.index("noting") - 1] == place and names.count("noting") == 1


class Halving(linrec.Pass):
    """Wrong: what it writes is not what the program computes."""

    name = "halving"

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        for node in scan_nodes(graph_module):
            graph = scan_of(graph_module, node).step.graph
            for inner in list(graph.nodes):
                if inner.target is aten.add.Tensor:
                    inner.target = aten.sub.Tensor
        return linrec.PassResult(graph_module, True)


class Malformed(Halving):
    name = "malformed"

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        nodes = list(graph_module.graph.nodes)
        nodes[-2].append(nodes[-4]) if nodes[-4].users else None
        return linrec.PassResult(graph_module, True)


class Silent(Halving):
    name = "silent"

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        return None  # type: ignore[return-value]


class Failing(Halving):
    name = "failing"

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        raise ZeroDivisionError("by nothing")


@pytest.mark.parametrize("wrong", [Halving, Malformed, Silent, Failing])
def test_a_wrong_pass_is_caught_and_named(wrong: type[linrec.Pass]) -> None:
    linrec.add_pass(wrong(), before="split")
    text = " ".join(str(original_runs(gated)).split())
    assert f"'{wrong.name}'" in text, text


def test_a_pass_needs_a_name_and_a_place() -> None:
    with pytest.raises(TypeError, match=r"linrec\.Pass"):
        linrec.add_pass(Noting, before="split")  # type: ignore[type-var]
    for wrong in ({}, {"before": "split", "after": "split"}, {"before": "nowhere"}):
        with pytest.raises(ValueError, match="draw, simplify, decompose, parts, sink, outline, split, hoist, lower"):
            linrec.add_pass(Noting(), **wrong)


def test_packages_are_loaded_by_entry_point(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []

    class Point:
        def __init__(self, name: str, function: Any) -> None:
            self.name, self.value, self.function = name, f"somewhere:{name}", function

        def load(self) -> Any:
            return self.function

    def broken() -> None:
        raise RuntimeError("cannot be loaded")

    points = [Point("mylab", lambda: loaded.append("mylab")), Point("broken", broken)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == extend.GROUP else [])
    monkeypatch.setattr(extend, "_loaded", {})
    with pytest.warns(UserWarning, match="'broken'.*cannot be loaded"):
        linrec.parallelize(gated)
    linrec.parallelize(gated)
    assert loaded == ["mylab"]
    assert [(name, bool(problem)) for name, _, problem in extend.installed()][:2] == [
        ("mylab", False),
        ("broken", True),
    ]
