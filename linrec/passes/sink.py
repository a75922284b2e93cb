"""Sink: what the program computes for all steps in advance only to feed a loop is computed inside it again, step by
step, where that saves memory: products that grow a tensor by a state dimension, and the elementwise operators that only
the loop reads. Where the loop then leaves the time axis, the torch forms write it out for all steps again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from linrec.analysis.vectorize import is_pointwise
from linrec.ir.nodes import emit, shape_of, value
from linrec.ir.scan import scan_nodes, scan_of
from linrec.ir.sizes import element_count
from linrec.ir.timeaxis import steps
from linrec.passes.base import Pass, PassResult
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, step_graph

aten = torch.ops.aten
Axis = tuple[int, int, int]
"""Where the steps of a tensor lie: dimension, index of the first step, distance of two."""


@dataclass(frozen=True)
class Sink(Pass):
    """Move producers of a loop's inputs into it.

    Before::

        a = exp(dt[..., None] * A)            # (B, T, D, N)
        hs = loop(h; a_t: a_t * h)

    After::

        hs = loop(h; dt_t: exp(dt_t[..., None] * A) * h)
    """

    name: str = "sink"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Sink the producers of every scan that has carries."""
        changed = False
        for node in scan_nodes(graph_module):
            if scan_of(graph_module, node).carries:
                changed |= _Sinker(graph_module, node).run()
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, changed)


