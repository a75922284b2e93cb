"""The scan at the edges: gates of zero and one, overflow, NaN, and the compiled form beside the torch form."""

from __future__ import annotations

import concurrent.futures
import importlib.util
import itertools
import os

import pytest
import torch
from torch import Tensor

from linrec import ops
from linrec.ops import cpu_scan, cpu_threads, reference, scan

compiled = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba is not installed")


@pytest.fixture(params=[pytest.param("compiled", marks=compiled), "torch"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each form in turn, whatever the size."""
    monkeypatch.setattr(cpu_scan, "_SMALLEST", 0 if request.param == "compiled" else 1 << 60)
    monkeypatch.setattr(cpu_scan, "_PARALLEL", 0)
    return request.param


def drawn(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


def contraction(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    a = drawn(*shape, dtype=dtype)
    return a / (a.abs() + 0.2)


LAYOUTS = [
    ((3, 65, 70), 1),
    ((65, 3, 70), 0),
    ((3, 70, 65), 2),
    ((2, 65, 5, 30), 1),
    ((3, 5, 65, 20), 2),
    ((1, 400), 1),
]


@compiled
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("operand", ["plain", "constant", "row", "column", "transposed"])
@pytest.mark.parametrize(("shape", "dim"), LAYOUTS)
def test_compiled_form_equals_torch_form(
    shape: tuple[int, ...], dim: int, operand: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {"constant": (dim, 1), "row": (0, 1), "column": (-1, 1)}
    a_shape = list(shape)
    if operand in sizes:
        axis, size = sizes[operand]
        a_shape[axis] = size
    a, b, weight = contraction(*a_shape, dtype=dtype), drawn(*shape, dtype=dtype), drawn(*shape, dtype=dtype)
    if operand == "transposed":
        a = a.transpose(0, -1).contiguous().transpose(0, -1)
        weight = weight[:1].expand(shape)
    state = [size for axis, size in enumerate(shape) if axis != dim]
    for reverse, h0 in itertools.product((False, True), (None, drawn(*state, dtype=dtype))):
        results = []
        for smallest in (0, 1 << 60):
            monkeypatch.setattr(cpu_scan, "_SMALLEST", smallest)
            inputs = [x.clone().requires_grad_() for x in (a, b, h0) if x is not None]
            h = ops.linear_scan(*inputs, dim=dim, reverse=reverse)
            loss = (h * weight).abs().sum() if dtype.is_complex else (h * weight).sum()
            results.append((h, *torch.autograd.grad(loss, inputs)))
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-9)


@compiled
def test_the_compiled_form_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object) -> None:
        raise AssertionError("the torch form ran")

    monkeypatch.setattr(scan, "scan_into", unreachable)
    a, b = contraction(2, 40, 64).requires_grad_(), drawn(2, 40, 64).requires_grad_()
    ops.linear_scan(a, b).square().sum().backward()
    torch.testing.assert_close(torch.func.grad(lambda b: ops.linear_scan(a.detach(), b).square().sum())(b), b.grad)


def test_without_numba_the_torch_form_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_scan, "_compile", lambda kernel, dtype: None)
    a, b = contraction(2, 40, 64).requires_grad_(), drawn(2, 40, 64)
    got, want = (torch.autograd.grad(f(a, b).square().sum(), a)[0] for f in (ops.linear_scan, reference.linear_scan))
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gate", [0.0, 1.0, -1.0, 0.5, -1.5, 1e-300, 1e300, 5.0])
def test_any_gate(form: str, gate: float) -> None:
    b = torch.zeros(2, 300, 4, dtype=torch.float64)
    b[:, 298] = drawn(2, 4)
    a = torch.full((2, 300, 4), gate, dtype=torch.float64).requires_grad_()
    h, expected = ops.linear_scan(a, b), reference.linear_scan(a, b)
    torch.testing.assert_close(h, expected, rtol=1e-12, atol=0)
    got, want = (torch.autograd.grad(y[:, 299].sum(), a)[0] for y in (h, expected))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0, equal_nan=True)


def test_gates_that_switch_between_extremes(form: str) -> None:
    gates = torch.tensor([0.0, 1.0, -1.0, 1e-200, 1e30, 0.9], dtype=torch.float64)
    a = gates[torch.randint(6, (2, 300, 16), generator=torch.Generator().manual_seed(0))]
    a[:, ::5] = 0
    b = drawn(2, 300, 16)
    torch.testing.assert_close(ops.linear_scan(a, b), reference.linear_scan(a, b), rtol=1e-12, atol=0)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["a", "b"])
@pytest.mark.parametrize("reverse", [False, True])
def test_what_is_not_finite_stays_where_the_loop_has_it(form: str, poison: float, where: str, reverse: bool) -> None:
    for step in (0, 1, 7, 8, 63, 150, 299):
        a, b = contraction(2, 300, 3), drawn(2, 300, 3)
        (a if where == "a" else b)[1, step, 1] = poison
        h, expected = (f(a, b, reverse=reverse) for f in (ops.linear_scan, reference.linear_scan))
        assert torch.equal(h.isfinite(), expected.isfinite())
        assert torch.equal(h.isnan()[:, step], expected.isnan()[:, step])


def test_only_some_operands_need_a_gradient(form: str) -> None:
    operands = [contraction(2, 40, 3), drawn(2, 40, 3), drawn(2, 3)]
    for needed in itertools.product((False, True), repeat=3):
        if any(needed):
            inputs = [x.clone().requires_grad_(flag) for x, flag in zip(operands, needed, strict=True)]
            wanted = [x for x in inputs if x.requires_grad]
            got = torch.autograd.grad(ops.linear_scan(*inputs).square().sum(), wanted)
            want = torch.autograd.grad(reference.linear_scan(*inputs).square().sum(), wanted)
            for one, other in zip(got, want, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_tracing_records_the_scan_and_not_its_result(form: str) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    a, b = contraction(2, 40, 64), drawn(2, 40, 64)
    traced = make_fx(lambda a, b: ops.linear_scan(a, b))(a, b)
    torch.testing.assert_close(traced(2 * a, b + 1), ops.linear_scan(2 * a, b + 1), rtol=1e-10, atol=1e-9)
    with torch._subclasses.FakeTensorMode() as mode:
        assert ops.linear_scan(mode.from_tensor(a), mode.from_tensor(b)).shape == b.shape
    exported = torch.export.export(Scan(), (a, b), strict=False).module()
    torch.testing.assert_close(exported(a, b + 1), ops.linear_scan(a, b + 1), rtol=1e-10, atol=1e-9)


class Scan(torch.nn.Module):
    """The op as a module, to export it."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return ops.linear_scan(a, b)


def test_several_python_threads(form: str) -> None:
    operands = [(contraction(4, 100 + i, 64), drawn(4, 100 + i, 64)) for i in range(8)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda pair: ops.linear_scan(*pair), operands * 4))
    for h, (a, b) in zip(results, operands * 4, strict=True):
        torch.testing.assert_close(h, reference.linear_scan(a, b), rtol=1e-10, atol=1e-9)


@compiled
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_after_a_fork_one_thread_does_the_work() -> None:
    a, b = contraction(4, 300, 64), drawn(4, 300, 64)
    expected = ops.linear_scan(a, b).sum().item()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        equal = cpu_threads.thread_count() == 1 and cpu_scan_sum(a, b) == pytest.approx(expected, rel=1e-12)
        os.write(writer, b"1" if equal else b"0")
        os._exit(0)
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1"
    finally:
        os.waitpid(child, 0)


def cpu_scan_sum(a: Tensor, b: Tensor) -> float:
    """The sum over the scan's states, without torch's parallel operators, which do not survive a fork."""
    out = torch.empty(b.shape, dtype=b.dtype)
    assert cpu_scan.scan_into(a.movedim(1, 0), b.movedim(1, 0), None, out.movedim(1, 0), False)
    return float(out.numpy().sum())


@pytest.mark.parametrize(
    ("operands", "error"),
    [
        ((torch.ones(2, 5, 3), torch.ones(2, 4, 3)), RuntimeError),
        ((torch.ones(2, 5, 3), torch.ones(2, 5, 3), torch.ones(4)), RuntimeError),
        ((torch.ones(5), torch.ones(5)), IndexError),
    ],
)
def test_bad_shapes(operands: tuple[Tensor, ...], error: type[Exception]) -> None:
    with pytest.raises(error):
        ops.linear_scan(*operands)


def test_integers_and_mixed_dtypes() -> None:
    assert torch.equal(
        ops.linear_scan(torch.ones(1, 3, dtype=torch.long), torch.ones(1, 3)), torch.tensor([[1.0, 2, 3]])
    )
    mixed = ops.linear_scan(torch.ones(1, 3), torch.ones(1, 3, dtype=torch.complex64))
    assert mixed.dtype == torch.complex64
