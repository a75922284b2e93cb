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

from linrec.capture.affine import turns_of
from linrec.capture.cells import write_out_cells
from linrec.capture.equations import without_ellipsis
from linrec.capture.masks import write_as_choices
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
    for rewrite in (_forward_store, _drop_overwritten):
        for node in list(graph.nodes):
            if node.op == "call_function":
                rewrite(graph, node)
    graph.eliminate_dead_code()
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and not node._erased:
            _collapse_buffer(graph, node)
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


def _replace(node: fx.Node, new: fx.Node) -> None:
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)


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


def _dim(node: fx.Node, position: int, default: int = 0) -> int:
    dim = node.args[position] if len(node.args) > position else node.kwargs.get("dim", default)
    base = value(node.args[0][0] if isinstance(node.args[0], (list, tuple)) else node.args[0])
    rank: int = base.dim() + (1 if node.target in (aten.stack.default, aten.unsqueeze.default) else 0)
    return int(dim) % max(rank, 1)


def _simplify(graph: fx.Graph, node: fx.Node) -> None:
    target = node.target = _ALIASES.get(node.target, node.target)
    name = getattr(target, "__name__", str(target))
    if any(part in name for part in _ASSERTIONS):
        graph.erase_node(node) if not node.users else None
        return
    if target in _IDENTITY and isinstance(node.args[0], fx.Node):
        if not _is_returned(node):
            _replace(node, node.args[0])
    elif target is aten.detach.default and node.args[0].target is target:
        _replace(node, node.args[0])
    elif target in _VIEWS:
        if node.args[0].op != "placeholder" and shape_of(node.args[0]) == shape_of(node):
            _replace(node, node.args[0])
        else:
            node.target = aten.reshape.default
    elif (
        (target is aten.expand.default and shape_of(node.args[0]) == shape_of(node))
        or (target in _CASTS and _same_kind(node))
        or (target in _DROPOUTS and _keeps_all(node))
    ):
        _replace(node, node.args[0])
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
        dim = _dim(node, 1)
        size = shape_of(base)[dim]
        if isinstance(index, int) and index < 0 and isinstance(size, int):
            index += size
        node.args = (base, dim, index)
    elif target is aten.slice_scatter.default:
        if shape_of(node.args[0]) == shape_of(node.args[1]):
            _replace(node, node.args[1])
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
    _replace(node, new)


def _forget_model(graph: fx.Graph, node: fx.Node) -> None:
    """Of a second tensor, which may be a state, only the shape or the dtype is read: both are known."""
    source = node.args[0]
    if node.target is aten.expand_as.default:
        known = {size_expr(value(n)) for n in graph.nodes if isinstance(value(n), torch.SymInt)}
        if all(isinstance(s, int) or s in known for s in shape_of(node)):
            node.target, node.args = aten.expand.default, (source, [_size_arg(graph, s) for s in value(node).shape])
    elif value(source).device == value(node).device:
        _replace(node, _cast(graph, node, source))


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
    dim = _dim(node, 1)
    start = node.args[2] if len(node.args) > 2 else 0
    end = node.args[3] if len(node.args) > 3 else None
    step = node.args[4] if len(node.args) > 4 else 1
    size = shape_of(base)[dim]
    if shape_of(base) == shape_of(node) and step == 1:
        _replace(node, base)
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
        dim = _dim(family, 1)
        _replace(node, emit(graph, node, aten.select.int, (base, dim, index), node))
        return
    if family.target is aten.broadcast_tensors.default:
        source = family.args[0][index]
        if shape_of(source) != shape_of(node):
            sizes = [_size_arg(graph, s) for s in value(node).shape]
            source = emit(graph, node, aten.expand.default, (source, sizes), node)
        _replace(node, source)
        return
    splits = {aten.split.Tensor, aten.split_with_sizes.default, aten.chunk.default, aten.tensor_split.sections}
    if family.target in splits and isinstance(base, fx.Node):
        dim = _dim(family, 2)
        sizes = [size_expr(v.shape[dim]) for v in value(family)]
        if all(isinstance(s, int) for s in sizes):
            start = sum(sizes[:index])
            args = (base, dim, start, start + sizes[index])
            new = emit(graph, node, aten.slice.Tensor, args, node)
            _replace(node, new)
            _simplify_slice(graph, new)


