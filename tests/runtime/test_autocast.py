"""Mixed precision: under autocast a model is parallel with the dtypes of the original, and as near to the truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from models.mamba import MambaBlock

from .samples import Nested, assert_parallel, build, counted_exports, small_lmu

WIDTH = 3


class GatedRNN(nn.Module):
    """The README's."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.gate, self.inner = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            z = torch.sigmoid(self.gate(x[:, t]))
            h = (1 - z) * h + z * self.inner(x[:, t])
            out.append(h)
        return torch.stack(out, dim=1)


class Two(nn.Module):
    """A matrix on the state, which autocast multiplies in low precision, and a memory of what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(0.4 * torch.randn(WIDTH, WIDTH)), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m, n, ys = x.new_zeros(x.shape[0], WIDTH), x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            m, n = m @ self.A + self.B(x[:, t]) + 0.1 * n, 0.5 * n + m
            ys.append(n)
        return torch.stack(ys, 1), m


class Mixed(nn.Module):
    """An affine memory that a recurrence reads which has to stay one."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.recurrent = nn.Linear(WIDTH, WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        m, h, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            m = torch.sigmoid(self.gate(x[:, t])) * m + x[:, t]
            h = torch.tanh(self.recurrent(torch.cat([h, m], -1)))
            ys.append(h)
        return torch.stack(ys, 1)


class Einsum(GatedRNN):
    """Products whose operands come in two precisions, which only autocast allows; and a buffer for the results."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), torch.empty_like(x)
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.gate(x[:, t])) * h + x[:, t]
            out[:, t] = torch.einsum("bd,bde->be", h, torch.einsum("bd,be->bde", self.inner(x[:, t]), x[:, t]))
        return out


class Region(GatedRNN):
    """Chooses its precision itself: half for the loop, whatever holds outside; single for what follows."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = super().forward(x)
        with torch.autocast("cpu", enabled=False):
            return y.float() @ self.gate.weight.float()


MODELS: dict[str, Callable[[], nn.Module]] = {
    "gated": GatedRNN,
    "lmu": small_lmu,
    "mamba": lambda: MambaBlock(WIDTH, d_state=4),
    "einsum": Einsum,
    "two": Two,
    "mixed": Mixed,
    "region": Region,
}


def series(batch: int, length: int) -> Tensor:
    return torch.randn(batch, length, WIDTH, generator=torch.Generator().manual_seed(length))


def under(model: nn.Module, x: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    """Results and gradients of one step of training under autocast to a dtype, or without."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        out = model(x)
    found = list(out) if isinstance(out, tuple) else [out]
    total = sum((y.double() * torch.linspace(-1, 1, y.numel(), dtype=torch.float64).view_as(y)).sum() for y in found)
    wanted = [x, *model.parameters()]
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    return [*(y.detach() for y in found), *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads))]


def no_worse(model: nn.Module, factory: Callable[[], nn.Module], x: Tensor, dtype: torch.dtype | None) -> None:
    """The original's dtypes, and at most twice its distance from the truth, beyond two roundings (where the loop is in
    luck, the sum of a gradient shows it)."""
    loop = under(build(factory, torch.float32), x, dtype)
    truth = under(build(factory), x.double(), None)
    for ours, theirs, exact in zip(under(model, x, dtype), loop, truth, strict=True):
        assert ours.dtype == theirs.dtype
        own, other = ((y.double() - exact).abs().max() for y in (ours, theirs))
        slack = 2 * torch.finfo(dtype).eps if dtype else 1e-6
        assert own <= 2 * other + slack * exact.abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_no_worse_than_the_loop(name: str) -> None:
    """From the first call on, which compiles, and at other sizes."""
    factory = MODELS[name]
    model = linrec.parallelize(build(factory, torch.float32))
    for batch, length in ((2, 12), (3, 90), (1, 3)):
        no_worse(model, factory, series(batch, length), torch.bfloat16)
    report = linrec.report(model)
    kinds = [each.parallel for each in report.recurrences if each.states]
    assert kinds == ([True, False] if name == "mixed" else [True] * max(len(kinds), 1)), str(report)
    assert not report.obstructions


def test_each_precision_has_its_plan() -> None:
    """In, out and in again, in two precisions, each with the original's dtypes and compiled once."""
    model = linrec.parallelize(build(small_lmu, torch.float32))
    x = series(2, 14)
    for dtype in (torch.bfloat16, None, torch.float16):
        no_worse(model, small_lmu, x, dtype)
    plans = []
    with counted_exports() as exports:
        for dtype in (None, torch.bfloat16, torch.float16, torch.bfloat16, None):
            no_worse(model, small_lmu, x, dtype)
            plans.append(linrec.graph(model))
        assert exports[0] == 0
    assert len({id(p) for p in plans}) == 3
    assert plans[0] is plans[4] and plans[1] is plans[3]


