"""Writes into the elements that a mask chooses, as choices between the old and the new for all elements; writes of one
number into all elements."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.capture.placed import placed_writes
from linrec.ir.nodes import emit, shape_of, value

aten = torch.ops.aten


def write_as_choices(graph: fx.Graph) -> None:
    """Writes that choose what stays, as functions of which the analysis knows what they keep."""
    masked_writes(graph)
    placed_writes(graph)
    filled(graph)


def masked_writes(graph: fx.Graph) -> None:
    """``h[m] = 0`` becomes ``where(m, 0, h)``, and ``h[m] = x[m]`` becomes ``where(m, x, h)``."""
    for node in list(graph.nodes):
        if node.target is aten.index_put.default and not (len(node.args) > 3 and node.args[3]):
            mask = _mask(node.args[1])
            source = _source(node) if mask is not None else None
            if source is not None:
                new = emit(graph, node, aten.where.self, (_aligned(graph, node, mask), source, node.args[0]), node)
                node.replace_all_uses_with(new)
                graph.erase_node(node)


def filled(graph: fx.Graph) -> None:
    """``h[:, 0] = 0`` fills a part of `h`, whatever it was: a new tensor of that size."""
    for node in list(graph.nodes):
        if node.target in (aten.fill.Scalar, aten.fill.Tensor):
            x, new = node.args
            if isinstance(new, fx.Node):
                if value(new).dtype != value(x).dtype:
                    continue
                zeros = emit(graph, node, aten.zeros_like.default, (x,), node)
                made = emit(graph, node, aten.add.Tensor, (zeros, new), node)
            else:
                made = emit(graph, node, aten.full_like.default, (x, new), node)
            node.replace_all_uses_with(made)
            graph.erase_node(node)
        elif node.target is aten.zero.default:
            node.target = aten.zeros_like.default


def _mask(indices: Any) -> fx.Node | None:
    """The mask, where nothing else chooses."""
    chosen = [x for x in indices if x is not None]
    fits = len(chosen) == 1 and value(chosen[0]).dtype is torch.bool and indices[-1] is chosen[0]
    return chosen[0] if fits else None


def _source(node: fx.Node) -> fx.Node | None:
    """What every element would get."""
    new = node.args[2]
    if not isinstance(new, fx.Node) or value(new).dtype != value(node).dtype:
        return None
    if value(new).dim() == 0:
        return new
    same = new.target is aten.index.Tensor and list(new.args[1]) == list(node.args[1])
    source = new.args[0] if same else None
    fits = isinstance(source, fx.Node) and shape_of(source) == shape_of(node)
    return source if fits else None


def _aligned(graph: fx.Graph, node: fx.Node, mask: fx.Node | None) -> fx.Node:
    assert mask is not None
    before = len(node.args[1]) - 1
    for _ in range(before):
        mask = emit(graph, node, aten.unsqueeze.default, (mask, 0), node)
    while value(mask).dim() < value(node).dim():
        mask = emit(graph, node, aten.unsqueeze.default, (mask, -1), node)
    return mask