def _read(node: Any) -> tuple[fx.Node, int, int] | None:
    """(base, dim, index) where a node reads one index along a dimension: a select, or a slice of width 1."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is aten.select.int and isinstance(node.args[2], int):
        return node.args[0], node.args[1], node.args[2]
    if node.target is aten.slice.Tensor and len(node.args) == 4:
        base, dim, start, end = node.args
        if isinstance(start, int) and isinstance(end, int) and end == start + 1:
            return base, dim, start
    return None


def _store(node: Any) -> tuple[fx.Node, fx.Node, int, int] | None:
    """(base, value, dim, index) where a node writes one index along a dimension."""
    if not isinstance(node, fx.Node) or node.op != "call_function":
        return None
    if node.target is aten.select_scatter.default and isinstance(node.args[3], int):
        base, val, dim, index = node.args
        rank, size = value(node).dim(), shape_of(node)[int(dim) % value(node).dim()]
        index = index + size if index < 0 and isinstance(size, int) else index
        return base, val, int(dim) % rank, index
    if node.target is aten.slice_scatter.default and len(node.args) == 5:
        base, val, dim, start, end = node.args
        if isinstance(start, int) and isinstance(end, int) and start >= 0 and end == start + 1:
            return base, val, int(dim) % value(node).dim(), start
    return None


def _is_returned(node: fx.Node) -> bool:
    return any(user.op == "output" for user in node.users)


def _forward_store(graph: fx.Graph, node: fx.Node) -> None:
    """A read of an index that was written before is the value written there."""
    read = _read(node)
    if read is None:
        return
    base, dim, index = read
    if _is_returned(node) and _is_returned(base):  # as a view of the other, which the caller may write into
        return
    moved = False
    while True:
        store = _store(base)
        if store is not None and store[2] == dim:
            below, val, _, written = store
            if written != index:
                base, moved = below, True
                continue
            scalar_store = base.target is aten.select_scatter.default
            scalar_read = node.target is aten.select.int
            if scalar_store and not scalar_read:
                val = emit(graph, node, aten.unsqueeze.default, (val, dim), node)
            elif scalar_read and not scalar_store:
                val = emit(graph, node, aten.select.int, (val, dim, 0), node)
            _replace(node, val)
            return
        if base.target is aten.stack.default and _dim(base, 1) == dim:
            val = base.args[0][index]
            if node.target is not aten.select.int:
                val = emit(graph, node, aten.unsqueeze.default, (val, dim), node)
            _replace(node, val)
            return
        if base.target is aten.cat.default and _dim(base, 1) == dim:
            start, hit = 0, None
            for piece in base.args[0]:
                size = shape_of(piece)[dim] if value(piece).dim() > dim else None
                if not isinstance(size, int):
                    break
                if start <= index < start + size:
                    hit = (piece, index - start)
                    break
                start += size
            if hit is None:
                break
            base, index, moved = hit[0], hit[1], True
            continue
        if base.target is aten.unsqueeze.default and _dim(base, 1) == dim and node.target is aten.select.int:
            _replace(node, base.args[0])
            return
        break
    shifted = base.target is aten.slice.Tensor and _dim(base, 1) == dim  # the part of a queue that moves up
    if moved and not shifted:
        node.args = (base, dim, index) if node.target is aten.select.int else (base, dim, index, index + 1)


def _drop_overwritten(graph: fx.Graph, node: fx.Node) -> None:
    """A write over the same index makes the one below it invisible."""
    store = _store(node)
    while store is not None:
        below = _store(store[0])
        if below is None or below[2:] != store[2:] or store[0].target is not node.target:
            return
        node.args = (below[0], *node.args[1:])
        store = _store(node)


def _collapse_buffer(graph: fx.Graph, node: fx.Node) -> None:
    """A chain of writes to distinct indices becomes one stack, with what the buffer held before at its ends; of writes
    at every so many indices, one stack that is written there."""
    store = _store(node)
    if store is None:
        return
    dim = store[2]
    written: dict[int, tuple[fx.Node, bool]] = {}
    base = node
    while (link := _store(base)) is not None and link[2] == dim and (base is node or len(base.users) == 1):
        written.setdefault(link[3], (link[1], base.target is aten.select_scatter.default))
        base = link[0]
    lo, hi = min(written), max(written)
    size = shape_of(node)[dim]
    if len(written) < 2 or not isinstance(size, int):
        return
    places = sorted(written)
    turns = 1 if len(written) == hi + 1 - lo else turns_of(places)
    if not turns:
        return
    items = {
        index: val if scalar else emit(graph, node, aten.select.int, (val, dim, 0), node)
        for index, (val, scalar) in sorted(written.items())
    }
    step = places[turns] - lo
    if step > turns:
        new = base
        for own in (places[k::turns] for k in range(turns)):
            stacked = emit(graph, node, aten.stack.default, ([items[index] for index in own], dim), node)
            new = emit(graph, node, aten.slice_scatter.default, (new, stacked, dim, own[0], own[-1] + 1, step), node)
        _replace(node, new)
        graph.eliminate_dead_code()
        return
    new = emit(graph, node, aten.stack.default, (list(items.values()), dim), node)
    if (lo, hi) != (0, size - 1):
        pieces = [new]
        if lo > 0:
            pieces.insert(0, emit(graph, node, aten.slice.Tensor, (base, dim, 0, lo), node))
        if hi < size - 1:
            pieces.append(emit(graph, node, aten.slice.Tensor, (base, dim, hi + 1, size), node))
        new = emit(graph, node, aten.cat.default, (pieces, dim), node)
    _replace(node, new)
    # The writes below are dead now; as users of what they wrote they would hide buffers within this one.
    graph.eliminate_dead_code()


def _flatten_cat(graph: fx.Graph, node: fx.Node) -> None:
    """``cat([cat([a, b]), c])`` is ``cat([a, b, c])``: a list that grows by ``torch.cat`` becomes one."""
    if node._erased or node.target is not aten.cat.default:
        return
    dim = _dim(node, 1)
    changed = True
    while changed:
        changed = False
        items: list[Any] = []
        for item in node.args[0]:
            inner = isinstance(item, fx.Node) and item.target is aten.cat.default and len(item.users) == 1
            if inner and _dim(item, 1) == dim:
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
    dim = _dim(node, 1)
    items = list(node.args[0])
    empty = [i for i in items if shape_of(i) == (0,) or (value(i).dim() > dim and shape_of(i)[dim] == 0)]
    if empty and len(empty) < len(items):
        items = [i for i in items if i not in empty]
        node.args = (items, dim)
    unsqueezed = all(isinstance(i, fx.Node) and i.target is aten.unsqueeze.default and _dim(i, 1) == dim for i in items)
    if unsqueezed and len(items) > 1:
        new = emit(graph, node, aten.stack.default, ([i.args[0] for i in items], dim), node)
        _replace(node, new)


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
        item, dim = node.args[0][0], _dim(node, 1)
        if len({number[x] for x in node.args[0]}) == 1:
            single = emit(graph, node, aten.unsqueeze.default, (item, dim), node)
            times = [len(node.args[0]) if d == dim else 1 for d in range(value(single).dim())]
            _replace(node, emit(graph, node, aten.repeat.default, (single, times), node))


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
