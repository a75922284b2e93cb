"""Which states the pass for flags takes for numbers. What comes of it is in `tests/runtime/test_flags.py`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from linrec.ir.nodes import value
from linrec.ir.scan import scan_nodes
from linrec.passes import Booleans
from linrec.passes.rewrite import ScanView
from tests.capture.rolled import roll

X = torch.randn(2, 9, 4, dtype=torch.float64)
Step = Callable[[Tensor, Tensor], Tensor]


def loop(step: Step) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        h, s, out, flags = torch.zeros_like(x[:, 0]), x[:, 0] > 0.5, [], []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            s = step(s, x[:, t])
            out.append(h)
            flags.append(s)
        return torch.stack(out, 1), torch.stack(flags, 1)

    return run


@pytest.mark.parametrize(
    ("step", "numbers"),
    [
        (lambda s, x: s | (x > 0), 2),
        (lambda s, x: ~s, 2),
        (lambda s, x: (s.double() + x) > 0.3, 2),
        (lambda s, x: s.roll(1, -1) | (x > 0), 1),
        (lambda s, x: s.cumsum(-1) > 1, 1),
        (lambda s, x: s.any(-1, keepdim=True) ^ (x > 0), 1),
    ],
)
def test_flags_become_numbers(step: Step, numbers: int) -> None:
    graph_module = roll(loop(step), X).graph_module
    result = Booleans().run(graph_module)
    assert result.modified == (numbers == 2)
    graph_module.recompile()
    (node,) = scan_nodes(graph_module)
    dtypes = [value(c).dtype for c in ScanView.of(graph_module, node).carries]
    assert sorted(map(str, dtypes)) == sorted(["torch.float64", "torch.float32" if numbers == 2 else "torch.bool"])
    for length in (5, 17):
        x = torch.randn(3, length, 4, dtype=torch.float64)
        for ours, theirs in zip(graph_module(x), loop(step)(x), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_nothing_else_is_touched() -> None:
    def run(x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    graph_module = roll(run, X).graph_module
    before = str(graph_module.graph)
    assert not Booleans().run(graph_module).modified
    assert str(graph_module.graph) == before


def test_flags_that_depend_on_each_other_are_left_alone() -> None:
    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        a, b, out, other = x[:, 0] > 0, x[:, 0] > 1, [], []
        for t in range(x.shape[1]):
            a, b = b ^ (x[:, t] > 0), a | (x[:, t] > 1)
            out.append(a)
            other.append(b)
        return torch.stack(out, 1), torch.stack(other, 1)

    graph_module = roll(run, X).graph_module
    assert len(scan_nodes(graph_module)) == 1 and not Booleans().run(graph_module).modified
