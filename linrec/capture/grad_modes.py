"""Regions of a trace in which forward switched gradient off."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from linrec.ir.location import location
from linrec.ir.obstruction import refuse
from linrec.ir.scan import fresh_name


def inline_grad_modes(graph_module: fx.GraphModule) -> None:
    """Replace ``no_grad`` regions by their operators with every result detached: the same values and gradients.

    Decomposition would drop the region and let gradient flow through it.
    """
    _list_users(graph_module.graph)
    _inline_in(graph_module)
    graph_module.recompile()


def _list_users(graph: fx.Graph) -> None:
    """Who reads a node, from what the nodes read: export forgets some behind regions without gradient."""
    for node in graph.nodes:
        node.users.clear()
    for node in graph.nodes:
        for source in node.all_input_nodes:
            source.users.setdefault(node)


def _inline_in(graph_module: fx.GraphModule) -> None:
    hop = torch.ops.higher_order.wrap_with_set_grad_enabled
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is torch.ops.higher_order.wrap_with_autocast:
            region = graph_module.get_submodule(str(node.args[4].target))
            assert isinstance(region, fx.GraphModule)
            _inline_in(region)
            region.recompile()
        if node.target is not hop:
            continue
        enabled, body, *operands = node.args
        if enabled:
            raise refuse("LR014", "forward switches gradient on while it is off outside.", location(node))
        sub = graph_module.get_submodule(str(body.target))
        assert isinstance(sub, fx.GraphModule)
        _inline_in(sub)
        with graph_module.graph.inserting_before(node):
            env = dict(zip([n for n in sub.graph.nodes if n.op == "placeholder"], operands, strict=True))
            results: Any = ()
            for inner in sub.graph.nodes:
                if inner.op == "output":
                    results = fx.map_arg(inner.args[0], lambda n, env=env: env[n])
                elif inner.op == "get_attr":
                    name = fresh_name(graph_module, f"{body.target}_{inner.target}".replace(".", "_"))
                    graph_module.add_module(name, sub.get_submodule(str(inner.target)))
                    env[inner] = graph_module.graph.get_attr(name)
                elif inner.op != "placeholder":
                    env[inner] = graph_module.graph.node_copy(inner, lambda n, env=env: env[n])
            final = []
            for value in results:
                if not enabled and isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor):
                    detached = graph_module.graph.call_function(torch.ops.aten.detach.default, (value,))
                    detached.meta = dict(value.meta)
                    final.append(detached)
                else:
                    final.append(value)
        for user in list(node.users):
            if user.op == "call_function" and user.target.__name__ == "getitem":
                user.replace_all_uses_with(final[user.args[1]])
                graph_module.graph.erase_node(user)
        graph_module.graph.erase_node(node)
