"""Flags as numbers: a function of one flag and of other values is affine in the flag, whatever it is.

A flag s is 0 or 1, so f(s, x) = f(0, x) + (f(1, x) - f(0, x)) s: masks of what has ended (``done | (token == eos)``),
latches, toggles and the like are gated recurrences. All numbers in them are -1, 0 or 1, which no sum or product of the
scan rounds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from linrec.analysis.stategraph import Component, components
from linrec.ir.nodes import emit, shape_of, value
from linrec.ir.scan import scan_nodes
from linrec.passes.base import Pass, PassResult
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan

aten = torch.ops.aten


@dataclass(frozen=True)
class Booleans(Pass):
    """A number in place of a flag that is a state, where its update is a function of that flag, element by element.

    Before::

        loop(done; x): return done | x

    After::

        loop(number; x): return (1 - x) * number + x
    """

    name: str = "booleans"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Replace the flags of every scan of a graph."""
        modified = False
        for node in scan_nodes(graph_module):
            view = ScanView.of(graph_module, node)
            chosen = [c for c in components(view.scan.step, view.scan.carries) if _is_flag(view, c)]
            if chosen:
                _replace(graph_module, view, chosen)
                modified = True
        return PassResult(graph_module, modified)


def _is_flag(view: ScanView, component: Component) -> bool:
    """Whether a component is one flag, and all that is computed of it on the way is, element by element, its size."""
    if not component.recurrent or len(component.carries) != 1:
        return False
    carry = view.carries[component.carries[0]]
    if value(carry).dtype is not torch.bool:
        return False
    return all(_is_pointwise(n) and shape_of(n) == shape_of(carry) for n in component.core)


def _is_pointwise(node: fx.Node) -> bool:
    tags = getattr(node.target, "tags", ())
    return torch.Tag.pointwise in tags or node.target in _ALSO


_ALSO = {
    aten.__and__.Tensor,
    aten.__or__.Tensor,
    aten._to_copy.default,
    aten.detach.default,
    aten.to.dtype,
    aten.type_as.default,
    aten.full_like.default,
    aten.masked_fill.Tensor,
    aten.where.ScalarOther,
    aten.where.ScalarSelf,
    aten.ones_like.default,
    aten.zeros_like.default,
}
"""What is computed element by element, too, and bears no tag that says so."""


def _replace(graph_module: fx.GraphModule, view: ScanView, chosen: list[Component]) -> None:
    graph, initial, constants = graph_module.graph, list(view.initial), list(view.constants)
    own = {c.carries[0] for c in chosen}
    step = _with_numbers(view, chosen)
    for component in chosen:
        # As large as the flag: a tensor without dimensions would not count where dtypes are chosen.
        flag = initial[component.carries[0]]
        constants += [emit(graph, view.node, like, (flag,), flag) for like in _LIKE]
    for i in own:
        initial[i] = emit(graph, view.node, aten._to_copy.default, (initial[i],), initial[i], {"dtype": _NUMBER})
    found = insert_scan(graph_module, view.node, view.node.name, view.length, step, initial, view.series, constants)
    for i, users in view.taken().items():
        new = emit(graph, view.node, aten.gt.Scalar, (found[i], 0.5), found[i]) if i in own else found[i]
        for user in users:
            user.replace_all_uses_with(new)
    erase_scan(graph_module, view.node)


_LIKE = (aten.zeros_like.default, aten.ones_like.default)
_NUMBER = torch.float32


def _with_numbers(view: ScanView, chosen: list[Component]) -> fx.GraphModule:
    """The step with numbers in the place of some flags; the last constants are, for each, a flag unset and one set."""
    flags = {c.carries[0] for c in chosen}
    graph = fx.Graph()
    env: dict[fx.Node, fx.Node] = {}
    numbers: dict[int, fx.Node] = {}
    for i, old in enumerate(view.placeholders):
        env[old] = graph.placeholder(old.name)
        env[old].meta = dict(old.meta)
        if i in flags:
            numbers[i] = env[old]
            with value(old).fake_mode:
                env[old].meta["val"] = torch.empty_like(value(old), dtype=_NUMBER)
    known = []
    for component in chosen:
        old = view.carries[component.carries[0]]
        pair = [graph.placeholder(f"{old.name}_{word}") for word in ("not", "set")]
        for new in pair:
            new.meta = dict(old.meta)
        known.append(pair)
    output = graph.output(())
    for i, number in numbers.items():
        env[view.carries[i]] = emit(graph, output, aten.gt.Scalar, (number, 0.5), view.carries[i])
    for node in view.step.nodes:
        if node.op == "call_function":
            with graph.inserting_before(output):
                env[node] = graph.node_copy(node, env.__getitem__)
    results = [env[node] for node in view.results]
    for component, pair in zip(chosen, known, strict=True):
        (i,) = component.carries
        update = view.updates[i]
        without, given = (_at(view, component, env, output, flag) for flag in pair)
        factor = emit(graph, output, aten.sub.Tensor, (given, without), update)
        kept = emit(graph, output, aten.mul.Tensor, (factor, numbers[i]), update)
        results[i] = emit(graph, output, aten.add.Tensor, (kept, without), update)
    output.args = (tuple(results),)
    graph.eliminate_dead_code()
    return fx.GraphModule(torch.nn.Module(), graph)


def _at(view: ScanView, component: Component, env: dict[fx.Node, fx.Node], output: fx.Node, flag: fx.Node) -> fx.Node:
    """The update where the flag is this one, as a number."""
    graph, (i,) = output.graph, component.carries
    known = {view.carries[i]: flag}
    for node in view.step.nodes:
        if node in component.core:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda n: known.get(n, env[n]))
            known[node] = emit(graph, output, node.target, args, node, kwargs)
    return emit(graph, output, aten._to_copy.default, (known[view.updates[i]],), view.updates[i], {"dtype": _NUMBER})
