"""Classify and lower: every scan with carries is one component by now. Where it is proved affine and a lowering exists
for its structure, the loop becomes that algorithm; otherwise it stays, with the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import NoRule
from linrec.analysis.readout import Readout, readout_of, sums_over_state
from linrec.analysis.semiring import SemiringRecurrence, semiring_of
from linrec.analysis.semiring_system import SemiringSystem, system_of
from linrec.analysis.stategraph import Component, components
from linrec.analysis.structure import recurrence_of
from linrec.analysis.vectorize import NotVectorisable, Vectorizer
from linrec.ir.nodes import value
from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import REFERENCE_LENGTH, Estimate, LinearRecurrence, Recurrence
from linrec.ir.scan import scan_nodes, scan_of
from linrec.lowering import semiring, semiring_system
from linrec.lowering.cost import machine
from linrec.lowering.dense import project_late
from linrec.lowering.registry import Lowering, Site, ranking
from linrec.passes.base import Pass, PassResult
from linrec.passes.entry import describe, prove
from linrec.passes.rewrite import ScanView, erase_scan
from linrec.passes.split import delayed
from linrec.passes.views import merge_views

aten = torch.ops.aten


_SLOWER = 2.0
"""How many times as long as the loop an algorithm must be expected to take for the loop to stay: estimates err, and
those of loops are the lower ones."""


@dataclass(frozen=True)
class Lower(Pass):
    """Replace affine loops by parallel algorithms.

    Before::

        hs = loop(h; a, b: a * h + b)

    After::

        hs = scan_states(a, b, h0)            # (T, B, D)
    """

    module: str = ""
    pin: str = ""
    loops: bool = True
    """Whether a loop may stay because it is expected to be faster; not in what stands in for a compiled one."""
    name: str = "lower"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Classify every scan that has carries, and lower those with an algorithm."""
        found: list[Recurrence] = []
        for node in scan_nodes(graph_module):
            if scan_of(graph_module, node).carries:
                found.append(self._lower(graph_module, node))
        graph_module.graph.eliminate_dead_code()
        merge_views(graph_module.graph)
        project_late(graph_module.graph)
        return PassResult(graph_module, True, found)

    def _lower(self, graph_module: fx.GraphModule, node: fx.Node) -> Recurrence:
        view = ScanView.of(graph_module, node)
        entry = describe(self.module, view.scan)
        (component,) = components(view.scan.step, view.scan.carries)
        verdict: Any = recurrence_of(view.scan.step, component, view.xs)
        if isinstance(verdict, Obstruction):
            other = self._over_semiring(view, component)
            if other is None:
                entry.obstructions.append(verdict)
                return entry
            verdict = other
        prove(entry, verdict, component)
        missing = self._replace(graph_module, view, verdict, entry)
        if missing is not None:
            entry.obstructions.append(missing)
        return entry

    def _over_semiring(self, view: ScanView, component: Component) -> SemiringRecurrence | SemiringSystem | None:
        """The component as affine over another semiring, or None."""
        other = semiring_of(view.scan.step, component)
        if other is not None and semiring.applies(other):
            return other
        system = system_of(view.scan.step, component, view.xs)
        return system if system is not None and semiring_system.fits(system) else None

    def _replace(
        self,
        graph_module: fx.GraphModule,
        view: ScanView,
        recurrence: LinearRecurrence | SemiringRecurrence | SemiringSystem,
        entry: Recurrence,
    ) -> Obstruction | None:
        vectorizer = Vectorizer(graph_module.graph, view.node, view.length)
        for placeholder, outer in zip(view.xs, view.series, strict=True):
            vectorizer.bind(placeholder, outer, True)
        for placeholder, outer in zip(view.consts, view.constants, strict=True):
            vectorizer.bind(placeholder, outer, False)
        taken = view.taken()
        site = Site(graph_module, vectorizer, view.initial, only_last=all(i < view.scan.carries for i in taken))
        if isinstance(recurrence, LinearRecurrence):
            site.readouts = _readouts(view, [view.results[i] for i in taken if i >= view.scan.carries])
        ranked = ranking(recurrence, site) if isinstance(recurrence, LinearRecurrence) else []
        speeds = machine(value(view.carries[0]).device)
        named = [(x.name, w) for x, w in ranked]
        if isinstance(recurrence, SemiringSystem):
            named = [(_scan_name(entry), semiring_system.work(recurrence, REFERENCE_LENGTH))]
        found = [Estimate(name, w.operations, round(w.calls), w.bytes, speeds.seconds(w)) for name, w in named]
        entry.estimates = (*found, *entry.estimates)
        pinned = [x for x, _ in ranked if x.name == self.pin]
        lowering = pinned[0] if pinned else ranked[0][0] if ranked else None
        if self.pin == "loop":
            return Obstruction("LR016", entry.location, "the option lowering='loop' keeps it.")
        loop = next((e for e in entry.estimates if e.name == "loop"), None)
        # What stands in for a compiled loop, too, must not multiply large matrices of a semiring.
        may_stay = self.loops or isinstance(recurrence, SemiringSystem)
        if may_stay and not pinned and found and loop and found[0].seconds > _SLOWER * loop.seconds:
            text = f"{found[0].name} would take {found[0].seconds / loop.seconds:.2g} times as long."
            hint = (
                ""
                if lowering
                else "Nothing to do: step by step a matrix meets a vector, all at once it meets matrices."
            )
            return Obstruction("LR017", entry.location, text, hint)
        if lowering is None and isinstance(recurrence, LinearRecurrence):
            text = f"the recurrence {entry.equation} is affine ({entry.transition}), but has no lowering yet."
            return Obstruction("LR006", entry.location, text)
        try:
            solved = _solve(recurrence, lowering, site)
            formed = [i for i in taken if i >= view.scan.carries and view.results[i] not in site.read]
            read_inside = any(view.results[i] not in view.updates or view.results[i] in view.carries for i in formed)
            parts = zip(view.carries, view.updates, view.initial, solved, strict=True)
            for carry, update, initial, (states, _) in parts:
                if states is not None and update.op != "placeholder":
                    vectorizer.bind(update, states, True)
                if states is not None and read_inside:
                    vectorizer.bind(carry, vectorizer.emit(delayed, (states, initial), carry), True)
            for i, users in taken.items():
                result = view.results[i]
                if i < view.scan.carries:
                    new = solved[i][1]
                elif result in site.read:
                    new = site.read[result]
                else:
                    new = vectorizer.expand(vectorizer.run(result))
                for user in users:
                    user.replace_all_uses_with(new)
        except (NoRule, NotVectorisable) as error:
            return Obstruction("LR006", entry.location, f"its coefficients cannot be written for all steps: {error}.")
        erase_scan(graph_module, view.node)
        entry.lowering, entry.parallel = lowering.name if lowering else _scan_name(entry), True
        return None


def _scan_name(entry: Recurrence) -> str:
    """What the scan over a semiring is called."""
    return f"{entry.transition.split(',')[0]} scan"


def _readouts(view: ScanView, results: list[fx.Node]) -> list[Readout]:
    """All that is read of the states of a scan with one carry; nothing where some of it is no readout."""
    if view.scan.carries != 1 or not results:
        return []
    found = [readout_of(y, view.carries[0], view.updates[0], opened=True) for y in dict.fromkeys(results)]
    whole = [r for r in found if r is not None and sums_over_state(r)]
    return whole if len(whole) == len(found) else []


def _solve(
    recurrence: LinearRecurrence | SemiringRecurrence | SemiringSystem, lowering: Lowering | None, site: Site
) -> list[tuple[fx.Node | None, fx.Node]]:
    """All states and the last one, for each carry."""
    if isinstance(recurrence, SemiringRecurrence):
        states = semiring.emit(recurrence, site)
        return [(states, site.final(states, recurrence.state))]
    if isinstance(recurrence, SemiringSystem):
        return semiring_system.emit(recurrence, site)
    assert lowering is not None
    return lowering.emit(recurrence, site)
