"""Equations of einsum."""

from __future__ import annotations

from typing import Any

from torch import fx

from linrec.ir.nodes import shape_of, value


def without_ellipsis(node: fx.Node) -> str:
    """The equation of an einsum with explicit letters for what the ellipsis covers."""
    equation = str(node.args[0]).replace(" ", "")
    if "..." not in equation:
        return equation
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    spare = [c for c in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in equation]
    ranks = [value(x).dim() - len(s.replace("...", "")) for x, s in zip(node.args[1], inputs, strict=True)]
    covered = "".join(spare[: max(r for r, s in zip(ranks, inputs, strict=True) if "..." in s)])
    full = [s.replace("...", covered[len(covered) - r :] if r else "") for r, s in zip(ranks, inputs, strict=True)]
    if not arrow:
        letters = [c for c in left if c.isalpha()]
        right = "..." + "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    sizes: dict[str, set[Any]] = {}
    for x, s in zip(node.args[1], full, strict=True):
        for c, size in zip(s, shape_of(x), strict=True):
            sizes.setdefault(c, set()).add(size)
    if any(len(found) > 1 for found in sizes.values()):
        return equation
    return ",".join(full) + "->" + right.replace("...", covered)
