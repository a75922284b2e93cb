"""Hoist: a scan without carries is no loop. Its operators run for all steps at once, each by its vectorisation rule; an
operator without a rule stays in a scan of its own, and the report says so."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from linrec.analysis.vectorize import NotVectorisable, Vectorizer
from linrec.ir.location import location
from linrec.ir.names import operator_name
from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import Recurrence
from linrec.ir.scan import is_random, scan_nodes, scan_of
from linrec.passes.base import Pass, PassResult
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, step_graph


@dataclass(frozen=True)
class Hoist(Pass):
    """Vectorise every carry-free scan over time.

    Before::

        us = steps(x: sigmoid(W x + b))

    After::

        us = sigmoid(linear(xs, W, b))        # xs: (T, B, D)
    """

    module: str = ""
    name: str = "hoist"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Replace every carry-free scan of a graph."""
        found: list[Recurrence] = []
        for node in scan_nodes(graph_module):
            if scan_of(graph_module, node).carries == 0 and not node.meta.get("kept"):
                found += self._hoist(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        return PassResult(graph_module, True, found)

    def _hoist(self, graph_module: fx.GraphModule, node: fx.Node) -> list[Recurrence]:
        view = ScanView.of(graph_module, node)
        taken = view.taken()
        vectorizer = Vectorizer(graph_module.graph, node, view.length)
        for placeholder, outer in zip(view.xs, view.series, strict=True):
            vectorizer.bind(placeholder, outer, True)
        for placeholder, outer in zip(view.consts, view.constants, strict=True):
            vectorizer.bind(placeholder, outer, False)
        found: list[Recurrence] = []
        for inner in view.step.nodes:
            if inner.op != "call_function" or not _needed(inner, view, taken):
                continue
            try:
                vectorizer.run(inner)
            except NotVectorisable as error:
                found.append(self._keep(graph_module, view, vectorizer, inner, error))
        for i, users in taken.items():
            outer = vectorizer.expand(vectorizer.env[view.results[i]])
            for user in users:
                user.replace_all_uses_with(outer)
        erase_scan(graph_module, node)
        return found

    def _keep(
        self, graph_module: fx.GraphModule, view: ScanView, v: Vectorizer, inner: fx.Node, error: NotVectorisable
    ) -> Recurrence:
        """Leave one operator in a scan of its own (with the operators that take its several results apart)."""
        body = [inner]
        if not hasattr(inner.meta["val"], "shape"):
            body += [user for user in inner.users if operator_name(user) == "getitem"]
        inputs = list(dict.fromkeys(n for n in inner.all_input_nodes))
        xs = [n for n in inputs if v.env[n].timed]
        consts = [n for n in inputs if not v.env[n].timed]
        results = [n for n in body if hasattr(n.meta["val"], "shape")]
        step = step_graph(body, [], xs, consts, results)
        outer = insert_scan(
            graph_module,
            view.node,
            "map",
            view.length,
            step,
            [],
            [v.env[n].node for n in xs],
            [v.env[n].node for n in consts],
        )
        outer[0].args[0].meta["kept"] = True
        for result, node in zip(results, outer, strict=True):
            v.bind(result, node, True)
        reason = "it draws random numbers" if is_random(inner) else f"no rule says how {error} runs for all steps"
        return Recurrence(
            module=self.module,
            location=location(inner),
            states=(),
            equation=f"y[t] = {operator_name(inner)}(...)",
            transition="no state",
            time_invariant=False,
            lowering="loop",
            parallel=False,
            obstructions=[
                Obstruction("LR012", location(inner), f"'{operator_name(inner)}' stays in the loop: {reason}.")
            ],
            graph=step,
        )


def _needed(node: fx.Node, view: ScanView, taken: dict[int, list[fx.Node]]) -> bool:
    """Whether a node leads to a result that is read."""
    wanted = {view.results[i] for i in taken}
    stack, seen = [node], set()
    while stack:
        n = stack.pop()
        if n in wanted:
            return True
        if n not in seen:
            seen.add(n)
            stack.extend(n.users)
    return False
