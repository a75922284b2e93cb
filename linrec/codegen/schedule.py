"""Orders the work of one step: which nodes get an array and which are computed where they are read, and which loops
over inner dimensions share a nest."""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from linrec.codegen.program import Access, Index, Node, ancestors, at

_COSTS = {"div": 6, "sqrt": 6, "norm": 6, "rsqrt": 8, "reciprocal": 6, "exp": 12, "log": 20, "expm1": 16, "tanh": 20}
_COSTS |= {
    "sigmoid": 16,
    "logsigmoid": 30,
    "log1p": 25,
    "softplus": 35,
    "logaddexp": 40,
    "elu": 18,
    "copy": 0,
    "stop": 0,
    "surrogate": 0,
}
_COSTS |= dict.fromkeys(
    [
        "add",
        "sub",
        "mul",
        "neg",
        "where",
        "max",
        "min",
        "abs",
        "zero_if",
        "cast",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and",
        "or",
        "not",
    ],
    1,
)
_LIBRARY_COST = 60
_FAR = 16


def own_cost(node: Node) -> int:
    """About how many instructions an element takes, its arguments aside."""
    return _COSTS.get(node.attr[0], _LIBRARY_COST) if node.op == "map" else 1


@dataclass(frozen=True)
class Store:
    """A value that leaves the step.

    Attributes:
        target: where to, for who writes the code.
        access: the value, in positions of the domain.
        domain: its inner sizes.
    """

    target: Any
    access: Access
    domain: tuple[int, ...]


@dataclass
class Statement:
    """A piece of work over a domain of loops.

    Attributes:
        kind: "store", "array" (compute a map), "reduce", "zero" (an assembly), "set" or "add" (a piece of one).
        what: the store, or the node.
        kept, red: the sizes of its loops; only a reduction has the latter.
        piece: which piece of an assembly.
        order: for each of its positions, the nest's loop.
    """

    kind: str
    what: Store | Node
    kept: tuple[int, ...]
    red: tuple[int, ...] = ()
    piece: int = 0
    order: tuple[int, ...] = ()

    @property
    def node(self) -> Node:
        """The node that it makes."""
        assert isinstance(self.what, Node)
        return self.what

    @property
    def reads(self) -> tuple[Access, ...]:
        """What it reads, in positions of its domain."""
        if isinstance(self.what, Store):
            return (self.what.access,)
        if self.kind in ("set", "add"):
            return (self.what.args[self.piece],)
        return () if self.kind == "zero" else self.what.args


@dataclass
class Nest:
    """Loops, the last ones of which are reduced over, and what is done in them."""

    kept: tuple[int, ...]
    red: tuple[int, ...]
    statements: list[Statement] = field(default_factory=list)


@dataclass
class Schedule:
    """The work of one step.

    Attributes:
        nests: in order.
        arrays: the nodes that are kept in an array.
    """

    nests: list[Nest]
    arrays: list[Node]


def schedule(stores: Sequence[Store], far: Container[Any] = ()) -> Schedule:
    """Order the work that some stores need.

    Args:
        stores: what leaves the step.
        far: the keys of inputs whose elements take long to read.
    """
    nodes = ancestors(s.access.node for s in stores)
    made = _materialised(nodes, stores, far)
    nests: list[Nest] = []
    ready: dict[Node, int] = {}
    for statement in _statements(nodes, made, stores):
        _place(statement, nests, ready, made)
    return Schedule(nests, [n for n in nodes if n in made and (n.op != "reduce" or n.shape)])


def _statements(nodes: Sequence[Node], made: set[Node], stores: Sequence[Store]) -> Iterator[Statement]:
    for node in nodes:
        if node not in made:
            continue
        if node.op in ("map", "input"):
            yield Statement("array", node, node.shape)
        elif node.op == "reduce":
            yield Statement("reduce", node, node.shape, node.red)
        else:
            disjoint, covered = _coverage(node)
            if not (disjoint and covered):
                yield Statement("zero", node, node.shape)
            for k, (own, _) in enumerate(node.attr):
                yield Statement("set" if disjoint else "add", node, own, (), k)
    for store in stores:
        yield Statement("store", store, store.domain)


def _coverage(node: Node) -> tuple[bool, bool]:
    """Whether the pieces of an assembly are disjoint, and whether they cover it."""
    counts: dict[tuple[int, ...], int] = {}
    if sum(math.prod(own) for own, _ in node.attr) > 1 << 16:
        return False, False
    for own, place in node.attr:
        for point in itertools.product(*map(range, own)):
            where = tuple(i.offset + sum(s * point[p] for p, s in i.terms) for i in place)
            counts[where] = counts.get(where, 0) + 1
    return max(counts.values()) == 1, len(counts) == math.prod(node.shape)


def _levels(nodes: Sequence[Node]) -> dict[Node, int]:
    """How many reductions come, one after the other, before a node."""
    level: dict[Node, int] = {}
    for node in nodes:
        before = max((level[a.node] for a in node.args), default=0)
        level[node] = before + (node.op in ("reduce", "assemble"))
    return level


