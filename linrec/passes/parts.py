"""Complex states that a step takes apart (real, imag, conj, view_as_real) become two real states each: such a step is
linear over the real numbers, though not over the complex ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import fx

from linrec.analysis.stategraph import Component, components
from linrec.analysis.structure import recurrence_of
from linrec.ir.nodes import emit, value
from linrec.ir.recurrence import LinearRecurrence
from linrec.ir.scan import scan_nodes
from linrec.passes.base import Pass, PassResult
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan
from linrec.passes.simplify import Simplify

aten = torch.ops.aten


@dataclass(frozen=True)
class Parts(Pass):
    """Two real states in place of a complex one, where that makes a recurrence affine.

    Before::

        loop(h; x): return conj(h) * a + x, h

    After::

        loop(re, im; x): h = complex(re, im); g = conj(h) * a + x; return real(g), imag(g), h
    """

    name: str = "parts"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Split complex states of every scan of a graph."""
        modified = False
        for node in scan_nodes(graph_module):
            view = ScanView.of(graph_module, node)
            chosen = _chosen(view)
            if chosen:
                _split(graph_module, view, chosen)
                modified = True
        # A part that no step changes is a constant, which the state as a whole was not.
        return Simplify().run(graph_module) if modified else PassResult(graph_module, modified)


def _chosen(view: ScanView) -> set[int]:
    """The complex carries of recurrences that are affine in the parts of their states, and not in the states."""
    chosen: set[int] = set()
    for component in components(view.scan.step, view.scan.carries):
        own = {i for i in component.carries if value(view.carries[i]).is_complex()}
        if own and component.recurrent and not _affine(view.scan.step, component, view.xs):
            step, places = _in_parts(view, own)
            wanted = {k for i in component.carries for k in places[i]}
            found = [c for c in components(step, sum(map(len, places))) if wanted & set(c.carries) and c.recurrent]
            placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
            xs = placeholders[sum(map(len, places)) :][: view.scan.xs]
            if all(_affine(step, c, xs) for c in found):
                chosen |= own
    return chosen


def _affine(step: fx.GraphModule, component: Component, xs: Iterable[fx.Node]) -> bool:
    return isinstance(recurrence_of(step, component, xs), LinearRecurrence)


def _in_parts(view: ScanView, chosen: set[int]) -> tuple[fx.GraphModule, list[list[int]]]:
    """The step with some carries as two each; and for each old carry the numbers of the new ones."""
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    places: list[list[int]] = []
    pairs: list[tuple[fx.Node, list[fx.Node]]] = []
    count = 0
    for i, old in enumerate(view.placeholders):
        part = [aten.real.default, aten.imag.default] if i in chosen else [None]
        made = []
        for target in part:
            new = graph.placeholder(old.name if target is None else f"{old.name}_{target._opname}")
            new.meta = {**old.meta, "val": value(old)}
            if target is not None:
                with value(old).fake_mode:
                    new.meta["val"] = value(old).new_empty(value(old).shape, dtype=value(old).dtype.to_real())
            made.append(new)
        if i < view.scan.carries:
            places.append(list(range(count, count + len(made))))
            count += len(made)
        if len(made) == 2:
            pairs.append((old, made))
        else:
            env[old] = made[0]
    output = graph.output(())
    for old, (real, imaginary) in pairs:
        env[old] = emit(graph, output, aten.complex.default, (real, imaginary), old)
    for node in view.step.nodes:
        if node.op == "call_function":
            with graph.inserting_before(output):
                env[node] = graph.node_copy(node, env.__getitem__)
    results: list[fx.Node] = []
    for i, node in enumerate(view.results):
        if i in chosen:
            for target, name in ((aten.real.default, "re"), (aten.imag.default, "im")):
                part_of = emit(graph, output, target, (env[node],), node)
                part_of.meta["part"] = name
                results.append(part_of)
        else:
            results.append(env[node])
    output.args = (tuple(results),)
    _shortened(graph)
    return fx.GraphModule(torch.nn.Module(), graph), places


def _shortened(graph: fx.Graph) -> None:
    """Parts of what has just been joined, read where they come from."""
    for node in list(graph.nodes):
        which = {aten.real.default: 0, aten.imag.default: 1}.get(node.target)
        if which is None or not isinstance(node.args[0], fx.Node) or node.args[0].target is not aten.complex.default:
            continue
        part = node.args[0].args[which]
        if isinstance(part, fx.Node) and value(part).shape == value(node).shape:
            node.replace_all_uses_with(part)
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _split(graph_module: fx.GraphModule, view: ScanView, chosen: set[int]) -> None:
    step, places = _in_parts(view, chosen)
    initial: list[fx.Node] = []
    for i, node in enumerate(view.initial):
        if i in chosen:
            initial += [
                emit(graph_module.graph, view.node, target, (node,), node)
                for target in (aten.real.default, aten.imag.default)
            ]
        else:
            initial.append(node)
    taken = view.taken()
    found = insert_scan(graph_module, view.node, "loop", view.length, step, initial, view.series, view.constants)
    shift = sum(map(len, places)) - len(places)
    for i, users in taken.items():
        if i in chosen:
            pair = tuple(found[k] for k in places[i])
            whole = emit(graph_module.graph, view.node, aten.complex.default, pair, users[0])
        else:
            whole = found[places[i][0] if i < len(places) else i + shift]
        for user in users:
            user.replace_all_uses_with(whole)
    erase_scan(graph_module, view.node)
