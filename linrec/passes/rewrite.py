"""Shared by the passes: build a scan node from a part of another one's step, and read scan nodes apart."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from linrec.ir.location import locate_like
from linrec.ir.nodes import value
from linrec.ir.scan import Scan, fresh_name, scan_of


@dataclass
class ScanView:
    """A scan node taken apart: outer operands beside the placeholders of the step, and results beside the outputs."""

    node: fx.Node
    scan: Scan
    length: Any
    initial: list[fx.Node]
    series: list[fx.Node]
    constants: list[fx.Node]

    @classmethod
    def of(cls, graph_module: fx.GraphModule, node: fx.Node) -> ScanView:
        """The view of a scan node of a graph module."""
        length, initial, series, constants = node.args
        return cls(node, scan_of(graph_module, node), length, list(initial), list(series), list(constants))

    @property
    def step(self) -> fx.Graph:
        """The graph of one step."""
        return self.scan.step.graph

    @property
    def placeholders(self) -> list[fx.Node]:
        """The inputs of the step: carries, then xs, then constants."""
        return [n for n in self.step.nodes if n.op == "placeholder"]

    @property
    def carries(self) -> list[fx.Node]:
        """The placeholders of the old states."""
        return self.placeholders[: self.scan.carries]

    @property
    def xs(self) -> list[fx.Node]:
        """The placeholders of the inputs that change with time."""
        return self.placeholders[self.scan.carries :][: self.scan.xs]

    @property
    def consts(self) -> list[fx.Node]:
        """The placeholders of the values that are the same in every step."""
        return self.placeholders[self.scan.carries + self.scan.xs :]

    @property
    def results(self) -> list[fx.Node]:
        """What the step returns: new states, then ys."""
        output = next(n for n in self.step.nodes if n.op == "output")
        return list(output.args[0])

    @property
    def updates(self) -> list[fx.Node]:
        """The nodes of the step that compute the new states."""
        return self.results[: self.scan.carries]

    @property
    def ys(self) -> list[fx.Node]:
        """The nodes of the step whose values are stacked over time."""
        return self.results[self.scan.carries :]

    def taken(self) -> dict[int, list[fx.Node]]:
        """For each result that is read outside, the getitem nodes that read it."""
        found: dict[int, list[fx.Node]] = {}
        for user in self.node.users:
            assert user.target is operator.getitem
            found.setdefault(int(user.args[1]), []).append(user)
        return found


def step_graph(
    body: Sequence[fx.Node],
    carries: Sequence[fx.Node],
    xs: Sequence[fx.Node],
    consts: Sequence[fx.Node],
    results: Sequence[fx.Node],
) -> fx.GraphModule:
    """A step graph of its own from nodes of another step: `body` in order, the rest become placeholders."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    for node in [*carries, *xs, *consts]:
        new = graph.placeholder(node.name)
        new.meta = dict(node.meta)
        env[node] = new
    for node in body:
        env[node] = graph.node_copy(node, lambda n: env[n])
    graph.output(tuple(env[r] for r in results))
    return fx.GraphModule(torch.nn.Module(), graph)


def insert_scan(
    graph_module: fx.GraphModule,
    before: fx.Node,
    stem: str,
    length: Any,
    step: fx.GraphModule,
    initial: Sequence[fx.Node],
    series: Sequence[fx.Node],
    constants: Sequence[fx.Node],
) -> list[fx.Node]:
    """Add a scan in front of a node; return one outer node per result (final carries, then ys)."""
    name = fresh_name(graph_module, stem)
    scan = Scan(step, len(initial), len(series))
    graph_module.add_module(name, scan)
    graph = graph_module.graph
    with graph.inserting_before(before):
        node = graph.call_module(name, (length, tuple(initial), tuple(series), tuple(constants)))
        locate_like(node, before)
        output = next(n for n in step.graph.nodes if n.op == "output")
        found = []
        for i, result in enumerate(output.args[0]):
            got = graph.call_function(operator.getitem, (node, i))
            locate_like(got, result)
            got.meta["val"] = value(result) if i < len(initial) else stacked(value(result), value(length))
            found.append(got)
    node.meta["val"] = tuple(value(n) for n in found)
    return found


def repeat_steps(x: Tensor, length: int) -> Tensor:
    """A value that is the same in every step, for all steps: (...) to (length, ...), without a copy."""
    return x.unsqueeze(0).expand(length, *x.shape)


def stacked(val: Any, length: int) -> Any:
    """A fake tensor like `val` with a leading dimension of `length`."""
    assert isinstance(val, Tensor)
    if hasattr(val, "fake_mode"):
        with val.fake_mode:
            return val.new_empty((length, *val.shape))
    return val.new_empty((length, *val.shape))


def erase_scan(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Remove a scan node that nobody reads, its getitem nodes and its module."""
    for user in list(node.users):
        graph_module.graph.erase_node(user)
    target = str(node.target)
    graph_module.graph.erase_node(node)
    delattr(graph_module, target)
