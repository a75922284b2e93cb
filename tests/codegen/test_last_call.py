"""Calls like the one before take the way that it took; whatever else may be otherwise about them is seen."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from linrec.codegen import CompiledScan, torch_forms
from linrec.ir.scan import Scan
from tests.analysis.graphs import BATCH, traced

from .harness import build, call, draw, leaves
from .test_scan import NAMED, counted


class Through(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Seeing(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Own(Tensor):
    pass


@contextlib.contextmanager
def switched_off() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LINREC_CODEGEN", "off")
        yield


OTHERWISE: dict[str, Any] = {
    "off": switched_off,
    "torch forms": torch_forms,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "dispatch mode": Seeing,
    "dual level": torch.autograd.forward_ad.dual_level,
}


@pytest.mark.parametrize("how", OTHERWISE)
def test_calls_like_the_last_one_where_something_watches(how: str) -> None:
    fast, counting = counted(NAMED["gate"])
    inputs = leaves(draw(NAMED["gate"], 6))
    expected = call(fast, 6, inputs)
    for k in range(1, 3):
        with OTHERWISE[how]():
            call(fast, 6, inputs)
        assert counting.calls == k
        for a, b in zip(call(fast, 6, inputs), expected, strict=True):
            torch.testing.assert_close(a, b)
        assert counting.calls == k


def test_calls_like_the_last_one_but_for_a_transform() -> None:
    fast, counting = counted(NAMED["gate"])
    inputs = draw(NAMED["gate"], 6)
    call(fast, 6, inputs)
    torch.func.vmap(lambda *x: call(fast, 6, x))(*[torch.stack([x, x]) for x in inputs])
    torch.func.grad(lambda x: call(fast, 6, [x, *inputs[1:]])[-1].sum())(inputs[0])
    assert counting.calls == 2
    call(fast, 6, [x.as_subclass(Own) for x in inputs])
    assert counting.calls == 3
    with Through():
        call(fast, 6, inputs)
    call(fast, 6, inputs)
    assert counting.calls == 3 and fast.reason is None


def test_calls_like_the_last_one_but_for_their_tensors() -> None:
    case = NAMED["gate"]
    fast, loop = build(case)
    for dtype in (torch.float64, torch.float32, torch.float64):
        for length, batch in ((6, 2), (6, 3), (7, 3)):
            inputs = [x.to(dtype) for x in draw(case, length, batch)]
            strided = [torch.empty(*x.shape, 2, dtype=dtype)[..., 0].copy_(x) for x in inputs]
            for given in (inputs, leaves(inputs), strided, leaves(strided), inputs):
                results, expected = call(fast, length, given), call(loop, length, given)
                for a, b in zip(results, expected, strict=True):
                    torch.testing.assert_close(a, b)
                    assert a.requires_grad == b.requires_grad
    x = draw(case, 6)[1]
    twice = [draw(case, 6)[0], *[x] * (len(draw(case, 6)) - 1)]
    for given in (draw(case, 6), twice, draw(case, 6), twice):
        for a, b in zip(call(fast, 6, given), call(loop, 6, given), strict=True):
            torch.testing.assert_close(a, b)


def test_calls_like_the_last_one_but_for_a_number() -> None:
    graph = traced(lambda h, x: (h * x.shape[0] + x,), torch.zeros(BATCH, 3), torch.zeros(BATCH, 3))
    fast, loop = CompiledScan(graph, 1, 1, Scan(graph, 1, 1)), Scan(graph, 1, 1)
    h, x = torch.randn(BATCH, 3), torch.randn(5, BATCH, 3)
    for n in (2, 3, 3, 2, 2.0, True, 1):
        for a, b in zip(fast(5, [h], [x], [n]), loop(5, [h], [x], [n]), strict=True):
            torch.testing.assert_close(a, b)


def test_gradients_like_the_last_ones() -> None:
    case = NAMED["gate"]
    fast, loop = build(case)
    inputs = leaves(draw(case, 6))

    def grads(scan: Any, weights: Any, create: bool = False) -> Any:
        results = call(scan, 6, inputs)
        return torch.autograd.grad(results[-1], inputs, weights(results[-1]), create_graph=create, allow_unused=True)

    def same(weights: Any, create: bool = False) -> None:
        for a, b in zip(grads(fast, weights, create), grads(loop, weights, create), strict=True):
            torch.testing.assert_close(a, b)

    def expanded(y: Tensor) -> Tensor:
        return y.new_ones(()).expand_as(y)

    for weights in (torch.ones_like, torch.ones_like, expanded, torch.zeros_like, torch.ones_like):
        same(weights)
    same(torch.ones_like, create=True)
    same(torch.ones_like)
    with switched_off():
        same(torch.ones_like)
    many = torch.stack([torch.ones_like(call(fast, 6, inputs)[-1]) * k for k in range(2)])
    for scan in (fast, loop):
        y = call(scan, 6, inputs)[-1]
        got = torch.autograd.grad(y, inputs[1], many, is_grads_batched=True)[0]
        torch.testing.assert_close(got[1], grads(loop, torch.ones_like)[1])
