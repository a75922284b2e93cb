"""Sums of products of several tensors, pair by pair in an order that is found once for each equation and shapes: to
look for it at every call takes longer than small contractions do."""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor

Step = tuple[int, int, str]


def contract(equation: str, *operands: Tensor) -> Tensor:
    """``torch.einsum(equation, *operands)``, for an equation of letters with ``->`` and without ellipses."""
    shapes = tuple(tuple(x.shape) for x in operands)
    if len(operands) < 3 or not all(type(size) is int for shape in shapes for size in shape):
        return torch.einsum(equation, *operands)
    left = list(operands)
    for i, j, pair in _steps(equation, shapes):
        second, first = left.pop(j), left.pop(i)
        left.append(torch.einsum(pair, first, second))
    return left[0]


@functools.lru_cache(maxsize=1024)
def _steps(equation: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[Step, ...]:
    """(position, later position, equation) of each pair; the result goes to the end. The cheapest pair comes first."""
    inputs, _, output = equation.partition("->")
    terms = inputs.split(",")
    sizes: dict[str, int] = {}
    for term, shape in zip(terms, shapes, strict=True):
        for letter, size in zip(term, shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    found: list[Step] = []
    while len(terms) > 1:
        # Of two that cost the same, the one with the smaller result.
        ranked = []
        for i, j in itertools.combinations(range(len(terms)), 2):
            others = "".join(t for k, t in enumerate(terms) if k not in (i, j)) + output
            both = dict.fromkeys(terms[i] + terms[j])
            kept = "".join(c for c in both if c in others) if len(terms) > 2 else output
            cost = (math.prod(sizes[c] for c in both), math.prod(sizes[c] for c in kept))
            ranked.append((cost, i, j, kept))
        _, i, j, kept = min(ranked)
        found.append((i, j, f"{terms[i]},{terms[j]}->{kept}"))
        terms = [t for k, t in enumerate(terms) if k not in (i, j)] + [kept]
    return tuple(found)
