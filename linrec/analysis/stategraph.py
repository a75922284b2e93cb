"""The state graph of a step: carries are its nodes, reads its edges. Each strongly connected component is one
recurrence, and their topological order is the order in which they can be solved."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
from torch import fx


@dataclass(frozen=True)
class Component:
    """A strongly connected component of the state graph.

    Attributes:
        carries: indices of its carries.
        recurrent: False for a single carry whose update does not read it: that is a delay, not a recurrence.
        core: the nodes that lie on a path from one of its carries to one of its updates.
    """

    carries: tuple[int, ...]
    recurrent: bool
    core: frozenset[fx.Node]


def dependencies(step: fx.GraphModule, carries: int) -> dict[fx.Node, frozenset[int]]:
    """For each node of a step graph, the carries that it reads within one step."""
    reads: dict[fx.Node, frozenset[int]] = {}
    position = 0
    for node in step.graph.nodes:
        if node.op == "placeholder":
            reads[node] = frozenset({position}) if position < carries else frozenset()
            position += 1
        else:
            reads[node] = frozenset().union(*(reads[n] for n in node.all_input_nodes))
    return reads


def state_graph(updates: list[fx.Node], reads: dict[fx.Node, frozenset[int]]) -> nx.DiGraph:
    """The graph with an edge c -> d where the update of carry d reads carry c."""
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(updates)))
    for target, update in enumerate(updates):
        graph.add_edges_from((source, target) for source in reads[update])
    return graph


def components(step: fx.GraphModule, carries: int) -> list[Component]:
    """The components of a step's state graph, in an order in which they can be solved."""
    output = next(n for n in step.graph.nodes if n.op == "output")
    updates = list(output.args[0])[:carries]
    reads = dependencies(step, carries)
    graph = state_graph(updates, reads)
    condensed = nx.condensation(graph)
    found = []
    for key in nx.lexicographical_topological_sort(condensed, key=lambda k: min(condensed.nodes[k]["members"])):
        members = tuple(sorted(condensed.nodes[key]["members"]))
        recurrent = len(members) > 1 or graph.has_edge(members[0], members[0])
        found.append(
            Component(members, recurrent, frozenset(_core(updates, members, reads)) if recurrent else frozenset())
        )
    return found


def _core(updates: list[fx.Node], members: tuple[int, ...], reads: dict[fx.Node, frozenset[int]]) -> set[fx.Node]:
    core: set[fx.Node] = set()
    stack = [updates[i] for i in members]
    while stack:
        node = stack.pop()
        if node in core or node.op == "placeholder" or not reads[node] & set(members):
            continue
        core.add(node)
        stack.extend(node.all_input_nodes)
    return core
