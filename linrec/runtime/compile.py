"""Compile one call of one module: discover its time dimension, trace at two short lengths, re-roll, generalise, run the
passes, validate. The result is a plan, or the obstructions that keep the original."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from linrec.capture.autograd_function import restore_autograd_functions
from linrec.capture.changing import changing_numbers, not_uniform
from linrec.capture.decisions import Asked, per_step
from linrec.capture.discover import SHORT, TimeAxis, find_time
from linrec.capture.generalize import generalize
from linrec.capture.normalize import normalize
from linrec.capture.numbers import Numbers, StepNumbers, differ, expose
from linrec.capture.periods import ALL, lengths_of
from linrec.capture.probe import resize
from linrec.capture.questions import Questions, questions
from linrec.capture.ran import Ran
from linrec.capture.reroll import reroll
from linrec.capture.scalars import numbers_as_tensors
from linrec.capture.snapshot import Memos
from linrec.capture.source import Source
from linrec.capture.surroundings import Watch
from linrec.capture.trace import Trace, trace
from linrec.ir import members
from linrec.ir.extension import Extension
from linrec.ir.obstruction import Obstruction, Refused, refuse
from linrec.ir.recurrence import Recurrence
from linrec.ir.scan import is_random
from linrec.lowering.cost import pays_from
from linrec.ops.precision import no_autocast
from linrec.passes import involved, standard
from linrec.passes.base import Observer
from linrec.runtime.guards import guards_of
from linrec.runtime.initial import keep_initial_states
from linrec.runtime.plan import Plan, TimeDim, gradient_flags
from linrec.runtime.repeating import find_period
from linrec.runtime.shortruns import Varied, asks_tensors, counted, find_memos, fingerprint, free_dims, read_by
from linrec.runtime.signature import one_and_the_same
from linrec.runtime.state import frozen_state
from linrec.runtime.traced_sizes import (
    dense_results,
    kernels,
    length_node,
    meta,
    operators,
    python_sizes,
    sizes_of,
    zeros_for_states,
)
from linrec.runtime.validate import validate

_LENGTHS = {SHORT: ((SHORT + 1, SHORT + 3), (14, 16)), 4 * SHORT: ((14, 16), (28, 30)), 12 * SHORT: ((48, 50),)}
"""Which pairs of lengths are traced, one after the other until one shows the step, by where a loop shows first. The
first and the last step often differ from the others, of which three have to be seen."""

_STRUCTURAL = ("LR003", "LR004", "LR005", "LR006", "LR011", "LR012")
"""Reasons that hold for every module with the same operators, whatever numbers it has."""


LONGER = 2
"""How many times as long a call has to be to show more of the steps than one before."""


@dataclass
class Compiled:
    """What became of one signature of one module: plans (one per time axis and batch pattern), or why there is none."""

    plans: list[Plan] = field(default_factory=list)
    obstructions: list[Obstruction] = field(default_factory=list)
    recurrences: list[Recurrence] = field(default_factory=list)
    sizes: list[list[tuple[int, ...]]] = field(default_factory=list)
    """The sizes of the tensors among the leaves of each call that was compiled."""
    watch: Watch | None = None
    """What the code reads elsewhere, as it was when this was compiled."""
    failed: list[list[tuple[int, ...]]] = field(default_factory=list)
    """The sizes of calls for which there is no further plan, or none at all."""

    def look(self, modules: list[nn.Module], ran: Sequence[Ran | None]) -> None:
        """Note what code that ran has read elsewhere; where nothing is known of it, what it may read."""
        if self.watch is None:
            every = {code: how for each in ran for code, how in (each or {}).items()}
            self.watch = Watch(modules, every if ran and None not in ran else None)

    def varied(self, leaves: Sequence[Any]) -> Varied:
        """Note the sizes of a call that is about to be compiled.

        Returns:
            for each of its tensors, the dimensions that had another size in a call compiled before.
        """
        now = [tuple(x.shape) for x in leaves if isinstance(x, Tensor)]
        found: Varied = [set() for _ in now]
        for then in self.sizes:
            for dims, a, b in zip(found, then, now, strict=True):
                dims |= {d for d, (i, j) in enumerate(zip(a, b, strict=True)) if i != j}
        self.sizes.append(now)
        return found


@dataclass
class Options:
    """How to compile.

    Attributes:
        validate: compare every plan with the original, and check it at every new greatest length.
        observe: called with the name of each pass and the graph after it.
        lowering: the algorithm to use wherever it applies, "loop" for none; "" for the cheapest.
        shared: plans of this model by fingerprint, so that identical layers share one, with the names of the attributes
            that forward reads and what these have.
        refused: why there is none, by fingerprint, and from which length on steps may be seen to repeat.
        periods: after how many steps the steps repeat, by fingerprint, where that is not after one.
    """

    validate: bool = True
    observe: Observer | None = None
    lowering: str = ""
    shared: dict[Hashable, tuple[Plan, set[str], Hashable]] = field(default_factory=dict)
    refused: dict[Hashable, tuple[Obstruction, int]] = field(default_factory=dict)
    periods: dict[Hashable, int] = field(default_factory=dict)


def compile_call(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    name: str,
    options: Options,
    varied: Varied,
    found: Compiled | None = None,
    axes: Sequence[TimeAxis] | None = None,
    long: bool = False,
) -> tuple[Plan | None, list[Obstruction]]:
    """Compile one call.

    Args:
        module: the module; forward: its unwrapped forward.
        spec, leaves: the call's ``(args, kwargs)``, flattened.
        name: qualified name of the module, for the report.
        varied: for each tensor leaf, the dimensions that the plan shall serve at any size, besides time and the first
            other one. Each symbol costs tracing time, and hides from the analysis where a dimension is cut.
        found: is told what the code reads elsewhere.
        axes: what `find_time` has found for this call, where it was asked.
        long: whether a call as long as this one was seen to do otherwise than short ones: then the plan is to be for a
            period of more steps.

    Returns:
        (plan, []), or (None, obstructions).
    """
    obstructions: list[Obstruction] = []
    ran: list[Ran | None] = []
    plan: Plan | None = None
    for axis in find_time(module, forward, spec, leaves) if axes is None else axes:
        ran.append(axis.ran)
        if module not in axis.owners:
            continue
        try:
            plan = _compile(module, axis.forward or forward, spec, leaves, axis, name, options, varied, long)
        except Refused as refused:
            obstructions.append(refused.obstruction)
            continue
        ran += [plan.backward] if plan.backward else []
        break
    if found is not None:
        found.look(members.modules(module), ran)
    return plan, [] if plan is not None else obstructions


def _compile(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    axis: TimeAxis,
    name: str,
    options: Options,
    varied: Varied,
    long: bool,
) -> Plan:
    tensors = [x for x in leaves if isinstance(x, Tensor)]
    asks_gradient, contiguous = asks_tensors(module, forward, spec, leaves, axis)
    flags = gradient_flags(module, tensors) if asks_gradient else None
    found = fingerprint(module, forward, spec, leaves, axis, varied)
    key = None if found is None else (found, flags, one_and_the_same(leaves))
    shared = options.shared.get(key) if key is not None else None
    asked: Questions | None = None
    if shared is not None and shared[0].fits(tensors) and axis.forward is None and (not long or shared[0].period > 1):
        # What is read first is the same in both; were more read here, something that both read would differ.
        plan, names, state = shared
        same_state = state == frozen_state(module, names)
        asked = None if same_state else questions(module, forward, spec, leaves, axis.dims, axis.shown_at, axis.unit)
        if asked is None or not asked.value:
            plan = replace(_adopt(plan, axis, name, same_state), flags=flags, contiguous=contiguous)
            return plan if asked is None else replace(plan, asks_length=asked.length)
    asked = asked or questions(module, forward, spec, leaves, axis.dims, axis.shown_at, axis.unit)
    asked = replace(asked, gradient=asks_gradient)
    length = leaves[axis.leaf].shape[axis.dim] - axis.dims[axis.leaf][axis.dim]
    if key is not None and key in options.refused:
        obstruction, until = options.refused[key]
        if obstruction.id != "LR011" or length < until:
            raise Refused(obstruction)
    refusal: Refused | None = None
    known = Memos()

    def repeated(period: int) -> list[tuple[tuple[int, int], int]]:
        return [(lengths_of(period, length, axis.shown_at), period)] if period > axis.unit else []

    def look(surely: bool) -> int:
        return find_period(module, forward, spec, leaves, axis, surely, long)

    attempts = [(pair, 1) for pair in _LENGTHS[axis.shown_at]] if axis.unit == 1 else []
    if axis.unit > 1:
        attempts = [(lengths_of(axis.unit, length, axis.shown_at), axis.unit)]
    period = options.periods.get(key, axis.unit)
    if long and period == axis.unit and not asked.branches:
        period = look(True)
    if long or period <= ALL or lengths_of(period, length, axis.shown_at)[0] <= length:
        attempts = repeated(period) or ([] if long else attempts)
    if not attempts or (long and attempts[0][0][0] > length):
        raise refuse("LR011", f"At length {length} no number of steps was found after which they repeat.")
    while attempts:
        lengths, period = attempts.pop(0)
        try:
            plan = _at_lengths(
                module, forward, spec, leaves, axis, lengths, name, options, varied, known, asked, period
            )
            if any(varied) and any(_may_need_sizes(r) for r in plan.recurrences):
                plan = _with_fixed_sizes(
                    plan, module, forward, spec, leaves, axis, lengths, name, options, known, asked
                )
        except Refused as refused:
            refusal = refusal or refused
            if refused.obstruction.id == "LR013" and known == Memos():
                known = find_memos(module, forward, spec, leaves, axis)
                attempts = [(lengths, period)] if known != Memos() else []
            elif refused.obstruction.id not in ("LR004", "LR005", "LR010", "LR011"):
                break
            elif not attempts and period == axis.unit and not asked.branches:
                attempts = repeated(look(refusal.obstruction.id == "LR010"))
            continue
        if asked.value:  # not before: where the numbers come of the input, tracing says more
            text = f"forward reads the numbers of a tensor by '{asked.value}', and they may be others at the next call."
            raise refuse("LR015", text)
        if key is not None and period > axis.unit:
            options.periods[key] = period
        plan.flags, plan.contiguous, plan.asks_length = flags, contiguous, asked.length
        plan.only_length = plan.length(tensors) if axis.forward is not None else None
        if key is not None and axis.forward is None and not plan.backward:  # of which the operators do not tell
            names = read_by(module, forward, spec, leaves, axis)
            options.shared[key] = (plan, names, frozen_state(module, names))
        return plan
    assert refusal is not None
    if key is not None and refusal.obstruction.id in _STRUCTURAL and known == Memos():
        options.refused[key] = (refusal.obstruction, LONGER * length)
    raise refusal


def _may_need_sizes(entry: Recurrence) -> bool:
    """Whether a recurrence stays a loop for a reason that known sizes might remove."""
    return not entry.parallel and any(o.id in ("LR003", "LR006") for o in entry.obstructions)


def _with_fixed_sizes(
    plan: Plan,
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    axis: TimeAxis,
    lengths: tuple[int, int],
    name: str,
    options: Options,
    known: Memos,
    asked: Questions,
) -> Plan:
    """The plan for the sizes of this call, only the first dimension free, where that leaves fewer loops: a state that
    is cut at positions along a dimension is understood only where the size of that dimension is known."""
    if all(isinstance(d, int) for dims in plan.shapes for d in _after_batch(dims)):
        return plan
    try:
        fixed = _at_lengths(module, forward, spec, leaves, axis, lengths, name, options, [], known, asked, plan.period)
    except Refused:
        return plan
    loops = [sum(not r.parallel for r in p.recurrences) for p in (plan, fixed)]
    return fixed if loops[1] < loops[0] else plan


def _after_batch(dims: Sequence[Any]) -> list[Any]:
    """The dimensions that are neither time nor the first one besides it."""
    return [d for d in dims if not isinstance(d, TimeDim)][1:]


def _adopt(plan: Plan, axis: TimeAxis, name: str, same_state: bool) -> Plan:
    """A shared plan for another module. What was checked at greater lengths counts only where all that forward reads
    is the same: two modules may differ in a threshold that short runs do not reach."""
    entries = [replace(r, module=name) for r in plan.recurrences]
    checked = plan.checked if same_state else 0
    seen = set(plan.seen) if same_state else set()
    broken = plan.broken_from if same_state else None
    numbers = plan.numbers if same_state or plan.numbers is None else StepNumbers(plan.numbers.series)
    own = replace(axis, runs=None)
    return replace(plan, axis=own, recurrences=entries, checked=checked, seen=seen, broken_from=broken, numbers=numbers)


def _at_lengths(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    axis: TimeAxis,
    lengths: tuple[int, int],
    name: str,
    options: Options,
    varied: Varied,
    known: Memos,
    asked: Questions,
    period: int = 1,
) -> Plan:
    conditions = [_asked(module, forward, spec, leaves, axis, n) if asked.branches else [] for n in lengths]
    periods = per_step(conditions[0], conditions[1], lengths[1] - lengths[0])
    traces = [
        _trace(module, forward, spec, leaves, axis, length, varied, known, each, periods)
        for length, each in zip(lengths, conditions, strict=True)
    ]
    if traces[0].out_spec != traces[1].out_spec:  # as where the outputs of all steps are returned as a list
        traces = [
            _trace(module, forward, spec, leaves, axis, length, varied, known, each, periods, listed=True)
            for length, each in zip(lengths, conditions, strict=True)
        ]
    changing = changing_numbers(traces[1].graph_module.graph) is not None

    def numbers() -> Numbers:
        sized = [resize(leaves, axis.dims, length) for length in lengths]
        return Numbers(lengths, [counted(module, forward, spec, x, True).log for x in sized])

    found = numbers() if period == 1 and differ(*traces) else None
    again = [t.copy() for t in traces] if period == 1 and found is None and changing else []
    try:
        plan, changed_by = _rewritten(module, traces, axis, name, options, found, period)
    except Refused as refused:
        if not again or refused.obstruction.id != "LR004":
            raise
        traces = again
        plan, changed_by = _rewritten(module, traces, axis, name, options, numbers())
    if options.validate:
        try:
            validate(plan, module, forward, spec, leaves, asked.gradient)
        except Refused as refused:
            raise _naming(refused, involved(plan.recurrences, changed_by)) from None
    return plan


@no_autocast()  # whose casts are operators of the traces by now; what is written here chooses its own dtypes
def _rewritten(
    module: nn.Module,
    traces: list[Trace],
    axis: TimeAxis,
    name: str,
    options: Options,
    numbers: Numbers | None,
    period: int = 1,
) -> tuple[Plan, list[str]]:
    """The plan that two traces make, and the names of the passes that changed something."""
    shorter, longer = traces
    dense = dense_results(longer)
    looped = (operators(longer.graph_module) - operators(shorter.graph_module)) / (longer.length - shorter.length)
    if [d.way for d in shorter.decisions] != [d.way for d in longer.decisions]:
        where = longer.decisions[-1].location if longer.decisions else shorter.decisions[-1].location
        text = "A step branches on a tensor, or forward does so in another way at another length."
        raise refuse("LR015", text, where)
    reads = [numbers_as_tensors(t.graph_module.graph) for t in traces]
    for t in traces:
        normalize(t.graph_module)
        if numbers is not None:
            expose(t)
    growth = [k for k in range(2 * period, 1, -1) if 2 * period % k == 0]
    found = reroll(shorter.graph_module, longer.graph_module, growth, numbers)
    if not found:
        raise not_uniform(longer.graph_module.graph)
    _note_numbers(traces, numbers)
    length_nodes = [length_node(t, axis) for t in traces]
    graph_module = generalize(shorter, longer, length_nodes[1], numbers, period)
    series = _note_numbers([longer], numbers)
    sizes = sizes_of(longer, axis)
    guards = guards_of(longer)
    keep_initial_states(graph_module, longer.sources)
    result = standard(name, options.observe, options.lowering).run(graph_module)
    for part in graph_module.modules():
        if isinstance(part, fx.GraphModule):
            restore_autograd_functions(part)
            python_sizes(part)
            zeros_for_states(part)
            part.recompile()
    state = [meta(module, s) if s.kind in ("parameter", "buffer", "attribute") else None for s in longer.sources]
    plan = Plan(
        graph_module=graph_module,
        sources=longer.sources,
        outputs=longer.outputs,
        out_spec=longer.out_spec,
        out_leaves=longer.out_leaves,
        attributes=longer.attributes,
        axis=replace(axis, runs=None),
        shapes=sizes,
        min_length=shorter.length,
        period=period,
        recurrences=result.recurrences,
        guards=guards,
        state=state,
        mixed=longer.mixed,
        pays_from=pays_from(looped, operators(graph_module), kernels(graph_module)),
        reads_numbers=any(reads),
        decisions=longer.decisions,
        backward=longer.backward,
        dense=dense,
        numbers=StepNumbers([numbers.series[k] for k in series]) if numbers is not None and series else None,
    )
    plan.draws = any(
        is_random(n) for g in graph_module.modules() if isinstance(g, fx.GraphModule) for n in g.graph.nodes
    )
    if plan.decisions and plan.draws and torch.cuda.is_available():
        raise refuse("LR015", "forward branches on a tensor and draws random numbers.", plan.decisions[0].location)
    if not result.recurrences:
        raise refuse("LR001", "The loop carries no state and holds no operator that could leave it.")
    return plan, result.changed_by


def _note_numbers(traces: Sequence[Trace], numbers: Numbers | None) -> list[int]:
    """Say where the inputs of graphs come from that numbers were made; which series the last one takes."""
    series: list[int] = []
    if numbers is None:
        return series
    for t in traces:
        series = numbers.inputs(t.graph_module.graph)
        known = sum(s.kind == "number" for s in t.sources)
        t.sources += [Source("number", index=k) for k in range(known, len(series))]
    return series


def _naming(refused: Refused, extensions: list[Extension]) -> Refused:
    """A refusal that says which extensions had a part in the graph."""
    if not extensions:
        return refused
    who = "; ".join(map(str, extensions))
    problem = refused.obstruction
    text = f"{problem.explanation} Registered from outside and used here: {who}."
    return Refused(replace(problem, explanation=text))


def _short(leaves: Sequence[Any], axis: TimeAxis, length: int) -> list[Any]:
    short = resize(leaves, axis.dims, length)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            short[i].requires_grad_(leaf.requires_grad)
    return short


def _asked(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis, length: int) -> Asked:
    return counted(module, forward, spec, _short(leaves, axis, length)).decisions


def _trace(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    axis: TimeAxis,
    length: int,
    varied: Varied,
    known: Memos,
    asked: Asked,
    periods: dict[str, int],
    listed: bool = False,
) -> Trace:
    short = _short(leaves, axis, length)
    tensors = [x for x in short if isinstance(x, Tensor)]
    dynamic = [
        {d: torch.export.Dim.AUTO for d in sorted(free) if x.shape[d] > 1} or None
        for x, free in zip(tensors, free_dims(leaves, axis, varied), strict=True)
    ]
    result = trace(module, forward, spec, short, dynamic, known, asked, periods, length if listed else 0)
    result.length = length
    return result
