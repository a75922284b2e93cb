"""States that are registered buffers, and memory of the model that forward replaces behind torch's back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import WIDTH, agree, same, series


class Membrane(nn.Module):
    """A leaky integrator whose state is a buffer that every step assigns."""

    def __init__(self, persistent: bool, carried: bool) -> None:
        super().__init__()
        self.register_buffer("mem", torch.zeros(0, dtype=torch.float64), persistent=persistent)
        self.decay = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.carried = carried

    def step(self, x: Tensor) -> Tensor:
        if self.mem.shape != x.shape:
            self.mem = torch.zeros_like(x)
        self.mem = self.decay * self.mem + x
        return self.mem

    def forward(self, x: Tensor) -> Tensor:
        self.mem = self.mem.detach() if self.carried else torch.zeros_like(x[:, 0])
        return torch.stack([self.step(x[:, t]) for t in range(x.shape[1])], 1)


class Nested(nn.Module):
    def __init__(self, persistent: bool, carried: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Membrane(persistent, carried), Membrane(persistent, carried)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            layer.mem = layer.mem.detach() if layer.carried else torch.zeros_like(x[:, 0])
        out = []
        for t in range(x.shape[1]):
            h = x[:, t]
            for layer in self.layers:
                h = layer.step(h)
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("kind", [Membrane, Nested])
def test_an_assigned_buffer(kind: Any, persistent: bool, carried: bool) -> None:
    oracle = kind(persistent, carried)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (2, 17), (2, 40), (3, 9), (3, 17)):
        x = series(batch, length)
        same(model, oracle, x)
        named = [dict(m.named_buffers()) for m in (model, oracle)]
        assert named[0].keys() == named[1].keys() and named[0]
        assert model.state_dict().keys() == oracle.state_dict().keys()
        for name, buffer in named[1].items():
            agree(named[0][name], buffer)
            assert named[0][name].requires_grad == buffer.requires_grad
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report


class Replacing(nn.Module):
    """Assigns the `data` of something: with no effect while the weights are small."""

    def __init__(self, how: Callable[[Any, Tensor], Tensor], after: bool) -> None:
        super().__init__()
        self.how, self.after = how, after
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(WIDTH, dtype=torch.float64))
        self.plain = torch.zeros(WIDTH, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if not self.after:
            x = self.how(self, x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w * h + x[:, t]
            out.append(h)
        found = torch.stack(out, 1)
        return self.how(self, found) if self.after else found


def _bounded(m: Any, x: Tensor) -> Tensor:
    m.w.data = m.w.clamp(-0.95, 0.95)
    return x


def _written(m: Any, x: Tensor) -> Tensor:
    m.w.data.clamp_(-0.95, 0.95)
    return x


def _set(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.w.set_(m.w.clamp(-0.95, 0.95))
    return x


def _mean(m: Any, x: Tensor) -> Tensor:
    m.mean.data = m.mean + x.detach().mean((0, 1))
    return x


def _plain(m: Any, x: Tensor) -> Tensor:
    m.plain.data = 0.9 * m.plain + x.detach().mean((0, 1))
    return x - m.plain


def _between(m: Any, x: Tensor) -> Tensor:
    x = x * 1
    x.data = x.clamp(-50, 50)
    return x


def _gradient(m: Any, x: Tensor) -> Tensor:
    m.w.grad = None
    return x


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("how", [_bounded, _written, _set, _mean, _plain, _between, _gradient])
def test_assignments_that_no_trace_shows(how: Callable[[Any, Tensor], Tensor], after: bool) -> None:
    if how is _set and after:
        pytest.skip("the loop itself has no gradient then")
    oracle = Replacing(how, after)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for factor in (1.0, 100.0, 1.0):
        x = factor * series(2, 17)
        same(model, oracle, x)
        for name in ("w", "mean", "plain"):
            agree(getattr(model, name).detach(), getattr(oracle, name).detach())
        with torch.no_grad():
            for m in (model, oracle):
                m.w.mul_(2.0)
    assert [o.id for o in linrec.report(model).obstructions] == ["LR013"]


def test_a_look_at_the_data() -> None:
    """As good as `detach`."""

    class Normalised(Replacing):
        def forward(self, x: Tensor) -> Tensor:
            scale = self.w.data.new_ones(1) + x.data.abs().amax()
            return super().forward(x / scale)

    oracle = Normalised(lambda m, x: x, False)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    assert linrec.report(model).parallel


class Overriding(Replacing):
    def parameters(self, lr: float = 0.1) -> Any:  # type: ignore[override]
        return [{"params": [self.w], "lr": lr}]

    def modules(self) -> Any:
        return {}


def test_classes_that_override_what_torch_asks_them() -> None:
    oracle = Overriding(lambda m, x: x, False)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40):
        x = series(2, length)
        out, expected = model(x), oracle(x)
        agree(out, expected)
        agree(torch.autograd.grad(out.sum(), model.w)[0], torch.autograd.grad(expected.sum(), oracle.w)[0])
    assert linrec.report(model).parallel
    assert linrec.explain(oracle, series(2, 17)).parallel


class Forget(nn.Module):
    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = w * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Making(Replacing):
    """Its loop is that of a module which it makes anew in every call."""

    def forward(self, x: Tensor) -> Tensor:
        return Forget()(x, self.w)


def test_a_module_that_forward_makes() -> None:
    oracle = Making(lambda m, x: x, False)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for length in (17, 40):
        same(model, oracle, series(2, length))
    assert linrec.report(model).parallel


class Running(nn.Module):
    """Running statistics of the steps, which carry no gradient."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.w = nn.Parameter(torch.linspace(0.3, 0.9, WIDTH, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(WIDTH, dtype=torch.float64))
        self.plain = torch.zeros(WIDTH, dtype=torch.float64)

    def update(self, x: Tensor) -> Tensor:
        if self.how == "copy":
            with torch.no_grad():
                self.mean.copy_(0.9 * self.mean + 0.1 * (self.w * x).mean(0))
            return self.mean
        if self.how in ("in place", "unread"):
            with torch.no_grad():
                self.mean.mul_(0.9).add_((self.w * x).mean(0), alpha=0.1)
            return self.mean if self.how == "in place" else torch.zeros_like(self.w)
        if self.how == "assigned":
            with torch.no_grad():
                self.plain = 0.9 * self.plain + 0.1 * (self.w * x).mean(0)
            return self.plain
        self.plain = (0.9 * self.plain + 0.1 * (self.w * x).mean(0)).detach()
        return self.plain

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w * h + self.w * x[:, t] - self.update(x[:, t])
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("how", ["copy", "in place", "unread", "assigned", "detached"])
def test_running_statistics(how: str) -> None:
    oracle = Running(how)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (3, 40), (2, 9)):
        x = series(batch, length)
        same(model, oracle, x)
        for name in ("mean", "plain"):
            agree(getattr(model, name), getattr(oracle, name))
            assert getattr(model, name).requires_grad == getattr(oracle, name).requires_grad
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report


