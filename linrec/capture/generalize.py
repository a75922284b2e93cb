"""Generalisation over length: two re-rolled graphs of the same code must be isomorphic, and the integers in which they
differ become affine functions of the length of the input. Anything else that differs is a refusal."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.affine import affine_through
from linrec.capture.listed import Slot
from linrec.capture.loops import leaves_of, tree_map_leaves
from linrec.capture.numbers import Numbers, as_number, computed_in, takes_tensor, with_tensors
from linrec.capture.trace import Trace
from linrec.ir.location import location
from linrec.ir.nodes import value
from linrec.ir.obstruction import refuse
from linrec.ir.scan import scan_of
from linrec.ir.timeaxis import affine, steps, unsteps

aten = torch.ops.aten


def generalize(
    shorter: Trace, longer: Trace, length_node: fx.Node | None, numbers: Numbers | None = None, period: int = 1
) -> fx.GraphModule:
    """Make the longer trace's graph valid for every length, given the same code traced at a shorter one.

    Args:
        shorter, longer: re-rolled traces, of different length.
        length_node: a node of the longer graph that computes the length at run time.
        numbers: finds other numbers in which the graphs differ in runs of the original.
        period: the graph is to be valid at every length that is some periods more or less.

    Returns:
        The longer trace's graph module, with every integer that differs replaced by `affine` of the length.

    Raises:
        Refused: LR004 where the graphs differ in structure, LR005 where a number does.
    """
    if shorter.outputs != longer.outputs or shorter.out_spec != longer.out_spec:
        raise refuse("LR004", "The structure of the result depends on the length of the input.")
    _same_leaves(shorter.out_leaves, longer.out_leaves, "the result")
    if [(a.qualified, a.keys, a.spec) for a in shorter.attributes] != [
        (a.qualified, a.keys, a.spec) for a in longer.attributes
    ]:
        raise refuse(
            "LR004", "Which attributes forward assigns, or their structure, depends on the length of the input."
        )
    for a, b in zip(shorter.attributes, longer.attributes, strict=True):
        _same_leaves(a.leaves, b.leaves, f"the attribute {a.name!r}")
    lengths = (shorter.length, longer.length)
    graph_module = longer.graph_module
    _match(shorter.graph_module, graph_module, lengths, length_node, numbers, period)
    graph_module.graph.lint()
    graph_module.recompile()
    return graph_module


def _same_leaves(a: list[Any], b: list[Any], what: str) -> None:
    for x, y in zip(a, b, strict=True):
        same = (
            x == y
            if isinstance(x, Slot) or isinstance(y, Slot)
            else type(x) is type(y) and (x == y or (x != x and y != y))
        )
        if not same:
            raise refuse("LR005", f"{what} holds a number that depends on the length of the input ({x!r}, {y!r}).")


def _match(
    shorter: fx.GraphModule,
    longer: fx.GraphModule,
    lengths: tuple[int, int],
    length_node: fx.Node | None,
    numbers: Numbers | None,
    period: int,
) -> None:
    nodes = list(shorter.graph.nodes)
    others = list(longer.graph.nodes)
    twin: dict[fx.Node, fx.Node] = {}
    for a, b in zip(nodes, others, strict=False):
        if a.op != b.op or (a.op in ("call_function", "call_method") and a.target != b.target):
            raise _differs(a, b)
        twin[a] = b
        if a.op == "placeholder":
            continue
        left, right = leaves_of(a), leaves_of(b)
        if len(left) != len(right):
            raise _differs(a, b)
        changed = False
        leaves: list[Any] = []
        tensors = _numbers_as_tensors(longer.graph, b, left, right, numbers)
        for index, (x, y) in enumerate(zip(left, right, strict=True)):
            if isinstance(x, fx.Node) or isinstance(y, fx.Node):
                if not isinstance(x, fx.Node) or twin.get(x) is not y:
                    raise _differs(a, b)
                leaves.append(y)
            elif index in tensors:
                leaves.append(tensors[index])
                changed = True
            elif type(x) is int and type(y) is int and x != y:
                function = affine_through(x, y, *lengths, period)
                if function is None:
                    raise refuse("LR005", _unlike(b, x, y, lengths), location(b))
                if length_node is None:
                    raise refuse("LR004", "The number of operators inside a step depends on the length.", location(b))
                with longer.graph.inserting_before(b):
                    through = (function.slope, function.offset, *([function.period] if function.period > 1 else []))
                    new = longer.graph.call_function(affine, (length_node, *through))
                new.meta["val"] = y
                leaves.append(new)
                changed = True
            elif type(x) is not type(y) or not (x == y or (x != x and y != y)):
                raise refuse("LR005", _unlike(b, x, y, lengths), location(b))
            else:
                leaves.append(y)
        if changed:
            b.args, b.kwargs = tree_map_leaves(b, leaves)
            if tensors:
                with_tensors(b)
        if a.op == "call_module":
            one, two = scan_of(shorter, a), scan_of(longer, b)
            if (one.carries, one.xs) != (two.carries, two.xs):
                raise _differs(a, b)
            _match(one.step, two.step, lengths, None, None, period)
        elif a.op == "get_attr":
            x, y = getattr(shorter, str(a.target), None), getattr(longer, str(b.target), None)
            if not (isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape == y.shape and torch.equal(x, y)):
                raise _differs(a, b)
    if len(nodes) != len(others):
        extra = others[len(nodes)] if len(others) > len(nodes) else nodes[len(others)]
        raise _differs(extra, extra)


def _numbers_as_tensors(
    graph: fx.Graph, node: fx.Node, left: list[Any], right: list[Any], numbers: Numbers | None
) -> dict[int, fx.Node]:
    """For the arguments that are numbers which depend on the length by no affine function: what computes them."""
    found: dict[int, fx.Node] = {}
    for index, (x, y) in enumerate(zip(left, right, strict=True)):
        differs = type(x) is type(y) and type(x) in (float, complex) and x != y
        if numbers is not None and differs and takes_tensor(node, index):
            series = numbers.find([x], [y], value(node).dtype if node.target is aten.full.default else None)
            if series is not None:
                held = numbers.input(graph, series, 1)
                found[index] = as_number(graph, node, held, computed_in(node, type(y)), value(node).device)
    return found


def _name(node: fx.Node) -> str:
    name = getattr(node.target, "_overloadpacket", node.target)
    return str(getattr(name, "__name__", name)).removeprefix("aten.")


def _unlike(node: fx.Node, x: Any, y: Any, lengths: tuple[int, int]) -> str:
    """What to say of an argument that is no affine function of the length."""
    at = f"at length {lengths[0]} and {y!r} at {lengths[1]}"
    if node.target in (steps, unsteps):  # operators that no user has written
        return f"What is read or kept of the steps comes to {x!r} {at}: no fixed number more with every step."
    return f"{_name(node)} uses {x!r} {at}."


def _differs(a: fx.Node, b: fx.Node) -> Exception:
    at = location(b) or location(a)
    return refuse(
        "LR004",
        f"At two lengths the code runs different operators, beyond one more step of a loop (at '{_name(b)}').",
        at,
    )