class _Sinker:
    def __init__(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        self.graph_module = graph_module
        self.view = ScanView.of(graph_module, node)
        self.demanded: dict[fx.Node, Axis] = {}
        self.absorbed: dict[fx.Node, list[tuple[fx.Node, int | None]]] = {}

    def run(self) -> bool:
        """Rewrite the scan; whether anything moved."""
        reads = {s for s in self.view.series if s.target is steps and len(s.args) == 5}
        for series in reads:
            base, dim, start, stride, _ = series.args
            self._demand(base, (dim, start, stride))
        for node in reversed(list(self.graph_module.graph.nodes)):
            if node in self.demanded and self._wanted(node, reads):
                operands = _operands(node, self.demanded[node][0])
                if operands is not None:
                    self.absorbed[node] = operands
                    for operand, dim in operands:
                        if dim is not None:
                            self._demand(operand, (dim, *self.demanded[node][1:]))
        if not self.absorbed:
            return False
        self._rewrite()
        return True

    def _demand(self, node: fx.Node, axis: Axis) -> None:
        known = self.demanded.setdefault(node, axis)
        if known != axis:
            # Read along two axes, or from two starts: it stays where it is.
            self.demanded[node] = (-1, 0, 0)

    def _wanted(self, node: fx.Node, reads: set[fx.Node]) -> bool:
        if self.demanded[node][0] < 0 or node.op != "call_function" or not isinstance(value(node), torch.Tensor):
            return False
        if any(u in reads and tuple(u.args[1:4]) != self.demanded[node] for u in node.users):
            return False
        if all(u in reads or u in self.absorbed for u in node.users):
            return True
        sizes = [element_count(value(n)) for n in node.all_input_nodes if isinstance(value(n), torch.Tensor)]
        return element_count(value(node)) > max(sizes, default=0)

    def _rewrite(self) -> None:
        view, outer = self.view, self.graph_module.graph
        step = view.step
        first = next(n for n in step.nodes if n.op != "placeholder")
        inside: dict[tuple[fx.Node, Axis | None], fx.Node] = {}
        new_xs: list[tuple[fx.Node, fx.Node]] = []
        new_consts: list[tuple[fx.Node, fx.Node]] = []

        def placeholder(series: fx.Node, example: Any, into: list[tuple[fx.Node, fx.Node]]) -> fx.Node:
            with step.inserting_before(first):
                new = step.placeholder(f"{series.name}_in")
            new.meta = {k: v for k, v in series.meta.items() if k != "val"} | {"val": example}
            into.append((new, series))
            return new

        def constant(node: fx.Node, dim: int | None) -> fx.Node:
            """An operand that is the same in every step, without its time axis of size 1."""
            key = (node, None if dim is None else (dim, 0, 0))
            if key not in inside:
                source = node if dim is None else emit(outer, view.node, aten.select.int, (node, dim, 0), node)
                inside[key] = placeholder(source, value(source), new_consts)
            return inside[key]

        def at_step(node: fx.Node, axis: Axis) -> fx.Node:
            if (node, axis) in inside:
                return inside[node, axis]
            if node not in self.absorbed or self.demanded[node] != axis:
                series = emit(outer, view.node, steps, (node, *axis, view.length), node)
                with value(node).fake_mode:
                    example = value(node).select(axis[0], 0)
                made = placeholder(series, example, new_xs)
            else:
                known: dict[fx.Node, Callable[[], fx.Node]] = {}
                for operand, dim in self.absorbed[node]:
                    if dim is not None:
                        known[operand] = lambda o=operand, d=dim: at_step(o, (d, *axis[1:]))  # type: ignore[misc]
                    else:
                        known[operand] = lambda o=operand: constant(o, _own_axis(node, o, axis[0]))  # type: ignore[misc]
                placed = {operand: make() for operand, make in known.items()}
                made = _write(step, first, node, axis[0], placed)
            inside[node, axis] = made
            return made

        replaced: dict[fx.Node, fx.Node] = {}
        for x, series in zip(view.xs, view.series, strict=True):
            if series.target is steps and len(series.args) == 5 and series.args[0] in self.absorbed:
                base, dim, start, stride, _ = series.args
                if self.demanded[base] == (dim, start, stride):
                    replaced[x] = at_step(base, (dim, start, stride))
        for x, new in replaced.items():
            x.replace_all_uses_with(new)
        self._renew(replaced, new_xs, new_consts)

    def _renew(
        self,
        replaced: dict[fx.Node, fx.Node],
        new_xs: list[tuple[fx.Node, fx.Node]],
        new_consts: list[tuple[fx.Node, fx.Node]],
    ) -> None:
        """The scan again, with its inputs in order."""
        view = self.view
        sunk = [*(n for n, _ in new_xs), *(n for n, _ in new_consts)]
        own_consts = [n for n in view.placeholders[view.scan.carries + view.scan.xs :] if n not in sunk]
        xs = [(x, s) for x, s in zip(view.xs, view.series, strict=True) if x not in replaced] + new_xs
        consts = [*zip(own_consts, view.constants, strict=True), *new_consts]
        body = [n for n in view.step.nodes if n.op == "call_function"]
        step = step_graph(body, view.carries, [x for x, _ in xs], [c for c, _ in consts], view.results)
        found = insert_scan(
            self.graph_module,
            view.node,
            "loop",
            view.length,
            step,
            view.initial,
            [s for _, s in xs],
            [c for _, c in consts],
        )
        for i, users in view.taken().items():
            for user in users:
                user.replace_all_uses_with(found[i])
        erase_scan(self.graph_module, view.node)


def _own_axis(node: fx.Node, operand: fx.Node, dim: int) -> int | None:
    """The dimension of an operand that meets the time axis of an elementwise result, where it has one (of size 1)."""
    if not is_pointwise(node.target) and node.target is not aten.expand.default:
        return None
    own = dim - (value(node).dim() - value(operand).dim())
    return own if own >= 0 else None


def _operands(node: fx.Node, dim: int) -> list[tuple[fx.Node, int | None]] | None:
    """For each tensor operand the dimension in which its steps lie, None where it is the same in every step; None where
    the operator cannot be run for one step alone."""
    rank = value(node).dim()
    if is_pointwise(node.target) or node.target is aten.expand.default:
        found: list[tuple[fx.Node, int | None]] = []
        for operand in node.all_input_nodes:
            if not isinstance(value(operand), torch.Tensor):
                return None
            own = dim - (rank - value(operand).dim())
            found.append((operand, own if own >= 0 and shape_of(operand)[own] != 1 else None))
        return found if any(d is not None for _, d in found) else None
    if node.target in (aten._to_copy.default, aten.clone.default, aten.alias.default):
        return [(node.args[0], dim)]
    if node.target is aten.unsqueeze.default:
        at = node.args[1] % rank
        return None if at == dim else [(node.args[0], dim - (at < dim))]
    if node.target is aten.transpose.int:
        i, j = (d % rank for d in node.args[1:])
        return [(node.args[0], {i: j, j: i}.get(dim, dim))]
    if node.target is aten.permute.default:
        return [(node.args[0], node.args[1][dim] % rank)]
    if node.target is aten.select.int and isinstance(node.args[2], int):
        at = node.args[1] % (rank + 1)
        return [(node.args[0], dim + (at <= dim))]
    return None


def _write(step: fx.Graph, before: fx.Node, node: fx.Node, dim: int, placed: dict[fx.Node, fx.Node]) -> fx.Node:
    """One step of an operator whose result has its time axis at `dim`."""
    rank = value(node).dim()
    args: Any = fx.map_arg(node.args, placed.__getitem__)
    if node.target is aten.expand.default:
        sizes = [s for d, s in enumerate(node.args[1]) if d != dim]
        args = (args[0], sizes)
    elif node.target is aten.unsqueeze.default:
        at = node.args[1] % rank
        args = (args[0], at - (dim < at))
    elif node.target is aten.transpose.int:
        order = list(range(rank))
        i, j = (d % rank for d in node.args[1:])
        order[i], order[j] = order[j], order[i]
        return emit(step, before, aten.permute.default, (args[0], _without(order, dim)), node)
    elif node.target is aten.permute.default:
        return emit(step, before, node.target, (args[0], _without([d % rank for d in node.args[1]], dim)), node)
    elif node.target is aten.select.int:
        at = node.args[1] % (rank + 1)
        args = (args[0], at - (dim + (at <= dim) < at), node.args[2])
    kwargs = fx.map_arg(node.kwargs, placed.__getitem__)
    return emit(step, before, node.target, tuple(args), node, dict(kwargs))


def _without(order: list[int], dim: int) -> list[int]:
    """A permutation without the dimension that becomes `dim`."""
    gone = order[dim]
    return [d - (d > gone) for k, d in enumerate(order) if k != dim]
