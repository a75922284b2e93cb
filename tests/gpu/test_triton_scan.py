"""The Triton scan against the plain loop: values and all first derivatives, layouts, precision, what is left to torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import ops
from linrec.ops import reference, triton_launch

LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...], int, tuple[int, ...] | None]] = {
    "batch-first": ((2, 9, 3), (2, 9, 3), 1, (2, 3)),
    "time-first": ((9, 2, 3), (9, 2, 3), 0, None),
    "time-last": ((2, 3, 9), (3, 9), 2, (3,)),
    "one-step": ((2, 1, 3), (2, 1, 3), 1, (2, 3)),
    "constant": ((1, 1, 3), (2, 9, 3), 1, (1, 3)),
    "constant-drive": ((2, 9, 3), (1, 1, 3), 1, None),
    "matrix-state": ((2, 9, 1, 2, 1), (2, 9, 2, 1, 3), 1, (2, 1, 3)),
    "no-state": ((9,), (9,), 0, ()),
}


class Draw:
    """Random tensors on a device, the same in every run."""

    def __init__(self, device: str, dtype: torch.dtype = torch.float64) -> None:
        self.device, self.dtype, self.generator = device, dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return (scale * torch.randn(shape, dtype=wide, generator=self.generator)).to(self.device, self.dtype)


def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that are launched from now on, by name."""
    seen: list[str] = []
    launch = triton_launch.Launch.__call__

    def noted(self: triton_launch.Launch, *tensors: Tensor) -> None:
        seen.append(self.kernel.__name__)
        launch(self, *tensors)

    monkeypatch.setattr(triton_launch.Launch, "__call__", noted)
    return seen


def weighed(h: Tensor, weight: Tensor) -> Tensor:
    return (h * weight).abs().sum() if h.is_complex() else (h * weight).sum()


