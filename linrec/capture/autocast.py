"""Autocast in a trace. ``torch.export`` leaves implicit what autocast does: a graph has the program's operators, and
dtypes that they would not have elsewhere. Here the casts become operators, so that the graph computes the same dtypes
anywhere, and every cast that autocast made, not the program, is marked: it is a licence to round, where the program's
own casts are part of what it computes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from linrec.ir.nodes import PROVENANCE, value
from linrec.ops.precision import no_autocast

aten = torch.ops.aten

MARK = "autocast"
"""The key of a node's ``meta`` that says that autocast made this cast."""

_HALF = (torch.bfloat16, torch.float16)

_library = torch.library.Library("linrec", "FRAGMENT")
_library.define("cast(Tensor x, ScalarType dtype) -> Tensor")


def _cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype, copy=True)


_library.impl("cast", _cast, "CompositeExplicitAutograd")
torch.library.register_fake("linrec::cast", _cast, lib=_library)


def graphs(graph_module: fx.GraphModule) -> Iterator[fx.Graph]:
    """The graph of a module and those of the regions in it."""
    for sub in graph_module.modules():
        if isinstance(sub, fx.GraphModule):
            yield sub.graph


def has_regions(graph_module: fx.GraphModule) -> bool:
    """Whether a program switches autocast on or off inside."""
    hop = torch.ops.higher_order.wrap_with_autocast
    return any(n.op == "call_function" and n.target is hop for g in graphs(graph_module) for n in g.nodes)


def protect_casts(graph_module: fx.GraphModule) -> None:
    """Put an operator of ours in the place of every cast to half precision that the program itself makes."""
    for graph in graphs(graph_module):
        for node in list(graph.nodes):
            if node.op == "call_function" and _halves(node):
                with graph.inserting_before(node):
                    new = graph.call_function(torch.ops.linrec.cast.default, (node.args[0], value(node).dtype))
                new.meta = dict(node.meta)
                node.replace_all_uses_with(new)
                graph.erase_node(node)


def _halves(node: fx.Node) -> bool:
    packet = getattr(node.target, "overloadpacket", None)
    if packet not in (aten.to, aten._to_copy, aten.type_as) or not isinstance(value(node), Tensor):
        return False
    before, after = value(node.args[0]), value(node)
    return after.dtype in _HALF and before.dtype != after.dtype and before.device == after.device


def write_casts(graph_module: fx.GraphModule) -> bool:
    """Write what autocast casts, at the moment, as operators in front of those that it casts for.

    Returns:
        Whether that says all. Otherwise the graph is as it was, and has to be traced again: where autocast does
        something else than cast arguments, where a composite operator casts inside, where a region has other rules.
    """
    known: dict[Any, list[torch.dtype | None] | None] = {}
    wanted: list[tuple[fx.Node, list[torch.dtype | None]]] = []
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target is operator.getitem:
            continue
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            return False
        leaves = [value(x) for x in pytree.tree_leaves((node.args, node.kwargs))]
        dtypes = tuple(x.dtype for x in leaves if isinstance(x, Tensor))
        if not any(d.is_floating_point for d in dtypes):
            continue
        key = (node.target, dtypes, value(node).dtype if isinstance(value(node), Tensor) else None)
        if key not in known:
            known[key] = _casts_of(node)
        found = known[key]
        if found is None:
            return False
        if any(found):
            wanted.append((node, found))
    for node, dtypes_of in wanted:
        leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
        tensors = [i for i, x in enumerate(leaves) if isinstance(value(x), Tensor)]
        for i, dtype in zip(tensors, dtypes_of, strict=True):
            if dtype is not None:
                leaves[i] = _cast_node(node, leaves[i], dtype)
        node.args, node.kwargs = pytree.tree_unflatten(leaves, spec)
    return True


def _cast_node(node: fx.Node, argument: fx.Node, dtype: torch.dtype) -> fx.Node:
    with node.graph.inserting_before(node):
        new = node.graph.call_function(aten._to_copy.default, (argument,), {"dtype": dtype})
    new.meta = {k: node.meta[k] for k in PROVENANCE if k in node.meta}
    with no_autocast():
        new.meta["val"] = value(argument).to(dtype)
    return new


def _casts_of(node: fx.Node) -> list[torch.dtype | None] | None:
    """What autocast casts each tensor argument of an operator to; None where that is not all that it does."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    fake = [_sized(value(x)) for x in leaves]
    tensors = [x for x in fake if isinstance(x, Tensor)]
    expected = [x for x in pytree.tree_leaves(value(node)) if isinstance(x, Tensor)]

    def run(casts: list[torch.dtype | None]) -> tuple[list[torch.dtype | None], list[torch.dtype]]:
        given = iter(casts)
        values = [(x.to(c) if (c := next(given)) else x) if isinstance(x, Tensor) else x for x in fake]
        args, kwargs = pytree.tree_unflatten(values, spec)
        with _Casts() as seen:
            out = node.target(*args, **kwargs)
        made = [seen.made.get(id(x)) for x in values if isinstance(x, Tensor)]
        return made, [x.dtype for x in pytree.tree_leaves(out) if isinstance(x, Tensor)]

    def alone(casts: list[torch.dtype | None]) -> tuple[list[torch.dtype | None], list[torch.dtype]] | None:
        try:
            with no_autocast():
                return run(casts)
        except Exception:  # it takes no such dtypes
            return None

    nothing: list[torch.dtype | None] = [None] * len(tensors)
    own = alone(nothing)
    seen = [None if own and a == b else a for a, b in zip(run(nothing)[0], own[0] if own else nothing, strict=True)]
    # A composite operator (einsum) casts what it has made of its arguments: then they all are, where that comes out so.
    every = [
        d if x.is_floating_point() and x.dtype != d else None for x in tensors for d in {e.dtype for e in expected}
    ]
    for casts in (seen, every) if len({e.dtype for e in expected}) == 1 else (seen,):
        found = alone(casts)
        if found is not None and found[1] == [e.dtype for e in expected]:
            return casts
    return None


def _sized(x: Any) -> Any:
    """A value with numbers for symbolic sizes: composite operators ask for more than shapes."""
    if isinstance(x, torch.SymInt):
        return int(x.node.hint)
    if not isinstance(x, Tensor) or not any(isinstance(s, torch.SymInt) for s in x.shape):
        return x
    mode: Any = x.fake_mode  # type: ignore[attr-defined]
    sizes: Any = x.shape
    with mode:
        return torch.empty([_sized(s) for s in sizes], dtype=x.dtype, device=x.device)


class _Casts(TorchDispatchMode):
    """Notes which tensors are cast, by id, and to what."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.made: dict[int, torch.dtype] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is aten._to_copy.default and out.dtype != args[0].dtype:
            self.made[id(args[0])] = out.dtype
        return out


def mark_casts(graph: fx.Graph) -> None:
    """Mark the casts to half precision that autocast made, and give the program's own their usual form again."""
    for node in graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.linrec.cast.default:
            node.target, node.args, node.kwargs = aten._to_copy.default, node.args[:1], {"dtype": node.args[1]}
        elif node.op == "call_function" and _halves(node):
            node.meta[MARK] = True


def is_licence(node: fx.Node) -> bool:
    """Whether a node is a cast that autocast made."""
    return bool(node.meta.get(MARK))
