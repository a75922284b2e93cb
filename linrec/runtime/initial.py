"""Initial states that belong to the caller. A rewritten loop keeps what it started from for the backward pass, where
the loop itself often does not (a running maximum keeps the larger number, a decay its factors), so a caller may write
the next state into the same memory: caches and stateful modules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.source import Source
from linrec.ir.scan import scan_nodes


def kept(state: Tensor) -> Tensor:
    """A copy of a state, where a backward pass may come."""
    return state.clone() if torch.is_grad_enabled() else state


def keep_initial_states(graph_module: fx.GraphModule, sources: Sequence[Source]) -> None:
    """Let every scan of a graph start from a copy of what is the caller's, whatever it is lowered to; parameters are
    nobody's to write into.

    Args:
        graph_module: takes one value per source.
    """
    graph = graph_module.graph
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    given = {n for n, s in zip(holders, sources, strict=True) if s.kind not in ("parameter", "constant")}
    copies: dict[fx.Node, fx.Node] = {}
    for node in scan_nodes(graph_module):
        length, initial, series, constants = node.args
        for state in initial:
            if isinstance(state, fx.Node) and state not in copies and _origin(state) in given:
                with graph.inserting_after(state if state.op != "placeholder" else holders[-1]):
                    copies[state] = graph.call_function(kept, (state,))
                    copies[state].meta = dict(state.meta)
        node.args = (length, tuple(copies.get(x, x) for x in initial), series, constants)


def _origin(node: fx.Node) -> fx.Node:
    """Whose memory a value may be in."""
    while node.op == "call_function" and _may_alias(node.target):
        first = next((a for a in node.args if isinstance(a, fx.Node)), None)
        if first is None:
            break
        node = first
    return node


def _may_alias(target: Any) -> bool:
    schema = getattr(target, "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)