def compare(inputs: list[Tensor], **options: Any) -> None:
    """Values and derivatives of the op and of the loop."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    results = [f(*leaves, **options) for f in (ops.linear_scan, reference.linear_scan)]
    weight = torch.rand(results[0].shape, dtype=torch.float64).to(results[0].device)
    gradients = [torch.autograd.grad(weighed(h, weight), leaves) for h in results]
    torch.testing.assert_close(*results, rtol=1e-11, atol=1e-11)
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("layout", "dtype", "cut"),
    [
        *((name, torch.float64, "whole") for name in LAYOUTS),
        *((name, torch.float64, "cut") for name in ("batch-first", "time-last", "constant-drive")),
        *(("batch-first", torch.complex128, cut) for cut in ("whole", "cut")),
    ],
    indirect=["cut"],
)
def test_values_and_gradients(
    layout: str, dtype: torch.dtype, device: str, cut: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, launched = Draw(device, dtype), calls(monkeypatch)
    a, b, dim, start = LAYOUTS[layout]
    inputs = [draw(*a, scale=0.7), draw(*b), *([] if start is None else [draw(*start)])]
    for reverse in (False, True):
        compare(inputs, dim=dim, reverse=reverse)
    assert launched.count("backward") == launched.count("forward") == 2
    assert launched.count("summarise") in ((0, 4) if cut == "cut" else (0,))


def test_time_is_cut_where_lanes_are_few(device: str, cut: str, monkeypatch: pytest.MonkeyPatch) -> None:
    grids = []
    original = triton_launch.Grid.of

    def noted(*args: Any) -> Any:
        grids.append(original(*args))
        return grids[-1]

    monkeypatch.setattr(triton_launch.Grid, "of", noted)
    draw = Draw(device)
    ops.linear_scan(draw(1, 21, 2), draw(1, 21, 2))
    assert [g.chunks for g in grids] == ([3] if cut == "cut" else [1])
    assert all(g.chunk % g.steps == 0 for g in grids)


def test_lazy_conjugates_and_negations(device: str, cut: str) -> None:
    draw = Draw(device, torch.complex128)
    a, b, h0 = draw(2, 9, 3, scale=0.7), draw(2, 9, 3), draw(2, 3)
    compare([a.conj(), b.conj(), h0.conj()])
    # Copies of these lie otherwise than they do.
    apart = [
        draw(2, 18, 6, scale=0.7)[:, ::2, ::2].conj(),
        draw(2, 18, 6)[:, ::2, 1::2].conj(),
        draw(2, 6)[:, ::2].conj(),
    ]
    launched = [torch.view_as_real(ops.linear_scan(*apart)), torch.view_as_real(reference.linear_scan(*apart))]
    torch.testing.assert_close(*launched, rtol=1e-11, atol=1e-11)
    real = a.conj().imag  # negated lazily
    assert real.is_neg()
    compare([real, b.conj().imag, h0.imag])


def test_strides_that_do_not_collapse(device: str) -> None:
    """More axes than the kernels take: the operands are copied."""
    draw = Draw(device)
    shape = (2, 5, 2, 2, 2, 2)
    a = draw(*reversed(shape), scale=0.7).permute(5, 4, 3, 2, 1, 0)
    b = draw(2, 5, 2, 1, 2, 1).expand(shape)
    assert (
        triton_launch.Lanes.of((2, 2, 2, 2, 2), [list(a[:, 0].stride()), list(b[:, 0].stride()), [16, 8, 4, 2, 1]])
        is None
    )
    compare([a, b, draw(2, 2, 2, 2, 2)])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3)])
def test_low_precision_is_accumulated_in_float32(
    dtype: torch.dtype, tolerance: float, device: str, cut: str
) -> None:  # fmt: skip
    draw = Draw(device, dtype)
    leaves = [x.requires_grad_() for x in (draw(1, 24, 2, scale=0.5) + 0.5, draw(1, 24, 2), draw(1, 2))]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    results = [ops.linear_scan(*leaves), reference.linear_scan(*wide)]
    assert results[0].dtype == dtype
    gradients = [torch.autograd.grad(h.sum(), x) for h, x in zip(results, (leaves, wide), strict=True)]
    assert all(g.dtype == dtype for g in gradients[0])
    for one, other in zip((results[0], *gradients[0]), (results[1], *gradients[1]), strict=True):
        assert (one.double() - other).abs().max() <= tolerance * other.abs().max()


def test_zero_one_underflow_and_overflow(device: str, cut: str) -> None:
    b = Draw(device)(1, 12, 3)
    for gate in (0.0, 1e-200, -1.0):
        compare([torch.full_like(b, gate), b])
    # Composed transitions overflow, and the state that they multiply is zero.
    a, b = (torch.full((1, 12, 3), x, dtype=torch.float64, device=device) for x in (1e200, 0.0))
    a[:, 8:], b[:, 8:] = 0.5, 1.0
    torch.testing.assert_close(ops.linear_scan(a, b), reference.linear_scan(a, b))


def test_a_nan_reaches_what_it_reaches_in_the_loop(device: str, cut: str) -> None:
    draw = Draw(device)
    for operand in (0, 1):
        inputs = [draw(1, 12, 3, scale=0.7), draw(1, 12, 3)]
        inputs[1][:, :6] = 0  # the state is zero where the NaN meets it
        inputs[operand][0, 5, 1] = float("nan")
        h, expected = ops.linear_scan(*inputs), reference.linear_scan(*inputs)
        assert torch.equal(h.isnan(), expected.isnan()) and h.isnan().any()


def test_only_what_is_wanted_is_computed(device: str) -> None:
    draw = Draw(device)
    a, b, h0 = draw(1, 6, 2, scale=0.5), draw(1, 6, 2), draw(1, 2).requires_grad_()
    got = torch.autograd.grad(ops.linear_scan(a, b, h0).sum(), h0)
    torch.testing.assert_close(got, torch.autograd.grad(reference.linear_scan(a, b, h0).sum(), h0))


def test_what_is_left_to_the_torch_form(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = calls(monkeypatch)
    draw = Draw(device)
    a, b = draw(2, 6, 3, scale=0.5), draw(2, 6, 3)
    torch.func.vmap(ops.linear_scan, in_dims=(2, 2), out_dims=2)(a, b)
    torch.func.jvp(ops.linear_scan, (a, b), (a, b))
    torch.func.grad(lambda x: ops.linear_scan(x, b).sum())(a)
    assert ops.linear_scan(a.to("meta"), b.to("meta")).shape == b.shape
    assert ops.linear_scan(a[:, :0], b[:, :0]).shape == (2, 0, 3)
    assert launched == []
    with pytest.raises(IndexError, match="dim=3"):
        ops.linear_scan(a, b, dim=3)


def test_second_derivatives(device: str) -> None:
    draw = Draw(device)
    inputs = [x.requires_grad_() for x in (draw(1, 5, 2, scale=0.7), draw(1, 5, 2), draw(1, 2))]
    assert torch.autograd.gradgradcheck(ops.linear_scan, inputs, fast_mode=True)
    h = ops.linear_scan(*inputs)
    weights = draw(3, *h.shape)
    together = torch.autograd.grad(h, inputs, weights, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(h, inputs, w, retain_graph=True) for w in weights]
    for one, other in zip(together, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other))
