"""What a backward kernel computes in one step: the derivatives, the values of the forward step that they need, and
where these come from: the states that were put out, or states computed again from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from linrec.codegen.differentiate import gradients, leading_from
from linrec.codegen.lanes import Leaf, Operand
from linrec.codegen.program import Access, Node, ancestors, rebuilt
from linrec.codegen.schedule import Store, own_cost
from linrec.codegen.signature import Key, Signature

_LARGE = 512
"""Elements of a constant from which on its derivative is left to a matrix product, if it is a sum of outer products."""
_WORTH_KEEPING = 6
"""Instructions that it takes to compute an element again, from which on it is kept while a segment's states are."""


@dataclass(frozen=True)
class Wanted:
    """Which derivatives are asked for, and by which results the loss has any.

    Attributes:
        inputs: inputs of the step, by key.
        finals, ys: results, by key.
    """

    inputs: frozenset[Key]
    finals: frozenset[Key]
    ys: frozenset[Key]


Factor = tuple[int, tuple[int, ...]]


@dataclass
class Adjoint:
    """The work of one backward step.

    Attributes:
        cotangents: the carries that have derivatives, each with the node of what the step is given for it.
        changes: for each of them, and for each wanted per-step input and constant, its derivative; None for zeros.
        needed: carries whose state before the step is read; ``later``: those whose state after the step is.
        recomputed: the carries whose updates the recomputation needs; empty where states are read or not needed.
        stored: for each carry that was put out, the output.
        saved: nodes kept when states are computed again, by what the backward step knows them by.
        factors: nodes that are put out for all steps, so that sums of their products are left to a matrix product.
        products: for constants with such derivatives, pairs of factors: for each its number and, for each of its
            dimensions, the constant's.
        ahead: the derivatives and factors, by the names of their stores, that depend on states but on no derivative by
            a later state, as a readout's do. They are made where states are computed again, forward in time, so that
            the loop back need not read these states, and where nothing else reads them, nobody has to keep them.
    """

    cotangents: dict[Key, Node] = field(default_factory=dict)
    changes: dict[Key, Node | None] = field(default_factory=dict)
    needed: list[Key] = field(default_factory=list)
    later: list[Key] = field(default_factory=list)
    recomputed: list[Key] = field(default_factory=list)
    stored: dict[Key, Key] = field(default_factory=dict)
    saved: dict[Any, Node] = field(default_factory=dict)
    factors: list[Node] = field(default_factory=list)
    products: dict[Key, list[tuple[Factor, Factor]]] = field(default_factory=dict)
    ahead: dict[Any, Node] = field(default_factory=dict)

    @property
    def keeps_states(self) -> bool:
        """Whether the loop back reads states that have been computed again, or what was kept beside them."""
        return bool(self.recomputed) and bool(self.needed or self.later or self.saved)

    @property
    def reads_outputs(self) -> bool:
        """Whether states are read where they were put out."""
        return bool(self.needed or self.later) and not self.recomputed

    def names(self) -> list[Any]:
        """What the loop back makes that is not zero: ("change", key) and ("factor", number)."""
        every = [("change", k) for k, n in self.changes.items() if n is not None]
        return [n for n in [*every, *(("factor", i) for i in range(len(self.factors)))] if n not in self.ahead]

    def nodes(self) -> list[Node]:
        """The nodes of `names`."""
        return [self._made(n) for n in self.names()]

    def _made(self, name: Any) -> Node:
        found = self.factors[name[1]] if name[0] == "factor" else self.changes[name[1]]
        assert found is not None
        return found

    def has_change(self, key: Key) -> bool:
        """Whether the derivative by an input is not zero."""
        return self.changes.get(key) is not None or key in self.products

    def reads(self, s: Signature) -> frozenset[int]:
        """The inputs whose numbers are needed, by number."""
        nodes = ancestors(x.access.node for x in (*self.stores(s), *self.recomputation(s)))
        found = {n.attr[1] for n in nodes if n.op == "input" and n.attr[0] == "given"}
        if self.recomputed:  # what a loop starts from is in its first checkpoint
            found -= {k[0] for k in s.carries}
        return frozenset(found | {k[0] for k in (self.needed if self.reads_outputs else ())})

    def stores(self, s: Signature) -> list[Store]:
        """What leaves a step of the loop back."""
        found = []
        for key, change in self.changes.items():
            operand = s.inputs[key][0]
            if change is None and key in self.cotangents:
                zero = s.program.graph.literal(0.0, operand.dtype)
                found.append(Store(("cot", key), zero.whole, operand.shape))
            elif change is not None and ("change", key) not in self.ahead:
                group = "cot" if key in self.cotangents else "change"
                found.append(Store((group, key), change.whole, operand.shape))
        factors = [(("factor", i), n) for i, n in enumerate(self.factors)]
        return found + [Store(name, n.whole, n.shape) for name, n in factors if name not in self.ahead]

    def recomputation(self, s: Signature) -> list[Store]:
        """What a step does that computes states again."""
        found = [Store(("state", k), s.updates[k][1], s.updates[k][0].shape) for k in self.recomputed]
        found += [Store(name, node.whole, node.shape) for name, node in self.saved.items()]
        for name, node in self.ahead.items():
            shape = node.shape if name[0] == "factor" else s.inputs[name[1]][0].shape
            found.append(Store(name, node.whole, shape))
        return found


