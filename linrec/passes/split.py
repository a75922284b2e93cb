"""Split every scan by its state graph: each strongly connected component becomes a scan of its own, in an order in
which they can be solved; what reads no state of a component leaves its loop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from linrec.analysis.readout import Readout, readout_of, sums_over_state
from linrec.analysis.stategraph import Component, components, dependencies
from linrec.analysis.structure import recurrence_of
from linrec.ir.location import location
from linrec.ir.names import operator_name, state_names, user_name
from linrec.ir.nodes import emit, value
from linrec.ir.recurrence import LinearRecurrence, Recurrence
from linrec.ir.scan import scan_nodes
from linrec.ir.sizes import element_count
from linrec.passes.base import Pass, PassResult
from linrec.passes.entry import delayed_text
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, repeat_steps, step_graph

aten = torch.ops.aten

PRODUCTS = frozenset(
    (
        aten.linear.default,
        aten.mm.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.mv.default,
        aten.addmm.default,
        aten.addmv.default,
        aten.baddbmm.default,
        aten.einsum.default,
        aten.outer.default,
        aten.mul.Tensor,
    )
)
_VIEWS = frozenset(
    (aten.unsqueeze.default, aten.squeeze.dim, aten.reshape.default, aten.transpose.int, aten.permute.default)
)
_SPREADING = (
    PRODUCTS
    | _VIEWS
    | {
        aten.expand.default,
        aten.add.Tensor,
        aten.sub.Tensor,
        aten.mul.Scalar,
        aten.div.Tensor,
        aten.neg.default,
    }
)


def _count(node: fx.Node) -> int:
    return element_count(value(node))


def _wider(node: fx.Node, operand: fx.Node) -> bool:
    """Whether a value has more elements than an operand (a symbolic size is the same in both)."""
    sizes = []
    for n in (node, operand):
        total = 1
        for size in value(n).shape:
            total *= size if isinstance(size, int) else 1
        sizes.append(total)
    return sizes[0] > sizes[1]


@dataclass(frozen=True)
class Split(Pass):
    """One scan for each component, and carry-free scans for what lies between them.

    Before::

        loop(m, h; x): m' = A m + B x; h' = tanh(W m' + U h); return m', h', h'

    After::

        u  = steps(x: B x)
        ms = loop(m; u: A m + u)
        v  = steps(ms: W ms)
        hs = loop(h; v: tanh(v + U h))
    """

    module: str = ""
    name: str = "split"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Split every scan of a graph; report the components that are no recurrences."""
        found: list[Recurrence] = []
        for node in scan_nodes(graph_module):
            found += self.apart(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, True, found)

    def apart(self, graph_module: fx.GraphModule, node: fx.Node) -> list[Recurrence]:
        """Split one scan; the components of it that are no recurrences."""
        splitter = _Splitter(graph_module, node)
        splitter.run()
        return [replace(entry, module=self.module) for entry in splitter.entries]


def delayed(updates: Tensor, initial: Tensor) -> Tensor:
    """The value before each step: `initial`, then every update but the last. (T, ...) and (...) to (T, ...)."""
    return torch.cat([initial.unsqueeze(0), updates[:-1]])


class _Splitter:
    def __init__(self, graph_module: fx.GraphModule, node: fx.Node) -> None:
        self.graph_module = graph_module
        self.view = ScanView.of(graph_module, node)
        self.order = {n: i for i, n in enumerate(self.view.step.nodes)}
        self.carries, self.updates = self.view.carries, self.view.updates
        self.constants = dict(zip(self.view.consts, self.view.constants, strict=True))
        # Nodes of the step whose values for all steps exist in the outer graph.
        self.series: dict[fx.Node, fx.Node] = dict(zip(self.view.xs, self.view.series, strict=True))
        self.entries: list[Recurrence] = []

    def run(self) -> None:
        view = self.view
        parts = components(view.scan.step, view.scan.carries)
        finals: dict[int, fx.Node] = {}
        for part in parts:
            if part.recurrent:
                self._loop(part, finals)
            else:
                (i,) = part.carries
                self.entries.append(self._delay(i))
                self._outside([self.updates[i]])
                updates = self._series_of(self.updates[i])
                finals[i] = self._emit(aten.select.int, (updates, 0, -1), self.updates[i])
                self.series[self.carries[i]] = self._emit(delayed, (updates, view.initial[i]), self.carries[i])
        if not parts and not view.node.meta.get("part"):
            self.entries.append(self._stateless())
        self._outside(view.ys)
        taken = view.taken()
        for i, users in taken.items():
            new = finals[i] if i < view.scan.carries else self._series_of(view.results[i])
            for user in users:
                user.replace_all_uses_with(new)
        erase_scan(self.graph_module, view.node)

    def _delay(self, i: int) -> Recurrence:
        update = self.updates[i]
        name = state_names([self.carries[i]], [update])[0]
        source = delayed_text(update, name)
        return Recurrence(
            "",
            location(update) or location(self.carries[i]),
            (name,),
            f"{name}[t] = {source}",
            "a delay",
            True,
            "shift",
            True,
            graph=self.view.scan.step,
        )

    def _stateless(self) -> Recurrence:
        results = [y for y in self.view.ys if y.op == "call_function"]
        where = next((at for y in results if (at := location(y))), "")
        names = ", ".join(dict.fromkeys(user_name(y) or operator_name(y) for y in results))
        return Recurrence(
            "", where, (), f"{names or 'y'}[t] = f(x[t])", "no state", True, "hoisted", True, graph=self.view.scan.step
        )

    def _emit(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        return emit(self.graph_module.graph, self.view.node, target, args, like)

    def _series_of(self, node: fx.Node) -> fx.Node:
        if node in self.constants:
            return self._emit(repeat_steps, (self.constants[node], self.view.length), node)
        return self.series[node]

    def _outside(self, results: list[fx.Node]) -> None:
        """Compute nodes that need no further state, for all steps, in a scan without carries."""
        body = self._missing(results)
        if not body:
            return
        inside = set(body)
        inputs = self._inputs(body)
        xs = [n for n in inputs if n in self.series]
        consts = [n for n in inputs if n in self.constants]
        # Everything that may be read later becomes an output; dead code removal drops what is not.
        ys = [
            n for n in body if isinstance(value(n), Tensor) and (n in results or any(u not in inside for u in n.users))
        ]
        step = step_graph(body, [], xs, consts, ys)
        series = [self.series[n] for n in xs]
        constants = [self.constants[n] for n in consts]
        found = insert_scan(self.graph_module, self.view.node, "steps", self.view.length, step, [], series, constants)
        self.series.update(zip(ys, found, strict=True))

    def _loop(self, part: Component, finals: dict[int, fx.Node]) -> None:
        # An operator with several results is taken apart inside: only tensors can leave a loop.
        several = [n for n in part.core if not isinstance(value(n), Tensor)]
        body = sorted({*part.core, *(user for n in several for user in n.users)}, key=self.order.__getitem__)
        body = sorted({*body, *self._readouts(part)}, key=self.order.__getitem__)
        body = sorted({*body, *self._drives(set(body)), *self._wide(part, set(body))}, key=self.order.__getitem__)
        inside = set(body)
        own = [self.carries[i] for i in part.carries]
        inputs = [n for n in self._inputs(body) if n not in own]
        self._outside([n for n in inputs if n not in self.constants])
        xs = [n for n in inputs if n not in self.constants]
        consts = [n for n in inputs if n in self.constants]
        updates = [self.updates[i] for i in part.carries]
        seen = [n for n in body if n in self.view.ys or any(u not in inside and u.op != "output" for u in n.users)]
        delayed_carries = [c for c in own if c in self.view.ys or any(u not in inside for u in c.users)]
        for j, update in enumerate(self.updates):
            if update in own and j not in part.carries and update not in delayed_carries:
                delayed_carries.append(update)
            elif update in inside and j not in part.carries and update not in seen:
                seen.append(update)
        ys = [n for n in [*seen, *delayed_carries] if isinstance(value(n), Tensor)]
        step = step_graph(body, own, xs, consts, [*updates, *ys])
        found = insert_scan(
            self.graph_module,
            self.view.node,
            "loop",
            self.view.length,
            step,
            [self.view.initial[i] for i in part.carries],
            [self.series[n] for n in xs],
            [self.constants[n] for n in consts],
        )
        for at, i in enumerate(part.carries):
            finals[i] = found[at]
        self.series.update(zip(ys, found[len(own) :], strict=True))

    def _drives(self, body: set[fx.Node]) -> set[fx.Node]:
        """What makes a drive of the state's width from narrower inputs stays with a dense transition: B u, of which the
        algorithms for constant matrices want to see B and u."""
        if not any(self._steady_product(n) for n in body):
            return set()
        found: set[fx.Node] = set()
        for node in reversed(list(self.view.step.nodes)):
            inner = body | found
            if node in inner or node in self.series or node.op != "call_function" or not node.users:
                continue
            if any(u not in inner for u in node.users) or not isinstance(value(node), Tensor):
                continue
            moving = [n for n in node.all_input_nodes if n not in self.constants and isinstance(value(n), Tensor)]
            grows = len(moving) == 1 and self._steady_product(node) and _wider(node, moving[0])
            if grows or (node.target in _VIEWS and self._leads_to_product(node)):
                found.add(node)
        return {n for n in found if n.target not in _VIEWS or any(m in found for m in n.all_input_nodes)}

    def _readouts(self, part: Component) -> set[fx.Node]:
        """What is all that the step reads of an affine state, where that sums over the state's dimensions: an algorithm
        may then do without the states of all steps. With the nodes between."""
        if len(part.carries) != 1:
            return set()
        carry, update = self.carries[part.carries[0]], self.updates[part.carries[0]]
        reads, known = self._reads(), {*part.core, carry, update}
        if any(update is u for i, u in enumerate(self.updates) if i not in part.carries):
            return set()
        between: list[fx.Node] = []
        found: list[Readout] = []
        for node in self.view.step.nodes:
            inputs = [n for n in node.all_input_nodes if n is carry or n is update or n in between]
            if node in known or not inputs or node.op == "output":
                if node.op == "output" and any(n in between or n is carry or n is update for n in self.view.ys):
                    return set()
                continue
            # What else it reads must be there before this state is.
            if any(i not in part.carries and self.carries[i] not in self.series for i in reads[node]):
                return set()
            readout = readout_of(node, carry, update)
            if readout is None:
                return set()
            if sums_over_state(readout):
                found.append(readout)
            else:
                between.append(node)
        inside = {*part.core, *between, *(r.node for r in found)}
        if not found or any(u not in inside for n in (carry, *between) for u in n.users):
            return set()
        if any(u not in inside and u.op != "output" for u in update.users):
            return set()
        if not isinstance(recurrence_of(self.view.scan.step, part, self.view.xs), LinearRecurrence):
            return set()
        return inside - part.core

    def _wide(self, part: Component, body: set[fx.Node]) -> set[fx.Node]:
        """What spreads narrower inputs over the state's size stays with it too: a drive that is an outer product, of
        which the algorithms for matrix states want to see the factors."""
        least = min(element_count(value(self.carries[i])) for i in part.carries)
        found: set[fx.Node] = set()
        for node in reversed(list(self.view.step.nodes)):
            inner = body | found
            if node in inner or node in self.series or node.op != "call_function" or not node.users:
                continue
            if node.target not in _SPREADING or not isinstance(value(node), Tensor):
                continue
            if element_count(value(node)) >= least and all(u in inner for u in node.users):
                found.add(node)
        while True:
            wide = {n for n in found for m in n.all_input_nodes if m not in found and _count(m) >= _count(n)}
            if not wide:
                return found
            found -= wide | {n for n in found if any(u in wide for u in n.users)}
            # What is left must still be read from inside only.
            found = {n for n in found if all(u in body or u in found for u in n.users)}

    def _reads(self) -> dict[fx.Node, frozenset[int]]:
        """For each node of the step, the carries that it reads."""
        return dependencies(self.view.scan.step, self.view.scan.carries)

    def _leads_to_product(self, node: fx.Node) -> bool:
        while node.target in _VIEWS:
            node = node.args[0]
        return self._steady_product(node)

    def _steady_product(self, node: fx.Node) -> bool:
        """Whether a node multiplies something with a constant of two dimensions or more."""
        return node.target in PRODUCTS and any(
            n in self.constants and isinstance(value(n), Tensor) and value(n).dim() > 0 for n in node.all_input_nodes
        )

    def _missing(self, results: list[fx.Node]) -> list[fx.Node]:
        """The nodes to compute, in order, so that the given ones are there."""
        todo: set[fx.Node] = set()
        stack = list(results)
        while stack:
            node = stack.pop()
            if node in self.series or node in self.constants or node in todo:
                continue
            todo.add(node)
            stack.extend(node.all_input_nodes)
        return sorted(todo, key=self.order.__getitem__)

    def _inputs(self, body: list[fx.Node]) -> list[fx.Node]:
        inside = set(body)
        found: dict[fx.Node, None] = {}
        for node in body:
            for n in node.all_input_nodes:
                if n not in inside:
                    found.setdefault(n)
        return list(found)
