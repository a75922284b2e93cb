"""From drafts to nodes: decides which classes of axes are lanes, takes them out of the nodes, and describes how the
tensors that go in and out of a step are laid out in lanes and inner dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from linrec.codegen.axes import Axis, AxisIndex, Draft, View
from linrec.codegen.program import Access, Graph, Index, Node
from linrec.codegen.translate import Complex, Drafts, Value


@dataclass(frozen=True)
class Leaf:
    """A part of a tensor's dimension: a lane, or an inner dimension."""

    lane: int | None
    size: int


@dataclass(frozen=True)
class Operand:
    """A real tensor that a step reads or writes, or one part of a complex one.

    Attributes:
        dtype: of its elements.
        dims: for each dimension its parts, slow ones first; none where the size is 1.
        part: "re" or "im" for a part of a complex tensor.
    """

    dtype: torch.dtype
    dims: tuple[tuple[Leaf, ...], ...]
    part: str = ""

    @property
    def lanes(self) -> frozenset[int]:
        """The lanes that it has."""
        return frozenset(x.lane for dim in self.dims for x in dim if x.lane is not None)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its inner sizes."""
        return tuple(x.size for dim in self.dims for x in dim if x.lane is None)


@dataclass
class Program:
    """A step as nodes.

    Attributes:
        graph: makes more nodes.
        lanes: for each lane the sizes seen when the step was translated.
        inputs: for each input of the step its operands (two for a complex tensor) with their nodes; none for a number.
        outputs: for each output of the step its operands, with what is to be stored: an access whose domain is the
            operand's inner dimensions.
    """

    graph: Graph
    lanes: tuple[int, ...]
    inputs: list[list[tuple[Operand, Node]]]
    outputs: list[list[tuple[Operand, Access]]]


def parts(value: Value) -> list[tuple[str, View]]:
    """The real tensors of a value, with their names."""
    if isinstance(value, Complex):
        return [("re", value.re), ("im", value.im)]
    return [("", value)] if isinstance(value, View) else []


def program(drafts: Drafts) -> Program:
    """Take the lanes out of a translated step."""
    return _Finisher(drafts).run()


class _Finisher:
    def __init__(self, drafts: Drafts) -> None:
        self.drafts = drafts
        self.graph = Graph()
        self.lane_of: dict[Axis, int] = {}
        self.nodes: dict[Draft, Node] = {}
        self.dims_of = {v.draft: v.dims for x in drafts.inputs for _, v in parts(x)}

    def run(self) -> Program:
        given = [parts(x) for x in self.drafts.inputs]
        taken = [parts(x) for x in self.drafts.outputs]
        reached = self._reached([v for views in given + taken for _, v in views])
        for draft in reached:
            _distinct([*draft.axes, *draft.red])
            for own, _ in draft.pieces:
                _distinct(own)
        for views in taken:
            for _, view in views:
                _distinct([a for d in view.dims for a in d])
        for views in given:
            for _, view in views:
                for dim in view.dims:
                    for axis in dim:
                        if not axis.root.mixed:
                            self.lane_of.setdefault(axis.root, len(self.lane_of))
        for draft in reached:
            self.nodes[draft] = self._node(draft)
        inputs = [[(self._operand(v, n), self.nodes[v.draft]) for n, v in views] for views in given]
        outputs = [[(self._operand(v, n), self._stored(v)) for n, v in views] for views in taken]
        return Program(self.graph, tuple(a.size for a in self.lane_of), inputs, outputs)

    def _reached(self, views: Sequence[View]) -> list[Draft]:
        order: dict[Draft, None] = {}

        def visit(draft: Draft) -> None:
            if draft not in order:
                for arg, _ in draft.args:
                    visit(arg)
                order[draft] = None

        for view in views:
            visit(view.draft)
        return list(order)

    def _lane(self, axis: Axis) -> int | None:
        return self.lane_of.get(axis.root)

    def _operand(self, view: View, part: str) -> Operand:
        dims = tuple(tuple(Leaf(self._lane(a), a.size) for a in dim) for dim in view.dims)
        return Operand(view.dtype, dims, part)

    def _positions(self, axes: Sequence[Axis]) -> dict[Axis, int]:
        return {a: p for p, a in enumerate(x for x in axes if self._lane(x) is None)}

    def _access(self, draft: Draft, index: Sequence[AxisIndex], at: dict[Axis, int]) -> Access:
        found = []
        for axis, i in zip(draft.axes, index, strict=True):
            if self._lane(axis) is None:
                found.append(_index(i, at))
        return Access(self.nodes[draft], tuple(found))

    def _stored(self, view: View) -> Access:
        return self._access(view.draft, view.index, self._positions([a for d in view.dims for a in d]))

    def _node(self, draft: Draft) -> Node:
        at = self._positions([*draft.axes, *draft.red])
        shape = [a.size for a in draft.axes if self._lane(a) is None]
        red = [a.size for a in draft.red]
        if draft.op == "input":
            lanes = frozenset(x for a in draft.axes if (x := self._lane(a)) is not None)
            return self.graph.node("input", ("given", *draft.attr), draft.dtype, shape, lanes=lanes)
        if draft.op == "assemble":
            args, places = [], []
            for (arg, index), (own, place) in zip(draft.args, draft.pieces, strict=True):
                mine = self._positions(own)
                args.append(self._access(arg, index, mine))
                where = [_index(i, mine) for a, i in zip(draft.axes, place, strict=True) if self._lane(a) is None]
                places.append((tuple(a.size for a in own if self._lane(a) is None), tuple(where)))
            return self.graph.node("assemble", tuple(places), draft.dtype, shape, args)
        args = [self._access(arg, index, at) for arg, index in draft.args]
        if draft.op == "map":
            return self.graph.map(draft.attr, draft.dtype, shape, args)
        if draft.op == "literal":
            return self.graph.literal(draft.attr, draft.dtype)
        return self.graph.node(draft.op, draft.attr, draft.dtype, shape, args, red)


def _distinct(axes: Sequence[Axis]) -> None:
    """An axis that occurs twice relates elements at different positions: it is no lane."""
    roots = [a.root for a in axes]
    for root in roots:
        if roots.count(root) > 1:
            root.mixed = True


def _index(index: AxisIndex, at: dict[Axis, int]) -> Index:
    return Index(tuple(sorted((at[a], s) for a, s in index.terms if s)), index.offset)