def _materialised(nodes: Sequence[Node], stores: Sequence[Store], far: Container[Any]) -> set[Node]:
    """The nodes that are computed once and kept. Reductions and assemblies are; a map is where computing it again at
    every place it is read costs more than an array."""
    level = _levels(nodes)
    made = {n for n in nodes if n.op in ("reduce", "assemble")}
    # Where each node is read: the level and sizes of the loops, and the index there.
    places: dict[Node, set[tuple[int, tuple[int, ...], tuple[Index, ...]]]] = {n: set() for n in nodes}
    for store in stores:
        places[store.access.node].add((level[store.access.node], store.domain, store.access.index))
    cost: dict[Node, int] = {}
    for node in nodes:
        own = _FAR if node.op == "input" and node.attr in far else own_cost(node)
        cost[node] = own + sum(min(cost[a.node], 8) for a in node.args)
    for node in reversed(nodes):
        if node.shape and (node.op == "map" or (node.op == "input" and node.attr in far)):
            size = math.prod(node.shape)
            times = sum(_evaluations(domain, index) for _, domain, index in places[node])
            if (times - size) * cost[node] > 2 * size + times:
                made.add(node)
        for k, arg in enumerate(node.args):
            if node in made:
                before = level[node] - (node.op in ("reduce", "assemble"))
                places[arg.node].add((before, node.domain(k), arg.index))
            else:
                for where, domain, index in places[node]:
                    places[arg.node].add((where, domain, tuple(i.then(index) for i in arg.index)))
    return made


def _evaluations(domain: tuple[int, ...], index: tuple[Index, ...]) -> int:
    return math.prod(domain[p] for p in {p for i in index for p, _ in i.terms})


def _dependencies(statement: Statement, made: set[Node]) -> dict[Node, set[tuple[Index, ...]]]:
    """The kept nodes that a statement reads, and at which indices."""
    found: dict[Node, set[tuple[Index, ...]]] = {}
    stack = list(statement.reads)
    seen = set(stack)
    if statement.kind in ("set", "add"):
        found[statement.node] = set()
    while stack:
        access = stack.pop()
        if access.node in made:
            found.setdefault(access.node, set()).add(access.index)
            continue
        for arg in access.node.args:
            inner = arg.then(access.index)
            if inner not in seen:
                seen.add(inner)
                stack.append(inner)
    return found


def _elements(statement: Statement, made: set[Node]) -> set[Access]:
    """All elements that a statement reads or computes on the way."""
    found = set[Access]()
    stack = list(statement.reads)
    while stack:
        access = stack.pop()
        if access in found or not access.index:
            continue
        found.add(access)
        if access.node not in made:
            stack.extend(a.then(access.index) for a in access.node.args)
    return found


def _place(statement: Statement, nests: list[Nest], ready: dict[Node, int], made: set[Node]) -> None:
    """Put a statement into the first nest that it fits, after what it depends on, or into a new one."""
    needed = _dependencies(statement, made)
    reads = _elements(statement, made)
    first = max((ready[n] for n in needed if n in ready), default=-1)
    for k in range(max(first, 0), len(nests)):
        order = _fitting(statement, nests[k], reads, made)
        if order is None:
            continue
        placed = Statement(statement.kind, statement.what, statement.kept, statement.red, statement.piece, order)
        if k == first and not _aligned(placed, nests[k], needed):
            continue
        nests[k].statements.append(placed)
        _finish(statement, k, ready)
        return
    order = tuple(range(len(statement.kept) + len(statement.red)))
    nests.append(Nest(statement.kept, statement.red, []))
    nests[-1].statements.append(
        Statement(statement.kind, statement.what, statement.kept, statement.red, statement.piece, order)
    )
    _finish(statement, len(nests) - 1, ready)


def _finish(statement: Statement, nest: int, ready: dict[Node, int]) -> None:
    if isinstance(statement.what, Node):
        ready[statement.what] = max(nest, ready.get(statement.what, 0))


def _fitting(statement: Statement, nest: Nest, reads: set[Access], made: set[Node]) -> tuple[int, ...] | None:
    """How a statement's positions map to the loops of a nest; None where they do not, or nothing would be shared."""
    sizes = nest.kept + nest.red
    own = statement.kept + statement.red
    if sorted(sizes) != sorted(own) or len(statement.red) not in (0, len(nest.red)):
        return None
    if not own:
        return ()
    there = set()
    for other in nest.statements:
        inner = [at(p) for p in other.order]
        there |= {a.then(inner) for a in _elements(other, made)}
    # Nothing need be shared in a single loop without sums.
    best, most = None, -1 if len(own) == 1 and not nest.red else 0
    for order in itertools.permutations(range(len(own))):
        if any(own[p] != sizes[q] for p, q in enumerate(order)):
            continue
        if statement.red and any(q < len(nest.kept) for q in order[len(statement.kept) :]):
            continue
        shared = len({a.then([at(q) for q in order]) for a in reads} & there)
        if shared > most:
            best, most = order, shared
    return best


def _aligned(statement: Statement, nest: Nest, needed: dict[Node, set[tuple[Index, ...]]]) -> bool:
    """Whether what a statement reads of this very nest is the element that the same iteration has computed."""
    inner = [at(q) for q in statement.order]
    for other in nest.statements:
        if isinstance(other.what, Store) or other.what not in needed:
            continue
        if other.what is statement.what:
            if other.kind == statement.kind == "set":  # disjoint pieces, in any order
                continue
            return False
        if other.kind != "array":
            return False
        own = tuple(at(q) for q in other.order)
        if any(tuple(i.then(inner) for i in index) != own for index in needed[other.what]):
            return False
    return True
