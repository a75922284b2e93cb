"""Conditions on the sizes of a call that tracing relied on."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor

from linrec.capture.trace import Trace
from linrec.ir.nodes import value


def guards_of(t: Trace) -> list[Any]:
    """Conditions on the symbolic sizes that tracing assumed, as functions of {symbol: size}."""
    env = None
    for node in t.graph_module.graph.nodes:
        val = value(node)
        if isinstance(val, Tensor):
            sizes: Any = val.shape
            for size in sizes:
                if isinstance(size, torch.SymInt):
                    env = size.node.shape_env
        if env is not None:
            break
    if env is None:
        return []
    found = []
    for guard in env.guards:
        expr = guard.expr
        if isinstance(expr, sympy.Basic) and expr.free_symbols:
            found.append(_Guard(expr))
    return found


class _Guard:
    """A sympy condition on the symbolic sizes; evaluated once for each combination of sizes."""

    def __init__(self, condition: Any) -> None:
        self.condition = condition
        self.names = sorted(str(s) for s in condition.free_symbols)
        self._known: dict[tuple[int, ...], bool] = {}

    def __call__(self, symbols: dict[str, int]) -> bool:
        if any(name not in symbols for name in self.names):
            return True
        sizes = tuple(symbols[name] for name in self.names)
        if sizes not in self._known:
            bound = {s: symbols[str(s)] for s in self.condition.free_symbols}
            self._known[sizes] = bool(self.condition.xreplace(bound))
        return self._known[sizes]
