"""The scan node: one loop over time as a single call in an fx graph. Its step is a graph of ATen operators; run as it
stands it is the sequential loop, which every lowering of it must reproduce."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from linrec.ops.opaque import Opaque, Shape


class Scan(Opaque):
    """A loop over time with carries, per-step inputs (xs), invariants and per-step outputs (ys), as in ``lax.scan``.

    The step graph takes ``(*carries, *xs, *consts)`` and returns ``(*new_carries, *ys)``. Called with the number of
    steps and the same three groups, with every x of shape ``(length, ...)``, the module returns
    ``(*final_carries, *ys)``, every y of shape ``(length, ...)``.

    Args:
        step: the step's graph.
        carries: number of carries.
        xs: number of per-step inputs.
    """

    def __init__(self, step: fx.GraphModule, carries: int, xs: int) -> None:
        super().__init__()
        self.step = step
        self.carries = carries
        self.xs = xs

    def run(self, length: int, carries: Sequence[Any], xs: Sequence[Tensor], consts: Sequence[Any]) -> tuple[Any, ...]:
        """Run the loop one step at a time: ``(*final_carries, *ys)``, every y of shape (length, ...)."""
        rows = [x.unbind(0) for x in xs]
        state = tuple(carries)
        collected: list[list[Tensor]] | None = None
        for t in range(length):
            out = self.step(*state, *(row[t] for row in rows), *consts)
            state, ys = tuple(out[: self.carries]), out[self.carries :]
            if collected is None:
                collected = [[] for _ in ys]
            for column, y in zip(collected, ys, strict=True):
                column.append(y)
        return (*state, *(torch.stack(column) for column in collected or []))

    def shapes(self, length: int, carries: Sequence[Any], xs: Sequence[Tensor], consts: Sequence[Any]) -> list[Shape]:
        """Of `run`."""
        return step_shapes(self.step, self.carries, length, [*carries, *(x[0] for x in xs), *consts])


def step_shapes(step: fx.GraphModule, carries: int, length: int, inputs: Sequence[Any]) -> list[Shape]:
    """Of what a loop returns, from fake inputs of one step."""
    out = step(*inputs)
    return [((*x.shape,) if i < carries else (length, *x.shape), x.dtype) for i, x in enumerate(out)]


def scan_of(graph_module: fx.GraphModule, node: fx.Node) -> Scan:
    """The `Scan` that a ``call_module`` node of `graph_module` runs."""
    module = graph_module.get_submodule(str(node.target))
    if not isinstance(module, Scan):
        raise TypeError(f"{node.target} is not a scan")
    return module


def scan_nodes(graph_module: fx.GraphModule) -> list[fx.Node]:
    """All scan nodes of a graph, in execution order."""
    return [
        n
        for n in graph_module.graph.nodes
        if n.op == "call_module" and isinstance(graph_module.get_submodule(str(n.target)), Scan)
    ]


def fresh_name(graph_module: fx.GraphModule, stem: str) -> str:
    """A submodule name that is not taken."""
    k = 0
    while hasattr(graph_module, f"{stem}_{k}"):
        k += 1
    return f"{stem}_{k}"


def is_random(node: fx.Node) -> bool:
    """Whether an operator draws random numbers."""
    tagged = node.op == "call_function" and torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
    return tagged and not _drops_nothing(node)


def _drops_nothing(node: fx.Node) -> bool:
    """Whether an operator that draws for its dropout only (attention, an LSTM) is asked for none."""
    target: Any = node.target
    given = {a.name: a.default_value for a in target._schema.arguments if a.has_default_value()}
    given.update(zip((a.name for a in target._schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    rates = [given[name] for name in ("dropout", "dropout_p") if name in given]
    return bool(rates) and (rates == [0] or given.get("train") is False)
