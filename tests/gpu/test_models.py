"""Whole models on a GPU: the gallery, and what people do with a model there. Nothing of it runs without one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import linrec
from models.registry import SAMPLES, Sample
from tests.models.test_parallel import verdict

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


class Gated(nn.Module):
    """A gated memory that makes its state without saying where, as notebooks do after `torch.set_default_device`."""

    def __init__(self, width: int = 8, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.start(x), []
        for t in range(x.shape[1]):
            a = torch.sigmoid(self.gate(x[:, t]))
            h = a * h + (1 - a) * x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    def start(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x[:, 0])


class Unplaced(Gated):
    def start(self, x: Tensor) -> Tensor:
        return torch.zeros(x.shape[0], x.shape[2], dtype=x.dtype)


@pytest.fixture
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def outcome(module: nn.Module, inputs: list[Tensor]) -> list[Tensor]:
    """Results and gradients."""
    given = [x.clone().requires_grad_(x.is_floating_point()) for x in inputs]
    results = [y for y in tree_leaves(module(*given)) if isinstance(y, Tensor)]
    generator = torch.Generator("cpu").manual_seed(2)
    loss: Any = 0.0
    for y in results:
        if y.is_floating_point() or y.is_complex():
            weight = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu").to(y.device)
            loss = loss + ((torch.view_as_real(y) ** 2).sum(-1) * weight if y.is_complex() else y * weight).sum()
    sources = [x for x in given if x.requires_grad] + list(module.parameters())
    gradients = torch.autograd.grad(loss, sources, allow_unused=True)
    return results + [torch.zeros_like(s) if g is None else g for g, s in zip(gradients, sources, strict=True)]


def agree(model: nn.Module, oracle: nn.Module, inputs: list[Tensor], tolerance: float = 1e-8) -> None:
    for a, b in zip(outcome(model, inputs), outcome(oracle, inputs), strict=True):
        scale = max(1e-6, b.detach().abs().max().item()) if b.numel() else 1.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * scale)


def pair(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    model = model.cuda()
    return linrec.parallelize(model), linrec.revert(copy.deepcopy(model))


def given(batch: int, length: int, width: int = 8, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator("cpu").manual_seed(batch * 1000 + length)
    return torch.randn(batch, length, width, generator=generator, dtype=torch.float64, device="cpu").to("cuda", dtype)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_gallery(sample: Sample, double_precision: None) -> None:
    model, oracle = linrec.parallelize(sample.factory().cuda()), sample.factory().cuda()
    for batch, length in ((2, 12), (3, 65), (1, 3)):
        agree(model, oracle, [x.cuda() for x in sample.inputs(batch, length, torch.float64)])
    report = linrec.report(model)
    assert verdict(report) == sample.expect, str(report)


def test_default_device() -> None:
    torch.set_default_device("cuda")
    try:
        model, oracle = pair(Unplaced())
        for batch, length in ((2, 9), (3, 700), (2, 4)):
            agree(model, oracle, [given(batch, length)])
        assert all(r.parallel for r in linrec.report(model).recurrences)
    finally:
        torch.set_default_device(None)


def test_a_model_on_the_cpu_under_a_default_device() -> None:
    torch.manual_seed(0)
    model = Gated()
    oracle = copy.deepcopy(model)
    linrec.parallelize(model)
    for batch, length in ((2, 9), (3, 300)):
        x = given(batch, length).cpu()
        with torch.device("cuda"):
            actual = outcome(model, [x])
        torch.testing.assert_close(actual, outcome(oracle, [x]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_own_precision(dtype: torch.dtype) -> None:
    model, oracle = pair(Gated(64, dtype))
    tolerance = {torch.bfloat16: 2e-2, torch.float16: 4e-3, torch.float32: 2e-5}[dtype]
    for length in (32, 3000):
        exact = copy.deepcopy(oracle).double()
        x = given(2, length, 64, dtype)
        for a, b in zip(outcome(model, [x]), outcome(exact, [x.double()]), strict=True):
            assert (a.double() - b).norm() <= tolerance * b.norm()


def test_autocast() -> None:
    model, oracle = pair(Gated(64, torch.float32))
    x = given(2, 100, 64, torch.float32)
    with torch.autocast("cuda", torch.bfloat16):
        a, b = outcome(model, [x]), outcome(oracle, [x])
    assert [y.dtype for y in a] == [y.dtype for y in b]
    for one, other in zip(a, b, strict=True):
        assert (one.double() - other.double()).norm() <= 2e-2 * other.double().norm()
    assert all(r.parallel for r in linrec.report(model).recurrences)


def test_moved_there_and_back() -> None:
    model = Gated()
    oracle = copy.deepcopy(model)
    linrec.parallelize(model)
    for device in ("cpu", "cuda", "cpu", "cuda"):
        model.to(device)
        oracle.to(device)
        for length in (9, 40):
            agree(model, oracle, [given(2, length).to(device)])


def test_on_a_stream_of_its_own() -> None:
    model, oracle = pair(Gated())
    x = given(2, 50)
    model(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        agree(model, oracle, [x])
    torch.cuda.current_stream().wait_stream(stream)


def test_recorded_in_a_cuda_graph() -> None:
    """Forward and backward pass of a plan that is there can be recorded and replayed."""
    model, oracle = pair(Gated(8, torch.float32))
    x = given(2, 600, 8, torch.float32).requires_grad_()
    parameters = list(model.parameters())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            torch.autograd.grad(model(x).square().sum(), [x, *parameters])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = model(x)
        found = torch.autograd.grad(y.square().sum(), [x, *parameters])
    with torch.no_grad():
        x.copy_(torch.randn_like(x))
    graph.replay()
    z = oracle(x)
    expected = torch.autograd.grad(z.square().sum(), [x, *oracle.parameters()])
    for one, other in zip((y, *found), (z, *expected), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.detach().abs().max().item())


def test_function_transforms_and_second_derivatives() -> None:
    model, oracle = pair(Gated())
    x = given(2, 20)
    model(x)

    def loss(module: nn.Module, x: Tensor) -> Tensor:
        return module(x).square().sum()

    for f in (lambda m: torch.func.grad(lambda v: loss(m, v))(x), lambda m: torch.func.vmap(m)(x[None])):
        torch.testing.assert_close(f(model), f(oracle))
    twice = []
    for m in (model, oracle):
        v = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(loss(m, v), v, create_graph=True)
        twice.append(torch.autograd.grad(g.square().sum(), v)[0])
    torch.testing.assert_close(*twice)


def test_many_lanes_and_steps() -> None:
    """More elements than 32 bits count."""
    if torch.cuda.mem_get_info()[0] < 60e9:
        pytest.skip("needs 60 GB")
    from linrec import ops

    a = torch.full((1, 1, 1), 0.5, device="cuda", dtype=torch.bfloat16)
    b = torch.ones(1 << 13, 1 << 12, 80, device="cuda", dtype=torch.bfloat16).requires_grad_()
    assert b.numel() > 1 << 31
    y = ops.linear_scan(a.expand(b.shape), b)
    (g,) = torch.autograd.grad(y, b, torch.ones_like(y))
    for x, edge in ((y, 0), (g, -1)):
        assert x[:, 40].unique().tolist() == [2.0]
        assert x[:, edge].unique().tolist() == [1.0]
