"""`CompiledScan` as a module: which gradients it computes, layouts of its inputs, second derivatives, where the torch form
runs instead, threads and forks."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from linrec.codegen import CompiledScan, launch, supported
from linrec.codegen import scan as scan_module
from linrec.ir.scan import Scan
from tests.analysis.graphs import BATCH, traced
from tests.lowering.recurrences import Case

from .harness import build, call, check, compare, draw, gradients, leaves
from .steps import ALL

NAMED = {c.name: c for c in ALL}
SOME = [
    NAMED[n]
    for n in ("mamba", "gated_delta_rule", "gru", "wide", "complex_readout", "shared_by_lanes", "gate", "retention")
]


class Counting(nn.Module):
    """A fallback that counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls = inner, 0

    def forward(self, *args: Any) -> Any:
        self.calls += 1
        return self.inner(*args)


def counted(case: Case) -> tuple[CompiledScan, Counting]:
    fast, loop = build(case)
    fast.fallback = counting = Counting(loop)
    return fast, counting


@pytest.mark.parametrize("case", SOME, ids=repr)
def test_only_wanted_gradients(case: Case) -> None:
    fast, loop = build(case)
    inputs = draw(case, 11)
    moving = [i for i, x in enumerate(inputs) if x.is_floating_point() or x.is_complex()]
    for chosen in ([i] for i in moving):
        mine = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(inputs)]
        theirs = [x.detach().requires_grad_(i in chosen) for i, x in enumerate(inputs)]
        got, expected = (gradients(call(s, 11, own), own) for s, own in ((fast, mine), (loop, theirs)))
        for a, b in zip(got, expected, strict=True):
            zero = torch.zeros_like(inputs[chosen[0]])
            torch.testing.assert_close(zero if a is None else a, zero if b is None else b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", SOME, ids=repr)
def test_only_some_results_are_used(case: Case) -> None:
    fast, loop = build(case)
    inputs = draw(case, 11)
    for used in range(len(call(loop, 11, inputs))):
        found = []
        for scan in (fast, loop):
            own = leaves(inputs)
            found.append(gradients([call(scan, 11, own)[used]], own))
        for a, b in zip(*found, strict=True):
            assert a is not None or b is None or not b.any()
            if a is not None:
                torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-9, atol=1e-9)


def spread(x: Tensor, how: str) -> Tensor:
    """The same tensor, differently in memory."""
    if how == "time last":
        return x.movedim(0, -1).contiguous().movedim(-1, 0)
    if how == "batch first" and x.dim() > 1:
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if how == "every other":
        wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
        wide[..., ::2] = x
        return wide[..., ::2]
    if how == "expanded":
        return x[:1].expand(x.shape)
    return x


@pytest.mark.parametrize("how", ["time last", "batch first", "every other", "expanded"])
@pytest.mark.parametrize("case", SOME, ids=repr)
def test_layouts(case: Case, how: str) -> None:
    fast, loop = build(case)
    inputs = [spread(x, how) if x.dim() else x for x in draw(case, 13)]
    check(case, fast, loop, inputs)


def test_results_lie_as_the_inputs() -> None:
    fast, _ = build(NAMED["gate"])
    inputs = [spread(x, "batch first") if i else x for i, x in enumerate(draw(NAMED["gate"], 13))]
    with torch.no_grad():
        assert call(fast, 13, inputs)[1].transpose(0, 1).is_contiguous()
        assert call(fast, 13, draw(NAMED["gate"], 13))[1].is_contiguous()


@pytest.mark.parametrize("case", SOME, ids=repr)
def test_second_derivatives(case: Case) -> None:
    fast, _ = build(case)
    inputs = leaves(draw(case, 3, batch=2))
    assert torch.autograd.gradgradcheck(lambda *own: call(fast, 3, own), inputs)