def differentiable(operand: Operand) -> bool:
    """Whether derivatives by an operand exist."""
    return operand.dtype.is_floating_point


def everything(s: Signature, inputs: Iterable[Any]) -> Wanted:
    """The derivatives by some inputs of all results that have derivatives."""
    finals = frozenset(k for k, (o, _) in s.updates.items() if differentiable(o))
    return Wanted(frozenset(inputs), finals, frozenset(k for k, (o, _) in s.ys.items() if differentiable(o)))


def moving(s: Signature, inputs: Iterable[Key]) -> set[int]:
    """The results, by number, that change with some inputs, over one step or more."""
    found = {s.inputs[k][1] for k in inputs if differentiable(s.inputs[k][0])}
    order = ancestors(a.node for group in (s.updates, s.ys) for _, a in group.values())
    while True:
        reached = leading_from(order, found)
        more = found | {s.carries[k][1] for k, (_, a) in s.updates.items() if a.node in reached}
        if more == found:
            break
        found = more
    results = {k[0] for k, (_, a) in s.ys.items() if a.node in reached}
    return results | {k[0] for k, (_, a) in s.updates.items() if a.node in reached}


def adjoint(s: Signature, wanted: Wanted) -> Adjoint:
    """Differentiate a step.

    Raises:
        Unsupported: where a function has no known derivative.
    """
    graph = s.program.graph
    every = frozenset(range(len(s.program.lanes)))
    found = Adjoint()
    seeds = []
    for key, (operand, _) in s.carries.items():
        if differentiable(operand):
            node = graph.node("input", ("cot", *key), operand.dtype, operand.shape, lanes=every)
            found.cotangents[key] = node
            seeds.append((s.updates[key][1], operand.shape, node))
    for key, (operand, access) in s.ys.items():
        if key in wanted.ys and differentiable(operand):
            node = graph.node("input", ("grad", *key), operand.dtype, operand.shape, lanes=every)
            seeds.append((access, operand.shape, node))
    asked = {
        k: n for k, (o, n) in s.inputs.items() if k in found.cotangents or (k in wanted.inputs and differentiable(o))
    }
    changes = gradients(graph, seeds, list(asked.values()))
    found.changes = {k: changes.get(n) for k, n in asked.items()}
    _put_off(s, found)
    _provide(s, found)
    return found


def _provide(s: Signature, a: Adjoint) -> None:
    """Say where the values of the forward step come from."""
    graph = s.program.graph
    own = {name: a._made(name) for name in a.names()}
    _stored(s, a)
    # A new state is read rather than computed again, where it is there to be read.
    _replace(s, a, _after(s, a))
    _list_reads(s, a)
    if not a.needed and not a.later:
        return
    if all(k in a.stored for k in (*a.needed, *a.later)):
        return
    a.ahead = _ahead(s, a, own)
    _list_reads(s, a)
    a.recomputed = _closure(s, {*a.needed, *a.later}, a.ahead.values())
    again = set(ancestors([*(s.updates[k][1].node for k in a.recomputed), *a.ahead.values()]))
    kept: dict[Node, Node] = {}
    for node in ancestors(a.nodes()):
        costly = node.op == "reduce" or (node.op == "map" and own_cost(node) >= _WORTH_KEEPING)
        if costly and node in again:
            name = ("saved", str(len(kept)), "")
            kept[node] = graph.node("input", name, node.dtype, node.shape, lanes=node.lanes)
    if not a.needed and not a.later and _total(kept) <= sum(4 * math.prod(o.shape) for o, _ in s.carries.values()):
        kept = {}  # to compute these again takes less than to keep the states for their sake
    _replace(s, a, kept)
    read = set(ancestors(a.nodes()))
    a.saved = {new.attr: old for old, new in kept.items() if new in read}
    _list_reads(s, a)
    a.recomputed = _closure(s, {*a.needed, *a.later}, [*a.saved.values(), *a.ahead.values()])


def _after(s: Signature, a: Adjoint) -> dict[Node, Node]:
    """For each new state that is read, and is more than a few instructions, an input that is to hold it."""
    reached = set(ancestors(a.nodes()))
    after: dict[Node, Node] = {}
    for key, (operand, access) in s.updates.items():
        node = access.node
        if access == node.whole and node.op != "input" and node in reached and _cost(node) >= _WORTH_KEEPING:
            lanes = s.carries[key][1].lanes
            after[node] = s.program.graph.node("input", ("later", *key), operand.dtype, operand.shape, lanes=lanes)
    return after


