"""The small language that step graphs are translated into: nodes that say how each element of an array is computed from
elements of others. Dimensions along which all steps are independent, the lanes, are no dimensions here: a node only
names those along which its elements differ. What is left are the inner dimensions, whose sizes are plain integers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Index:
    """An affine function of the positions of a node's domain: ``offset + sum(scale * position)``.

    Attributes:
        terms: pairs (position, scale), by position.
        offset: the constant.
    """

    terms: tuple[tuple[int, int], ...] = ()
    offset: int = 0

    @property
    def position(self) -> int | None:
        """The position whose value this is, unchanged; None where it is anything else."""
        if self.offset == 0 and len(self.terms) == 1 and self.terms[0][1] == 1:
            return self.terms[0][0]
        return None

    def then(self, inner: Sequence[Index]) -> Index:
        """This function of positions that are themselves functions: ``self(inner(...))``."""
        offset, scales = self.offset, dict[int, int]()
        for position, scale in self.terms:
            offset += scale * inner[position].offset
            for p, s in inner[position].terms:
                scales[p] = scales.get(p, 0) + scale * s
        return Index(tuple(sorted((p, s) for p, s in scales.items() if s)), offset)


def at(position: int) -> Index:
    """The value of one position."""
    return Index(((position, 1),))


@dataclass(frozen=True)
class Access:
    """An element of a node: one index for each of its dimensions, in positions of the reader's domain."""

    node: Node
    index: tuple[Index, ...]

    def then(self, inner: Sequence[Index]) -> Access:
        """The same element, seen from a domain in whose positions `inner` states the reader's."""
        return Access(self.node, tuple(i.then(inner) for i in self.index))


@dataclass(eq=False)
class Node:
    """One array.

    Attributes:
        op: "input", "literal", "iota" (the position along its one dimension), "map", "reduce" or "assemble" (zeros into
            which each argument is added somewhere).
        attr: what completes `op`: an input's key, a literal's number, a map's function with its parameters, a
            reduction's kind, for each piece of an assembly its own shape and its place: indices in its positions.
        dtype: of the elements.
        shape: inner sizes.
        red: for a reduction, the sizes of the positions, after those of `shape`, that are reduced.
        args: what is read. A map's domain is `shape`, a reduction's ``shape + red``, an assembly's that of each piece.
        lanes: the lanes along which elements differ.
    """

    op: str
    attr: Any
    dtype: torch.dtype
    shape: tuple[int, ...]
    red: tuple[int, ...]
    args: tuple[Access, ...]
    lanes: frozenset[int]
    serial: int = 0

    def __repr__(self) -> str:
        args = ", ".join(f"%{a.node.serial}" for a in self.args)
        return f"%{self.serial} = {self.op} {self.attr} ({args}) {self.shape}{self.red or ''} {set(self.lanes) or ''}"

    @property
    def whole(self) -> Access:
        """Every element where it is."""
        return Access(self, tuple(at(p) for p in range(len(self.shape))))

    def domain(self, argument: int) -> tuple[int, ...]:
        """The sizes of the positions in which an argument's indices are stated."""
        return tuple(self.attr[argument][0]) if self.op == "assemble" else self.shape + self.red


class Graph:
    """Makes nodes, equal ones once."""

    def __init__(self) -> None:
        self._known: dict[Any, Node] = {}

    def node(
        self,
        op: str,
        attr: Any,
        dtype: torch.dtype,
        shape: Sequence[int] = (),
        args: Sequence[Access] = (),
        red: Sequence[int] = (),
        lanes: Iterable[int] | None = None,
    ) -> Node:
        """The node with these properties; its lanes are by default those of its arguments."""
        if lanes is None:
            lanes = frozenset().union(*(a.node.lanes for a in args))
        # Numbers that compare equal are not the same literal: 1, 1.0 and True, 0.0 and -0.0.
        marked = repr(attr) if op == "literal" else attr
        key = (op, marked, dtype, tuple(shape), tuple(red), tuple((a.node.serial, a.index) for a in args), lanes)
        found = self._known.get(key)
        if found is None:
            found = Node(op, attr, dtype, tuple(shape), tuple(red), tuple(args), frozenset(lanes), len(self._known))
            self._known[key] = found
        return found

    def literal(self, number: complex, dtype: torch.dtype) -> Node:
        """A number."""
        return self.node("literal", number, dtype)

    def map(self, function: tuple[Any, ...], dtype: torch.dtype, shape: Sequence[int], args: Sequence[Access]) -> Node:
        """A function of one element of each argument; what follows from numbers alone is simplified."""
        simple = _simplified(function[0], dtype, args)
        if simple is not None and simple.node.dtype == dtype:
            if _is_whole(simple, shape):
                return simple.node
            return self.node("map", ("copy",), dtype, shape, (simple,))
        return self.node("map", function, dtype, shape, args)

    def total(self, arg: Access, domain: Sequence[int], over: Sequence[int]) -> Node:
        """The sum over some positions of a domain; its dimensions are the others, in order."""
        kept = [p for p in range(len(domain)) if p not in over]
        place = [Index()] * len(domain)
        for new, old in enumerate([*kept, *over]):
            place[old] = at(new)
        shape, red = [domain[p] for p in kept], [domain[p] for p in over]
        if not red:
            moved = arg.then(place)
            return moved.node if _is_whole(moved, shape) else self.map(("copy",), arg.node.dtype, shape, (moved,))
        return self.node("reduce", "sum", arg.node.dtype, shape, (arg.then(place),), red)


def _is_whole(arg: Access, shape: Sequence[int]) -> bool:
    return arg.node.shape == tuple(shape) and all(i.position == p for p, i in enumerate(arg.index))


def _simplified(function: str, dtype: torch.dtype, args: Sequence[Access]) -> Access | None:
    numbers = [a.node.attr if a.node.op == "literal" else None for a in args]
    if function == "copy":
        return args[0]
    if function == "mul" and 1 in numbers:
        return args[1 - numbers.index(1)]
    if function == "add" and not dtype.is_floating_point and 0 in numbers:
        return args[1 - numbers.index(0)]
    if function == "sub" and numbers[1] == 0 and math.copysign(1.0, numbers[1]) > 0:
        return args[0]
    if function == "div" and numbers[1] == 1:
        return args[0]
    return None


def ancestors(roots: Iterable[Node]) -> list[Node]:
    """The nodes that some nodes are computed from, themselves included; arguments first."""
    found = set[Node]()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            stack.extend(a.node for a in node.args)
    return sorted(found, key=lambda n: n.serial)


def rebuilt(graph: Graph, roots: Sequence[Node], replaced: dict[Node, Node]) -> list[Node]:
    """The roots again, with some nodes replaced by others."""
    new = dict(replaced)
    for node in ancestors_without(roots, replaced):
        if node not in new:
            args = [Access(new[a.node], a.index) for a in node.args]
            same = all(a.node is b.node for a, b in zip(args, node.args, strict=True))
            new[node] = node if same else graph.node(node.op, node.attr, node.dtype, node.shape, args, node.red)
    return [new[n] for n in roots]


def ancestors_without(roots: Iterable[Node], stops: Iterable[Node]) -> list[Node]:
    """Like `ancestors`, without looking behind some nodes."""
    found, halt = set[Node](), set(stops)
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in found:
            found.add(node)
            if node not in halt:
                stack.extend(a.node for a in node.args)
    return sorted(found, key=lambda n: n.serial)
