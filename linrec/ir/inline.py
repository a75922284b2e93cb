"""Graphs of single operators, put in the place of a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from linrec.ir.nodes import fake_mode, shape_of, value

aten = torch.ops.aten
_RESHAPES = (aten.view.default, aten.reshape.default, aten._unsafe_view.default)


class Unknown(Exception):
    """A body that cannot stand in the place of a node."""


def body_of(
    run: Callable[..., Any], graph: fx.Graph, values: Sequence[torch.Tensor], table: dict[Any, Any] | None = None
) -> fx.GraphModule:
    """The operators that a function of fake tensors runs, as a graph of its tensors alone.

    Args:
        run: the function; graph: whose inputs tell the fake mode; values: what it is run on; table: decompositions.

    Raises:
        Unknown: where an operator takes a symbolic size.
    """
    with fake_mode(graph, values):
        traced = make_fx(run, table, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*values)
    traced.graph.eliminate_dead_code()
    for inner in traced.graph.nodes:
        if inner.op == "call_function" and isinstance(value(inner), torch.Tensor):
            _without_sizes(inner)
    traced.graph.eliminate_dead_code()
    return traced


def _without_sizes(node: fx.Node) -> None:
    """A symbolic size in a shape as -1, which says the same where there is one."""
    if not any(_is_size(x) for x in pytree.tree_leaves((node.args, node.kwargs))):
        return
    shape = shape_of(node)
    symbolic = [d for d, size in enumerate(shape) if not isinstance(size, int)]
    if node.target in _RESHAPES and len(symbolic) == 1:
        node.args = (node.args[0], [-1 if d in symbolic else size for d, size in enumerate(shape)])
        return
    if node.target is aten.expand.default:
        before = shape_of(node.args[0])
        lead = len(shape) - len(before)
        if all(d >= lead and before[d - lead] == shape[d] for d in symbolic):
            node.args = (node.args[0], [-1 if d in symbolic else size for d, size in enumerate(shape)])
            return
    raise Unknown("a symbolic size")


def _is_size(x: Any) -> bool:
    return isinstance(x, torch.SymInt) or (isinstance(x, fx.Node) and isinstance(value(x), torch.SymInt))


def put_before(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, inputs: Sequence[fx.Node]) -> Any:
    """Copy the operators of a body in front of a node.

    Args:
        graph: of the node; inputs: what the body's placeholders stand for.

    Returns:
        the nodes of its results, in its structure.

    Raises:
        Unknown: where it holds a constant of its own. The graph is as it was.
    """
    tensors = iter(inputs)
    known: dict[fx.Node, fx.Node] = {}
    made: list[fx.Node] = []
    result: Any = None
    try:
        for inner in body.graph.nodes:
            if inner.op == "placeholder":
                known[inner] = next(tensors)
            elif inner.op == "output":
                result = pytree.tree_map(lambda x: known[x] if isinstance(x, fx.Node) else x, inner.args[0])
            elif inner.op == "call_function":
                with graph.inserting_before(node):
                    known[inner] = graph.node_copy(inner, known.__getitem__)
                made.append(known[inner])
                known[inner].meta = {**node.meta, "val": value(inner)}
            else:
                raise Unknown("a constant of its own")
    except Exception:
        for new in reversed(made):
            graph.erase_node(new)
        raise
    return result
