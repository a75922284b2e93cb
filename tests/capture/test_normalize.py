"""The canonical form of an unrolled trace: stores and the reads that follow, growing lists, views, sizes, dead code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from linrec.capture.normalize import normalize
from tests.analysis.graphs import BATCH as B
from tests.analysis.graphs import traced

from .rolled import export, finish

X = torch.randn(B, 6, 3, dtype=torch.float64)


def names(graph: fx.Graph) -> list[str]:
    """The operators of a graph, in order, sizes left out."""
    found = [getattr(n.target, "__name__", str(n.target)) for n in graph.nodes if n.op == "call_function"]
    return [n.split(".")[0] for n in found if not n.startswith("sym_size")]


def form(function: Callable[..., Any], *tensors: Tensor) -> list[str]:
    """The operators of a normalised function, whose values are checked."""
    tensors = tensors or (X,)
    graph_module = traced(function, *tensors)
    holders = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
    sizes = [n.meta["size"] for n in holders if "size" in n.meta]
    at = {n: t for n, t in zip(holders, tensors, strict=False)}
    found = graph_module(*tensors, *(at[of].shape[dim] for of, dim in sizes))
    expected = function(*tensors)
    for a, b in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        torch.testing.assert_close(a, b)
    return names(graph_module.graph)


def test_reads_by_index_are_selects() -> None:
    assert form(lambda x: x.unbind(1)[2]) == ["select"]
    assert form(lambda x: x[:, -1]) == ["select"]
    assert form(lambda x: x.split(1, 1)[2]) == ["slice"]
    assert form(lambda x: x.chunk(3, 1)[1]) == ["slice"]
    assert form(lambda x: x.split([1, 2, 3], 1)[2]) == ["slice"]
    assert form(lambda x: x.narrow(1, 2, 3)) == ["slice"]
    assert form(lambda x: x[:, 2:5]) == ["slice"]


def test_negative_indices_are_counted_from_the_front() -> None:
    graph = traced(lambda x: (x[:, -1], x[:, -4:-2]), X).graph
    reads = [n.args[1:] for n in graph.nodes if n.op == "call_function"]
    assert reads == [(1, 5), (1, 2, 4)]


def test_every_use_has_its_own_read() -> None:
    graph = traced(lambda x: [torch.tanh(x[:, 0]), *(f(y) for y in [x[:, 0]] for f in (torch.sin, torch.cos))], X).graph
    assert names(graph) == ["select", "tanh", "select", "sin", "select", "cos"]


def test_what_changes_nothing_is_gone() -> None:
    assert form(lambda x: (x * 2).clone().contiguous().view(x.shape[0], 6, 3) + 1) == ["mul", "add"]
    assert form(lambda x: (x * 2).to(torch.float64).expand(-1, 6, 3) + 1) == ["mul", "add"]
    assert form(lambda x: (x * 2)[:, 0:6][:, :] + 1) == ["mul", "add"]
    assert form(lambda x: (torch.tanh(x), x * 3)[1]) == ["mul"]


def test_views_are_reshapes() -> None:
    assert form(lambda x: (x * 2).view(-1, 18)) == ["mul", "reshape"]
    assert form(lambda x: (x.transpose(1, 2) * 2).flatten(1)) == ["transpose", "mul", "flatten"]


def test_aliases_have_one_name() -> None:
    assert form(lambda x: torch.concat([x.multiply(2), x.subtract(1)], 1)) == ["mul", "sub", "cat"]
    assert form(lambda x: x.swapaxes(1, 2).negative().true_divide(2).absolute()) == ["transpose", "neg", "div", "abs"]
    assert form(lambda x: torch.ger(x[0, 0], x[0, 1])) == ["select", "select", "select", "select", "outer"]


def test_an_ellipsis_is_written_out() -> None:
    graph = traced(lambda x: (torch.einsum("...i,...i->...", x, x), torch.einsum("b...,b...", x, x)), X).graph
    equations = [n.args[0] for n in graph.nodes if n.op == "call_function"]
    assert equations == ["abi,abi->ab", "bac,bac->ac"]


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_a_cat_of_unsqueezed_values_is_a_stack(dim: int) -> None:
    assert form(lambda x: torch.cat([x[:, 0].unsqueeze(dim), x[:, 1].unsqueeze(dim)], dim)) == [
        "select",
        "select",
        "stack",
    ]


def test_a_cat_that_grows_is_one() -> None:
    def grow(x: Tensor) -> Tensor:
        out = x.new_zeros(x.shape[0], 0, 3)
        for t in range(4):
            out = torch.cat([out, torch.tanh(x[:, t]).unsqueeze(1)], 1)
        return out

    assert form(grow) == ["select", "tanh"] * 4 + ["stack"]


def test_a_cat_along_another_dimension_stays_apart() -> None:
    assert form(lambda x: torch.cat([torch.cat([x, x], 1), torch.cat([x, x], 1)], 2)).count("cat") == 3


def test_reading_a_list_that_was_stacked() -> None:
    assert form(lambda x: torch.stack([x[:, 0] * 2, x[:, 1] * 3], 1)[:, 1]) == ["select", "mul"]
    assert form(lambda x: torch.cat([x * 2, x * 3], 1)[:, 7]) == ["mul", "select"]


class Store(nn.Module):
    """Writes into a buffer step by step, and reads what it wrote."""

    def __init__(self, body: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x, torch.zeros_like(x))


def stored(body: Callable[[Tensor, Tensor], Tensor], dim: int = 1) -> list[str]:
    module = Store(body)
    t = export(module, X, length=6)
    normalize(t.graph_module)
    (found,) = t.graph_module(X)
    torch.testing.assert_close(found, module(X))
    return names(t.graph_module.graph)


def filled(x: Tensor, out: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        out[:, t] = torch.tanh(x[:, t])
    return out


def filled_and_read(x: Tensor, out: Tensor) -> Tensor:
    out[:, 0] = x[:, 0]
    for t in range(1, x.shape[1]):
        out[:, t] = 0.5 * out[:, t - 1] + x[:, t]
    return out


def filled_by_slices(x: Tensor, out: Tensor) -> Tensor:
    for t in range(x.shape[1]):
        out[:, t : t + 1] = torch.tanh(x[:, t : t + 1])
    return out


def filled_in_part(x: Tensor, out: Tensor) -> Tensor:
    for t in range(2, 5):
        out[:, t] = torch.tanh(x[:, t])
    return out


def overwritten(x: Tensor, out: Tensor) -> Tensor:
    out[:, 1] = x[:, 2]
    out[:, 1] = torch.tanh(x[:, 0])
    return out[:, 1] * 2


def read_where_nothing_was_written(x: Tensor, out: Tensor) -> Tensor:
    out[:, 1] = x[:, 2]
    return out[:, 3] + out[:, -5]


def added_in_place(x: Tensor, out: Tensor) -> Tensor:
    for t in range(3):
        out[:, 1] += torch.tanh(x[:, t])
    return out[:, 1]


def test_a_buffer_that_is_filled_is_a_stack() -> None:
    assert stored(filled) == ["select", "tanh"] * 6 + ["stack"]


def test_what_is_read_after_a_store_is_what_was_stored() -> None:
    found = stored(filled_and_read)
    assert not {"select_scatter", "slice_scatter", "zeros_like"} & set(found)
    assert found.count("mul") == found.count("add") == 5


def test_a_buffer_filled_by_slices() -> None:
    assert not {"select_scatter", "slice_scatter"} & set(stored(filled_by_slices))


def test_a_buffer_filled_in_part_keeps_its_ends() -> None:
    found = stored(filled_in_part)
    assert not {"select_scatter", "slice_scatter"} & set(found)
    assert found[-1] == "cat"


def test_an_overwritten_store_is_gone() -> None:
    assert stored(overwritten) == ["select", "tanh", "mul"]


def test_a_read_beside_the_store_reads_what_was_there() -> None:
    assert "select_scatter" not in stored(read_where_nothing_was_written)


def test_adding_in_place() -> None:
    assert not {"select_scatter", "slice_scatter"} & set(stored(added_in_place))


def test_a_filled_buffer_is_rolled() -> None:
    module = Store(filled_and_read)
    pair = export(module, X, length=4), export(module, X, length=6)
    for t in pair:
        normalize(t.graph_module)
    loops, graph_module = finish(pair, [1])
    assert loops == 1
    longer = torch.randn(3, 11, 3, dtype=torch.float64)
    torch.testing.assert_close(graph_module(longer)[0], module(longer))


def test_sizes_are_computed_first_and_once() -> None:
    graph_module = traced(
        lambda x, y: (x.new_zeros(x.shape[0], 2), y.new_zeros(y.shape[0] * 2), x.new_ones(y.shape[0])), X, X.clone()
    )
    kinds = [n.op for n in graph_module.graph.nodes]
    assert kinds.index("call_function") == kinds.count("placeholder")
    sizes = [n for n in graph_module.graph.nodes if "size" in n.meta]
    assert len(sizes) == 1
