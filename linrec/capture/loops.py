"""Find the loops of an unrolled trace: consecutive isomorphic blocks of nodes, whose arguments are the same outer node,
the same position of the same block, a position of an earlier block (a carry), an integer that grows by a constant, or a
number that Python computed.
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from linrec.capture.numbers import NUMBERS, takes_tensor
from linrec.ir.location import places
from linrec.ir.nodes import shape_of, value
from linrec.ir.scan import is_random

_READS = (torch.ops.aten.select.int, torch.ops.aten.slice.Tensor)


@dataclass(frozen=True)
class Local:
    """An argument computed at position `position` of the same block."""

    position: int


@dataclass(frozen=True)
class Carried:
    """An argument computed at `position` of the block `back` blocks earlier; `initial` are the outer nodes that stand
    in for it in the first `back` blocks."""

    position: int
    back: int
    initial: tuple[fx.Node, ...]


@dataclass(frozen=True)
class Outer:
    """An argument computed before the loop, the same in every block."""

    node: fx.Node


@dataclass(frozen=True)
class Counter:
    """An integer ``start + step * k`` in block k."""

    start: int
    step: int


@dataclass(frozen=True)
class Varying:
    """A number that is another in every block, by no rule that the trace shows."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Number:
    """A number that is read off runs of the original: of the series `index`, one for each step where it is `varying`,
    else one that depends on the length."""

    index: int
    kind: type
    varying: bool


Argument = Local | Carried | Outer | Counter | Varying | Number


@dataclass
class Loop:
    """A loop of the trace.

    Attributes:
        blocks: the nodes of each block, in execution order.
        arguments: for each position, one entry per leaf of (args, kwargs); None for a constant.
        tail: nodes of a last, partial block, by position (its other nodes were dead).
    """

    blocks: list[list[fx.Node]]
    arguments: list[list[Argument | None]]
    tail: dict[int, fx.Node] = field(default_factory=dict)

    @property
    def period(self) -> int:
        """The number of nodes of a block."""
        return len(self.blocks[0])

    @property
    def length(self) -> int:
        """The number of steps, a partial last one included."""
        return len(self.blocks) + bool(self.tail)

    @property
    def carries(self) -> set[Carried]:
        """The positions of earlier blocks that some node reads."""
        return {a for arguments in self.arguments for a in arguments if isinstance(a, Carried)}

    def tokens(self, numbers: bool = False) -> tuple[Hashable, ...]:
        """The token of each node of a block: loops of one body have the same."""
        return tuple(token(n, numbers) for n in self.blocks[0])

    @property
    def elsewhere(self) -> int:
        """How many nodes of the first block come of other places in the code than those of the second."""
        return sum(places(a)[:1] != places(b)[:1] for a, b in zip(*self.blocks[:2], strict=True))

    def leaves_at(self, position: int, index: int) -> list[Any]:
        """One argument of the operator at a position, in each block and in the last, partial one."""
        nodes = [block[position] for block in self.blocks]
        nodes += [self.tail[position]] if position in self.tail else []
        return [leaves_of(node)[index] for node in nodes]


def leaves_of(node: fx.Node) -> list[Any]:
    """The leaves of a node's (args, kwargs)."""
    return _leaves((node.args, node.kwargs))


def _leaves(arg: Any) -> list[Any]:
    if isinstance(arg, (tuple, list)):
        return [leaf for item in arg for leaf in _leaves(item)]
    if isinstance(arg, dict):
        return [leaf for item in arg.values() for leaf in _leaves(item)]
    return [arg]


def token(node: fx.Node, numbers: bool = False) -> Hashable:
    """What two nodes must share to stand at the same position of two blocks; with `numbers`, not the numbers in which
    they differ."""

    def part(arg: Any) -> Hashable:
        if isinstance(arg, fx.Node):
            return "node"
        if isinstance(arg, bool):
            return "bool" if numbers else ("bool", arg)
        if isinstance(arg, int):
            return "int"
        if isinstance(arg, (list, tuple)):
            return tuple(part(a) for a in arg)
        if numbers and type(arg) in (float, complex):
            return type(arg).__name__
        return repr(arg)

    kwargs = tuple((k, part(v)) for k, v in sorted(node.kwargs.items()))
    val = value(node)
    if isinstance(val, Tensor):
        # A read of a whole sequence may stand inside the step, and its shape then holds the length.
        shape = val.dim() if node.target in _READS else shape_of(node)
        meta: Hashable = (str(val.dtype), shape, str(val.device))
    else:
        meta = str(type(val))
    return (node.target, tuple(part(a) for a in node.args), kwargs, meta)


