"""From polynomials back to graphs: the coefficients and the drive of a recurrence, written into the outer graph for all
steps at once."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Axes, Axis, Factor, Index, Monomial, NoRule
from linrec.analysis.rules import Algebra
from linrec.analysis.vectorize import Vectorizer
from linrec.ir.nodes import size_node, value

aten = torch.ops.aten


class Emitter:
    """Writes sums of monomials as tensors with one dimension per axis behind a leading time dimension (of size 1 where
    nothing changes over time).

    Args:
        vectorizer: writes the atoms; algebra: knows the sizes; like: a step node to name and locate the result by.
    """

    masking: tuple[str, ...] = ("mask", "unmask")
    """The kinds of atoms that a program of an affine recurrence has as masks."""

    def __init__(self, vectorizer: Vectorizer, algebra: Algebra, like: fx.Node) -> None:
        self.v, self.space, self.like = vectorizer, algebra.space, like

    def terms(self, terms: Sequence[Monomial], axes: Axes) -> fx.Node | None:
        """The sum of the monomials over the given output axes (size 1 where they do not vary); None for no terms."""
        order = [i for axis in axes for i in axis]
        total: fx.Node | None = None
        for term in terms:
            node = self._term(term, order)
            total = node if total is None else self._emit(aten.add.Tensor, total, node)
        if total is None:
            return None
        return self._merge(total, axes)

    def _emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        return self.v.emit(target, args, self.like, kwargs)

    def _merge(self, node: fx.Node, axes: Axes) -> fx.Node:
        """From one dimension per index to one per axis."""
        if all(len(axis) == 1 for axis in axes):
            return node
        if all(len(axis) <= 1 for axis in axes):
            for d, axis in enumerate(axes):
                if not axis:
                    node = self._emit(aten.unsqueeze.default, node, d + 1)
            return node
        shape = [-1 if i == 0 else self.size(index) for i, index in enumerate([-1, *(i for a in axes for i in a)])]
        full = self._emit(aten.expand.default, node, shape)
        return self._emit(aten.reshape.default, full, [-1, *(self.size_of(axis) for axis in axes)])

    def _term(self, term: Monomial, order: list[Index]) -> fx.Node:
        if not isinstance(term.coefficient, (int, float, complex)):
            raise NoRule("a coefficient that depends on a symbolic size")
        masks = term.of_kind("mask", "unmask")
        factors = [f for f in term.factors if f not in masks]
        bound = {i for f in term.factors for i in f.indices()} - set(order)
        inner = [m for m in masks if bound.intersection(m.indices())]  # under a sum
        masks = [m for m in masks if m not in inner]
        node: fx.Node | None = None
        if bound:
            node = self._contract(factors, inner, order, term.coefficient if inner else 1)
        else:
            for factor in factors:
                spread = self._spread(self._split(factor), order)
                node = spread if node is None else self._emit(aten.mul.Tensor, node, spread)
        if node is None:
            node = self._full(term.coefficient, len(order))
        elif term.coefficient != 1 and not inner:
            node = self._emit(aten.mul.Tensor, node, term.coefficient)
        for mask in masks:
            node = self._masked(mask, self._spread(self._split(mask), order), node)
        return node

    def _masked(self, mask: Factor, condition: fx.Node, node: fx.Node) -> fx.Node:
        if mask.atom.kind == "mask":
            return self._emit(aten.where.ScalarOther, condition, node, 0)
        return self._emit(aten.where.ScalarSelf, condition, 0, node)

    def _full(self, number: Any, rank: int) -> fx.Node:
        val = value(self.like)
        kwargs = {"dtype": val.dtype, "device": val.device}
        with self.v.graph.inserting_before(self.v.before):
            node = self.v.graph.call_function(aten.full.default, ([1] * (rank + 1), number), kwargs)
        with val.fake_mode:
            node.meta["val"] = torch.full([1] * (rank + 1), number, dtype=val.dtype, device=val.device)
        return node

    def _split(self, factor: Factor) -> tuple[fx.Node, list[Index]]:
        """An atom's value with a leading time dimension and one dimension per index."""
        if factor.atom.node is None:
            return self._constant(factor)
        steps = self.v.run(factor.atom.node)
        node = steps.node if steps.timed else self._emit(aten.unsqueeze.default, steps.node, 0)
        if factor.atom.kind in ("position", "wrapped position"):
            wraps = factor.atom.kind == "wrapped position"
            node = self._emit(one_hot, node, factor.atom.columns, value(self.like).dtype, wraps)
        if factor.atom.kind in ("real", "imaginary"):
            node = self._emit(aten.real.default if factor.atom.kind == "real" else aten.imag.default, node)
        if factor.atom.kind == "inverse":
            node = self._emit(aten.linalg_inv.default, node)
        exact = not value(node).is_floating_point() and not value(node).is_complex()
        if factor.atom.kind in ("value", "reciprocal") and exact:
            # A number times an integer tensor would have torch's default dtype.
            node = self._emit(aten._to_copy.default, node, dtype=value(self.like).dtype)
        if factor.atom.kind == "reciprocal":
            node = self._inverse(node)
        indices = list(factor.indices())
        if len(set(indices)) != len(indices):
            raise NoRule("an index twice in one factor")
        if any(len(axis) != 1 for axis in factor.axes):
            if all(len(axis) <= 1 for axis in factor.axes):
                ones = [d + 1 for d, axis in enumerate(factor.axes) if not axis]
                node = self._emit(aten.squeeze.dims, node, ones)
            else:
                lead = self.v.length if steps.timed else 1
                node = self._emit(aten.reshape.default, node, [lead, *(self.size(i) for i in indices)])
        return node, indices

    def _inverse(self, node: fx.Node) -> fx.Node:
        return self._emit(aten.reciprocal.default, node)

    def _constant(self, factor: Factor) -> tuple[fx.Node, list[Index]]:
        """A constant matrix that no node of the step holds."""
        val, atom = value(self.like), factor.atom
        indices = list(factor.indices())
        sizes = [self.space.sizes[i] for i in indices]
        shape = [self.space.size(axis) for axis in factor.axes]
        target: Any = selection
        args: tuple[Any, ...] = (atom.rows, atom.columns, sizes, val.dtype)
        if atom.kind == "triangle":
            target, args = triangle, (shape, atom.rows[0], sizes, val.dtype)
        elif atom.kind in ("cosine", "sine"):
            target, args = waves, (atom.kind, atom.columns, shape, any(atom.rows), sizes, val.dtype)
        with self.v.graph.inserting_before(self.v.before):
            node = self.v.graph.call_function(target, args, {"device": val.device})
        with val.fake_mode:
            node.meta["val"] = torch.empty([1, *sizes], dtype=val.dtype, device=val.device)
        return node, indices

    def _spread(self, split: tuple[fx.Node, list[Index]], order: list[Index]) -> fx.Node:
        """Permute and pad a value so that its dimensions follow `order`."""
        node, indices = split
        present = [i for i in order if i in indices]
        if present != indices:
            node = self._emit(aten.permute.default, node, [0, *(indices.index(i) + 1 for i in present)])
        for d, i in enumerate(order):
            if i not in indices:
                node = self._emit(aten.unsqueeze.default, node, d + 1)
        return node

    def _contract(self, factors: list[Factor], masks: list[Factor], order: list[Index], number: Any) -> fx.Node:
        splits = [self._split(f) for f in factors]
        for mask in masks:
            condition, indices = self._split(mask)
            k = next((k for k, (_, own) in enumerate(splits) if set(indices) <= set(own)), None)
            if k is None:
                # An infinite number is masked, too.
                splits.append((self._masked(mask, condition, self._full(number, len(indices))), indices))
                number = 1
            else:
                node, own = splits[k]
                splits[k] = self._masked(mask, self._spread((condition, indices), own), node), own
        names: dict[Index, str] = {}
        letters = iter("abcdefghijklmnopqrsuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        inputs, nodes = [], []
        timed = any(value(node).shape[0] != 1 for node, _ in splits)
        for node, indices in splits:
            steady = isinstance(value(node).shape[0], int) and value(node).shape[0] == 1
            if steady and timed:
                node = self._emit(aten.select.int, node, 0, 0)
            for i in indices:
                if i not in names:
                    names[i] = next(letters)
            labels = "".join(names[i] for i in indices)
            inputs.append(("" if steady and timed else "t") + labels)
            nodes.append(node)
        present = [i for i in order if i in names]
        dtype = functools.reduce(torch.promote_types, (value(node).dtype for node in nodes))
        nodes = [n if value(n).dtype == dtype else self._emit(aten._to_copy.default, n, dtype=dtype) for n in nodes]
        equation = ",".join(inputs) + "->t" + "".join(names[i] for i in present)
        node = self._emit(aten.einsum.default, equation, nodes)
        return self._spread((node if number == 1 else self._emit(aten.mul.Tensor, node, number), present), order)

    def size(self, index: Index) -> Any:
        """The size of an index, as an int or a node of the outer graph."""
        return self.size_of((index,))

    def size_of(self, axis: Axis) -> Any:
        """The product of the sizes of some indices, as an int or a node of the outer graph."""
        sizes = [self.space.sizes[i] for i in axis]
        number = math.prod(s for s in sizes if isinstance(s, int))
        nodes = [self._size_node(s) for s in sizes if not isinstance(s, int)]
        if not nodes:
            return number
        result = nodes[0]
        for factor in [*nodes[1:], *([number] if number != 1 else [])]:
            result = self._number(result, factor)
        return result

    def _number(self, a: fx.Node, b: Any) -> fx.Node:
        with self.v.graph.inserting_before(self.v.before):
            node = self.v.graph.call_function(operator.mul, (a, b))
        node.meta["val"] = value(a) * value(b)
        return node

    def _size_node(self, size: Any) -> fx.Node:
        try:
            return size_node(self.v.graph, self.v.before, size)
        except LookupError as error:
            raise NoRule(str(error)) from None


def one_hot(positions: torch.Tensor, columns: int, dtype: torch.dtype, wraps: bool) -> torch.Tensor:
    """(*shape, columns) from integers (*shape): 1 where the column is the position; negative ones count from the end
    where `wraps`. Positions out of range raise, as indexing does."""
    positions = positions.long()
    if wraps:
        positions = torch.where(positions < 0, positions + columns, positions)
    return torch.nn.functional.one_hot(positions, columns).to(dtype)


def selection(
    rows: Sequence[int], columns: int, sizes: Sequence[int], dtype: torch.dtype, device: torch.device | None = None
) -> torch.Tensor:
    """The matrix with a 1 in each row at the given column (none for -1), viewed as (1, *sizes)."""
    index = torch.tensor(rows, device=device).unsqueeze(-1)
    matrix = (index == torch.arange(columns, device=device)).to(dtype)
    return matrix.reshape(1, *sizes)


def triangle(
    shape: Sequence[int],
    diagonal: int,
    sizes: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> torch.Tensor:
    """The matrix (rows, columns) with ones on a diagonal and below, else 0, viewed as (1, *sizes)."""
    return torch.ones(tuple(shape), dtype=dtype, device=device).tril(diagonal).reshape(1, *sizes)


def waves(
    kind: str,
    points: int,
    shape: Sequence[int],
    half: bool,
    sizes: Sequence[int],
    dtype: torch.dtype,
    device: torch.device | None = None,
) -> torch.Tensor:
    """The matrix (rows, columns) of ``cos(2 pi r c / points)`` ("cosine") or of the sines ("sine"), viewed as
    (1, *sizes); where `half`, with the columns twice that stand for their mirror images, too."""
    rows, columns = (torch.arange(size, device=device) for size in shape)
    angle = (rows[:, None] * columns % points).double() * (2 * math.pi / points)
    matrix = angle.cos() if kind == "cosine" else angle.sin()
    if half:
        matrix = matrix * torch.where((columns == 0) | (2 * columns == points), 1.0, 2.0)
    return matrix.to(dtype).reshape(1, *sizes)
