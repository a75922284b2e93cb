"""The Triton scan with a readout against the plain loop, and that no more than one state in a tile is kept."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from linrec import ops
from linrec.ops import reference, triton_launch, triton_readout

Shape = tuple[int, ...]

LAYOUTS: dict[str, tuple[Shape, Shape, Shape, Shape | None, int]] = {
    "mamba": ((2, 9, 3, 4), (2, 9, 3, 4), (2, 9, 1, 4), (2, 3, 4), 1),
    "own-readouts": ((2, 9, 3, 3), (2, 9, 1, 3), (2, 9, 3, 3), None, 1),
    "no-rows": ((9, 3), (9, 3), (9, 3), (3,), 0),
    "time-inside": ((2, 3, 6, 2, 3), (3, 6, 2, 3), (6, 1, 3), (2, 3), 2),
    "rows-then-time": ((2, 3, 6, 2), (2, 3, 6, 2), (6, 2), None, 2),
    "constant-readout": ((2, 5, 3), (2, 5, 3), (3,), (2, 3), 1),
}


def drawn(*shape: int, dtype: torch.dtype = torch.float64, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(
    ("layout", "dtype", "cut"),
    [
        *((x, torch.float64, cut) for x in LAYOUTS for cut in ("whole", "cut")),
        ("own-readouts", torch.complex128, "whole"),
        ("own-readouts", torch.complex128, "cut"),
    ],
    indirect=["cut"],
)
def test_values_and_gradients(
    layout: str, dtype: torch.dtype, cut: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_launch, "READ", triton_launch.Tile(2, 8, 1))
    monkeypatch.setattr(triton_launch, "SHORTEST", 2 if cut == "cut" else 1 << 30)
    monkeypatch.setattr(triton_launch, "programs_wanted", lambda device: 64)
    *shapes, start, dim = LAYOUTS[layout]
    inputs = [drawn(*s, dtype=dtype, scale=0.7) for s in (*shapes, *([] if start is None else [start]))]
    inputs = [x.to(device).requires_grad_() for x in inputs]
    for reverse in (False, True) if layout == "mamba" else (True,):
        got, want = (f(*inputs, dim=dim, reverse=reverse) for f in (ops.scan_readout, reference.scan_readout))
        weights = [drawn(*x.shape, dtype=dtype).to(device) for x in want]
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
        for used in ((0, 1), (0,)) if layout == "mamba" else ((0, 1),):
            gradients = []
            for results in (got, want):
                terms = [results[i] * weights[i] for i in used]
                loss = sum(x.abs().sum() if dtype.is_complex else x.sum() for x in terms)
                gradients.append(torch.autograd.grad(loss, inputs, retain_graph=True))
            for one, other in zip(*gradients, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_lazy_conjugates_and_copies(device: str) -> None:
    a, b, c = (drawn(1, 5, 2, 2, dtype=torch.complex128, scale=0.7).to(device) for i in range(3))
    for one, two in itertools.product((a, a.conj()), (b, b.conj())):
        torch.testing.assert_close(ops.scan_readout(one, two, c.conj()), reference.scan_readout(one, two, c.conj()))
    # Copies of these lie otherwise than they do.
    apart = [x.repeat_interleave(2, 1).repeat_interleave(2, 3)[:, ::2, :, 1::2].conj() for x in (a, b, c)]
    torch.testing.assert_close(ops.scan_readout(*apart), reference.scan_readout(*apart))
    shape = (2, 2, 5, 2, 2, 2, 2)
    scattered = drawn(*reversed(shape), scale=0.7).to(device).permute(6, 5, 4, 3, 2, 1, 0)
    row = drawn(2, 1, 5, 2, 1, 2, 2).to(device)
    got, want = (f(scattered, row, row, dim=2) for f in (ops.scan_readout, reference.scan_readout))
    torch.testing.assert_close(got, want)


def test_half_precision(device: str) -> None:
    shapes = (1, 24, 2, 2), (1, 24, 2, 2), (1, 24, 1, 2)
    leaves = [(drawn(*s, scale=0.3) + 0.5).to(device, torch.bfloat16).requires_grad_() for s in shapes]
    wide = [x.detach().double().requires_grad_() for x in leaves]
    (y, _), (expected, _) = ops.scan_readout(*leaves), reference.scan_readout(*wide)
    assert y.dtype == torch.bfloat16
    gradients = [torch.autograd.grad(x.sum(), own) for x, own in ((y, leaves), (expected, wide))]
    for one, other in zip((y, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert (one.double() - other).abs().max() <= 1e-2 * other.abs().max()


def test_one_state_in_a_tile_is_kept(device: str) -> None:
    a, b, c = (drawn(1, 12, 2, 2, scale=0.5).to(device).requires_grad_() for i in range(3))
    y, _ = triton_readout.scan_readout(a, b, c)
    saved = y.grad_fn.saved_tensors  # type: ignore[union-attr]
    own = {x.untyped_storage().data_ptr() for x in (a, b, c)}
    kept = [x for x in saved if x is not None and x.untyped_storage().data_ptr() not in own]
    assert [x.shape for x in kept] == [(12 // triton_launch.READ.steps, 1, 2, 2)]


def test_second_derivatives_and_function_transforms(device: str) -> None:
    a, b, c = (drawn(1, 3, 1, 2, scale=0.5).to(device).requires_grad_() for i in range(3))
    assert torch.autograd.gradgradcheck(ops.scan_readout, (a, b, c), fast_mode=True)
    batched = torch.stack((a, 2 * a)).detach()
    got = torch.func.vmap(lambda x: ops.scan_readout(x, b, c)[0])(batched)
    torch.testing.assert_close(got[1], ops.scan_readout(2 * a, b, c)[0])
    with pytest.raises(ValueError, match="read out"):
        ops.scan_readout(a, b, c, dim=3)