def test_an_input_computed_from_another() -> None:
    fast, loop = build(NAMED["gate"])
    found = []
    for scan in (fast, loop):
        h, a, x = leaves(draw(NAMED["gate"], 7))
        (first,) = torch.autograd.grad(call(scan, 7, [h, a, a * x])[1].square().sum(), a, create_graph=True)
        found.append(torch.autograd.grad(first.square().sum(), (a, x, h)))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_results_written_into() -> None:
    """Unlike for the loop's results, whose derivative does not read them, the kernel's does: it notices."""
    fast, loop = build(NAMED["gate"])
    found = []
    for scan in (fast, loop):
        own = leaves(draw(NAMED["gate"], 7))
        y = call(scan, 7, own)[1]
        y.mul_(2).add_(1)
        found.append(torch.autograd.grad(y.square().sum(), own))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


def test_inputs_written_into() -> None:
    fast, _ = build(NAMED["gate"])
    own = leaves(draw(NAMED["gate"], 7))
    gate = own[1] * 1
    y = call(fast, 7, [own[0], gate, own[2]])[1]
    gate.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_twice_the_same_tensor() -> None:
    fast, loop = build(NAMED["gate"])
    for scan in (fast, loop):
        h, a, _ = leaves(draw(NAMED["gate"], 7))
        call(scan, 7, [h, a, a])[1].sum().backward()
        scan.found = a.grad  # type: ignore[assignment]
    torch.testing.assert_close(fast.found, loop.found)


def test_a_masked_nan_stays_where_it_is() -> None:
    def step(h: Tensor, m: Tensor, x: Tensor) -> Any:
        h = torch.where(m, torch.sqrt(x) + h, 0.5 * h)
        return h, h

    m = torch.rand(9, BATCH, 3) < 0.5
    x = torch.where(m, torch.rand(9, BATCH, 3), -1.0).double()
    graph = traced(step, torch.zeros(BATCH, 3).double(), m[0], x[0])
    found = []
    for scan in (CompiledScan(graph, 1, 2, Scan(graph, 1, 2)), Scan(graph, 1, 2)):
        own = x.clone().requires_grad_()
        y = call(scan, 9, [torch.zeros(BATCH, 3).double(), m, own])[1]
        assert not y.isnan().any()
        found.append(torch.autograd.grad(y.sum(), own)[0])
    torch.testing.assert_close(*found, equal_nan=True)


@pytest.mark.parametrize("value", [float("inf"), float("nan"), -float("inf")])
@pytest.mark.parametrize("name", ["mamba", "wide", "softmax", "extrema", "masks"])
def test_not_numbers_go_where_the_loop_has_them(name: str, value: float) -> None:
    case = NAMED[name]
    fast, loop = build(case)
    inputs = draw(case, 9)
    inputs[-1 if inputs[-1].is_floating_point() else 2][4] = value
    with torch.no_grad():
        for a, b in zip(call(fast, 9, inputs), call(loop, 9, inputs), strict=True):
            torch.testing.assert_close(a, b, equal_nan=True)


def test_the_torch_form_runs_elsewhere() -> None:
    case = NAMED["gate"]
    fast, counting = counted(case)
    h, a, x = draw(case, 6)
    call(fast, 6, [h, a, x])
    assert counting.calls == 0

    def run(*own: Tensor) -> Tensor:
        return call(fast, 6, list(own))[1]

    expected = run(h, a, x)
    stack = torch.stack([h, h])
    torch.testing.assert_close(torch.func.vmap(lambda own: run(own, a, x))(stack)[0], expected)
    assert counting.calls == 1
    tangent = torch.func.jvp(lambda own: run(h, a, own), (x,), (torch.ones_like(x),))[1]
    assert counting.calls == 2 and tangent.shape == x.shape
    gradient = torch.func.grad(lambda own: run(h, a, own).sum())(x)
    assert counting.calls == 3 and gradient.shape == x.shape
    with torch.autograd.forward_ad.dual_level():
        run(h, a, torch.autograd.forward_ad.make_dual(x, torch.ones_like(x)))
    assert counting.calls == 4
    with torch.autocast("cpu", dtype=torch.bfloat16):
        run(h, a, x)
    assert counting.calls == 5
    meta = [t.to("meta") for t in (h, a, x)]
    assert run(*meta).device.type == "meta"
    assert counting.calls == 6
    assert call(fast, 0, [h, a[:0], x[:0]])[0] is h
    assert counting.calls == 7
    batched = torch.autograd.grad(
        run(h, a, x.requires_grad_()), x, torch.ones(2, *x.shape, dtype=x.dtype), is_grads_batched=True
    )
    assert counting.calls == 8 and batched[0].shape == (2, *x.shape)