def test_a_state_that_is_cut_off_from_what_it_starts_from() -> None:
    """The first step still reads it with its gradient, where something else reads the old state."""

    class Started(Running):
        def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
            out = []
            for t in range(x.shape[1]):
                if self.how == "before":
                    out.append(h * x[:, t])
                following = self.w * h + x[:, t]
                if self.how == "beside":
                    out.append(following * 2)
                h = following.detach()
                if self.how == "after":
                    out.append(h * x[:, t])
            return torch.stack(out, 1)

    for how in ("before", "beside", "after"):
        oracle = Started(how)
        model = linrec.parallelize(copy.deepcopy(oracle), when="always")
        for length in (17, 40, 9):
            found = []
            for m in (model, oracle):
                x, h = (y.clone().requires_grad_() for y in (series(2, length), series(2, length, seed=1)[:, 0]))
                out = m(x, h)
                grads = torch.autograd.grad(out.sin().sum(), [x, h, m.w], allow_unused=True)
                found.append([out, *(torch.zeros(1) if g is None else g for g in grads)])
            for actual, expected in zip(*found, strict=True):
                if actual.shape == expected.shape:
                    agree(actual, expected)
                else:  # none, and zeros
                    assert not actual.any() and not expected.any()
        assert "LR010" not in {o.id for o in linrec.report(model).obstructions}, how
