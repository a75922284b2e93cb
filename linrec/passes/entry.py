"""What a report says about one component: filled in by the passes while they know it, read by `linrec.report`."""

from __future__ import annotations

import contextlib
import linecache
import math
from collections.abc import Iterable

import torch
from torch import fx

from linrec.analysis.equation import equation, joined, summed, unproved
from linrec.analysis.rules import RULES
from linrec.analysis.semiring import SemiringRecurrence
from linrec.analysis.semiring_system import SemiringSystem
from linrec.analysis.stategraph import Component, components, dependencies
from linrec.ir.formula import Equation
from linrec.ir.location import location, places
from linrec.ir.names import operator_name, state_names, value_name
from linrec.ir.nodes import value
from linrec.ir.readable import readable
from linrec.ir.recurrence import REFERENCE_LENGTH, Estimate, LinearRecurrence, LoopView, Recurrence
from linrec.ir.scan import Scan, scan_nodes, scan_of
from linrec.ir.sizes import element_count, hint
from linrec.ir.source import expression, plain_text
from linrec.lowering.cost import Work, machine


def describe(module: str, scan: Scan) -> Recurrence:
    """The entry of a component of which nothing is proved yet: a scan with its carries and nothing else."""
    step = scan.step
    placeholders = [n for n in step.graph.nodes if n.op == "placeholder"]
    carries = placeholders[: scan.carries]
    updates = list(next(n for n in step.graph.nodes if n.op == "output").args[0])[: scan.carries]
    names = state_names(carries, updates)
    reads = dependencies(step, scan.carries)
    formula = unproved(names, updates, [[names[i] for i in sorted(reads[u])] for u in updates])
    entry = Recurrence(
        module=module,
        location=next((at for u in updates if (at := location(u))), ""),
        states=names,
        equation="",
        transition="not affine",
        time_invariant=False,
        lowering="loop",
        parallel=False,
        graph=step,
        source=next((text for u in updates if (text := _line(u))), ""),
        estimates=(_loop(step),),
    )
    show(entry, formula)
    return entry


def show(entry: Recurrence, formula: Equation) -> None:
    """Give an entry its formula."""
    entry.formula, entry.equation = formula, formula.text


def prove(
    entry: Recurrence, recurrence: LinearRecurrence | SemiringRecurrence | SemiringSystem, component: Component
) -> None:
    """Add what was proved about the component to its entry."""
    if isinstance(recurrence, SemiringSystem):
        with contextlib.suppress(Exception):  # how a recurrence reads must not decide whether it is rewritten
            show(entry, summed(recurrence, entry.states))
        transition = recurrence.transition
        when = "time-invariant" if transition.time_invariant else "time-varying"
        structure = f"{transition.kind} " if transition.kind in ("dense", "block", "other") else ""
        entry.transition = f"{structure}{recurrence.kind.name}, {when}"
        entry.time_invariant = transition.time_invariant
        entry.proof = _operators(component.core)
        return
    if isinstance(recurrence, SemiringRecurrence):
        parts = [*recurrence.before, *recurrence.after, *((1, f) for f in recurrence.factors)]
        timed = any(isinstance(x, fx.Node) for _, x in parts)
        with contextlib.suppress(Exception):  # how a recurrence reads must not decide whether it is rewritten
            show(entry, joined(recurrence, entry.states[0], ()))
        entry.transition = f"{recurrence.kind}, {'time-varying' if timed else 'time-invariant'}"
        entry.time_invariant = not timed
        entry.proof = _operators(component.core)
        return
    with contextlib.suppress(Exception):  # as above
        show(entry, equation(recurrence, entry.states))
    entry.transition = str(recurrence.transition)
    entry.time_invariant = recurrence.transition.time_invariant
    entry.proof = _operators(n for n in component.core if n.target in RULES)


def delayed_text(update: fx.Node, name: str) -> str:
    """What a state without recurrence holds: the user's variable or expression of the step before it is read."""
    own = value_name(update)
    if own and own != name:
        return f"{own}[t]"
    found = places(update)
    place = expression(found[0]) if found else None
    if place is not None:
        return plain_text(place.node)
    return f"{operator_name(update) if update.op == 'call_function' else update.name}[t]"


def _operators(nodes: Iterable[fx.Node]) -> tuple[str, ...]:
    return tuple(sorted({operator_name(n) for n in nodes}))


def _line(node: fx.Node) -> str:
    found = places(node)
    return linecache.getline(found[0].path, found[0].line).strip() if found else ""


def _loop(step: fx.GraphModule) -> Estimate:
    """The loop itself: every operator of the step, once for each step."""
    operators = [n for n in step.graph.nodes if n.op == "call_function" and isinstance(value(n), torch.Tensor)]
    work = sum(_multiply_adds(n) for n in operators)
    calls = len(operators) * REFERENCE_LENGTH
    moved = sum(element_count(value(n)) * value(n).element_size() for n in operators) * 2.0 * REFERENCE_LENGTH
    total = Work(elements=float(work * REFERENCE_LENGTH), bytes=moved, calls=calls)
    device = next((value(n).device for n in operators), torch.device("cpu"))
    return Estimate("loop", total.operations, calls, moved, machine(device).seconds(total))


def _multiply_adds(node: fx.Node) -> float:
    """Multiply-adds of one operator: elements of the result, times the summed dimension of a product."""
    size = float(element_count(value(node)))
    tensors = [n for n in node.all_input_nodes if isinstance(value(n), torch.Tensor)]
    if operator_name(node) in ("linear", "matmul", "mm", "bmm", "mv", "addmm", "baddbmm") and tensors:
        return size * float(hint(value(tensors[0]).shape[-1])) if value(tensors[0]).dim() else size
    if operator_name(node) == "einsum":
        left, _, right = str(node.args[0]).replace(" ", "").partition("->")
        sizes: dict[str, int] = {}
        for labels, operand in zip(left.split(","), node.args[1], strict=False):
            sizes.update(zip(labels, map(hint, value(operand).shape), strict=False))
        return size * math.prod(s for label, s in sizes.items() if label not in right)
    return size


def loop_view(graph_module: fx.GraphModule) -> LoopView:
    """The states of all loops of a graph, how they read one another, and the graph as text."""
    names: list[str] = []
    edges: list[tuple[int, int]] = []
    groups: list[tuple[int, ...]] = []
    for node in scan_nodes(graph_module):
        scan = scan_of(graph_module, node)
        placeholders = [n for n in scan.step.graph.nodes if n.op == "placeholder"]
        updates = list(next(n for n in scan.step.graph.nodes if n.op == "output").args[0])[: scan.carries]
        reads = dependencies(scan.step, scan.carries)
        first = len(names)
        own = [""] * scan.carries
        for part in components(scan.step, scan.carries):
            for i, name in zip(
                part.carries,
                state_names([placeholders[i] for i in part.carries], [updates[i] for i in part.carries]),
                strict=True,
            ):
                own[i] = name
            groups.append(tuple(first + i for i in part.carries))
        names += own
        edges += [(first + i, first + j) for j, update in enumerate(updates) for i in sorted(reads[update])]
    return LoopView(tuple(names), tuple(edges), tuple(groups), before=readable(graph_module))
