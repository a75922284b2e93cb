"""The operator that keeps a component from being affine, and the cycle of states and values that it lies on."""

from __future__ import annotations

import itertools

import networkx as nx
import torch
from torch import fx

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.stategraph import Component, dependencies
from linrec.ir.names import operator_name, state_names, value_name
from linrec.ir.obstruction import Obstruction

aten = torch.ops.aten
_PRODUCTS = (
    aten.mul.Tensor,
    aten.matmul.default,
    aten.mm.default,
    aten.bmm.default,
    aten.einsum.default,
    aten.square.default,
)


def blame(
    step: fx.GraphModule, component: Component, polynomials: tuple[Polynomial, ...], updates: tuple[fx.Node, ...]
) -> Obstruction:
    """Why a component is not affine: the first operator without a rule that survives, or a product of the state."""
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    states = [placeholders[i] for i in component.carries]
    names = state_names(states, updates)
    order = {n: i for i, n in enumerate(step.graph.nodes)}
    opaque = sorted(
        {f.atom.node for p in polynomials for m in p.terms for f in m.of_kind("opaque")}, key=order.__getitem__
    )
    stateful = {*component.core, *states}
    node = next(iter(opaque), None) or next((n for n in step.graph.nodes if _multiplies(n, stateful)), updates[0])
    if operator_name(node) == "getitem" and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    reads = dependencies(step, len(placeholders))
    read = [name for name, i in zip(names, component.carries, strict=True) if i in reads[node]]
    told = ", ".join(f"'{name}'" for name in read) or "its own state"
    states_word = "states" if len(read) > 1 else "state"
    does = f"reads the {states_word} {told}" if opaque else f"multiplies the {states_word} {told} with itself"
    cycle = " -> ".join(cycle_through(states, updates, names, node))
    return Obstruction.at(
        "LR003", node, f"'{operator_name(node)}' {does}; the recurrence {cycle} stays sequential.", names
    )


def _multiplies(node: fx.Node, stateful: set[fx.Node]) -> bool:
    inputs = [n for n in node.all_input_nodes if n in stateful]
    twice = len(inputs) > 1 or node.target is aten.square.default or node.args[:1] == node.args[1:2]
    return node in stateful and node.target in _PRODUCTS and bool(inputs) and twice


def cycle_through(
    states: list[fx.Node], updates: tuple[fx.Node, ...], names: tuple[str, ...], node: fx.Node
) -> list[str]:
    """The user's names along a cycle of the step, over a node: states, and named values between them; closed."""
    graph = nx.DiGraph()
    for inner in node.graph.nodes:
        if inner.op == "call_function":
            graph.add_edges_from((n, inner) for n in inner.all_input_nodes)
    graph.add_edges_from(zip(updates, states, strict=True))
    called = dict(zip(states, names, strict=True))
    if len(states) > 2:
        return [*names, names[0]]
    stops = [states[0], *([node] if len(states) == 1 else states[1:]), states[0]]
    cycle = [states[0]]
    try:
        for begin, end in itertools.pairwise(stops):
            cycle += nx.shortest_path(graph, begin, end)[1:]
    except (nx.NetworkXNoPath, nx.NodeNotFound):
        return [*names, names[0]]
    found: list[str] = []
    for inner in cycle:
        # An update and the state that it becomes may have two names; the state's stands for both.
        name = called.get(inner) or ("" if inner in updates else value_name(inner))
        if name and (not found or found[-1] != name or inner in called):
            found.append(name)
    return found if len(found) > 1 else [names[0], names[0]]
