"""Loops brought through capture: traced at two short lengths, normalised, re-rolled, generalised; and run at others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from linrec.capture.generalize import generalize
from linrec.capture.normalize import normalize
from linrec.capture.reroll import reroll
from linrec.capture.source import Source
from linrec.capture.trace import Trace, trace
from linrec.ir.scan import Scan, scan_nodes, scan_of
from tests.analysis.graphs import BATCH, Fakes, aten

LENGTHS = (4, 6)
"""The lengths traced. Three steps are the fewest in which a loop shows, so some loops need longer ones."""


@dataclass
class Rolled:
    """A function as a graph that serves every length from the shortest traced on."""

    graph_module: fx.GraphModule
    function: Callable[..., Any]
    time: Sequence[int | None]
    shortest: int

    @property
    def scans(self) -> list[Scan]:
        return [scan_of(self.graph_module, n) for n in scan_nodes(self.graph_module)]

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """For each scan, its numbers of carries, per-step inputs and per-step outputs."""
        found = []
        for scan in self.scans:
            output = next(n for n in scan.step.graph.nodes if n.op == "output")
            found.append((scan.carries, scan.xs, len(output.args[0]) - scan.carries))
        return found

    def agrees(self, tensors: Sequence[Tensor]) -> None:
        """Hold the graph against the function, at lengths that were not traced."""
        for length in (self.shortest, self.shortest + 3, self.shortest + 10):
            inputs = sized(tensors, self.time, length)
            torch.manual_seed(length)
            expected = pytree.tree_leaves(self.function(*inputs))
            torch.manual_seed(length)
            got = self.graph_module(*inputs)
            for a, b in zip(expected, got, strict=True):
                torch.testing.assert_close(b, a, rtol=1e-12, atol=1e-12)


def sized(tensors: Sequence[Tensor], time: Sequence[int | None], length: int) -> list[Tensor]:
    """The tensors at another length, with other values where they grow."""
    out = []
    for x, dim in zip(tensors, time, strict=True):
        if dim is None:
            out.append(x)
        else:
            shape = [*x.shape]
            shape[dim] = length
            fresh = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(length))
            out.append(fresh.to(x.dtype) if x.dtype != torch.bool else fresh > 0)
    return out


def unrolled(function: Callable[..., Any], tensors: Sequence[Tensor], time: Sequence[int | None], length: int) -> Trace:
    """One trace of a function of tensors, as the tracer of modules would give it; normalised."""
    fakes = Fakes()
    inputs = [fakes(x) for x in sized(tensors, time, length)]
    structure: dict[str, Any] = {}

    def flat(*args: Tensor) -> tuple[Any, ...]:
        leaves, structure["spec"] = pytree.tree_flatten(function(*args))
        return tuple(leaves)

    named = getattr(function, "__name__", "") == "forward"
    graph_module = make_fx(flat, tracing_mode="real", pre_dispatch=True, record_stack_traces=named)(*inputs)
    normalize(graph_module)
    sources = [Source("input", index=i) for i in range(len(tensors))]
    outputs: list[tuple[str, Any]] = [("user", i) for i in range(structure["spec"].num_leaves)]
    return Trace(graph_module, sources, outputs, structure["spec"], [], [], length)


def _length_node(t: Trace, time: Sequence[int | None]) -> fx.Node:
    holders = [n for n in t.graph_module.graph.nodes if n.op == "placeholder"]
    at = next(i for i, dim in enumerate(time) if dim is not None)
    with t.graph_module.graph.inserting_after(holders[-1]):
        node = t.graph_module.graph.call_function(aten.sym_size.int, (holders[at], time[at]))
    node.meta["val"] = t.length
    return node


def finish(pair: tuple[Trace, Trace], time: Sequence[int | None]) -> tuple[int, fx.GraphModule]:
    """Re-roll and generalise two traces; the number of loops found and the graph."""
    shorter, longer = pair
    loops = reroll(shorter.graph_module, longer.graph_module, [longer.length - shorter.length])
    nodes = [_length_node(t, time) for t in pair]
    return loops, generalize(shorter, longer, nodes[1])


def roll(
    function: Callable[..., Any],
    *tensors: Tensor,
    time: Sequence[int | None] = (1,),
    lengths: tuple[int, int] = LENGTHS,
) -> Rolled:
    """A function of tensors as a rolled graph that agrees with it. `time`: for each tensor, its dimension that grows."""
    time = [*time, *[None] * (len(tensors) - len(time))]
    shorter, longer = (unrolled(function, tensors, time, n) for n in lengths)
    loops, graph_module = finish((shorter, longer), time)
    rolled = Rolled(graph_module, function, time, lengths[0])
    assert loops == len(rolled.scans)
    rolled.agrees(tensors)
    return rolled


def export(module: nn.Module, *tensors: Tensor, length: int, dim: int = 1) -> Trace:
    """One trace of a module by `torch.export`, with a symbolic batch and the tensors cut to a length."""
    cut = [x.narrow(dim, 0, length).clone() if x.dim() > dim else x for x in tensors]
    leaves, spec = pytree.tree_flatten((tuple(cut), {}))
    batch = [{0: torch.export.Dim.AUTO} if x.shape[0] == BATCH else None for x in cut]
    found = trace(module, module.forward, spec, leaves, batch)
    found.length = length
    return found
