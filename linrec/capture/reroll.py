"""Re-rolling: the loops that grow with the length, found in two unrolled traces at once, become scan nodes."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.loops import (
    Carried,
    Counter,
    Local,
    Loop,
    LoopFinder,
    Number,
    Outer,
    Varying,
    leaves_of,
    tree_map_leaves,
)
from linrec.capture.numbers import NUMBERS, Numbers, as_number, computed_in, takes_tensor, with_tensors
from linrec.capture.reads import merge_reads, split_reads, windows
from linrec.ir.location import locate_like
from linrec.ir.nodes import emit, shape_of, size_expr, value
from linrec.ir.scan import Scan, is_random
from linrec.ir.timeaxis import counter, numbers, steps

aten = torch.ops.aten


def reroll(shorter: fx.GraphModule, longer: fx.GraphModule, growth: Sequence[int], found: Numbers | None = None) -> int:
    """Roll every loop that has more steps in `longer` than in `shorter`, in both graphs; return how many.

    Args:
        growth: how many more steps a loop may have.
        found: finds the numbers in which the steps differ in runs of the original; without it they may not differ.
    """
    rejected: set[tuple[Any, ...]] = set()
    count = 0
    within = windows(shorter.graph, longer.graph)
    merge_reads(shorter.graph, within)
    merge_reads(longer.graph, within)
    while True:
        first, second = (LoopFinder(g.graph, found is not None) for g in (shorter, longer))
        pair = _best_pair(first, second, growth, rejected)
        if pair is None:
            return count
        if [_lift_invariants(loop) for loop in pair] != [0, 0]:
            continue
        name = f"loop_{count}"
        identity = _identity(pair[0])
        known = found is None or _identify_numbers(*pair, found)
        plans = [_Roll(loop, found, which) for which, loop in enumerate(pair)]
        if not known or not all(plan.possible() for plan in plans):
            rejected.add(identity)
            continue
        for graph_module, plan in zip((shorter, longer), plans, strict=True):
            plan.apply(graph_module, name)
            merge_reads(graph_module.graph, within)
            graph_module.graph.eliminate_dead_code()
            graph_module.graph.lint()
        count += 1


def _lift_invariants(loop: Loop) -> int:
    """Compute what is the same in every block once, in front of the first; return how many positions that were."""
    invariant: set[int] = set()
    for position, arguments in enumerate(loop.arguments):
        steady = all(
            a is None or isinstance(a, Outer) or (isinstance(a, Local) and a.position in invariant) for a in arguments
        )
        if steady and not is_random(loop.blocks[0][position]):
            invariant.add(position)
    start = loop.blocks[0][0]
    while start in {loop.blocks[0][q] for q in invariant}:
        start = start.next
    for position in sorted(invariant):
        first = loop.blocks[0][position]
        if start < first:
            start.prepend(first)
        copies = [block[position] for block in loop.blocks[1:]]
        copies += [loop.tail[position]] if position in loop.tail else []
        for copy in copies:
            copy.replace_all_uses_with(first)
            copy.graph.erase_node(copy)
    return len(invariant)


def _identify_numbers(shorter: Loop, longer: Loop, found: Numbers) -> bool:
    """Say of every number that depends on the step or on the length which series it is; whether all are known."""
    for position, (row, other) in enumerate(zip(shorter.arguments, longer.arguments, strict=True)):
        for index, (a, b) in enumerate(zip(row, other, strict=True)):
            varying = isinstance(a, Varying) or isinstance(b, Varying)
            if not varying and (a is not None or b is not None):
                continue
            values = [loop.leaves_at(position, index) for loop in (shorter, longer)]
            if not varying and (not _is_number(values[0][0]) or values[0][0] == values[1][0]):
                continue
            if not takes_tensor(shorter.blocks[0][position], index):
                continue  # told when the graphs are compared
            model = shorter.blocks[0][position]
            rounded = value(model).dtype if model.target is aten.full.default else None
            series = found.find(values[0], values[1], rounded)
            if series is None:
                return False
            row[index] = other[index] = Number(series, type(values[0][0]), varying)
    return True


def _is_number(x: Any) -> bool:
    return type(x) in NUMBERS


def _identity(loop: Loop) -> tuple[Any, ...]:
    return (loop.period, loop.blocks[0][0].name)


def _best_pair(
    shorter: LoopFinder, longer: LoopFinder, growth: Sequence[int], rejected: set[tuple[Any, ...]]
) -> tuple[Loop, Loop] | None:
    best: tuple[Loop, Loop] | None = None
    score: tuple[int, ...] = ()
    in_shorter, in_longer = shorter.runs(), longer.runs()
    for key, runs in in_shorter.items():
        period = key[0]
        others = in_longer.get(key, [])
        if len(others) != len(runs):
            continue
        for run, other in zip(runs, others, strict=True):
            grown = (other[1] - other[0]) - (run[1] - run[0])
            if not any(grown >= n * period and grown % (n * period) == 0 for n in growth):
                continue
            if score and (run[1] - run[0]) < score[0]:
                continue
            loops, more = shorter.segments(period, *run), longer.segments(period, *other)
            if len(loops) != len(more):
                continue
            for a, b in zip(loops, more, strict=True):
                if (
                    b.length - a.length not in growth
                    or a.tokens(shorter.numbers) != b.tokens(longer.numbers)
                    or _identity(a) in rejected
                ):
                    continue
                if all(_Roll(a).reads_outer(q) for q in range(a.period)):
                    continue
                new = (period * len(a.blocks), -period, -len(a.carries))
                if new > (score or (-1,)):
                    best, score = (a, b), new
    return best


class _Roll:
    """Rewrites one loop of one graph into a scan node."""

    def __init__(self, loop: Loop, found: Numbers | None = None, which: int = 0) -> None:
        self.loop = loop
        self.found, self.which = found, which
        self.slots: dict[tuple[int, tuple[fx.Node, ...]], int] = {}
        self.xs: dict[tuple[Any, ...], int] = {}
        self.consts: dict[Any, int] = {}
        self.failed = False
        self._collect()

    def _collect(self) -> None:
        for position, arguments in enumerate(self.loop.arguments):
            read = self._as_read(position)
            if read is not None:
                self.xs.setdefault(read, len(self.xs))
                continue
            for index, argument in enumerate(arguments):
                if isinstance(argument, Carried):
                    for depth in range(1, argument.back + 1):
                        key = (argument.position, argument.initial[argument.back - depth :])
                        self.slots.setdefault(key, len(self.slots))
                elif isinstance(argument, Outer):
                    self.consts.setdefault(argument.node, len(self.consts))
                elif isinstance(argument, Counter):
                    if not takes_tensor(self.loop.blocks[0][position], index):
                        self.failed = True
                    self.xs.setdefault(("counter", argument.start, argument.step), len(self.xs))
                elif isinstance(argument, Varying):
                    self.failed = True
                elif isinstance(argument, Number):
                    wanted = self.xs if argument.varying else self.consts
                    key = self._number(position, argument)
                    wanted.setdefault(key, len(wanted))

    def _number(self, position: int, argument: Number) -> tuple[Any, ...]:
        return ("number", argument.index, computed_in(self.loop.blocks[-1][position], argument.kind))

    def _as_read(self, position: int) -> tuple[Any, ...] | None:
        """The x that this position reads, where it indexes an outer tensor by the time counter."""
        node, arguments = self.loop.blocks[0][position], self.loop.arguments[position]
        counters = [a for a in arguments if isinstance(a, Counter)]
        if not counters or not isinstance(arguments[0], Outer):
            return None
        base = arguments[0].node
        if node.target is aten.select.int and isinstance(arguments[2], Counter) and len(counters) == 1:
            return ("select", base, node.args[1], arguments[2].start, arguments[2].step, 0)
        if node.target is aten.slice.Tensor and len(arguments) == 4 and len(counters) == 2:
            start, end = counters
            if start.step == end.step and end.start > start.start:
                return ("slice", base, node.args[1], start.start, start.step, end.start - start.start)
        return None

    def reads_outer(self, position: int) -> bool:
        """Whether this position does nothing but read an outer tensor at the time counter."""
        return self._as_read(position) is not None

    def possible(self) -> bool:
        for position, initial in self.slots:
            if not _can_become(initial[0], self.loop.blocks[-1][position]):
                return False
        return not self.failed

    def apply(self, graph_module: fx.GraphModule, name: str) -> None:
        graph, loop = graph_module.graph, self.loop
        anchor = loop.blocks[0][0]
        step, outputs = self._step()
        length = loop.length
        carries = [
            _as_initial(graph, anchor, initial[0], loop.blocks[-1][position]) for position, initial in self.slots
        ]
        xs = [self._x(graph, anchor, key, length) for key in self.xs]
        consts = tuple(k if isinstance(k, fx.Node) else self._number_of(graph, anchor, k) for k in self.consts)
        graph_module.add_module(name, Scan(step, len(self.slots), len(self.xs)))
        with graph.inserting_before(anchor):
            node = graph.call_module(name, (length, tuple(carries), tuple(xs), consts))
        results: list[fx.Node] = []
        example = (
            anchor
            if isinstance(value(anchor), Tensor)
            else next(n for n in loop.blocks[0] if isinstance(value(n), Tensor))
        )
        with graph.inserting_before(anchor):
            for i, (kind, position) in enumerate(outputs):
                got = graph.call_function(operator.getitem, (node, i))
                val = value(loop.blocks[-1][position] if position >= 0 else carries[i])
                if kind == "y":
                    with value(example).fake_mode:
                        val = val.new_empty((length, *val.shape))
                got.meta["val"] = val
                locate_like(got, loop.blocks[-1][max(position, 0)])
                results.append(got)
        node.meta["val"] = tuple(value(r) for r in results)
        locate_like(node, anchor)
        self._rewire(graph, outputs, results)

    def _step(self) -> tuple[fx.GraphModule, list[tuple[str, int]]]:
        loop, graph = self.loop, fx.Graph()
        model = loop.blocks[-1]

        def placeholder(name: str, val: Any, source: fx.Node | None) -> fx.Node:
            node = graph.placeholder(name)
            node.meta["val"] = val
            if source is not None:
                node.meta.update({key: source.meta[key] for key in ("stack_trace", "custom") if key in source.meta})
                node.meta["source"] = source.name
            return node

        slots = [
            placeholder(f"carry_{i}", value(model[position]), model[position])
            for i, (position, _) in enumerate(self.slots)
        ]
        reads = {self._as_read(position): node for position, node in enumerate(model)}
        xs = [placeholder(f"x_{i}", self._x_value(key), reads.get(key)) for i, key in enumerate(self.xs)]
        consts = [
            placeholder(f"const_{i}", value(n), n)
            if isinstance(n, fx.Node)
            else placeholder(f"const_{i}", self._x_value(n), None)
            for i, n in enumerate(self.consts)
        ]
        env: list[fx.Node] = []
        for position, node in enumerate(model):
            read = self._as_read(position)
            if read is not None:
                env.append(xs[self.xs[read]])
                continue
            leaves: list[Any] = []
            as_tensors = False
            for leaf, argument in zip(leaves_of(node), loop.arguments[position], strict=True):
                if isinstance(argument, Local):
                    leaves.append(env[argument.position])
                elif isinstance(argument, Carried):
                    leaves.append(slots[self.slots[(argument.position, argument.initial)]])
                elif isinstance(argument, Outer):
                    leaves.append(consts[self.consts[argument.node]])
                elif isinstance(argument, Counter):
                    leaves.append(xs[self.xs[("counter", argument.start, argument.step)]])
                    as_tensors = True
                elif isinstance(argument, Number):
                    key = self._number(position, argument)
                    leaves.append(xs[self.xs[key]] if argument.varying else consts[self.consts[key]])
                    as_tensors = True
                else:
                    leaves.append(leaf)
            args, kwargs = tree_map_leaves(node, leaves)
            new = graph.create_node(node.op, node.target, args, kwargs, name=node.name)
            new.meta = dict(node.meta)
            env.append(with_tensors(new) if as_tensors else new)
        outputs: list[tuple[str, int]] = []
        values: list[fx.Node] = []
        for position, initial in self.slots:
            values.append(env[position] if len(initial) == 1 else slots[self.slots[(position, initial[1:])]])
            outputs.append(("carry", position if len(initial) == 1 else -1))
        for position in self._seen_outside():
            outputs.append(("y", position))
            values.append(env[position])
        graph.output(tuple(values))
        split_reads(graph)
        graph.lint()
        return fx.GraphModule(torch.nn.Module(), graph), outputs

    def _columns(self) -> list[dict[int, fx.Node]]:
        """The nodes of each block by position, the partial last one included."""
        columns = [dict(enumerate(block)) for block in self.loop.blocks]
        return [*columns, self.loop.tail] if self.loop.tail else columns

    def _inside(self) -> set[fx.Node]:
        return {n for column in self._columns() for n in column.values()}

    def _final_slot(self, position: int) -> int | None:
        for (at, initial), i in self.slots.items():
            if at == position and len(initial) == 1:
                return i
        return None

    def _seen_outside(self) -> list[int]:
        inside = self._inside()
        seen = set()
        last = self.loop.length - 1
        for k, column in enumerate(self._columns()):
            for position, node in column.items():
                seen_outside = any(user not in inside for user in node.users)
                if seen_outside and (k != last or self._final_slot(position) is None):
                    seen.add(position)
        return sorted(seen)

    def _x_value(self, key: tuple[Any, ...]) -> Any:
        if key[0] in ("counter", "number"):
            example: Any = next(v for n in self.loop.blocks[0] if isinstance(v := value(n), Tensor))
            with example.fake_mode:
                dtype = torch.int64 if key[0] == "counter" else key[2]
                return torch.empty((), dtype=dtype, device=example.device)
        kind, base, dim, start, _, width = key
        with value(base).fake_mode:
            return value(base).select(dim, start) if kind == "select" else value(base).narrow(dim, start, width)

    def _x(self, graph: fx.Graph, anchor: fx.Node, key: tuple[Any, ...], length: int) -> fx.Node:
        example = next(n for n in self.loop.blocks[0] if isinstance(value(n), Tensor))
        if key[0] == "counter":
            return emit(graph, anchor, counter, (length, key[1], key[2], value(example).device), example)
        if key[0] == "number":
            assert self.found is not None
            held = self.found.input(graph, key[1], self.which)
            if shape_of(held)[0] < length:  # nothing reads what the last, partial step makes of its number
                last = emit(graph, anchor, aten.slice.Tensor, (held, 0, -1), held)
                held = emit(graph, anchor, aten.cat.default, ([held, last],), held)
            return emit(graph, anchor, numbers, (held, key[2], value(example).device), example)
        kind, base, dim, start, step, width = key
        args = (base, dim, start, step, length) if kind == "select" else (base, dim, start, step, length, width)
        read = next(n for position, n in enumerate(self.loop.blocks[0]) if self._as_read(position) == key)
        return emit(graph, anchor, steps, args, read)

    def _number_of(self, graph: fx.Graph, anchor: fx.Node, key: tuple[Any, ...]) -> fx.Node:
        """What computes a number that is the same in every step."""
        assert self.found is not None
        device = next(value(n).device for n in self.loop.blocks[0] if isinstance(value(n), Tensor))
        return as_number(graph, anchor, self.found.input(graph, key[1], self.which), key[2], device)

    def _rewire(self, graph: fx.Graph, outputs: list[tuple[str, int]], results: list[fx.Node]) -> None:
        inside = self._inside()
        ys = {position: results[i] for i, (kind, position) in enumerate(outputs) if kind == "y"}
        columns = self._columns()
        for k, column in enumerate(columns):
            for position, node in column.items():
                for user in [u for u in node.users if u not in inside]:
                    slot = self._final_slot(position) if k == len(columns) - 1 else None
                    listed = position in ys and user.target in (aten.stack.default, aten.cat.default)
                    if slot is not None and not listed:
                        user.replace_input_with(node, results[slot])
                        continue
                    read = emit(graph, user, aten.select.int, (ys[position], 0, k), node)
                    user.replace_input_with(node, read)
        for column in reversed(columns):
            for node in sorted(column.values(), reverse=True):
                graph.erase_node(node)


def _can_become(initial: fx.Node, like: fx.Node) -> bool:
    if not isinstance(value(initial), Tensor) or not isinstance(value(like), Tensor):
        return False
    a, b = value(initial), value(like)
    if torch.promote_types(a.dtype, b.dtype) != b.dtype or a.device != b.device:
        return False
    shape, target = shape_of(initial), shape_of(like)
    if len(shape) > len(target):
        return False
    return all(s in (1, t) for s, t in zip(reversed(shape), reversed(target), strict=False))


def _as_initial(graph: fx.Graph, anchor: fx.Node, initial: fx.Node, like: fx.Node) -> fx.Node:
    if value(initial).dtype != value(like).dtype:
        with graph.inserting_before(anchor):
            cast = graph.call_function(aten._to_copy.default, (initial,), {"dtype": value(like).dtype})
        cast.meta["val"] = value(initial).to(value(like).dtype)
        initial = cast
    if shape_of(initial) != shape_of(like):
        initial = emit(graph, anchor, torch.broadcast_to, (initial, _sizes(graph, anchor, like)), initial)
    return initial


def _sizes(graph: fx.Graph, anchor: fx.Node, like: fx.Node) -> list[Any]:
    """The sizes of a node inside the loop, as they are found in front of it."""
    wanted = [s for s in shape_of(like) if not isinstance(s, int)]
    known: dict[Any, fx.Node] = {}
    for node in itertools.takewhile(lambda n: n is not anchor, graph.nodes):
        if isinstance(value(node), torch.SymInt):
            known.setdefault(size_expr(value(node)), node)
        elif isinstance(value(node), Tensor):
            for dim, size in enumerate(shape_of(node)):
                if size in wanted and size not in known:
                    known[size] = emit(graph, anchor, aten.sym_size.int, (node, dim), node)
    return [s if isinstance(s, int) else known[s] for s in shape_of(like)]
