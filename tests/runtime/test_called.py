"""What a module calls that is no function: objects, their methods, partials, as attributes, as globals and in place of
its forward. What these hold can change between two calls, and forward can change it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linrec import parallelize
from linrec.runtime.dispatcher import Dispatcher

from .samples import series


class Gain:
    """Something to call, with a number and a list that it reads."""

    def __init__(self, gain: float = 2.0) -> None:
        self.gain, self.gains = gain, [gain]

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.gain * self.gains[0]

    def times(self, x: Tensor) -> Tensor:
        return self(x)


def loop(x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = 0.5 * h + gain(x[:, t])
        out.append(h)
    return torch.stack(out, 1)


class ByAttribute(nn.Module):
    def __init__(self, gain: Any) -> None:
        super().__init__()
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        return loop(x, self.gain)


GLOBAL: Any = None


class ByGlobal(nn.Module):
    def __init__(self, gain: Any) -> None:
        global GLOBAL
        super().__init__()
        GLOBAL = gain

    def forward(self, x: Tensor) -> Tensor:
        return loop(x, GLOBAL)


class ByForward(nn.Module):
    """Its cell has another forward than that of its class."""

    def __init__(self, gain: Any) -> None:
        super().__init__()
        self.cell = nn.Identity()
        self.cell.forward = gain

    def forward(self, x: Tensor) -> Tensor:
        return loop(x, self.cell)


MAKE: dict[str, Callable[[Gain], Any]] = {
    "object": lambda g: g,
    "method": lambda g: g.times,
    "partial": lambda g: functools.partial(g),
}


def used(module: nn.Module) -> bool:
    """Whether a plan was used since this was asked last."""
    dispatcher: Any = module.__dict__["forward"]
    assert isinstance(dispatcher, Dispatcher)
    plan, dispatcher.last_plan = dispatcher.last_plan, None
    return plan is not None


@pytest.mark.parametrize(
    ("what", "kind"),
    [("method", ByAttribute), ("method", ByGlobal), ("partial", ByGlobal), ("object", ByForward)],
)
def test_what_is_called_is_as_it_is_now(what: str, kind: type[nn.Module]) -> None:
    gain, x = Gain(), series(2, 12)
    module = parallelize(kind(MAKE[what](gain)))
    assert torch.allclose(module(x), loop(x, gain)) and used(module)
    gain.gain = 3.0
    assert torch.allclose(module(x), loop(x, gain)) and used(module)
    gain.gains[0] = 5.0
    assert torch.allclose(module(x), loop(x, gain)) and used(module)


@pytest.mark.parametrize("what", ["method", "partial"])
def test_another_one_takes_its_place(what: str) -> None:
    x = series(2, 12)
    module = parallelize(ByGlobal(MAKE[what](Gain())))
    module(x)
    other = Gain(3.0)
    ByGlobal(MAKE[what](other))
    assert torch.allclose(module(x), loop(x, other)) and used(module)


@pytest.mark.parametrize("forward", [torch.neg, Gain(3.0)])
def test_a_forward_is_put_in_place_of_that_of_the_class(forward: Any) -> None:
    x = series(2, 12)
    module = ByForward(Gain())
    del module.cell.forward
    module = parallelize(module)
    assert torch.allclose(module(x), loop(x, nn.Identity())) and used(module)
    module.cell.forward = forward
    assert torch.allclose(module(x), loop(x, forward)) and used(module)


class Loop:
    """A forward of its own, which counts its calls or keeps its state where that is asked for."""

    def __init__(self, how: str) -> None:
        self.how, self.decay, self.calls = how, 0.5, 0
        self.state: Any = None

    def __call__(self, x: Tensor) -> Tensor:
        self.calls += self.how == "counts"
        h = x[:, 0] * 0 if self.state is None else self.state
        out = []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            out.append(h)
        if self.how == "keeps":
            self.state = h.detach()
        return torch.stack(out, 1)

    def run(self, x: Tensor) -> Tensor:
        return self(x)


FORWARD: dict[str, Callable[[Loop], Any]] = {
    "object": lambda f: f,
    "method": lambda f: f.run,
    "partial": lambda f: functools.partial(f),
}


@pytest.mark.parametrize(
    ("what", "how", "root"),
    [
        ("object", "reads", True),
        ("method", "reads", False),
        ("partial", "counts", True),
        ("method", "counts", False),
        ("object", "keeps", False),
    ],
)
def test_a_loop_in_a_forward_of_its_own(what: str, how: str, root: bool) -> None:
    x, mine, other = series(2, 12), Loop(how), Loop(how)
    cell = nn.Identity()
    cell.forward = FORWARD[what](mine)  # type: ignore[method-assign]
    module = parallelize(cell if root else nn.Sequential(cell))
    for decay in (0.5, 0.5, 0.25):
        mine.decay = other.decay = decay
        assert torch.allclose(module(x), other(x))
        assert used(cell) is (how == "reads")
        assert mine.calls == other.calls and (mine.state is None) == (other.state is None)


def test_minus_zero() -> None:
    class Divided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.zero = 1.0

        def forward(self, x: Tensor, zero: float) -> Tensor:
            return loop(x, nn.Identity()) / zero / self.zero

    x, module = series(2, 12), parallelize(Divided())
    expected = loop(x, nn.Identity()) / 0.0
    assert torch.equal(module(x, 0.0), expected) and used(module)
    assert torch.equal(module(x, -0.0), -expected) and used(module)
    module.zero = 0.0
    assert torch.equal(module(x, 1.0), expected) and used(module)
    module.zero = -0.0
    assert torch.equal(module(x, 1.0), -expected) and used(module)