def _ahead(s: Signature, a: Adjoint, own: dict[Any, Node]) -> dict[Any, Node]:
    """What can be made forward in time, of everything that is made, by name."""
    found = {}
    for name, node in own.items():
        read = {n.attr for n in ancestors([node]) if n.op == "input"}
        of_states = any(("given", *k) in read for k in s.carries)
        if of_states and name[1] not in a.cotangents and not any(attr[0] == "cot" for attr in read):
            found[name] = node
            if name[0] == "factor":
                a.factors[name[1]] = node
            else:
                a.changes[name[1]] = node
    return found


def _total(nodes: Iterable[Node]) -> int:
    return sum(math.prod(n.shape) * _cost(n) for n in nodes)


def _stored(s: Signature, a: Adjoint) -> None:
    """Find the outputs that hold states, dimension by dimension: one that is flattened has other strides."""
    for key, (operand, access) in s.updates.items():
        for y, (other, result) in s.ys.items():
            same = result == access and other.dims == operand.dims and other.dtype == operand.dtype
            if same and operand.dtype.is_floating_point:
                a.stored.setdefault(key, y)


def _replace(s: Signature, a: Adjoint, by: dict[Node, Node]) -> None:
    names = a.names()
    for (group, k), node in zip(names, rebuilt(s.program.graph, a.nodes(), by), strict=True):
        if group == "factor":
            a.factors[k] = node
        else:
            a.changes[k] = node


def _put_off(s: Signature, a: Adjoint) -> None:
    """Leave large sums of products to matrix products after the loop."""
    for key, (operand, _) in s.consts.items():
        change = a.changes.get(key)
        if change is None or math.prod(operand.shape) < _LARGE or operand.lanes:
            continue
        terms = _terms(change.whole)
        pairs = [_factors(t, operand.shape) for t in terms]
        if all(p is not None for p in pairs):
            a.products[key] = [
                tuple((_number(a, f.node), tuple(i.position or 0 for i in f.index)) for f in p)  # type: ignore[misc]
                for p in pairs
                if p is not None
            ]
            a.changes[key] = None


def _number(a: Adjoint, node: Node) -> int:
    if node not in a.factors:
        a.factors.append(node)
    return a.factors.index(node)


def _terms(access: Access) -> list[Access]:
    """The addends of a sum."""
    node = access.node
    if node.op == "map" and node.attr[0] in ("add", "copy"):
        return [t for arg in node.args for t in _terms(arg.then(access.index))]
    return [access]


def _factors(access: Access, shape: tuple[int, ...]) -> tuple[Access, Access] | None:
    """The two factors of an outer product, whose positions are those of `shape`."""
    node = access.node
    if node.op != "map" or node.attr[0] != "mul":
        return None
    one, two = (_terms(arg.then(access.index)) for arg in node.args)
    if len(one) != 1 or len(two) != 1:
        return None
    found = one[0], two[0]
    at = [i.position for f in found for i in f.index]
    if None in at or sorted(p for p in at if p is not None) != list(range(len(shape))):
        return None
    whole = all(f.node.shape == tuple(shape[i.position or 0] for i in f.index) for f in found)
    return found if whole and all(f.index for f in found) else None


def _list_reads(s: Signature, a: Adjoint) -> None:
    read = {n.attr for n in ancestors(a.nodes()) if n.op == "input"}
    a.needed = [k for k in s.carries if ("given", *k) in read]
    a.later = [k for k in s.carries if ("later", *k) in read]


def _closure(s: Signature, keys: set[Key], nodes: Iterable[Node] = ()) -> list[Key]:
    """The carries whose updates some carries and nodes depend on, over any number of steps."""
    found = set(keys)
    while True:
        reached = ancestors([*(s.updates[k][1].node for k in found), *nodes])
        more = found | {k for k, (_, n) in s.carries.items() if n in reached}
        if more == found:
            return [k for k in s.carries if k in found]
        found = more


def _cost(node: Node) -> int:
    return sum(64 if n.op == "reduce" else own_cost(n) for n in ancestors([node]) if n.op in ("map", "reduce"))


def partial_dtype(dtype: torch.dtype) -> torch.dtype:
    """What derivatives are summed in."""
    return torch.float32 if dtype in (torch.bfloat16, torch.float16) else dtype


def factor_operand(node: Node, lanes: Sequence[int]) -> Operand:
    """A factor as a tensor of its own: its lanes, then its inner dimensions."""
    outer = [(Leaf(lane, lanes[lane]),) for lane in sorted(node.lanes)]
    return Operand(partial_dtype(node.dtype), (*outer, *((Leaf(None, size),) for size in node.shape)))
