"""What is read off a trace: how much it computes, where its length comes from, which sizes it is made for."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from linrec.capture.discover import TimeAxis
from linrec.capture.source import Source
from linrec.capture.trace import Trace
from linrec.ir.held import lookup
from linrec.ir.nodes import shape_of, value
from linrec.ir.obstruction import refuse
from linrec.ir.timeaxis import size, zeros
from linrec.runtime.plan import TimeDim

_COMPOSED = frozenset(["linear", "matmul", "einsum", "conv1d", "conv2d", "layer_norm", "softmax", "softplus", "silu"])


def operators(graph_module: fx.GraphModule) -> int:
    """How many operators a graph calls, those that only read sizes or take tuples apart left out; what torch puts
    together from others counts as three."""
    free = (torch.ops.aten.sym_size.int, operator.getitem)
    calls = [n for n in graph_module.graph.nodes if n.op in ("call_function", "call_module") and n.target not in free]
    names = [getattr(n.target, "_schema", None) for n in calls]
    return sum(3 if s is not None and s.name.removeprefix("aten::") in _COMPOSED else 1 for s in names)


def kernels(graph_module: fx.GraphModule) -> int:
    """How many of a graph's operators are algorithms of linrec's, or loops."""
    ours = ("linrec.lowering", "linrec.ops")
    return sum(
        n.op == "call_module" or (n.op == "call_function" and str(getattr(n.target, "__module__", "")).startswith(ours))
        for n in graph_module.graph.nodes
    )


def python_sizes(graph_module: fx.GraphModule) -> None:
    """Let a graph read sizes as Python numbers."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.aten.sym_size.int:
            node.target = size


def zeros_for_states(graph_module: fx.GraphModule) -> None:
    """Let a graph make zeros for a state at once that are to be like a step of a tensor, and not take that step."""
    aten = torch.ops.aten
    for node in graph_module.graph.nodes:
        if node.target is not aten.zeros_like.default or any(node.kwargs.values()):
            continue
        like = node.args[0]
        if like.target is aten.select.int and len(node.args) == 1:
            x, dim, _ = like.args
            node.target, node.args, node.kwargs = zeros, (x, dim % len(shape_of(x))), {}
            if not like.users:
                graph_module.graph.erase_node(like)


def length_node(t: Trace, axis: TimeAxis) -> fx.Node:
    """Compute the length at the top of the graph (in both traces, so that they stay isomorphic)."""
    tensor_index = 0
    placeholders = [n for n in t.graph_module.graph.nodes if n.op == "placeholder"]
    wanted = axis.leaf
    order = sorted(axis.tensor_leaves).index(wanted)
    for placeholder, source in zip(placeholders, t.sources, strict=True):
        if source.kind == "input" and source.index == order:
            offset = axis.dims[axis.leaf][axis.dim]
            last = placeholders[-1]
            with t.graph_module.graph.inserting_after(last):
                node = t.graph_module.graph.call_function(torch.ops.aten.sym_size.int, (placeholder, axis.dim))
            node.meta["val"] = t.length + offset
            return node
    raise refuse("LR004", f"The time dimension is not an input of the graph (leaf {tensor_index}).")


def dense_results(t: Trace) -> list[int]:
    """Which of the tensors that forward makes are contiguous."""
    results: Any = t.graph_module.graph.output_node().args[0]
    user = [value(n) for n, (kind, _) in zip(results, t.outputs, strict=True) if kind == "user"]
    return [k for k, x in enumerate(user) if _is_dense(x)]


def _is_dense(x: Any) -> bool:
    expected = 1
    for extent, stride in zip(reversed(x.shape), reversed(x.stride()), strict=True):
        number = int(extent.node.hint) if isinstance(extent, torch.SymInt) else int(extent)
        step = int(stride.node.hint) if isinstance(stride, torch.SymInt) else int(stride)
        if number != 1 and step != expected:
            return False
        expected *= number
    return True


def sizes_of(t: Trace, axis: TimeAxis) -> list[tuple[Any, ...]]:
    """The admissible sizes of every tensor leaf."""
    placeholders = [n for n in t.graph_module.graph.nodes if n.op == "placeholder"]
    leaf_of = sorted(axis.tensor_leaves)
    shapes: dict[int, tuple[Any, ...]] = {}
    for placeholder, source in zip(placeholders, t.sources, strict=True):
        if source.kind == "input":
            dims: list[Any] = []
            time = axis.dims.get(leaf_of[source.index], {})
            for d, size in enumerate(shape_of(placeholder)):
                dims.append(TimeDim(time[d]) if d in time else size if isinstance(size, int) else str(size))
            shapes[source.index] = tuple(dims)
    return [shapes[i] for i in sorted(shapes)]


def meta(module: nn.Module, source: Source) -> tuple[torch.dtype, torch.Size, torch.device]:
    """What a tensor of the module's must stay like: dtype, shape and device."""
    found = lookup(module, source.name, source.keys)
    return found.dtype, found.shape, found.device