def test_no_kernel_is_made_for_another_device() -> None:
    step = traced(lambda h, x: (0.5 * h + x,), torch.randn(3), torch.randn(3))
    assert supported(step, 1, 1) is None
    for node in step.graph.nodes:
        if node.op == "placeholder":
            with FakeTensorMode():
                node.meta["val"] = torch.empty(3, device="cuda")
    assert supported(step, 1, 1) == "a tensor is on a device of type cuda"


def test_inputs_keep_their_dtype_under_a_mode() -> None:
    class Doubling(TorchFunctionMode):
        """Creates float64 where float32 is asked for, as the comparison in double precision does."""

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            kwargs = dict(kwargs or {})
            if kwargs.get("dtype") is torch.float32:
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    fast, loop = build(NAMED["wide"])
    *rest, weight = draw(NAMED["wide"], 9)
    inputs = [*rest, weight.float()]
    expected = call(loop, 9, inputs)
    with Doubling():
        got = call(fast, 9, inputs)
    assert fast.reason is None
    compare(NAMED["wide"], got, expected, expected, 1e-9)


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, counting = counted(NAMED["gate"])
    monkeypatch.setenv("LINREC_CODEGEN", "off")
    call(fast, 6, draw(NAMED["gate"], 6))
    assert counting.calls == 1


def test_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, counting = counted(NAMED["gate"])
    monkeypatch.setenv("LINREC_CODEGEN", "background")
    inputs = leaves(draw(NAMED["gate"], 6))
    first = call(fast, 6, inputs)
    for thread in threading.enumerate():
        if thread.name == "linrec-codegen":
            thread.join()
    assert counting.calls == 1
    for a, b in zip(first, call(fast, 6, inputs), strict=True):
        torch.testing.assert_close(a, b)
    assert counting.calls == 1


def test_a_step_without_a_rule() -> None:
    def step(h: Tensor, x: Tensor) -> Any:
        return torch.cumsum(h, -1) * 0.1 + x, h

    graph = traced(step, torch.zeros(BATCH, 3), torch.zeros(BATCH, 3))
    assert "cumsum" in str(supported(graph, 1, 1))
    fast = CompiledScan(graph, 1, 1, Scan(graph, 1, 1))
    call(fast, 4, [torch.zeros(BATCH, 3), torch.zeros(4, BATCH, 3)])
    assert "cumsum" in str(fast.reason)


def test_more_shapes_than_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "_MOST", 1)
    fast, counting = counted(NAMED["gate"])
    for batch in (2, 3, 2):
        call(fast, 6, draw(NAMED["gate"], 6, batch))
    assert counting.calls == 1 and "shapes" in str(fast.reason)


def test_copies_and_pickles() -> None:
    case = NAMED["gate"]
    fast, _ = build(case)
    inputs = draw(case, 6)
    expected = call(fast, 6, inputs)
    twin = copy.copy(fast)
    twin.__dict__ = fast.__getstate__()
    assert not twin._kernels and fast._kernels
    for a, b in zip(call(twin, 6, inputs), expected, strict=True):
        torch.testing.assert_close(a, b)
    assert pickle.dumps(fast.__getstate__()["_kernels"])


