"""Canonical form of an unrolled trace, so that every way of writing a loop looks alike: reads by index are `select` and
`slice`, one for each use; buffers that are filled step by step and lists that grow become one `stack` or `cat`; sizes
are computed at the top of the graph; copies and dead code are gone."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from linrec.capture.cells import write_out_cells
from linrec.capture.equations import without_ellipsis
from linrec.capture.masks import write_as_choices
from linrec.capture.stores import (
    collapse_buffer,
    dim_of,
    drop_overwritten,
    forward_store,
    is_returned,
    open_window,
    replace_node,
)
from linrec.ir.nodes import emit, shape_of, size_expr, value
from linrec.ir.scan import is_random

aten = torch.ops.aten

_IDENTITY = {
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.lift_fresh_copy.default,
    aten.lift_fresh.default,
    aten.positive.default,
}
_DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}
_CASTS = {aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other, aten.type_as.default}
_SHAPED_LIKE = {aten.expand_as.default, aten.type_as.default}
_ASSERTIONS = ("_assert", "sym_constrain", "_functional_assert", "_check")
_VIEWS = {aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default}


_ALIASES = {
    aten.concat.default: aten.cat.default,
    aten.concatenate.default: aten.cat.default,
    aten.swapaxes.default: aten.transpose.int,
    aten.swapdims.default: aten.transpose.int,
    aten.moveaxis.int: aten.movedim.int,
    aten.moveaxis.intlist: aten.movedim.intlist,
    aten.multiply.Tensor: aten.mul.Tensor,
    aten.multiply.Scalar: aten.mul.Scalar,
    aten.subtract.Tensor: aten.sub.Tensor,
    aten.subtract.Scalar: aten.sub.Scalar,
    aten.divide.Tensor: aten.div.Tensor,
    aten.divide.Scalar: aten.div.Scalar,
    aten.true_divide.Tensor: aten.div.Tensor,
    aten.true_divide.Scalar: aten.div.Scalar,
    aten.negative.default: aten.neg.default,
    aten.absolute.default: aten.abs.default,
    aten.ger.default: aten.outer.default,
    aten._is_all_true.default: aten.all.default,
    aten._is_any_true.default: aten.any.default,
}


def normalize(graph_module: fx.GraphModule) -> None:
    """Bring an unrolled functional graph into canonical form, in place."""
    graph = graph_module.graph
    _hoist_sizes(graph)
    write_out_cells(graph)
    write_as_choices(graph)
    for node in list(graph.nodes):
        if node.op == "call_function":
            _simplify(graph, node)
    graph.eliminate_dead_code()
    for rewrite in (open_window, forward_store, drop_overwritten):
        for node in list(graph.nodes):
            if node.op == "call_function":
                rewrite(graph, node)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node._erased:
            collapse_buffer(graph, node)
            _flatten_cat(graph, node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "call_function":
            _cat_to_stack(graph, node)
    graph.eliminate_dead_code()
    _repeat_the_same(graph)
    graph.eliminate_dead_code()
    _one_read_per_use(graph)
    graph.eliminate_dead_code()
    graph.lint()


def _hoist_sizes(graph: fx.Graph) -> None:
    """Compute every symbolic size from the inputs, once, before anything else."""
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    first = next(n for n in graph.nodes if n.op != "placeholder")
    known: dict[Any, fx.Node] = {}

    def place(target: Callable[..., Any], args: tuple[Any, ...], val: Any) -> fx.Node:
        with graph.inserting_before(first):
            new = graph.call_function(target, args)
        new.meta["val"] = val
        return new

    for p in placeholders:
        if isinstance(value(p), torch.SymInt):
            known.setdefault(size_expr(value(p)), p)
    for p in placeholders:
        if isinstance(value(p), Tensor):
            for dim, size in enumerate(value(p).shape):
                expr = size_expr(size)
                if isinstance(expr, sympy.Symbol) and expr not in known:
                    known[expr] = place(aten.sym_size.int, (p, dim), size)

    moved: dict[fx.Node, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not isinstance(value(node), torch.SymInt) or node in known.values():
            continue
        expr = size_expr(value(node))
        if expr in known:
            moved[node] = known[expr]
        elif not isinstance(expr, int) and node.target is not aten.sym_size.int:
            args = fx.map_arg(node.args, lambda n: moved.get(n, n))
            if all(a in known.values() for a in args if isinstance(a, fx.Node)):
                known[expr] = moved[node] = place(node.target, tuple(args), value(node))
    for node, new in moved.items():
        node.replace_all_uses_with(new)
    for node in moved:
        if node not in known.values():
            graph.erase_node(node) if not node.users else None


def _simplify(graph: fx.Graph, node: fx.Node) -> None:
    target = node.target = _ALIASES.get(node.target, node.target)
    name = getattr(target, "__name__", str(target))
    if any(part in name for part in _ASSERTIONS):
        graph.erase_node(node) if not node.users else None
        return
    if target in _IDENTITY and isinstance(node.args[0], fx.Node):
        if not is_returned(node):
            replace_node(node, node.args[0])
    elif target is aten.detach.default and node.args[0].target is target:
        replace_node(node, node.args[0])
    elif target in _VIEWS:
        if node.args[0].op != "placeholder" and shape_of(node.args[0]) == shape_of(node):
            replace_node(node, node.args[0])
        else:
            node.target = aten.reshape.default
    elif (
        (target is aten.expand.default and shape_of(node.args[0]) == shape_of(node))
        or (target in _CASTS and _same_kind(node))
        or (target in _DROPOUTS and _keeps_all(node))
    ):
        replace_node(node, node.args[0])
    elif target is aten.copy.default:
        _simplify_copy(graph, node)
    elif target in _SHAPED_LIKE:
        _forget_model(graph, node)
    elif target is aten.cross.default and len(node.args) == 3:
        node.target, node.args, node.kwargs = aten.linalg_cross.default, node.args[:2], {"dim": node.args[2]}
    elif target is aten.narrow.default and isinstance(node.args[2], int) and isinstance(node.args[3], int):
        start = node.args[2]
        if start >= 0:
            node.target, node.args = aten.slice.Tensor, (*node.args[:3], start + node.args[3])
            _simplify_slice(graph, node)
    elif target is aten.einsum.default:
        node.args = (without_ellipsis(node), *node.args[1:])
    elif target is aten.slice.Tensor:
        _simplify_slice(graph, node)
    elif target is aten.select.int:
        base, _, index = node.args
        dim = dim_of(node, 1)
        size = shape_of(base)[dim]
        if isinstance(index, int) and index < 0 and isinstance(size, int):
            index += size
        node.args = (base, dim, index)
    elif target is aten.slice_scatter.default:
        if shape_of(node.args[0]) == shape_of(node.args[1]):
            replace_node(node, node.args[1])
    elif target is operator.getitem and isinstance(node.args[0], fx.Node):
        _simplify_getitem(graph, node)


def _keeps_all(node: fx.Node) -> bool:
    """Whether a dropout drops nothing, and so draws nothing."""
    given = dict(zip(("input", "p", "train"), node.args, strict=False)) | node.kwargs
    return not given["train"] or given["p"] == 0


def _same_kind(node: fx.Node) -> bool:
    """Whether a cast changes neither dtype nor device."""
    before, after = value(node.args[0]), value(node)
    same: bool = before.dtype == after.dtype and before.device == after.device and node.args[0].op != "placeholder"
    return same


def _simplify_copy(graph: fx.Graph, node: fx.Node) -> None:
    destination, source = node.args[0], node.args[1]
    assert isinstance(destination, fx.Node)
    if not isinstance(source, fx.Node):
        return
    new = source
    if value(source).dtype != value(node).dtype:
        new = _cast(graph, node, new)
    if shape_of(new) != shape_of(node):
        sizes = [_size_arg(graph, s) for s in value(node).shape]
        new = emit(graph, node, aten.expand.default, (new, sizes), node)
    replace_node(node, new)


def _forget_model(graph: fx.Graph, node: fx.Node) -> None:
    """Of a second tensor, which may be a state, only the shape or the dtype is read: both are known."""
    source = node.args[0]
    if node.target is aten.expand_as.default:
        known = {size_expr(value(n)) for n in graph.nodes if isinstance(value(n), torch.SymInt)}
        if all(isinstance(s, int) or s in known for s in shape_of(node)):
            node.target, node.args = aten.expand.default, (source, [_size_arg(graph, s) for s in value(node).shape])
    elif value(source).device == value(node).device:
        replace_node(node, _cast(graph, node, source))


def _cast(graph: fx.Graph, node: fx.Node, source: fx.Node) -> fx.Node:
    with graph.inserting_before(node):
        new = graph.call_function(aten._to_copy.default, (source,), {"dtype": value(node).dtype})
    new.meta = dict(node.meta)
    new.meta["val"] = value(source).to(value(node).dtype)
    return new


def _size_arg(graph: fx.Graph, size: Any) -> Any:
    expr = size_expr(size)
    if isinstance(expr, int):
        return expr
    for node in graph.nodes:
        if isinstance(value(node), torch.SymInt) and size_expr(value(node)) == expr:
            return node
    raise KeyError(expr)


def _simplify_slice(graph: fx.Graph, node: fx.Node) -> None:
    base = node.args[0]
    assert isinstance(base, fx.Node)
    dim = dim_of(node, 1)
    start = node.args[2] if len(node.args) > 2 else 0
    end = node.args[3] if len(node.args) > 3 else None
    step = node.args[4] if len(node.args) > 4 else 1
    size = shape_of(base)[dim]
    if shape_of(base) == shape_of(node) and step == 1:
        replace_node(node, base)
        return
    start = 0 if start is None else start
    end = size if end is None or (isinstance(end, int) and isinstance(size, int) and end > size) else end
    if isinstance(size, int) and isinstance(start, int) and isinstance(end, int):
        start = max(start + size, 0) if start < 0 else min(start, size)
        end = max(end + size, 0) if end < 0 else end
        node.args = (base, dim, start, end) if step == 1 else (base, dim, start, end, step)
        node.kwargs = {}


def _simplify_getitem(graph: fx.Graph, node: fx.Node) -> None:
    family, index = node.args
    assert isinstance(family, fx.Node) and isinstance(index, int)
    base = family.args[0] if family.args else None
    if family.target is aten.unbind.int:
        dim = dim_of(family, 1)
        replace_node(node, emit(graph, node, aten.select.int, (base, dim, index), node))
        return
    if family.target is aten.broadcast_tensors.default:
        source = family.args[0][index]
        if shape_of(source) != shape_of(node):
            sizes = [_size_arg(graph, s) for s in value(node).shape]
            source = emit(graph, node, aten.expand.default, (source, sizes), node)
        replace_node(node, source)
        return
    splits = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.tensor_split.sections}
    if family.target in splits and isinstance(base, fx.Node):
        dim = dim_of(family, 2)
        sizes = [size_expr(v.shape[dim]) for v in value(family)]
        if all(isinstance(s, int) for s in sizes):
            start = sum(sizes[:index])
            args = (base, dim, start, start + sizes[index])
            new = emit(graph, node, aten.slice.Tensor, args, node)
            replace_node(node, new)
            _simplify_slice(graph, new)


def _flatten_cat(graph: fx.Graph, node: fx.Node) -> None:
    """``cat([cat([a, b]), c])`` is ``cat([a, b, c])``: a list that grows by ``torch.cat`` becomes one."""
    if node._erased or node.target is not aten.cat.default:
        return
    dim = dim_of(node, 1)
    changed = True
    while changed:
        changed = False
        items: list[Any] = []
        for item in node.args[0]:
            inner = isinstance(item, fx.Node) and item.target is aten.cat.default and len(item.users) == 1
            if inner and dim_of(item, 1) == dim:
                items.extend(item.args[0])
                changed = True
            else:
                items.append(item)
        node.args = (items, dim)
        if changed:
            graph.eliminate_dead_code()


def _cat_to_stack(graph: fx.Graph, node: fx.Node) -> None:
    if node.target is not aten.cat.default:
        return
    dim = dim_of(node, 1)
    items = list(node.args[0])
    empty = [i for i in items if shape_of(i) == (0,) or (value(i).dim() > dim and shape_of(i)[dim] == 0)]
    if empty and len(empty) < len(items):
        items = [i for i in items if i not in empty]
        node.args = (items, dim)
    unsqueeze = aten.unsqueeze.default
    unsqueezed = all(isinstance(i, fx.Node) and i.target is unsqueeze and dim_of(i, 1) == dim for i in items)
    if unsqueezed and len(items) > 1:
        new = emit(graph, node, aten.stack.default, ([i.args[0] for i in items], dim), node)
        replace_node(node, new)


def _repeat_the_same(graph: fx.Graph) -> None:
    """What every step puts into a stack where all of them compute the same: one tensor, as often as there are steps."""
    stacks = [n for n in graph.nodes if n.target is aten.stack.default and len(n.args[0]) > 1]
    stacks = [n for n in stacks if len({item.target for item in n.args[0]}) == 1]
    if not stacks:
        return
    known: dict[Any, int] = {}
    number: dict[fx.Node, int] = {}
    for node in graph.nodes:
        key: Any = node
        if isinstance(node.target, torch._ops.OpOverload) and not is_random(node):
            key = node.target, repr(fx.map_arg((node.args, node.kwargs), lambda n: f"value {number[n]}"))
        number[node] = known.setdefault(key, len(known))
    for node in stacks:
        item, dim = node.args[0][0], dim_of(node, 1)
        if len({number[x] for x in node.args[0]}) == 1:
            single = emit(graph, node, aten.unsqueeze.default, (item, dim), node)
            times = [len(node.args[0]) if d == dim else 1 for d in range(value(single).dim())]
            replace_node(node, emit(graph, node, aten.repeat.default, (single, times), node))


def _one_read_per_use(graph: fx.Graph) -> None:
    """Give every use of an indexed read a read of its own, just before the use."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function" or node.target not in (aten.select.int, aten.slice.Tensor):
            continue
        for user in sorted(node.users, key=lambda n: order.get(n, len(order))):
            if user.op == "output":
                continue
            with graph.inserting_before(user):
                copy = graph.node_copy(node)
            copy.meta = dict(node.meta)
            user.replace_input_with(node, copy)
        if not node.users:
            graph.erase_node(node)