def test_layers_share_a_plan_but_not_across_precisions() -> None:
    model = linrec.parallelize(build(Nested, torch.float32))
    for dtype in (torch.bfloat16, None):
        no_worse(model, Nested, series(2, 12), dtype)
    assert_parallel(model)


def test_backward_inside_the_region() -> None:
    model, oracle = linrec.parallelize(build(GatedRNN, torch.float32)), build(GatedRNN, torch.float32)
    found = []
    for each in (model, model, oracle):
        x = series(2, 40).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            each(x).float().pow(2).sum().backward()
        found.append([x.grad, *(p.grad.clone() for p in each.parameters())])
        each.zero_grad()
    for left, right in zip(found[1], found[2]):
        assert left.dtype == right.dtype
        torch.testing.assert_close(left, right, rtol=0.0, atol=0.05 * float(right.abs().max()))


def test_weights_used_again_in_the_region() -> None:
    """Compiling runs the model without gradient; the casts of weights that autocast keeps must not be from there."""
    model = linrec.parallelize(build(GatedRNN, torch.float32))
    x = series(2, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(x)
        model.gate(x).sum().backward()
    assert model.gate.weight.grad is not None


class Rounded(GatedRNN):
    """Rounds its state itself, which is part of what it computes."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = (0.9 * h + self.inner(x[:, t]).float()).bfloat16().float()
            out.append(h)
        return torch.stack(out, 1)


def test_a_cast_of_the_program_is_no_licence() -> None:
    """Autocast may round a state and then ours need not; the program's own rounding stays where it is."""
    model = linrec.parallelize(build(Rounded, torch.float32))
    no_worse(model, Rounded, series(2, 12), torch.bfloat16)
    (entry,) = (each for each in linrec.report(model) if each.states)
    assert not entry.parallel


@pytest.mark.parametrize("harm", ["precision", "dtype"])
def test_a_plan_that_is_worse_is_refused(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    """One that accumulates in half precision where the loop does not, and one that returns another dtype: neither shows
    in double precision."""
    from linrec.lowering import diagonal

    exact = diagonal.linear_scan

    def worse(a: Tensor, b: Tensor, h0: Tensor, **kwargs: Any) -> Tensor:
        if harm == "dtype":
            return exact(a, b, h0, **kwargs).bfloat16()
        h = exact(a, b, h0, **kwargs)
        return h if h.dtype is torch.float64 else h + 0.2 * h.detach().abs().max()

    monkeypatch.setenv("LINREC_CODEGEN", "off")
    monkeypatch.setattr(diagonal, "linear_scan", worse)
    model = linrec.parallelize(build(GatedRNN, torch.float32))
    no_worse(model, GatedRNN, series(2, 12), torch.bfloat16)
    assert [each.id for each in linrec.report(model).obstructions] == ["LR010"]


def test_strictness_and_examples() -> None:
    """`parallelize` with example inputs inside the region, where nothing may stay a loop."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model = linrec.parallelize(build(GatedRNN, torch.float32), series(2, 12), strict=True)
    assert_parallel(model)
    with counted_exports() as exports:
        no_worse(model, GatedRNN, series(2, 12), torch.bfloat16)
        assert exports[0] == 0