class LoopFinder:
    """Searches one graph for loops; `candidates` gives periods with their runs, `fit` checks the arguments.

    Args:
        numbers: whether numbers may differ from block to block.
    """

    def __init__(self, graph: fx.Graph, numbers: bool = False) -> None:
        self.numbers = numbers
        self.nodes = [n for n in graph.nodes if n.op in ("call_function", "call_module")]
        names: dict[Hashable, int] = {}
        self.tokens = [names.setdefault(token(n, numbers), len(names)) for n in self.nodes]
        self.names = {i: t for t, i in names.items()}
        self.leaves = {n: leaves_of(n) for n in self.nodes}

    def runs(self) -> dict[tuple[int, Hashable], list[tuple[int, int]]]:
        """Periodic stretches of the token sequence: {(period, tokens of one period): [(start, stop)]}."""
        found: dict[tuple[int, Hashable], list[tuple[int, int]]] = defaultdict(list)
        n = len(self.tokens)
        tokens = torch.tensor(self.tokens)
        border = torch.zeros(1, dtype=torch.int8)
        for period in range(1, n // 3 + 1):
            equal = torch.cat([border, (tokens[:-period] == tokens[period:]).to(torch.int8), border])
            edges = equal.diff().nonzero().flatten().tolist()
            for start, stop in zip(edges[::2], edges[1::2], strict=True):
                if stop - start >= 2 * period:
                    word = sorted(str(self.names[i]) for i in self.tokens[start : start + period])
                    found[(period, tuple(word))].append((start, stop + period))
        return found

    def segments(self, period: int, start: int, stop: int) -> list[Loop]:
        """The loops of one periodic stretch: the phase with the most covered nodes, the fewest carries, and blocks that
        are written in one place. (What begins the first state may look like the end of a step.)"""
        best: list[Loop] = []
        score: tuple[float, ...] = ()
        for phase in range(min(period, stop - start - 3 * period + 1)):
            count = (stop - start - phase) // period
            blocks = [self.nodes[start + phase + k * period :][:period] for k in range(count)]
            loops = self._split(blocks)
            covered = sum(loop.period * len(loop.blocks) for loop in loops)
            new: tuple[float, ...] = (covered, -sum(len(loop.carries) for loop in loops))
            if loops and new >= score[:2]:
                new = (*new, -sum(loop.elsewhere for loop in loops), -phase)
                best, score = max((best, score), (loops, new), key=operator.itemgetter(1))
        for loop in best:
            self._extend(loop)
        return best

    def _split(self, blocks: list[list[fx.Node]]) -> list[Loop]:
        if len(blocks) < 3:
            return []
        ends = self._ends(blocks)
        for count in range(len(blocks), 2, -1):
            for first in range(len(blocks) - count + 1):
                loop = self.fit(blocks[first : first + count]) if first + count <= ends[first] else None
                if loop is not None:
                    before, after = blocks[:first], blocks[first + count :]
                    return [*self._split(before), loop, *self._split(after)]
        return []

    def _ends(self, blocks: list[list[fx.Node]]) -> list[int]:
        """For each block, up to which one a loop may go that begins there, as far as two neighbours tell: where steps
        take turns most loops would be tried in vain."""
        where = {node: (k, q) for k, block in enumerate(blocks) for q, node in enumerate(block)}
        apart: dict[int, int] = {}
        for position in range(len(blocks[0])):
            for column in zip(*(self.leaves[block[position]] for block in blocks), strict=True):
                if not isinstance(column[0], fx.Node):
                    continue
                spots = [where.get(node) for node in column]
                kinds = [None if spot is None else (k - spot[0], spot[1]) for k, spot in enumerate(spots)]
                most = max((kind[0] for kind in kinds if kind is not None), default=0)
                for k in range(1, len(blocks)):
                    if column[k] is not column[k - 1] and (kinds[k] is None or kinds[k] != kinds[k - 1]):
                        apart[k] = min(apart.get(k, most), most)
        # The first blocks of a loop may take what they carry from elsewhere, the others do as the one before.
        return [
            min((k for k, back in apart.items() if k - 1 - first >= back and k > first), default=len(blocks))
            for first in range(len(blocks))
        ]

    def fit(self, blocks: list[list[fx.Node]]) -> Loop | None:
        """The loop made of these blocks, or None where some argument follows no pattern."""
        where = {node: (k, q) for k, block in enumerate(blocks) for q, node in enumerate(block)}
        arguments: list[list[Argument | None]] = []
        for position in range(len(blocks[0])):
            columns = zip(*(self.leaves[block[position]] for block in blocks), strict=True)
            row: list[Argument | None] = []
            for index, column in enumerate(columns):
                argument = self._argument(column, where)
                if self.numbers and (argument is None or argument is _NO_PATTERN) and _varies(column):
                    fits = takes_tensor(blocks[0][position], index)
                    argument = Varying(tuple(column)) if fits else _NO_PATTERN
                if argument is _NO_PATTERN:
                    return None
                row.append(argument)
            arguments.append(row)
        return Loop(blocks, arguments)

    def _argument(self, column: tuple[Any, ...], where: dict[fx.Node, tuple[int, int]]) -> Any:
        first = column[0]
        if isinstance(first, bool) or not isinstance(first, (int, fx.Node)):
            return None
        if isinstance(first, int):
            step = column[1] - first
            if any(v != first + step * k for k, v in enumerate(column)):
                return _NO_PATTERN
            return Counter(first, step) if step else None
        kinds: list[tuple[Any, Any]] = []
        for k, node in enumerate(column):
            spot = where.get(node)
            kinds.append(("outer", node) if spot is None else (k - spot[0], spot[1]))
        last = kinds[-1]
        if last[0] == "outer":
            return Outer(first) if all(kind == last for kind in kinds) else _NO_PATTERN
        if last[0] == 0:
            return Local(last[1]) if all(kind == last for kind in kinds) else _NO_PATTERN
        back = last[0]
        if back < 0 or back >= len(column) - 1:
            return _NO_PATTERN
        if any(kind != last for kind in kinds[back:]) or any(kind[0] != "outer" for kind in kinds[:back]):
            return _NO_PATTERN
        return Carried(last[1], back, tuple(column[:back]))

    def _extend(self, loop: Loop) -> None:
        """Match a last block of which dead code removal has left only a part."""
        order = {node: i for i, node in enumerate(self.nodes)}
        at = order[loop.blocks[-1][-1]] + 1
        k = len(loop.blocks)
        tail: dict[int, fx.Node] = {}
        for position, model in enumerate(loop.blocks[0]):
            if at >= len(self.nodes):
                break
            node = self.nodes[at]
            if self.tokens[at] == self.tokens[order[model]] and self._continues(loop, tail, position, node, k):
                tail[position] = node
                at += 1
        missing = [q for q in range(loop.period) if q not in tail]
        harmless = all(self._harmless(loop, q, k) for q in missing)
        if tail and missing and harmless:
            loop.tail = tail

    def _continues(self, loop: Loop, tail: dict[int, fx.Node], position: int, node: fx.Node, k: int) -> bool:
        leaves = zip(self.leaves[node], loop.arguments[position], self.leaves[loop.blocks[0][position]], strict=True)
        for leaf, argument, model in leaves:
            expected: Any
            if isinstance(argument, Local):
                expected = tail.get(argument.position)
            elif isinstance(argument, Carried):
                expected = loop.blocks[k - argument.back][argument.position]
            elif isinstance(argument, Outer):
                expected = argument.node
            elif isinstance(argument, Counter):
                expected = argument.start + argument.step * k
            elif isinstance(argument, Varying):
                expected = leaf if type(leaf) is type(model) else None
            else:
                expected = model
            same = leaf is expected if isinstance(expected, fx.Node) or expected is None else leaf == expected
            if not same:
                return False
        return True

    def _harmless(self, loop: Loop, position: int, k: int) -> bool:
        """Whether running this position once more, in block k, cannot fail or change anything."""
        node = loop.blocks[0][position]
        if is_random(node) or node.op != "call_function":
            return False
        for argument in loop.arguments[position]:
            if isinstance(argument, Counter):
                base = node.args[0]
                if not isinstance(base, fx.Node) or node.target is not torch.ops.aten.select.int:
                    return False
                size = shape_of(base)[node.args[1]]
                if not isinstance(size, int) or not 0 <= argument.start + argument.step * k < size:
                    return False
        return True


_NO_PATTERN = object()


def _varies(column: tuple[Any, ...]) -> bool:
    """Whether an argument is always a number of one type, and not always the same."""
    kind = type(column[0])
    return kind in NUMBERS and all(type(x) is kind for x in column) and len(set(column)) > 1


def tree_map_leaves(node: fx.Node, leaves: list[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Rebuild a node's (args, kwargs) with other leaves, in the order of `leaves_of`."""
    rest = iter(leaves)

    def build(arg: Any) -> Any:
        if isinstance(arg, (tuple, list)):
            items = [build(a) for a in arg]
            return items if isinstance(arg, list) else tuple(items)
        if isinstance(arg, dict):
            return {k: build(v) for k, v in arg.items()}
        return next(rest)

    return tuple(build(node.args)), dict(build(node.kwargs))
