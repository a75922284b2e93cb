"""Simplify scans before they are analysed: equal operators of a step are computed once, what is the same in every step
is computed before the loop, carries and outputs that nobody reads are gone."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import fx

from linrec.capture.autocast import is_licence
from linrec.capture.loops import leaves_of
from linrec.ir.nodes import emit, size_expr, size_node, value
from linrec.ir.scan import is_random, scan_nodes
from linrec.passes.base import Pass, PassResult
from linrec.passes.detached import detach_inputs, detach_states
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, repeat_steps, step_graph

aten = torch.ops.aten


@dataclass(frozen=True)
class Simplify(Pass):
    """Common subexpressions, invariants and dead carries of every scan.

    Before::

        loop(h; x; w): a = sigmoid(w); b = sigmoid(w); return a * h + x, a * h + b

    After::

        a = sigmoid(w)
        loop(h; x; a): p = a * h; return p + x, p + a
    """

    name: str = "simplify"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Simplify every scan of a graph."""
        for node in scan_nodes(graph_module):
            detach_inputs(graph_module, node)
            _simplify(graph_module, detach_states(graph_module, node))
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, True)


def _simplify(graph_module: fx.GraphModule, node: fx.Node) -> None:
    view = ScanView.of(graph_module, node)
    graph = view.step
    merge_equal(graph)
    graph.eliminate_dead_code()
    moved = _invariants(graph_module, view)
    keep = _live_carries(view)
    taken = view.taken()
    carries = [c for i, c in enumerate(view.carries) if i in keep]
    updates = [u for i, u in enumerate(view.updates) if i in keep]
    count = view.scan.carries
    y_at = {i: n for i, n in enumerate(view.ys) if i + count in taken}
    for i, y in list(y_at.items()):
        if y in moved:
            del y_at[i]
            for user in taken[i + count]:
                with graph_module.graph.inserting_before(user):
                    lifted = graph_module.graph.call_function(repeat_steps, (moved[y], view.length))
                lifted.meta = dict(user.meta)
                user.replace_all_uses_with(lifted)
    constant = {i: view.initial[i] for i, (c, u) in enumerate(zip(view.carries, view.updates, strict=True)) if c is u}
    for i, initial in constant.items():
        for user in taken.get(i, []):
            user.replace_all_uses_with(initial)
    needed = _ancestors([*updates, *y_at.values()])
    env = {**dict(zip(view.consts, view.constants, strict=True)), **moved}
    env.update({c: constant[i] for i, c in enumerate(view.carries) if i in constant})
    consts = [n for n in env if n in needed]
    xs = [(x, s) for x, s in zip(view.xs, view.series, strict=True) if x in needed]
    body = [n for n in graph.nodes if n.op == "call_function" and n in needed and n not in moved]
    step = step_graph(body, carries, [x for x, _ in xs], consts, [*updates, *y_at.values()])
    initial_of = [view.initial[i] for i in sorted(keep)]
    results = insert_scan(
        graph_module, node, "loop", view.length, step, initial_of, [s for _, s in xs], [env[n] for n in consts]
    )
    for at, i in enumerate(sorted(keep)):
        for user in taken.get(i, []):
            user.replace_all_uses_with(results[at])
    for at, i in enumerate(y_at):
        for user in taken[i + count]:
            user.replace_all_uses_with(results[len(keep) + at])
    if not results:
        step_node = node.prev
        if step_node.op == "call_module":
            erase_scan(graph_module, step_node)
    erase_scan(graph_module, node)


def merge_equal(graph: fx.Graph) -> None:
    """Compute structurally equal deterministic operators once."""
    seen: dict[Hashable, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or is_random(node):
            continue
        leaves = tuple(x if isinstance(x, fx.Node) else (type(x).__name__, repr(x)) for x in leaves_of(node))
        shape = str(fx.map_arg((node.args, node.kwargs), lambda n: 0))
        key = (node.target, leaves, shape, is_licence(node))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _invariants(graph_module: fx.GraphModule, view: ScanView) -> dict[fx.Node, fx.Node]:
    """Write what depends on constants only, or on no more of a state than its shape, in front of the loop; return where
    each such node went."""
    env = dict(zip(view.consts, view.constants, strict=True))
    for carry, update, initial in zip(view.carries, view.updates, view.initial, strict=True):
        if carry is update:
            env[carry] = initial
    moved: dict[fx.Node, fx.Node] = {}
    for node in view.step.nodes:
        if node.op != "call_function" or is_random(node):
            continue
        if all(n in env for n in node.all_input_nodes):
            with graph_module.graph.inserting_before(view.node):
                new = graph_module.graph.node_copy(node, lambda n: env[n])
            new.meta = dict(node.meta)
            env[node] = moved[node] = new
        elif (filled := _filled(graph_module.graph, view.node, node)) is not None:
            env[node] = moved[node] = filled
    return moved


_FILLED = {
    aten.zeros_like.default: 0,
    aten.ones_like.default: 1,
    aten.new_zeros.default: 0,
    aten.new_ones.default: 1,
}
_FILLED_BY = {aten.full_like.default: 1, aten.new_full.default: 2}
"""Operators that fill a tensor of the shape of another with one number; which number, or which argument that is."""


def _filled(graph: fx.Graph, before: fx.Node, node: fx.Node) -> fx.Node | None:
    """What a step fills with a number, made in front of the loop from its shape alone; None for any other operator."""
    number = _FILLED.get(node.target)
    if node.target in _FILLED_BY:
        number = node.args[_FILLED_BY[node.target]] if len(node.args) > _FILLED_BY[node.target] else None
    if not isinstance(number, (bool, int, float, complex)):
        return None
    made = value(node)
    try:
        sizes = [s if isinstance(s, int) else size_node(graph, before, s) for s in map(size_expr, made.shape)]
    except LookupError:
        return None
    return emit(graph, before, aten.full.default, (sizes, number), node, {"dtype": made.dtype, "device": made.device})


def _live_carries(view: ScanView) -> set[int]:
    """The carries that some result read outside depends on, over any number of steps; constant ones excluded."""
    taken = view.taken()
    count = view.scan.carries
    live = {i for i in taken if i < count}
    wanted = [view.results[i] for i in taken]
    index = {c: i for i, c in enumerate(view.carries)}
    reached: set[fx.Node] = set()
    while True:
        reached = _ancestors([*wanted, *(view.updates[i] for i in live)])
        more = {index[c] for c in reached if c in index} | live
        if more == live:
            break
        live = more
    return {i for i in live if view.updates[i] is not view.carries[i]}


def _ancestors(nodes: list[fx.Node]) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.all_input_nodes)
    return seen
