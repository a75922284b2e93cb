"""Custom ``torch.autograd.Function`` calls whose hand-written backward multiplies the gradient by a number for each
element, as surrogate gradients of spikes do: written out, forward and backward, as `linrec.surrogate`, so that they are
operators like others. What does anything else stays the opaque operator that it is."""

from __future__ import annotations

import operator
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.autograd_function import backward_of, is_differentiated
from linrec.capture.functionalize import functionalize
from linrec.capture.masks import masked_writes
from linrec.capture.ran import Ran, code_that_runs
from linrec.ir.inline import Unknown, body_of, put_before
from linrec.ir.nodes import emit, fake_mode, is_made, shape_of, size_expr, value
from linrec.ir.scan import is_random

aten = torch.ops.aten


def open_surrogates(graph: fx.Graph) -> Ran:
    """Write out the calls of a traced graph whose backward is known to be of this kind.

    Returns:
        the code of theirs that ran: what it reads elsewhere, as the slope that a class has, may change between calls.
    """
    bodies: dict[Hashable, tuple[fx.GraphModule, int] | None] = {}
    ran: Ran = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not torch.ops.linrec.autograd_function.default:
            continue
        key, tensors = node.args
        like = (key, *((tuple(shape_of(n)), value(n).dtype) for n in tensors))
        if like not in bodies:
            try:
                with code_that_runs() as own:
                    if own is None:
                        raise Unknown("what it reads elsewhere is not seen")
                    bodies[like] = _body(graph, key, tensors)
                ran |= own
            except Exception:  # whatever the user's code or torch's tracing has against it: the call stays as it is
                bodies[like] = None
        found = bodies[like]
        if found is not None:
            _write_out(graph, node, *found)
    return ran


def _body(graph: fx.Graph, key: int, tensors: list[fx.Node]) -> tuple[fx.GraphModule, int]:
    """Result and slope of a call, as a graph of its tensors, and by which of them it is differentiated."""
    values = [value(n) for n in tensors]
    shape = [size_expr(s) for s in _only(torch.ops.linrec.autograd_function(key, values)).shape]
    if len([x for x in values if is_differentiated(x)]) < 1:
        raise Unknown("nothing to differentiate by")

    with fake_mode(graph, values):
        gradient = torch.empty_like(_only(torch.ops.linrec.autograd_function(key, values)))
    by: list[int] = []

    def run(*given: Tensor) -> tuple[Tensor, Tensor]:
        out, derivatives = backward_of(key, list(given[:-1]), given[-1])
        by[:] = [i for i, d in enumerate(derivatives) if d is not None]
        (slope,) = (d for d in derivatives if d is not None)
        return out, slope

    body = body_of(run, graph, [*values, gradient])
    body = _without_constants(body)
    if not functionalize(body):
        raise Unknown("writes")
    masked_writes(body.graph)
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    out, slope = body.graph.output_node().args[0]
    same = [size_expr(s) for s in value(tensors[by[0]]).shape] == shape
    if not same or value(tensors[by[0]]).dtype != value(out).dtype or not _is_scaled(body.graph, inputs[-1], slope):
        raise Unknown("more than a factor for each element")
    one = emit(body.graph, _after_inputs(body.graph), aten.ones_like.default, (inputs[by[0]],), inputs[-1])
    inputs[-1].replace_all_uses_with(one)
    _drop_ones(body.graph, one)
    body.graph.eliminate_dead_code()
    body.graph.erase_node(inputs[-1])
    if any(is_random(n) for n in body.graph.nodes):
        raise Unknown("draws")
    return body, by[0]


def _only(results: list[Tensor]) -> Tensor:
    (result,) = results
    return result


def _after_inputs(graph: fx.Graph) -> fx.Node:
    return next(n for n in graph.nodes if n.op != "placeholder")


