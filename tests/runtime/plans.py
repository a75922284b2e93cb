"""Plans made by hand, without tracing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from linrec.capture.discover import TimeAxis
from linrec.capture.source import Source
from linrec.capture.trace import Slot
from linrec.runtime.plan import Plan, TimeDim

LEAF = pytree.tree_structure(0)


def plan(results: Any = None, inputs: int = 1, **changes: Any) -> Plan:
    """A plan for tensors (batch, time, 3) that returns the first; `results` makes others of the graph's placeholders."""
    sources = changes.pop("sources", [Source("input", index=k) for k in range(inputs)])
    graph = fx.Graph()
    made = [graph.placeholder(f"x{k}") for k in range(len(sources))]
    graph.output(tuple(results(graph, *made) if results else made))
    known = {
        "graph_module": fx.GraphModule(nn.Module(), graph),
        "sources": sources,
        "outputs": [("user", k) for k in range(len(made))],
        "out_spec": LEAF,
        "out_leaves": [Slot(0)],
        "attributes": [],
        "axis": TimeAxis(leaf=0, dim=1, dims={k: {1: 0} for k in range(inputs)}, tensor_leaves=(0,), owners=()),
        "shapes": [("b", TimeDim(0), 3)] * inputs,
        "min_length": 4,
        "recurrences": [],
        "state": [None] * len(sources),
    }
    return Plan(**{**known, **changes})


def of(*shape: int) -> Tensor:
    """A tensor; (2, 6, 3) where no shape is given."""
    return torch.randn(*(shape or (2, 6, 3)), dtype=torch.float64)


def raises(error: BaseException) -> Any:
    """Results of a plan that fails when it runs."""

    def results(graph: Any, x: Any) -> Any:
        def fail(x: Tensor) -> Tensor:
            raise error

        return [graph.call_function(fail, (x,))]

    return results
