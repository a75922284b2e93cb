"""Custom functions whose backward scales the gradient element by element, as spikes with surrogate gradients: operators
like others, in parallel where nothing of them is fed back, in a compiled loop otherwise."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.codegen import scan

from .samples import WIDTH, agree, gradients, series


class ATan(torch.autograd.Function):
    """As in snntorch: a number for the slope, a power in place."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (v,) = ctx.saved_tensors
        given = gradient.clone()
        return ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * v).pow_(2)) * given, None


class Window(torch.autograd.Function):
    """The gradient is written into, and only asked for where it is needed."""

    @staticmethod
    def forward(v: Tensor, width: float) -> Tensor:
        return (v >= 0).to(v)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        v, ctx.width = inputs
        ctx.save_for_backward(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        (v,) = ctx.saved_tensors
        if not ctx.needs_input_grad[0]:
            return None, None
        given = gradient.clone()
        given[v.abs() > ctx.width] = 0
        return given * 0.5, None


class Triangle(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, damp: Tensor) -> Tensor:
        ctx.save_for_backward(v, damp)
        return torch.where(v > 0, 1.0, 0.0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        v, damp = ctx.saved_tensors
        return gradient * damp * torch.clamp(1 - v.abs(), min=0.0), None


@torch.jit.script
def scripted(gradient: Tensor, v: Tensor, alpha: float) -> Tensor:
    s = (v * alpha).sigmoid_()
    return gradient * (1.0 - s) * s * alpha


class Scripted(torch.autograd.Function):
    """As in spikingjelly."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, alpha: float) -> Tensor:
        ctx.save_for_backward(v)
        ctx.alpha = alpha
        return (v >= 0).to(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return scripted(gradient, ctx.saved_tensors[0], ctx.alpha), None


class Rounded(torch.autograd.Function):
    """Straight through."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return torch.round(4 * torch.tanh(v)) / 4

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class Twice(torch.autograd.Function):
    """Differentiated by two tensors: stays what it is."""

    @staticmethod
    def forward(ctx: Any, v: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(v, w)
        return v * torch.sigmoid(w)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (v, _) = ctx.saved_tensors
        return 2 * gradient, 3 * gradient * v


class Clipped(torch.autograd.Function):
    """The identity, but for the gradient, which is not just scaled."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v.view_as(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.1, 0.1)


class Halved(torch.autograd.Function):
    """The identity with half the gradient: affine to look at, but not to be differentiated as such."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return v * 1.0

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 0.5 * gradient


class Shared(torch.autograd.Function):
    """The gradient of one element has to do with those of others."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / gradient.norm(dim=-1, keepdim=True)


named = Triangle.apply
DAMP = torch.tensor(0.3, dtype=torch.float64)

SCALED: dict[str, Callable[[Tensor], Tensor]] = {
    "atan": lambda v: ATan.apply(v, 2.0),
    "window": lambda v: Window.apply(v, 1.5),
    "named before": lambda v: named(v, DAMP),
    "scripted": lambda v: Scripted.apply(v, 4.0),
    "straight through": Rounded.apply,
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "by two": lambda v: Twice.apply(v, v * 0.5),
    "clipped": Clipped.apply,
    "halved": Halved.apply,
    "shared": Shared.apply,
}


class Leaky(nn.Module):
    def __init__(self, spike: Any, reset: str) -> None:
        super().__init__()
        self.spike, self.reset = spike, reset
        self.beta = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.mix = nn.Linear(WIDTH, WIDTH).double()

    def forward(self, x: Tensor) -> Tensor:
        membrane, spike = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            if self.reset == "hard":
                membrane = self.beta * membrane * (1 - spike) + x[:, t]
            elif self.reset == "soft":
                membrane = self.beta * membrane + x[:, t] - spike.detach()
            elif self.reset == "mixed":
                membrane = self.beta * membrane + x[:, t] + self.mix(spike)
            else:
                membrane = self.beta * membrane + x[:, t]
            spike = self.spike(membrane - 0.3)
            out.append(spike)
        return torch.stack(out, 1)


def _checked(model: nn.Module) -> Any:
    fast = linrec.parallelize(copy.deepcopy(model))
    for batch, length in ((2, 20), (3, 9), (1, 31)):
        agree(gradients(fast, series(batch, length)), gradients(model, series(batch, length)))
    return linrec.report(fast)


@pytest.mark.parametrize("name", SCALED)
def test_a_readout_of_spikes_is_computed_for_all_steps(name: str) -> None:
    report = _checked(Leaky(SCALED[name], "none"))
    assert [r.parallel for r in report.recurrences] == [True] and not report.obstructions


@pytest.mark.parametrize(
    ("name", "reset"),
    [
        ("atan", "hard"),
        ("window", "mixed"),
        ("named before", "hard"),
        ("scripted", "soft"),
        ("straight through", "soft"),
    ],
)
def test_spikes_that_are_fed_back_run_in_a_compiled_loop(
    name: str, reset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = []

    def translate(*args: Any) -> Any:
        found.append("refused")
        drafts = scan.__dict__["original"](*args)
        found[-1] = "compiled"
        return drafts

    monkeypatch.setattr(scan, "original", scan.__dict__["translate"], raising=False)
    monkeypatch.setattr(scan, "translate", translate)
    report = _checked(Leaky(SCALED[name], reset))
    assert not report.obstructions and set(found) == {"compiled"}


@pytest.mark.parametrize("name", OTHERS)
def test_functions_that_do_more_keep_their_backward(name: str) -> None:
    _checked(Leaky(OTHERS[name], "mixed"))


def test_a_gradient_that_is_scaled_in_the_update_is_not_taken_for_linear() -> None:
    class Scaled(Leaky):
        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = Halved.apply(self.beta * h + x[:, t])
                out.append(h)
            return torch.stack(out, 1)

    report = _checked(Scaled(None, ""))
    assert not any(r.parallel for r in report.recurrences)


def test_second_derivatives_go_through_the_slope() -> None:
    model = Leaky(SCALED["scripted"], "none")
    fast = linrec.parallelize(copy.deepcopy(model))
    found = []
    for m in (fast, model):
        x = series(2, 12).requires_grad_()
        m(x)
        (g,) = torch.autograd.grad((m(x) * torch.linspace(0, 1, WIDTH)).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), [x, m.beta]))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_function_apply_is_itself_again() -> None:
    code = torch.autograd.Function.apply.__func__.__code__
    _checked(Leaky(SCALED["atan"], "none"))
    assert torch.autograd.Function.apply.__func__.__code__ is code


STRENGTH = 1.0


class Annealed(torch.autograd.Function):
    """The slope stands in the class and in a global, and is read by backward only."""

    scale = 10.0

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return STRENGTH * gradient / (Annealed.scale * v.abs() + 1) ** 2


def test_a_slope_that_changes_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    oracle = nn.Sequential(Leaky(Annealed.apply, "none"), Leaky(Annealed.apply, "none"))
    model = linrec.parallelize(copy.deepcopy(oracle))
    for scale, strength in ((10.0, 1.0), (50.0, 1.0), (50.0, 3.0), (10.0, 1.0)):
        monkeypatch.setattr(Annealed, "scale", scale)
        monkeypatch.setitem(globals(), "STRENGTH", strength)
        agree(gradients(model, series(2, 20)), gradients(oracle, series(2, 20)))
    assert all(r.parallel for r in linrec.report(model).recurrences)