def _without_constants(body: fx.GraphModule) -> fx.GraphModule:
    """Numbers that the user's code made tensors of."""
    for node in list(body.graph.nodes):
        if node.op == "get_attr":
            x = getattr(body, str(node.target))
            if not isinstance(x, Tensor) or x.dim():
                raise Unknown("a constant")
            like = next(n for n in body.graph.nodes if n.op == "placeholder")
            kwargs = {"dtype": x.dtype, "device": x.device}
            new = emit(body.graph, node, aten.full.default, ([], x.item()), like, kwargs)
            node.replace_all_uses_with(new)
            body.graph.erase_node(node)
    return body


def _is_scaled(graph: fx.Graph, gradient: fx.Node, result: fx.Node) -> bool:
    """Whether a result is the gradient, element by element, times what does not depend on it."""
    scaled = {gradient}
    shape = [size_expr(s) for s in value(gradient).shape]
    for node in graph.nodes:
        reads = [n for n in node.all_input_nodes if n in scaled]
        if node.op != "call_function" or not reads:
            continue
        if not isinstance(value(node), Tensor) or [size_expr(s) for s in value(node).shape] != shape:
            return False
        if not value(node).dtype.is_floating_point:
            return False
        rest = [a for a in node.args if a not in reads]
        if node.target in _SAME or (node.target in _BY_FIRST and node.args[0] in scaled and len(reads) == 1):
            fits = True
        elif node.target in (aten.mul.Tensor, aten.mul.Scalar):
            fits = len(reads) == 1 and len(rest) == 1
        elif node.target in (aten.add.Tensor, aten.sub.Tensor):
            fits = not rest
        elif node.target is aten.where.self:
            fits = node.args[0] not in scaled and all(a in scaled or _is_zero(a) for a in node.args[1:])
        elif node.target in (aten.masked_fill.Scalar, aten.masked_fill.Tensor):
            fits = reads == [node.args[0]] and _is_zero(node.args[2])
        else:
            fits = False
        if not fits:
            return False
        scaled.add(node)
    return result in scaled


_SAME = frozenset(
    (
        aten.neg.default,
        aten.clone.default,
        aten.alias.default,
        aten.detach.default,
        aten.contiguous.default,
        aten._to_copy.default,
        aten.to.dtype,
    )
)
_BY_FIRST = frozenset(
    (
        aten.div.Tensor,
        aten.div.Scalar,
        aten.sigmoid_backward.default,
        aten.tanh_backward.default,
        aten.threshold_backward.default,
        aten.hardtanh_backward.default,
    )
)
"""Operators that are linear in what they take first."""


def _is_zero(x: Any) -> bool:
    if not isinstance(x, fx.Node):
        return bool(x == 0)
    made = is_made(x) and x.target in (aten.full.default, aten.scalar_tensor.default, aten.full_like.default)
    if made:
        return bool(x.args[0 if x.target is aten.scalar_tensor.default else 1] == 0)
    if x.target in (aten.lift_fresh_copy.default, aten._to_copy.default, aten.clone.default):
        return _is_zero(x.args[0])
    return x.target in (aten.zeros_like.default, aten.zeros.default)


def _drop_ones(graph: fx.Graph, one: fx.Node) -> None:
    """Factors of one, where what they multiply has the shape already."""
    for node in list(one.users):
        if node.target is aten.mul.Tensor:
            (other,) = (a for a in node.args if a is not one)
            if isinstance(other, fx.Node) and _alike(other, one):
                node.replace_all_uses_with(other)
                graph.erase_node(node)
        elif node.target is aten.clone.default:
            node.replace_all_uses_with(one)
            graph.erase_node(node)
            _drop_ones(graph, one)
            return


def _alike(a: fx.Node, b: fx.Node) -> bool:
    return value(a).dtype == value(b).dtype and shape_of(a) == shape_of(b)


def _write_out(graph: fx.Graph, node: fx.Node, body: fx.GraphModule, by: int) -> None:
    """Put the operators of a body in the place of a call."""
    if any(user.target is not operator.getitem for user in node.users):
        return
    try:
        out, slope = put_before(graph, node, body, node.args[1])
    except Unknown:
        return
    new = emit(graph, node, torch.ops.linrec.surrogate.default, (out, node.args[1][by], slope), node, val=value(out))
    for user in list(node.users):
        user.replace_all_uses_with(new)
        graph.erase_node(user)
    graph.erase_node(node)
