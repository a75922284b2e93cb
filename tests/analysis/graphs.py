"""Step graphs for the tests, without a model around them: one operator at a time, or traced from a Python function.

A size of `BATCH` stands for the batch: graphs are built with it as a symbol, or as a plain integer.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.utils import _pytree as pytree

from linrec.capture.normalize import normalize
from linrec.ir.scan import Scan

BATCH = 5
"""The size that becomes a symbol; no other dimension of a test has it."""

aten = torch.ops.aten


class Fakes:
    """Makes fake tensors of one mode, whose dimensions of size `BATCH` share one symbol where `symbolic`."""

    def __init__(self, symbolic: bool = True) -> None:
        self.mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        self.symbolic = symbolic

    def __call__(self, tensor: Tensor) -> Tensor:
        dynamic = [DimDynamic.DUCK if self.symbolic and s == BATCH else DimDynamic.STATIC for s in tensor.shape]
        return self.mode.from_tensor(tensor, symbolic_context=StatelessSymbolicContext(dynamic_sizes=dynamic))


class StepGraph:
    """Builds a step graph call by call; every node has the value it would have in a trace."""

    def __init__(self, symbolic: bool = True) -> None:
        self.graph = fx.Graph()
        self.fakes = Fakes(symbolic)
        self.values: dict[fx.Node, Any] = {}
        """What each node holds."""
        self._last: fx.Node | None = None

    def input(self, tensor: Tensor) -> fx.Node:
        """A placeholder for a tensor."""
        return self._placeholder(self.fakes(tensor), tensor)

    def _placeholder(self, val: Any, value: Any) -> fx.Node:
        with self.graph.inserting_after(self._last) if self._last else contextlib.nullcontext():
            node = self._last = self.graph.placeholder(f"p{len(self.values)}")
        node.meta["val"], self.values[node] = val, value
        return node

    def batch(self) -> Any:
        """The batch size: a placeholder that holds it, as the size nodes that re-rolling passes into a step."""
        if not self.fakes.symbolic:
            return BATCH
        known = [n for n, v in self.values.items() if type(v) is int]
        if known:
            return known[0]
        return self._placeholder(self.fakes(torch.empty(BATCH)).shape[0], BATCH)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A call of an operator."""
        node = self.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.fakes.mode:
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        real_args, real_kwargs = fx.map_arg((args, kwargs), lambda n: self.values[n])
        self.values[node] = target(*real_args, **real_kwargs)
        return node

    def finish(self, *results: fx.Node) -> fx.GraphModule:
        """The graph as a module that returns the given nodes."""
        self.graph.output(tuple(results))
        self.graph.lint()
        return fx.GraphModule(torch.nn.Module(), self.graph)


def evaluate(graph: fx.Graph, values: dict[fx.Node, Any]) -> dict[fx.Node, Any]:
    """The values of all nodes of a graph of calls, given those of its placeholders."""
    values = dict(values)
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    return values


def traced(function: Callable[..., Any], *tensors: Tensor, symbolic: bool = True) -> fx.GraphModule:
    """A normalised graph of ATen operators from a function of tensors; sizes read in it are placeholders at the end."""
    fakes = Fakes(symbolic)
    inputs = [fakes(t) for t in tensors]

    def flat(*args: Any) -> tuple[Any, ...]:
        return tuple(pytree.tree_leaves(function(*args)))

    # Stack traces cost time, and only those of functions named so are kept.
    named = getattr(function, "__name__", "") == "forward"
    graph_module = make_fx(flat, tracing_mode="real", pre_dispatch=True, record_stack_traces=named)(*inputs)
    if any(n.op == "call_function" for n in graph_module.graph.nodes):
        normalize(graph_module)
    graph = graph_module.graph
    last = [n for n in graph.nodes if n.op == "placeholder"][-1]
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is aten.sym_size.int:
            with graph.inserting_after(last):
                size = graph.placeholder(f"size_{node.args[1]}_of_{node.args[0]}")
            size.meta = dict(node.meta)
            size.meta["size"] = (node.args[0], node.args[1])
            node.replace_all_uses_with(size)
            graph.erase_node(node)
            last = size
    graph_module.recompile()
    return graph_module


def scan_graph(
    step: Callable[..., Any],
    initial: Sequence[Tensor],
    xs: Sequence[Tensor] = (),
    consts: Sequence[Tensor] = (),
    symbolic: bool = True,
) -> fx.GraphModule:
    """A graph with one scan of `step(*carries, *xs, *consts) -> (*carries, *ys)`, for any length and batch size.

    It takes ``(*initial, *xs, *consts)``, every x with a leading time dimension, and returns final carries and ys.
    """
    body = traced(step, *initial, *(x[0] for x in xs), *consts, symbolic=symbolic)
    holders = [n for n in body.graph.nodes if n.op == "placeholder"]
    output = next(n for n in body.graph.nodes if n.op == "output")
    graph, root = fx.Graph(), torch.nn.Module()
    root.add_module("loop", Scan(body, len(initial), len(xs)))
    mode = holders[0].meta["val"].fake_mode
    steps = xs[0].shape[0] if xs else 6
    outer: dict[fx.Node, fx.Node] = {}
    for i, holder in enumerate(holders):
        if "size" in holder.meta:
            continue
        node = graph.placeholder(holder.name)
        node.meta["val"] = holder.meta["val"]
        if len(initial) <= i < len(initial) + len(xs):
            with mode:
                node.meta["val"] = holder.meta["val"].new_empty((steps, *holder.meta["val"].shape))
        outer[holder] = node
    series = [outer[h] for h in holders[len(initial) :][: len(xs)]]
    length: Any = steps
    if series:
        length = graph.call_function(aten.sym_size.int, (series[0], 0))
        length.meta["val"] = steps
    for holder in holders:
        if "size" in holder.meta:
            of, dim = holder.meta["size"]
            shift = len(initial) <= holders.index(of) < len(initial) + len(xs)
            outer[holder] = graph.call_function(aten.sym_size.int, (outer[of], dim + shift))
            outer[holder].meta["val"] = holder.meta["val"]
    rest = [outer[h] for h in holders[len(initial) + len(xs) :]]
    scan = graph.call_module(
        "loop", (length, tuple(outer[h] for h in holders[: len(initial)]), tuple(series), tuple(rest))
    )
    results = []
    for i, result in enumerate(output.args[0]):
        val = result.meta["val"]
        if i >= len(initial):
            with mode:
                val = val.new_empty((steps, *val.shape))
        got = graph.call_function(operator.getitem, (scan, i))
        got.meta["val"] = val
        results.append(got)
    scan.meta["val"] = tuple(n.meta["val"] for n in results)
    graph.output(tuple(results))
    graph.lint()
    return fx.GraphModule(root, graph)
