"""The vector-Jacobian product of a program, written as more of its nodes. What is broadcast along lanes gets its
derivative lane by lane; it is summed over them only where it leaves the kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from linrec.codegen.axes import Unsupported
from linrec.codegen.functions import CONSTANT, DERIVATIVES, Expr
from linrec.codegen.program import Access, Graph, Index, Node, ancestors, at

Seed = tuple[Access, tuple[int, ...], Node]
"""An output's access, the sizes of its domain, and the derivative of the loss by it (a node of these sizes)."""


def gradients(graph: Graph, seeds: Sequence[Seed], wanted: Sequence[Node]) -> dict[Node, Node]:
    """The derivatives of the wanted inputs; those that nothing depends on are missing.

    Raises:
        Unsupported: where a function on the way has no derivative.
    """
    return _Reverse(graph, seeds, wanted).run()


class _Reverse:
    def __init__(self, graph: Graph, seeds: Sequence[Seed], wanted: Sequence[Node]) -> None:
        self.graph = graph
        self.wanted = wanted
        self.order = ancestors(a.node for a, _, _ in seeds)
        self.active = leading_from(self.order, wanted)
        self.found: dict[Node, list[Access]] = {}
        self.pieces: dict[Node, list[tuple[Access, tuple[int, ...], tuple[Index, ...]]]] = {}
        for access, domain, seed in seeds:
            self._pull(seed.whole, domain, access)

    def run(self) -> dict[Node, Node]:
        result = {}
        for node in reversed(self.order):
            if node not in self.active:
                continue
            total = self._sum(node)
            if total is None:
                continue
            if node in self.wanted:
                result[node] = self.graph.map(("copy",), node.dtype, node.shape, [total])
            if node.op == "map":
                self._map(node, total)
            elif node.op == "reduce":
                self._reduce(node, total)
            elif node.op == "assemble":
                for arg, (own, place) in zip(node.args, node.attr, strict=True):
                    self._pull(total.then(place), own, arg)
        return result

    def _map(self, node: Node, total: Access) -> None:
        name, *params = node.attr
        if name not in DERIVATIVES:
            raise Unsupported(f"the function '{name}' has no derivative")
        args = [Expr(self.graph, a, node.shape) for a in node.args]
        own = Expr(self.graph, node.whole, node.shape)
        parts = DERIVATIVES[name](Expr(self.graph, total, node.shape), args, own, tuple(params))
        for arg, part in zip(node.args, parts, strict=True):
            if part is not None and arg.node in self.active:
                self._pull(part.access, node.shape, arg)

    def _reduce(self, node: Node, total: Access) -> None:
        (arg,) = node.args
        domain = node.shape + node.red
        own = tuple(at(p) for p in range(len(node.shape)))
        spread = total.then(own)
        if node.attr == "sum":
            self._pull(spread, domain, arg)
            return
        # The elements that are the extremum share its derivative.
        result = Expr(self.graph, Access(node, own), domain)
        hit = Expr(self.graph, arg, domain).compare("eq", result).of("cast", dtype=node.dtype)
        hits = self.graph.total(hit.access, domain, range(len(node.shape), len(domain)))
        share = Expr(self.graph, spread, domain) / Expr(self.graph, Access(hits, own), domain)
        self._pull((hit * share).access, domain, arg)

    def _pull(self, change: Access, domain: Sequence[int], arg: Access) -> None:
        """Add to the derivative of an argument what reading it at `arg` contributes."""
        if arg.node not in self.active:
            return
        if change.node.dtype != arg.node.dtype:
            whole = tuple(domain)
            change = Expr(self.graph, change, whole).of("cast", dtype=arg.node.dtype).access
        used = sorted({p for i in arg.index for p, _ in i.terms})
        over = [p for p in range(len(domain)) if p not in used]
        positions = {old: new for new, old in enumerate(used)}
        if over:
            free = [p for p in over if all(q != p for i in change.index for q, _ in i.terms)]
            if free:
                size = math.prod(domain[p] for p in free)
                scaled = Expr(self.graph, change, tuple(domain)) * size
                kept = [p for p in range(len(domain)) if p not in free]
                # The product does not depend on the free positions: read it at their beginning.
                start = [Index()] * len(domain)
                for new, old in enumerate(kept):
                    start[old] = at(new)
                domain_left = [domain[p] for p in kept]
                copied = self.graph.map(
                    scaled.access.node.attr,
                    scaled.dtype,
                    domain_left,
                    [a.then(start) for a in scaled.access.node.args],
                )
                renamed = {old: at(new) for new, old in enumerate(kept)}
                index = tuple(i.then([renamed.get(p, Index()) for p in range(len(domain))]) for i in arg.index)
                self._pull(copied.whole, domain_left, Access(arg.node, index))
                return
            change = self.graph.total(change, domain, over).whole
        own = tuple(domain[p] for p in used)
        place = tuple(
            i.then([at(positions[p]) if p in positions else Index() for p in range(len(domain))]) for i in arg.index
        )
        plain = [i.position for i in place]
        order = [p for p in plain if p is not None]
        if sorted(order) == list(range(len(plain))) and tuple(own[p] for p in order) == arg.node.shape:
            inverse = [at(plain.index(p)) for p in range(len(own))]
            self.found.setdefault(arg.node, []).append(change.then(inverse))
            return
        self.pieces.setdefault(arg.node, []).append((change, own, place))

    def _sum(self, node: Node) -> Access | None:
        terms = list(self.found.get(node, ()))
        pieces = self.pieces.get(node)
        if pieces:
            places = tuple((own, place) for _, own, place in pieces)
            args = [access for access, _, _ in pieces]
            terms.append(self.graph.node("assemble", places, node.dtype, node.shape, args).whole)
        if not terms:
            return None
        total = Expr(self.graph, terms[0], node.shape)
        for term in terms[1:]:
            total = total + Expr(self.graph, term, node.shape)
        return total.access


def leading_from(order: Sequence[Node], wanted: Iterable[Node]) -> set[Node]:
    """The nodes of floating-point numbers that change with a wanted input."""
    found = set(wanted)
    for node in order:
        stops = node.op == "map" and node.attr[0] in CONSTANT
        if node.dtype.is_floating_point and not stops and any(a.node in found for a in node.args):
            found.add(node)
    return found
