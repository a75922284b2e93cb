"""Shapes that are worked out once in a trace, and the leaves of what operators are called with."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils import _pytree as pytree

from linrec.capture.arguments import leaves_of
from linrec.capture.fakes import remembered_shapes, thrift

aten = torch.ops.aten
Pair = namedtuple("Pair", "a b")

VALUES: list[Any] = [
    (),
    [1, 2.0, None, "x", True, 1j],
    (torch.ones(2), [nn.Parameter(torch.ones(1)), slice(1, 2)], {"b": 1, "a": (2, 3)}),
    {"x": torch.Size([1, 2]), "y": torch.float32},
    (Pair(1, [2]), OrderedDict(b=1, a=2)),
    torch.max(torch.ones(2, 2), 0),
    ((), None),
    ([[1], [[2]]], object),
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
def test_leaves(value: Any) -> None:
    found, expected = leaves_of(value), pytree.tree_leaves(value)
    assert len(found) == len(expected)
    assert all(a is b or a == b for a, b in zip(found, expected, strict=True))


def test_leaves_of_several() -> None:
    assert leaves_of((1, 2), {"a": 3}) == [1, 2, 3]
    assert leaves_of((1,), None) == [1, None]


def shapes(run: Any) -> list[Any]:
    """What the operators of a run return on fake tensors with a symbolic size, twice each."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    found = []
    with mode:
        for sizes in ((5, 3), (5, 3), (3,), (1, 3), (7, 3)):
            x = mode.from_tensor(torch.ones(sizes))
            out = run(x)
            found.append((tuple(out.shape), out.stride(), out.dtype, out.device, out.requires_grad, out.is_conj()))
    return found


RUNS: dict[str, Any] = {
    "product": lambda x: x * x,
    "number": lambda x: x + 1,
    "other number": lambda x: x + 1.5,
    "flag": lambda x: x + True,
    "wider": lambda x: x + torch.ones(4, 1, 1),
    "transposed": lambda x: x.mT @ x if x.dim() > 1 else x.dot(x),
    "strides": lambda x: x.t() * 2 if x.dim() > 1 else x * 2,
    "sum": lambda x: x.sum(-1, keepdim=True),
    "dims": lambda x: x.sum((0,)),
    "cast": lambda x: aten._to_copy.default(x, dtype=torch.float64),
    "list": lambda x: torch.cat([x, x]),
    "longer list": lambda x: torch.cat([x, x, x]),
    "compared": lambda x: x > 0,
    "complex": lambda x: torch.complex(x, x).conj(),
    "view": lambda x: x.view(-1),
    "same": lambda x: aten.dropout.default(x, 0.5, False),
    "by name": lambda x: aten.sum.dim_IntList(x, [0], keepdim=True),
    "made": lambda x: torch.zeros_like(x),
}


@pytest.mark.parametrize("name", RUNS)
def test_remembered_shapes_are_the_shapes(name: str) -> None:
    expected = shapes(RUNS[name])
    with remembered_shapes():
        assert shapes(RUNS[name]) == expected


def test_a_remembered_result_is_a_tensor_of_its_own() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with remembered_shapes(), mode:
        x = mode.from_tensor(torch.ones(5, 3))
        first, second = x * x, x * x
        assert type(second) is FakeTensor
        assert second.fake_mode is mode
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        kept = aten.dropout.default(x, 0.5, False), aten.dropout.default(x, 0.5, False)
    assert kept[0] is x
    assert kept[1] is x


def test_lists_and_numbers_are_told_apart() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with remembered_shapes(), mode:
        x = mode.from_tensor(torch.ones(5, 3))
        integers = mode.from_tensor(torch.ones(5, 3, dtype=torch.int64))
        assert (integers + 1).dtype is torch.int64
        assert (integers + 1.0).dtype is torch.float32
        assert (integers + True).dtype is torch.int64
        assert torch.stack([x, x]).shape == (2, 5, 3)
        assert torch.stack([x, x], 1).shape == (5, 2, 3)
        assert torch.full([2, 3], 1).shape == (2, 3)
        assert torch.full([23], 1).shape == (23,)
        assert torch.full([2], 3).shape == (2,)


def test_everything_is_put_back() -> None:
    from torch.fx.experimental import proxy_tensor

    before = FakeTensorMode._dispatch_impl, proxy_tensor._extract_tensor_metadata
    with pytest.raises(RuntimeError), thrift():
        assert FakeTensorMode._dispatch_impl is not before[0]
        raise RuntimeError
    assert (FakeTensorMode._dispatch_impl, proxy_tensor._extract_tensor_metadata) == before
