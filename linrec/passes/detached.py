"""States that carry no gradient: running statistics whose update is a whole under `no_grad`, or ends in `detach`, and
states that every step detaches before it reads them, as in truncated backpropagation. They are those of inputs without
gradient, and the recurrence itself then has no `detach` in it."""

from __future__ import annotations

from collections.abc import Iterable

import networkx as nx
import torch
from torch import Tensor, fx

from linrec.ir.nodes import emit, value
from linrec.ir.scan import is_random
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, step_graph

aten = torch.ops.aten


def detach_inputs(graph_module: fx.GraphModule, node: fx.Node) -> None:
    """Move the `detach` at the end of a state's update to all that the update reads, where the old state reaches
    nothing else: the gradient of the state that the loop starts from is cut off as well, then."""
    view = ScanView.of(graph_module, node)
    _keep_no_others(view.step)
    initial = list(view.initial)
    for i, (carry, update) in enumerate(zip(view.carries, view.updates, strict=True)):
        if update.target is not aten.detach.default or not isinstance(update.args[0], fx.Node):
            continue
        inner = _needed(update)
        if carry not in inner or _reaches_more(carry, inner) or any(is_random(n) for n in inner):
            continue
        initial[i] = emit(graph_module.graph, node, aten.detach.default, (initial[i],), initial[i])
        copies = {carry: carry}
        _copy_without_gradient(view.step, inner, copies)
        update.replace_all_uses_with(copies[update])
    node.args = (view.length, tuple(initial), *node.args[2:])
    view.step.eliminate_dead_code()


def detach_states(graph_module: fx.GraphModule, node: fx.Node) -> fx.Node:
    """Compute what a step detaches of its states apart, by states of their own and from inputs without gradient, where
    no gradient passes from one step to the next: a state is then a value of the step before, and no recurrence.

    Returns:
        The loop; another node where it is another one.
    """
    view = ScanView.of(graph_module, node)
    free = _cut_off(view)
    if not free:
        return node
    taken, count, step = view.taken(), view.scan.carries, view.step
    carries, xs, consts, updates = view.carries, view.xs, view.consts, view.updates
    apart: dict[int, fx.Node] = {}
    for i, carry in free.items():
        with step.inserting_after(carries[-1]):
            apart[i] = step.placeholder(f"{carry.name}_apart")
            apart[i].meta = dict(carry.meta)
    copies = {carry: apart[i] for i, carry in free.items()}
    depending = _depending(free.values())
    ends = [n for n in step.nodes if n.target is aten.detach.default and n in depending]
    wanted = set[fx.Node]().union(*(_needed(n) for n in [*ends, *(updates[i] for i in free)]))
    _copy_without_gradient(step, wanted, copies)
    found = [copies[updates[i]] for i in free]
    for end in ends:
        end.replace_all_uses_with(copies[end])
        step.erase_node(end)
    body = [n for n in step.nodes if n.op not in ("placeholder", "output")]
    results = [*view.results[:count], *found, *view.results[count:]]
    initial = [emit(graph_module.graph, node, aten.detach.default, (view.initial[i],), view.initial[i]) for i in free]
    made = insert_scan(
        graph_module,
        node,
        str(node.target),
        view.length,
        step_graph(body, [*carries, *apart.values()], xs, consts, results),
        [*view.initial, *initial],
        view.series,
        view.constants,
    )
    for k, reads in taken.items():
        for read in reads:
            read.replace_all_uses_with(made[k if k < count else k + len(free)])
    erase_scan(graph_module, node)
    return made[0].all_input_nodes[0]


def _cut_off(view: ScanView) -> dict[int, fx.Node]:
    """The states, by their positions, that come of themselves by `detach` only, as do all those that they come of and
    that come of them."""
    carries = [c for c in view.carries if _has_gradient(c)]
    updates = dict(zip(view.carries, view.updates, strict=True))
    needed = {c: _needed(updates[c]) for c in carries}
    values, gradients = nx.DiGraph(), nx.DiGraph()
    for graph, reads in ((values, needed), (gradients, {c: _needed(updates[c], past_detach=False) for c in carries})):
        graph.add_nodes_from(carries)
        graph.add_edges_from((c, other) for c in carries for other in carries if other in reads[c])
    found: set[fx.Node] = set()
    for group in nx.strongly_connected_components(values):
        together = values.subgraph(group)
        if together.number_of_edges() and nx.is_directed_acyclic_graph(gradients.subgraph(group)):
            found |= set() if any(is_random(n) for c in group for n in needed[c]) else group
    return {i: c for i, c in enumerate(view.carries) if c in found}


def _depending(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """All that is computed from some nodes, themselves included."""
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.users
    return found


def _has_gradient(node: fx.Node) -> bool:
    val = value(node)
    return isinstance(val, Tensor) and (val.is_floating_point() or val.is_complex())


def _keep_no_others(graph: fx.Graph) -> None:
    """Take out every `detach` of what has no gradient: a counter under `no_grad`, a flag."""
    for node in list(graph.nodes):
        if node.target is aten.detach.default and not (value(node).is_floating_point() or value(node).is_complex()):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _reaches_more(carry: fx.Node, inner: set[fx.Node]) -> bool:
    """Whether something besides its own update reads a state with its gradient, or what was computed of it."""
    pending, seen = [carry], {carry}
    while pending:
        for user in pending.pop().users:
            if user.target is aten.detach.default:
                continue
            if user not in inner:
                return True
            if user not in seen:
                seen.add(user)
                pending.append(user)
    return False


def _needed(update: fx.Node, past_detach: bool = True) -> set[fx.Node]:
    """All that a node is computed from, itself included; without `past_detach`, with its gradient."""
    found: set[fx.Node] = set()
    pending = [update]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes if past_detach or node.target is not aten.detach.default else []
    return found


def _copy_without_gradient(step: fx.Graph, wanted: set[fx.Node], copies: dict[fx.Node, fx.Node]) -> None:
    """Compute some nodes of a step anew, from inputs without gradient.

    Args:
        wanted: the nodes, with all that they are computed from; copies: what is there already, and gets the others.
    """
    first = next(n for n in step.nodes if n.op != "placeholder")
    for node in [n for n in step.nodes if n in wanted and n not in copies]:
        if node.op == "placeholder":
            copies[node] = emit(step, first, aten.detach.default, (node,), node) if _has_gradient(node) else node
        elif node.target is aten.detach.default:
            copies[node] = copies[node.args[0]]
        else:
            with step.inserting_after(node):
                copies[node] = step.node_copy(node, copies.__getitem__)