def test_no_gradient_wanted() -> None:
    fast, _ = build(NAMED["wide"])
    assert not any(y.requires_grad for y in call(fast, 6, draw(NAMED["wide"], 6)))
    own = leaves(draw(NAMED["counters"], 6))
    compiled, loop = build(NAMED["counters"])
    wanted = [y.requires_grad for y in call(loop, 6, own)]
    assert [y.requires_grad for y in call(compiled, 6, own)] == wanted and not all(wanted)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("name", ["mamba", "gru", "gated_delta_rule", "wide", "shared_by_lanes"])
def test_on_several_cores(name: str, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PARALLEL", 0)
    monkeypatch.setattr(launch.cpu_threads, "thread_count", lambda: threads)
    fast, loop = build(NAMED[name])
    check(NAMED[name], fast, loop, draw(NAMED[name], 12, batch=7))


def test_called_by_four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PARALLEL", 0)
    monkeypatch.setattr(launch.cpu_threads, "thread_count", lambda: 2)
    fast, loop = build(NAMED["mamba"])
    failures: list[BaseException] = []

    inputs = draw(NAMED["mamba"], 12)
    expected = [x.clone() for x in call(loop, 12, inputs)]
    own = leaves(inputs)
    wanted = gradients(call(loop, 12, own), own)

    def work() -> None:
        try:
            for _ in range(5):
                mine = leaves(inputs)
                results = call(fast, 12, mine)
                moving = [r for r in results if r.requires_grad]
                compare(NAMED["mamba"], results, expected, expected, 1e-9)
                torch.autograd.grad(moving, mine, [torch.ones_like(r) for r in moving])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
    own = leaves(inputs)
    compare(NAMED["mamba"], gradients(call(fast, 12, own), own), wanted, own, 1e-9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_after_a_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PARALLEL", 0)
    fast, loop = build(NAMED["wide"])
    inputs = draw(NAMED["wide"], 12)
    expected = [x.clone() for x in call(loop, 12, inputs)]
    call(fast, 12, inputs)
    child = os.fork()
    if child == 0:
        same = all(torch.allclose(a, b) for a, b in zip(call(fast, 12, inputs), expected, strict=True))
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_same_result_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_PARALLEL", 0)
    monkeypatch.setattr(launch.cpu_threads, "thread_count", lambda: 2)
    fast, _ = build(NAMED["mamba"])
    inputs = draw(NAMED["mamba"], 33, batch=9)
    first, *others = (gradients(call(fast, 33, own), own) for own in (leaves(inputs) for _ in range(5)))
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_parameters_as_constants() -> None:
    def step(h: Tensor, x: Tensor, w: Tensor) -> Any:
        h = torch.tanh(F.linear(h, w) + x)
        return h, h

    w = nn.Parameter(torch.randn(3, 3))
    graph = traced(step, torch.zeros(BATCH, 3), torch.zeros(BATCH, 3), w.detach())
    fast = CompiledScan(graph, 1, 1, Scan(graph, 1, 1))
    call(fast, 4, [torch.zeros(BATCH, 3), torch.randn(4, BATCH, 3), w])[1].sum().backward()
    assert fast.reason is None and w.grad is not None


def test_logsumexp_of_what_is_as_good_as_zero() -> None:
    def step(h: Tensor, x: Tensor) -> Any:
        before = F.pad(h[:, :-1], (1, 0), value=-1e30)
        h = torch.logsumexp(torch.stack([h, before]), 0) + x
        return h, h

    start = torch.full((BATCH, 4), -1e30, dtype=torch.float64)
    start[:, 0] = 0.5
    x = torch.randn(6, BATCH, 4, dtype=torch.float64)
    graph = traced(step, start, x[0])
    fast, loop = CompiledScan(graph, 1, 1, Scan(graph, 1, 1)), Scan(graph, 1, 1)
    weights, found = torch.randn(6, BATCH, 4, dtype=torch.float64), []
    for scan in (fast, loop):
        own = leaves([start, x])
        y = call(scan, 6, own)[-1]
        found.append([y, *torch.autograd.grad((y * weights).sum(), own)])
    assert fast.reason is None
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
