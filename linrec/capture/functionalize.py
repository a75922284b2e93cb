"""In-place operators as functions: the graph of a trace in which nothing is written into.

torch does the same by running a graph once more through its tracers (`run_decompositions`), which takes twice as long
as the trace did. Here the operators are exchanged where they stand. Of every tensor that is written into, the graph's
values are followed: who is a view of whom is known from the storages of the traced values, a write into a view becomes
a scatter into its base, and a view that is read after a write is taken anew from the base as it is by then. What is not
surely understood is left to torch: inputs and parameters that are written into, views that no scatter undoes, operators
that change a tensor's shape, regions of their own.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from linrec.ir.nodes import emit, faked, is_made, shape_of, value

aten = torch.ops.aten


def functionalize(graph_module: fx.GraphModule) -> bool:
    """Replace the in-place operators of a graph, in place.

    Returns:
        whether it was possible; if not, the graph is as it was.
    """
    drop_needless_detach(graph_module.graph)
    written = _written(graph_module.graph)
    if written is None:
        return False
    copy = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    output = copy.graph_copy(graph_module.graph, values)
    for old, new in values.items():
        new.meta = dict(old.meta)
    last = copy.output(output)
    last.meta = dict(graph_module.graph.output_node().meta)
    try:
        _Functionalizer(copy, written).run()
    except _Unknown:
        return False
    graph_module.graph = copy
    return True


def drop_needless_detach(graph: fx.Graph) -> None:
    """Let a tensor that is made of numbers, and has no gradient to lose, be itself where nothing else is done with it:
    what is written into a detached view of it later has one."""
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.detach.default and is_made(node.args[0]) and len(node.args[0].users) == 1:
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


class _Unknown(Exception):
    """Something that is left to torch."""


def _storage_of(node: fx.Node) -> int | None:
    """What tells the memory of a node's value from that of others."""
    val = value(node)
    return int(val.untyped_storage()._cdata) if isinstance(val, Tensor) else None


