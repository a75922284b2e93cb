"""Numbers that forward reads off tensors (``self.decay.item()``, an index ``table[token]`` by a tensor of one number),
and what Python computes of them: as tensors again, so that a step is made of operators on tensors only. Where only a
Python number will do, it stays one."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.loops import leaves_of, tree_map_leaves
from linrec.capture.numbers import computed_in, factors_apart, number, takes_tensor, with_tensors
from linrec.ir.nodes import emit, value
from linrec.ir.timeaxis import numbers

aten = torch.ops.aten

_READS = (aten.item.default, aten._local_scalar_dense.default)
_ARITHMETIC = {
    operator.add: aten.add.Tensor,
    operator.sub: aten.sub.Tensor,
    operator.mul: aten.mul.Tensor,
    operator.truediv: aten.div.Tensor,
    operator.pow: aten.pow.Tensor_Tensor,
    operator.neg: aten.neg.default,
    torch.sym_float: None,
}
_KINDS = {torch.SymFloat: float, torch.SymInt: int}


def numbers_as_tensors(graph: fx.Graph) -> bool:
    """Let operators compute with tensors where they are given numbers that were read off tensors; whether any were."""
    reads = any(n.target in _READS for n in graph.nodes)
    held: dict[fx.Node, fx.Node] = {}
    factors_apart(graph, [n for n in graph.nodes if type(value(n)) in _KINDS])
    for node in list(graph.nodes):
        if node.op != "call_function" or node._erased:
            continue
        kind = _KINDS.get(type(value(node)))
        if kind is not None:
            made = _as_tensor(graph, node, kind, held)
            if made is not None:
                held[node] = made
        elif any(n in held for n in node.all_input_nodes):
            _read_tensors(graph, node, held)
    graph.eliminate_dead_code()
    return reads


def _as_tensor(graph: fx.Graph, node: fx.Node, kind: type, held: dict[fx.Node, fx.Node]) -> fx.Node | None:
    """A tensor of the number that a node has, where it was read off a tensor; as precise as Python's."""
    dtype = torch.float64 if kind is float else torch.int64
    if node.target in _READS:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        if value(source).is_complex() or value(source).dtype is torch.bool:
            return None
        read = emit(graph, node, aten.detach.default, (source,), node)
        if value(source).dim():
            read = emit(graph, node, aten.reshape.default, (read, []), node)
        return emit(graph, node, numbers, (read, dtype, value(source).device), node)
    if node.target not in _ARITHMETIC or not any(n in held for n in node.all_input_nodes):
        return None
    if not all(number(a) is not None or a in held for a in node.args):
        return None
    device = next(value(held[n]).device for n in node.all_input_nodes)
    parts = [_part(graph, node, a, held, dtype, device) for a in node.args]
    target = _ARITHMETIC[node.target]
    return parts[0] if target is None else emit(graph, node, target, tuple(parts), node)


def _part(
    graph: fx.Graph, node: fx.Node, part: Any, held: dict[fx.Node, fx.Node], dtype: torch.dtype, device: torch.device
) -> fx.Node:
    if isinstance(part, fx.Node):
        found = held[part]
        return found if value(found).dtype is dtype else emit(graph, node, numbers, (found, dtype, device), node)
    return emit(graph, node, aten.full.default, ([], part), node, {"dtype": dtype, "device": device})


def _read_tensors(graph: fx.Graph, node: fx.Node, held: dict[fx.Node, fx.Node]) -> None:
    """Let one operator compute with tensors, where all its numbers that come from tensors can be."""
    leaves = leaves_of(node)
    places = [i for i, x in enumerate(leaves) if isinstance(x, fx.Node) and x in held]
    if node.target is aten.select.int and places == [2]:
        x, dim, _ = node.args
        assert isinstance(x, fx.Node)
        before = [None] * (int(dim) % value(x).dim())
        new = emit(graph, node, aten.index.Tensor, (x, [*before, held[leaves[2]]]), node, None, value(node))
        node.replace_all_uses_with(new)
        graph.erase_node(node)
        return
    if not isinstance(value(node), Tensor) or not all(takes_tensor(node, i) for i in places):
        return
    device = value(node).device
    for i in places:
        own = held[leaves[i]]
        kind = float if value(own).is_floating_point() else int
        leaves[i] = emit(graph, node, numbers, (own, computed_in(node, kind), device), node)
    node.args, node.kwargs = tree_map_leaves(node, leaves)
    with_tensors(node)
