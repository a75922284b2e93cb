"""Every lowering against the loop that it replaces, on every recurrence to which it applies: all states and what is
read of them, only the last state, and gradients; at lengths around its chunk sizes and batch sizes that were not
traced.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from linrec.ir.recurrence import Recurrence
from linrec.ir.scan import scan_nodes, scan_of
from linrec.lowering import LOWERINGS, registry
from linrec.passes import Lower
from linrec.passes.simplify import merge_equal
from tests.analysis.graphs import BATCH, scan_graph

from . import readouts
from .recurrences import CASES, FFT, SCAN, SUM, Case

NAMES = [x.name for x in LOWERINGS]
FEWER = {readouts.ATTENTION, readouts.FOLDED, readouts.READ}
"""These solve what they are said to and nothing else."""
LENGTHS = (1, 3, 16, 17, 52)


def draw(c: Case, length: int, batch: int = BATCH, seed: int = 0) -> list[Tensor]:
    torch.manual_seed(seed)
    states = [s.draw(batch=batch) for s in c.states]
    return [*states, *(x.draw(length, batch=batch) for x in c.xs), *(w.draw(batch=batch) for w in c.consts)]


def build(c: Case, only_last: bool = False) -> fx.GraphModule:
    """The recurrence as a graph with one scan."""
    tensors = draw(c, 6)
    at = len(c.states)

    def step(*args: Any) -> Any:
        out = c.step(*args)
        return out[:at] if only_last else out

    graph = scan_graph(step, tensors[:at], tensors[at : at + len(c.xs)], tensors[at + len(c.xs) :])
    for node in scan_nodes(graph):
        merge_equal(scan_of(graph, node).step.graph)
        scan_of(graph, node).step.recompile()
    return graph


def lowered(graph: fx.GraphModule, name: str, patch: pytest.MonkeyPatch) -> tuple[fx.GraphModule, Recurrence]:
    """The graph with its loop replaced by this algorithm, where it applies."""
    patch.setattr(registry, "LOWERINGS", [x for x in LOWERINGS if x.name == name])
    # The fake tensors of a graph's values cannot be copied; the loop is rewritten in a copy that shares them.
    twin = fx.GraphModule(copy.copy(graph), copy_of(graph.graph))
    result = Lower().run(twin)
    twin.graph.lint()
    twin.recompile()
    (entry,) = result.recurrences
    return twin, entry


def copy_of(graph: fx.Graph) -> fx.Graph:
    new = fx.Graph()
    new.output(new.graph_copy(graph, {}))
    return new


@pytest.mark.parametrize("c", CASES, ids=repr)
def test_solved_as_by_the_loop(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, solved = build(c), []
    for name in NAMES:
        fast, entry = lowered(loop, name, monkeypatch)
        if not entry.parallel:
            assert [o.id for o in entry.obstructions] == ["LR006"]
            continue
        assert entry.lowering == name
        solved.append(name)
        for length in LENGTHS:
            compare(loop, fast, draw(c, length, 2 + length % 3, seed=length), f"{name} at length {length}")
        gradients(loop, fast, draw(c, 21), name)
    assert set(c.by) <= set(solved), f"solved by {sorted(set(solved))}"
    assert not ({SUM, SCAN} | FEWER) & (set(solved) - set(c.by))


@pytest.mark.parametrize(
    "c", [c for c in CASES if FFT in c.by or c.name in ("gate", "sum", "two lags", "delta rule")], ids=repr
)
def test_only_the_last_state(c: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build(c, only_last=True)
    for name in set(c.by) - FEWER:
        fast, entry = lowered(loop, name, monkeypatch)
        assert entry.lowering == name
        for length in (1, 2, 40):
            compare(loop, fast, draw(c, length, 2, seed=length), f"{name} at length {length}")
        gradients(loop, fast, draw(c, 21), name)


def compare(loop: fx.GraphModule, fast: fx.GraphModule, inputs: list[Tensor], what: str) -> None:
    for k, (got, expected) in enumerate(zip(fast(*inputs), loop(*inputs), strict=True)):
        message = lambda text, k=k: f"{what}, result {k}: {text}"  # noqa: E731
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=message)


def gradients(loop: fx.GraphModule, fast: fx.GraphModule, inputs: list[Tensor], what: str) -> None:
    leaves = [x.requires_grad_() for x in inputs if x.is_floating_point() or x.is_complex()]
    found = []
    for graph in (loop, fast):
        torch.manual_seed(1)
        outputs = [x for x in graph(*inputs) if x.requires_grad]
        weights = [torch.randn(x.shape, dtype=x.dtype) for x in outputs]
        found.append(torch.autograd.grad(outputs, leaves, weights, allow_unused=True) if outputs else ())
    for k, (expected, got) in enumerate(zip(*found, strict=True)):
        zero = torch.zeros_like(leaves[k])
        message = lambda text, k=k: f"{what}, gradient {k}: {text}"  # noqa: E731
        expected, got = (zero if g is None else g for g in (expected, got))
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9, msg=message)


def test_every_lowering_solves_some_case() -> None:
    assert set(NAMES) - {name for c in CASES for name in c.by} == set()
