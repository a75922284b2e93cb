"""Random numbers that a step draws are drawn for all steps before the loop, in the loop's order: its numbers and the
generator's state stay what they were, and the step is a function of its inputs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from linrec.ir.location import location
from linrec.ir.names import operator_name
from linrec.ir.nodes import emit, size_expr, size_node, value
from linrec.ir.obstruction import refuse
from linrec.ir.scan import fresh_name, is_random, scan_nodes
from linrec.ops.draws import Draw, Draws
from linrec.passes.base import Pass, PassResult
from linrec.passes.rewrite import ScanView, insert_scan, stacked, step_graph

aten = torch.ops.aten
_INTEGERS = torch.int64


def _named(node: fx.Node) -> dict[str, Any]:
    """An operator's arguments by the names of its schema, those left out with their defaults."""
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema if a.has_default_value()}
    found.update(zip((a.name for a in schema), node.args, strict=False))
    return found | dict(node.kwargs)


_DRAWS: dict[Any, Callable[[dict[str, Any]], Draw]] = {
    aten.dropout.default: lambda a: Draw("dropout", (a["p"],)),
    aten.feature_dropout.default: lambda a: Draw("dropout", (a["p"],)),
    aten.rand.default: lambda a: Draw("uniform"),
    aten.rand_like.default: lambda a: Draw("uniform"),
    aten.randn.default: lambda a: Draw("normal"),
    aten.randn_like.default: lambda a: Draw("normal"),
    aten.bernoulli.p: lambda a: Draw("bernoulli", (a["p"],)),
    aten.uniform.default: lambda a: Draw("uniform", (a["from"], a["to"])),
    aten.normal_functional.default: lambda a: Draw("normal", (a["mean"], a["std"])),
    aten.exponential.default: lambda a: Draw("exponential", (a["lambd"],)),
    aten.randint.default: lambda a: Draw("integers", (0, a["high"]), _INTEGERS),
    aten.randint.low: lambda a: Draw("integers", (a["low"], a["high"]), _INTEGERS),
}
"""What operators draw that need no more of their tensors than their shape."""

_FILLED = {
    aten.full.default: 1,
    aten.full_like.default: 1,
    aten.new_full.default: 2,
    aten.ones_like.default: 1.0,
    aten.ones.default: 1.0,
    aten.new_ones.default: 1.0,
}
"""Operators that fill a tensor with one number; which argument that is, or which number."""

_MASKS = {aten.dropout.default: 0, aten.feature_dropout.default: 2}
"""Operators that multiply their input by what they draw; how many leading dimensions that has, all where 0."""


