"""States that carry no gradient: running statistics whose update is a whole under `no_grad`, or ends in `detach`. They
are those of inputs without gradient, and the recurrence itself then has no `detach` in it."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from linrec.ir.nodes import emit, value
from linrec.ir.scan import is_random
from linrec.passes.rewrite import ScanView

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
        update.replace_all_uses_with(_copied(view, update, carry, inner))
    node.args = (view.length, tuple(initial), *node.args[2:])
    view.step.eliminate_dead_code()


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


def _needed(update: fx.Node) -> set[fx.Node]:
    """All that a node is computed from, itself included."""
    found: set[fx.Node] = set()
    pending = [update]
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += node.all_input_nodes
    return found


def _copied(view: ScanView, update: fx.Node, carry: fx.Node, inner: set[fx.Node]) -> fx.Node:
    """The update anew, of inputs without gradient."""
    copies: dict[fx.Node, fx.Node] = {carry: carry}
    for node in list(view.step.nodes):
        if node not in inner or node is carry:
            continue
        if node.op == "placeholder":
            with_gradient = isinstance(value(node), Tensor) and value(node).dtype.is_floating_point
            with_gradient |= isinstance(value(node), Tensor) and value(node).dtype.is_complex
            copies[node] = emit(view.step, update, aten.detach.default, (node,), node) if with_gradient else node
        elif node.target is aten.detach.default:
            copies[node] = copies[node.args[0]]
        else:
            with view.step.inserting_before(update):
                copies[node] = view.step.node_copy(node, copies.__getitem__)
    return copies[update]