def _writes(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _written(graph: fx.Graph) -> set[int] | None:
    """The storages that operators write into, None where one of them is not written by an operator of this graph that
    has a functional form, or belongs to an input."""
    found = set()
    known: dict[Any, bool] = {}
    for node in graph.nodes:
        if node.op == "call_function" and not isinstance(node.target, torch._ops.OpOverload):
            if isinstance(node.target, torch._ops.HigherOrderOperator):
                return None
        elif _writes(node):
            functional = _functional(node)
            if functional is None or not _keeps_dtype(node, functional, known):
                return None
            assert isinstance(node.args[0], fx.Node)
            storage = _storage_of(node.args[0])
            if storage is None or _storage_of(node) != storage:
                return None
            found.add(storage)
    inputs = {_storage_of(n) for n in graph.nodes if n.op in ("placeholder", "get_attr")}
    return None if found & inputs else found


_RANDOM = {
    aten.bernoulli_.float: aten.bernoulli.p,
    aten.uniform_.default: aten.uniform.default,
    aten.normal_.default: aten.normal_functional.default,
    aten.exponential_.default: aten.exponential.default,
    aten.dropout_.default: aten.dropout.default,
    aten.feature_dropout_.default: aten.feature_dropout.default,
}
"""Functions that draw the same numbers as the operators that fill a tensor with them."""


def _functional(node: fx.Node) -> Any:
    """The operator that returns what an in-place operator writes, None where there is none that surely does."""
    target: Any = node.target
    namespace, _, name = target._schema.name.partition("::")
    if namespace != "aten" or not name.endswith("_") or torch.Tag.inplace_view in target.tags:
        return None
    if torch.Tag.nondeterministic_seeded in target.tags:
        return _RANDOM.get(target)
    into, *others = target._schema.arguments
    if into.alias_info is None or not into.alias_info.is_write or any(a.alias_info for a in others):
        return None
    packet = getattr(aten, name[:-1], None)
    if packet is None or not isinstance(node.args[0], fx.Node):
        return None
    # The overload of the same name takes other types in a few cases: pow.Scalar raises a number to a tensor.
    for overload in (target._overloadname, *packet.overloads()):
        functional = getattr(packet, overload, None)
        if functional is not None and not functional._schema.is_mutable and _takes(functional) == _takes(target):
            return functional
    return None


def _takes(target: Any) -> list[tuple[str, str]]:
    """The names and types of an operator's arguments."""
    return [(a.name, str(a.type)) for a in target._schema.arguments]


def _keeps_dtype(node: fx.Node, functional: Any, known: dict[Any, bool]) -> bool:
    """Whether a function returns the dtype that its in-place operator leaves as it is: some promote, some return
    booleans. `known` is what was found before."""
    key = (functional, *(_kind(x) for x in pytree.tree_leaves((node.args, node.kwargs))))
    if key not in known:
        try:
            made = faked(node.graph, functional, node.args, node.kwargs)
            known[key] = isinstance(made, Tensor) and made.dtype == value(node.args[0]).dtype
        except Exception:  # a function that cannot be asked: torch goes another way
            known[key] = False
    return known[key]


def _kind(argument: Any) -> Any:
    val = value(argument)
    return (val.dtype, val.dim() == 0) if isinstance(val, Tensor) else type(val)


@dataclass
class _Alias:
    """A value that shares its memory with others.

    Attributes:
        storage: that memory.
        parent: the alias that it is a view of, None for the one that made the memory.
        view: the operator and its arguments after the first, or (operator, arguments, position) of one that returns
            several views.
        value: the node that holds its value, as it was at `time`.
        time: how often the memory had been written into.
    """

    storage: int
    parent: _Alias | None
    view: tuple[Any, ...]
    value: fx.Node
    time: int


class _Functionalizer:
    def __init__(self, graph: fx.Graph, written: set[int]) -> None:
        self.graph = graph
        self.written = written
        self.aliases: dict[fx.Node, _Alias] = {}
        self.time = dict.fromkeys(written, 0)
        self.cuts: dict[fx.Node, dict[int, int]] = {}

    def run(self) -> None:
        for node in list(self.graph.nodes):
            if _writes(node):
                self._write(node)
                continue
            if any(n in self.aliases for n in node.all_input_nodes):
                node.args, node.kwargs = self._now((node.args, node.kwargs), node)
            if node.op == "call_function":
                self._follow(node)
        for node in reversed(list(self.graph.nodes)):
            if _writes(node):
                self.graph.erase_node(node)

    def _now(self, arguments: Any, before: fx.Node) -> Any:
        """Arguments as they are by now."""
        return fx.map_arg(arguments, lambda n: self._current(self.aliases[n], before) if n in self.aliases else n)

    def _follow(self, node: fx.Node) -> None:
        """Note that a node's value is, or is a view of, memory that is written into somewhere."""
        storage = _storage_of(node)
        if storage not in self.written:
            if isinstance(node.meta.get("val"), (tuple, list)):
                self.cuts[node] = dict(self.time)
            return
        assert storage is not None
        time = self.time[storage]
        view: tuple[Any, ...] = (node.target, node.args[1:])
        base = node.args[0] if node.args else None
        if node.target is operator.getitem:
            cut, position = node.args
            assert isinstance(cut, fx.Node)
            view = (cut.target, cut.args[1:], position)
            base, time = (cut.args[0] if cut.args else None), self.cuts[cut][storage]
            if cut.kwargs:
                raise _Unknown
        inside = [n for n in node.all_input_nodes if _storage_of(n) == storage]
        if isinstance(base, fx.Node) and _storage_of(base) == storage:
            if base not in self.aliases or len(inside) > 1 or node.kwargs:
                raise _Unknown
            self.aliases[node] = _Alias(storage, self.aliases[base], view, node, time)
        elif inside:
            raise _Unknown
        else:
            self.aliases[node] = _Alias(storage, None, (), node, time)

    def _current(self, alias: _Alias, before: fx.Node) -> fx.Node:
        """The value of an alias by now."""
        if alias.time == self.time[alias.storage]:
            return alias.value
        assert alias.parent is not None
        base = self._current(alias.parent, before)
        target, args, *position = alias.view
        like = alias.value.meta["val"]
        if position:
            value = self._part(before, base, target, args, position[0], like)
        else:
            value = self._emit(before, _replayed(target), (base, *args), like)
        alias.value, alias.time = value, self.time[alias.storage]
        self.aliases[value] = alias
        return value

    def _write(self, node: fx.Node) -> None:
        into = node.args[0]
        if not isinstance(into, fx.Node) or into not in self.aliases:
            raise _Unknown
        alias = self.aliases[into]
        args, kwargs = self._now((node.args, node.kwargs), node)
        value = self._emit(node, _functional(node), args, into.meta["val"], kwargs)
        chain: list[tuple[_Alias, fx.Node]] = [(alias, value)]
        while alias.parent is not None:
            whole = self._current(alias.parent, node)
            value = self._undone(node, whole, value, alias)
            alias = alias.parent
            chain.append((alias, value))
        self.time[alias.storage] += 1
        for changed, value in chain:
            changed.value, changed.time = value, self.time[alias.storage]
            self.aliases[value] = changed
        self.aliases[node] = chain[0][0]

    def _undone(self, before: fx.Node, whole: fx.Node, part: fx.Node, alias: _Alias) -> fx.Node:
        """`whole` with the view `alias` of it replaced by `part`."""
        target, args, *position = alias.view
        like = whole.meta["val"]
        if position:
            return self._part_replaced(before, whole, part, target, args, position[0])
        name = target._schema.name.removeprefix("aten::")
        if name == "select":
            return self._emit(before, aten.select_scatter.default, (whole, part, *args), like)
        if name == "slice":
            return self._emit(before, aten.slice_scatter.default, (whole, part, *args), like)
        if name == "narrow" and all(isinstance(x, int) for x in args) and args[1] >= 0:
            dim, start, length = args
            return self._emit(before, aten.slice_scatter.default, (whole, part, dim, start, start + length), like)
        if name == "diagonal":
            return self._emit(before, aten.diagonal_scatter.default, (whole, part, *args), like)
        if name in ("alias", "contiguous", "expand_as", "view_as", "reshape_as", "to") and shape_of(whole) == shape_of(
            part
        ):
            if name == "to" and like.dtype != part.meta["val"].dtype:
                raise _Unknown
            return part
        if name == "transpose":
            return self._emit(before, aten.transpose.int, (part, *args), like)
        if name == "t":
            return self._emit(before, aten.t.default, (part,), like)
        if name == "permute":
            dims = [d % len(args[0]) for d in args[0]]
            back = sorted(range(len(dims)), key=dims.__getitem__)
            return self._emit(before, aten.permute.default, (part, back), like)
        if name == "unsqueeze":
            dim = args[0] if args[0] >= 0 else args[0] + len(part.meta["val"].shape)
            return self._emit(before, aten.squeeze.dim, (part, dim), like)
        if name in ("view", "reshape", "_unsafe_view", "squeeze", "flatten", "unflatten") and target is not (
            aten.view.dtype
        ):
            sizes: list[Any] = list(shape_of(whole))
            symbolic = [d for d, size in enumerate(sizes) if not isinstance(size, int)]
            for d in symbolic[1:]:
                sizes[d] = self._emit(before, aten.sym_size.int, (whole, d), like.shape[d])
            for d in symbolic[:1]:
                sizes[d] = -1
            return self._emit(before, aten.reshape.default, (part, sizes), like)
        raise _Unknown

    def _part(self, before: fx.Node, whole: fx.Node, target: Any, args: Any, position: int, like: Any) -> fx.Node:
        dim, extent = self._extent(whole, target, args, position)
        if extent is None:
            return self._emit(before, aten.select.int, (whole, dim, position), like)
        return self._emit(before, aten.slice.Tensor, (whole, dim, *extent), like)

    def _part_replaced(
        self, before: fx.Node, whole: fx.Node, part: fx.Node, target: Any, args: Any, position: int
    ) -> fx.Node:
        dim, extent = self._extent(whole, target, args, position)
        like = whole.meta["val"]
        if extent is None:
            return self._emit(before, aten.select_scatter.default, (whole, part, dim, position), like)
        return self._emit(before, aten.slice_scatter.default, (whole, part, dim, *extent), like)

    def _extent(self, whole: fx.Node, target: Any, args: Any, position: int) -> tuple[int, tuple[int, int] | None]:
        """The dimension, and (start, end) along it, of a part of what cuts a tensor; no extent of one step."""
        name = target._schema.name.removeprefix("aten::")
        if name == "unbind":
            return (args[0] if args else 0), None
        if name not in ("split", "split_with_sizes", "chunk"):
            raise _Unknown
        sizes, dim = args[0], (args[1] if len(args) > 1 else 0)
        total = shape_of(whole)[dim]
        if not isinstance(total, int):
            raise _Unknown
        if name == "chunk":
            sizes = -(-total // sizes)
        if isinstance(sizes, int):
            return dim, (position * sizes, min((position + 1) * sizes, total))
        if not all(isinstance(s, int) for s in sizes):
            raise _Unknown
        start = sum(sizes[:position])
        return dim, (start, start + sizes[position])

    def _emit(self, before: fx.Node, target: Any, args: Any, like: Any, kwargs: Any = None) -> fx.Node:
        return emit(self.graph, before, target, tuple(args), before, kwargs, like)


def _replayed(target: Any) -> Any:
    """The operator that takes a view of a tensor that may lie otherwise in memory than the one before."""
    return aten.reshape.default if target in (aten.view.default, aten._unsafe_view.default) else target