@dataclass(frozen=True)
class DrawAhead(Pass):
    """Draws of a step, before the loop.

    Before::

        loop(h; x): return 0.9 * h + dropout(x, 0.1)

    After::

        m = draws(T, dropout 0.1)
        loop(h; x, m): return 0.9 * h + x * m
    """

    name: str = "draw"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Take the draws of every scan in front of it.

        Raises:
            Refused: LR009 where an operator's numbers depend on more than its shape.
        """
        modified = False
        for node in scan_nodes(graph_module):
            view = ScanView.of(graph_module, node)
            _whole_dropouts(view)
            drawn = [n for n in view.step.nodes if is_random(n)]
            if drawn:
                _take_out(graph_module, view, drawn)
                modified = True
        return PassResult(graph_module, modified)


def _whole_dropouts(view: ScanView) -> None:
    """Dropout as the program has it, where torch has taken it apart while it made writes into buffers functional."""
    for node in [n for n in view.step.nodes if n.target is aten.native_dropout.default]:
        given, rate, training = node.args
        if training and all(user.target is operator.getitem and user.args[1] == 0 for user in node.users):
            for user in list(node.users):
                user.replace_all_uses_with(emit(view.step, user, aten.dropout.default, (given, rate, True), user))
                view.step.erase_node(user)
            view.step.erase_node(node)


def _take_out(graph_module: fx.GraphModule, view: ScanView, drawn: list[fx.Node]) -> None:
    outer = [*view.series, *view.initial, *view.constants]
    draws, likes, shapes = [], [], []
    for node in drawn:
        draw = _draw(node)
        like = next((n for n in outer if _is_like(value(n), value(node), draw)), None)
        if draw is not None and draw.kind == "each" and not draw.params:
            like = _probabilities(graph_module, view, _probability(node))
        if draw is None or like is None or not _in_order(node):
            raise refuse(
                "LR009", f"What '{operator_name(node)}' draws cannot be drawn before the loop.", location(node)
            )
        draws.append(draw)
        likes.append(like)
        shapes.append([size_expr(size) for size in _drawn_shape(node)])
    graph = graph_module.graph
    sizes = [[_outer_size(graph, view.node, size) for size in shape] for shape in shapes]
    name = fresh_name(graph_module, "draws")
    graph_module.add_module(name, Draws(draws))
    with graph.inserting_before(view.node):
        call = graph.call_module(name, (view.length, likes, sizes))
        found = [graph.call_function(operator.getitem, (call, i)) for i in range(len(draws))]
    last = [*view.carries, *view.xs][-1]
    series = []
    for node, outside in zip(drawn, found, strict=True):
        with view.step.inserting_after(last):
            last = view.step.placeholder(f"{node.name}_drawn")
        with value(node).fake_mode:
            own = value(node).new_empty(_drawn_shape(node))
        last.meta = {**node.meta, "val": own}
        outside.meta = {**node.meta, "val": stacked(own, value(view.length))}
        series.append(outside)
        new = last
        if node.target in _MASKS:
            new = emit(view.step, node, aten.mul.Tensor, (node.args[0], last), node)
        node.replace_all_uses_with(new)
        view.step.erase_node(node)
    call.meta["val"] = [value(n) for n in found]
    view.scan.xs += len(series)
    view.node.args = (view.length, tuple(view.initial), (*view.series, *series), tuple(view.constants))


def _probability(node: fx.Node) -> fx.Node:
    given = node.args[0]
    assert isinstance(given, fx.Node)
    return given


def _probabilities(graph_module: fx.GraphModule, view: ScanView, given: fx.Node) -> fx.Node | None:
    """What a step computes probabilities to be, for all steps; None where it takes a state to compute them, or what the
    step draws."""
    needed = {given}
    for node in reversed(view.step.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    body = [n for n in view.step.nodes if n in needed and n.op == "call_function"]
    if needed & set(view.carries) or any(map(is_random, body)):
        return None
    step = step_graph(body, [], view.xs, view.consts, [given])
    (found,) = insert_scan(graph_module, view.node, view.node.name, view.length, step, [], view.series, view.constants)
    return found


def _number(node: fx.Node) -> Tensor | None:
    """The number that a tensor of a step is full of, without dimensions, where it is one that the program says."""
    filled = _FILLED.get(node.target)
    if filled is not None:
        number = filled if isinstance(filled, float) else node.args[filled] if len(node.args) > filled else None
        return torch.full((), number, dtype=value(node).dtype) if isinstance(number, (int, float)) else None
    if torch.Tag.pointwise not in getattr(node.target, "tags", ()) or is_random(node) or not node.all_input_nodes:
        return None
    known = {n: _number(n) for n in node.all_input_nodes}
    if any(x is None for x in known.values()):
        return None
    args, kwargs = fx.map_arg((node.args, node.kwargs), known.__getitem__)
    result: Tensor = node.target(*args, **kwargs)
    return result


def _draw(node: fx.Node) -> Draw | None:
    if node.target is aten.bernoulli.default:
        number = _number(_probability(node))
        return (
            Draw("each", () if number is None else (number.item(),)) if node.kwargs.get("generator") is None else None
        )
    known = _DRAWS.get(node.target)
    draw = known(_named(node)) if known and _named(node).get("generator") is None else None
    if draw is None or any(isinstance(p, fx.Node) for p in draw.params):
        return None
    return draw


def _drawn_shape(node: fx.Node) -> tuple[Any, ...]:
    shape = tuple(value(node).shape)
    lead = _MASKS.get(node.target, 0) or len(shape)
    return (*shape[:lead], *[1] * (len(shape) - lead))


def _is_like(outer: Any, drawn: Tensor, draw: Draw | None) -> bool:
    """Whether a tensor outside has the device of what is drawn, and the dtype where that is not fixed."""
    if draw is None or not isinstance(outer, Tensor) or outer.device != drawn.device:
        return False
    return drawn.dtype == draw.dtype if draw.dtype is not None else outer.dtype == drawn.dtype


def _in_order(node: fx.Node) -> bool:
    """Whether the elements are drawn in the order of the dimensions, as they lie in memory."""
    stride: Any = 1
    val = value(node)
    for size, own in reversed(list(zip(val.shape, val.stride(), strict=True))):
        if size_expr(size) != 1 and size_expr(own) != stride:
            return False
        stride = stride * size_expr(size)
    return True


def _outer_size(graph: fx.Graph, before: fx.Node, size: Any) -> Any:
    return size if isinstance(size, int) else size_node(graph, before, size)
