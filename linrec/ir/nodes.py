"""Nodes of graphs and their traced values: what a node holds, in which shape, and how another one is written."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from linrec.ir.timeaxis import linear

PROVENANCE = ("stack_trace", "nn_module_stack", "custom")
"""Keys of a node's metadata that say where in the user's code it comes from."""


def value(node: Any) -> Any:
    """The traced value (a FakeTensor or a number) of a node."""
    return node.meta.get("val") if isinstance(node, fx.Node) else node


_MADE = ("zeros", "ones", "full", "empty", "arange", "eye", "scalar_tensor", "linspace", "rand", "randn")


def is_made(node: fx.Node) -> bool:
    """Whether a tensor is made of numbers only, and so has no gradient to lose."""
    schema = getattr(node.target, "_schema", None)
    name = schema.name.removeprefix("aten::") if schema is not None else ""
    return name.removeprefix("new_").removesuffix("_like") in _MADE


def size_expr(size: Any) -> Any:
    """A size as an int, or as a sympy expression of the symbolic sizes."""
    if isinstance(size, torch.SymInt):
        expr = size.node.expr
        return int(expr) if expr.is_number else expr
    return int(size)


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The shape of a node's value: ints and sympy expressions."""
    return tuple(size_expr(s) for s in value(node).shape)


def size_node(graph: fx.Graph, before: fx.Node, size: Any) -> fx.Node:
    """A node in front of another one that holds a symbolic size, made from an input of the graph where there is none.

    Raises:
        LookupError: no input has it.
    """
    for node in graph.nodes:
        if node is before:
            break
        if isinstance(value(node), torch.SymInt) and size_expr(value(node)) == size:
            return node
    inputs = [n for n in graph.nodes if n.op == "placeholder"]
    for node in inputs:
        for dim, own in enumerate(getattr(value(node), "shape", ())):
            if isinstance(own, torch.SymInt) and size_expr(own) == size:
                with graph.inserting_after(inputs[-1]):
                    new = graph.call_function(torch.ops.aten.sym_size.int, (node, dim))
                new.meta["val"] = own
                return new
    raise LookupError(f"the size {size} is not computed in the graph")


def emit(
    graph: fx.Graph,
    before: fx.Node,
    target: Callable[..., Any],
    args: tuple[Any, ...],
    like: fx.Node,
    kwargs: dict[str, Any] | None = None,
    val: Any = None,
) -> fx.Node:
    """Insert a call before a node, with the stack trace of `like` and its value: `val`, or what the call makes of the
    fake arguments."""
    kwargs = kwargs or {}
    with graph.inserting_before(before):
        new = graph.call_function(target, args, kwargs)
    new.meta = {key: like.meta[key] for key in PROVENANCE if key in like.meta}
    new.meta["val"] = faked(graph, target, args, kwargs) if val is None else val
    return new


def faked(graph: fx.Graph, target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a call makes of the values of its arguments."""
    fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
    with fake_mode(graph, (fake_args, fake_kwargs)):
        return _SHAPES.get(target, target)(*fake_args, **fake_kwargs)


def _of_parts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """What `complex` and `polar` return; torch's own rule for their shape fixes symbolic sizes."""
    both = a + b
    return both.to(both.dtype.to_complex())


_SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.complex.default: _of_parts,
    torch.ops.aten.polar.default: _of_parts,
    linear: torch.ops.aten.linear.default,  # which of its two ways it takes, strides of real tensors decide
}


def fake_mode(graph: fx.Graph, fake: Any = ()) -> Any:
    """The fake mode of some values, or of the graph's inputs."""
    for v in (
        *torch.utils._pytree.tree_leaves(fake),
        *(n.meta.get("val") for n in graph.nodes if n.op == "placeholder"),
    ):
        if hasattr(v, "fake_mode"):
            return v.fake_mode
    return contextlib.nullcontext()
