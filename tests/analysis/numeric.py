"""What a polynomial means in numbers: every atom replaced by the tensor that it stands for, every monomial summed over
its bound indices. Written apart from `linrec.lowering`, so that the two check one another.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Atom, Factor, Index, Monomial, Polynomial, Space


def run_all(graph_module: fx.GraphModule, arguments: list[Any]) -> dict[fx.Node, Any]:
    """The value of every node of a graph, its inputs included."""
    found: dict[fx.Node, Any] = {}

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            found[n] = super().run_node(n)
            return found[n]

    Keep(graph_module, garbage_collect_values=False).run(*arguments)
    return found


class Numbers:
    """Evaluates polynomials of one space, given the values of nodes and of the symbolic sizes."""

    def __init__(self, space: Space, values: dict[fx.Node, Any], batch: int) -> None:
        self.space, self.values, self.batch = space, values, batch

    def number(self, x: Any) -> Any:
        """A size or coefficient as a plain number: the only symbol is the batch size."""
        if isinstance(x, sympy.Basic):
            x = x.subs({s: self.batch for s in x.free_symbols})
            return int(x) if x.is_integer else complex(x) if not x.is_real else float(x)
        return x

    def size(self, index: Index) -> int:
        return int(self.number(self.space.sizes[index]))

    def tensor(self, p: Polynomial, dtype: torch.dtype) -> Tensor:
        """The tensor that a polynomial stands for, computed in `dtype`."""
        order = [i for axis in p.axes for i in axis]
        total = torch.zeros([self.size(i) for i in order], dtype=dtype)
        for m in p.terms:
            total = total + self._monomial(m, order, dtype)
        return total.reshape([math.prod(self.size(i) for i in axis) for axis in p.axes])

    def _monomial(self, m: Monomial, order: list[Index], dtype: torch.dtype) -> Tensor:
        names: dict[Index, int] = {}
        operands: list[Any] = [torch.ones((), dtype=dtype), []]
        for f in m.factors:
            value = self._factor(f, dtype).reshape([self.size(i) for i in f.indices()])
            operands += [value, [names.setdefault(i, len(names)) for i in f.indices()]]
        present = [i for i in order if i in names]
        value = torch.einsum(*operands, [names[i] for i in present]) * self.number(m.coefficient)
        for d, i in enumerate(order):
            if i not in names:
                value = value.unsqueeze(d)
        return value.expand([self.size(i) for i in order])

    def _factor(self, f: Factor, dtype: torch.dtype) -> Tensor:
        if f.atom.kind == "selection":
            matrix = torch.zeros(len(f.atom.rows), f.atom.columns, dtype=dtype)
            for row, column in enumerate(f.atom.rows):
                if column >= 0:
                    matrix[row, column] = 1
            return matrix
        if f.atom.node is None:
            rows, columns = (math.prod(self.size(i) for i in axis) for axis in f.axes)
            matrix = torch.zeros(rows, columns, dtype=dtype)
            for row, column in itertools.product(range(rows), range(columns)):
                matrix[row, column] = self._constant(f.atom, row, column)
            return matrix
        value = self.values[f.atom.node]
        if f.atom.kind in ("real", "imaginary"):
            return (value.real if f.atom.kind == "real" else value.imag).to(dtype)
        if f.atom.kind == "inverse":
            return torch.linalg.inv(value).to(dtype)
        if f.atom.kind.endswith("position"):
            hot = torch.zeros(*value.shape, f.atom.columns, dtype=dtype)
            for place in itertools.product(*map(range, value.shape)):
                hot[(*place, int(value[place]))] = 1
            return hot
        if f.atom.kind in ("mask", "unmask"):
            return (value if f.atom.kind == "mask" else ~value).to(dtype)
        value = value.to(dtype)
        return 1 / value if f.atom.kind == "reciprocal" else value

    def _constant(self, atom: Atom, row: int, column: int) -> float:
        if atom.kind == "triangle":
            return float(column - row <= atom.rows[0])
        angle = 2 * math.pi * row * column / atom.columns
        twice = atom.rows == (1,) and column > 0 and 2 * column != atom.columns
        return (2 if twice else 1) * (math.cos(angle) if atom.kind == "cosine" else math.sin(angle))
