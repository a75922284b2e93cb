"""Chains of views become shorter, and stay the same views."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from linrec.passes.views import merge_views

aten = torch.ops.aten


@st.composite
def chains(draw: st.DrawFn) -> tuple[list[int], list[tuple[Any, Any]]]:
    """A shape, and views that fit it one after the other."""
    first = draw(st.lists(st.sampled_from((1, 1, 2, 3)), min_size=1, max_size=4))
    shape, found = list(first), []
    for _ in range(draw(st.integers(2, 6))):
        kind = draw(st.sampled_from(("unsqueeze", "permute", "squeeze", "select", "transpose", "reverse")))
        if kind == "unsqueeze" and len(shape) < 7:
            d = draw(st.integers(-len(shape) - 1, len(shape)))
            found.append((aten.unsqueeze.default, (d,)))
            shape.insert(d % (len(shape) + 1), 1)
        elif kind == "permute":
            order = draw(st.permutations(range(len(shape))))
            found.append((aten.permute.default, (order,)))
            shape = [shape[d] for d in order]
        elif kind in ("squeeze", "select") and 1 in shape:
            d = draw(st.sampled_from([k for k, size in enumerate(shape) if size == 1]))
            found.append((aten.squeeze.dims, ([d],)) if kind == "squeeze" else (aten.select.int, (d, 0)))
            del shape[d]
        elif kind == "transpose" and shape:
            a, b = draw(st.sampled_from(range(len(shape)))), draw(st.sampled_from(range(len(shape))))
            found.append((aten.transpose.int, (a, b - len(shape))))
            shape[a], shape[b] = shape[b], shape[a]
        elif kind == "reverse":
            found.append((aten.numpy_T.default, ()))
            shape.reverse()
    return first, found


def graph_of(shape: list[int], views: list[tuple[Any, Any]], read: bool) -> fx.GraphModule:
    def function(x: Tensor) -> Tensor:
        for target, args in views:
            x = target(x, *args)
        return x + 1 if read else x

    return make_fx(function, tracing_mode="fake")(torch.zeros(shape))


@pytest.mark.parametrize("read", [True, False])
@settings(max_examples=150, deadline=None)
@given(chains())
def test_views_of_views(read: bool, drawn: tuple[list[int], list[tuple[Any, Any]]]) -> None:
    shape, views = drawn
    graph_module, other = graph_of(shape, views, read), graph_of(shape, views, read)
    merge_views(graph_module.graph)
    graph_module.graph.lint()
    graph_module.recompile()
    assert len(graph_module.graph.nodes) <= len(other.graph.nodes)
    x = torch.randn(shape)
    assert torch.equal(graph_module(x), other(x))
    if not read and views:
        assert graph_module(x) is not x  # a result that is a view stays one


def calls(shape: list[int], views: list[tuple[Any, Any]]) -> list[str]:
    graph_module = graph_of(shape, views, True)
    merge_views(graph_module.graph)
    return [str(n.target) for n in graph_module.graph.nodes if n.op == "call_function"][:-1]


def test_what_is_left() -> None:
    transposed = [(aten.numpy_T.default, ()), (aten.unsqueeze.default, (0,)), (aten.permute.default, ([0, 2, 1],))]
    assert calls([2, 3], [*transposed, (aten.select.int, (0, 0))]) == []
    assert calls([2, 3], transposed) == ["aten.unsqueeze.default"]
    assert calls([4, 1], [(aten.numpy_T.default, ()), (aten.unsqueeze.default, (2,))]) == ["aten.unsqueeze.default"]
    assert calls([2, 3], [(aten.squeeze.dims, ([0],)), (aten.numpy_T.default, ())]) == [
        "aten.squeeze.dims",  # which takes nothing away here, and whose size another call may make 1
        "aten.permute.default",
    ]


def test_views_that_are_read_elsewhere_stay() -> None:
    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = aten.permute(aten.unsqueeze(x, 0), [2, 0, 1])
        return y.sum(0), aten.unsqueeze(y, 0) + 1

    x = torch.randn(2, 3)
    graph_module = make_fx(function, tracing_mode="fake")(x)
    before = len(graph_module.graph.nodes)
    merge_views(graph_module.graph)
    graph_module.recompile()
    assert len(graph_module.graph.nodes) <= before
    for ours, wanted in zip(graph_module(x), function(x), strict=True):
        assert torch.equal(ours, wanted)
