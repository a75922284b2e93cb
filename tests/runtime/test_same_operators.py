"""Steps that do the same as the others with other tensors, which values need not show: at a new greatest length the
original's calls are compared by what they are given, and all that it leaves behind."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

LATE = 40


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="linrec keeps the original code")
        yield


def looped(x: Tensor, step: Callable[[Tensor, int], Tensor]) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = step(h, t)
        out.append(h)
    return torch.stack(out, 1)


class Adapters(nn.Module):
    """Two adapters that begin as nothing, as those of LoRA do: the second takes over after some steps."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = nn.Linear(3, 3), nn.Linear(3, 3)
        for p in self.parameters():
            nn.init.zeros_(p)

    def forward(self, x: Tensor) -> Tensor:
        return looped(x, lambda h, t: 0.9 * h + x[:, t] + (self.early if t < LATE else self.late)(x[:, t]))


class Before(Adapters):
    """The same, for all steps before the loop."""

    def forward(self, x: Tensor) -> Tensor:
        early, late = self.early(x), self.late(x)
        return looped(x, lambda h, t: 0.9 * h + x[:, t] + (early if t < LATE else late)[:, t])


class StraightThrough(nn.Module):
    """Rounds; later steps do without the straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, t: int) -> Tensor:
            z, q = x[:, t], x[:, t].round()
            through = (q - z).detach() + z
            return 0.9 * h + (through if t < LATE else q + 0 * z)

        return looped(x, step)


def differ(a: list[Tensor], b: list[Tensor]) -> bool:
    return not all(torch.allclose(x, y, rtol=1e-9, atol=1e-10) for x, y in zip(a, b, strict=True))


def gradients(m: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = m(x)
    given = [x, *m.parameters()]
    return [y, *torch.autograd.grad(y.square().sum(), given, allow_unused=True, materialize_grads=True)]


@pytest.mark.parametrize("kind", [Adapters, Before, StraightThrough])
def test_other_tensors_of_equal_values(kind: Callable[[], nn.Module]) -> None:
    loop = kind().double()
    ours = linrec.parallelize(copy.deepcopy(loop))
    for length in (20, 64, 30, 100, 64):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        assert not differ(gradients(ours, x), gradients(loop, x)), length


def test_masks_that_were_equal_at_first() -> None:
    def loop(x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        def step(h: Tensor, t: int) -> Tensor:
            return torch.where((first if t < LATE else second)[:, t, None], h + x[:, t], h)

        return looped(x, step)

    ours = linrec.parallelize(loop)
    x, every = torch.randn(2, 64, 3), torch.ones(2, 64, dtype=torch.bool)
    ours(x, every, every)
    torch.testing.assert_close(ours(x, every, ~every), loop(x, every, ~every))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_compared_in_double(dtype: torch.dtype) -> None:
    class Switched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.tensor([1.0, 5.0]))

        def forward(self, x: Tensor) -> Tensor:
            scale = self.table[[0] * min(x.shape[1], LATE) + [1] * max(x.shape[1] - LATE, 0)]
            return looped(x, lambda h, t: 0.5 * h + scale[t] * x[:, t])

    loop = Switched().to(dtype)
    ours = linrec.parallelize(copy.deepcopy(loop))
    for length in (20, 64, 30):
        x = torch.ones(2, length, 3, dtype=dtype)
        torch.testing.assert_close(ours(x), loop(x), rtol=0.05, atol=0.05)


class Leaves(nn.Module):
    """Leaves something behind that is another at some length."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what
        self.register_buffer("memory", torch.zeros(2, 3, dtype=torch.float64))
        self.last: Any = None

    def forward(self, x: Tensor, written: Tensor) -> Any:
        y = looped(x, lambda h, t: 0.9 * h + x[:, t])
        chosen = y.flip(1)[:, :1].squeeze(1) if x.shape[1] < LATE else y[:, :1].flip(1).squeeze(1)
        if self.what == "attribute":
            self.last = chosen
        if self.what == "buffer":
            self.memory.copy_(chosen.detach())
        if self.what == "argument":
            written.copy_(chosen.detach())
        if self.what == "whole numbers":
            return y, (y.argmax(-1) if x.shape[1] < LATE else (-y).argmax(-1))
        return y, chosen


@pytest.mark.parametrize("what", ["attribute", "buffer", "argument", "whole numbers"])
def test_all_that_is_left_behind(what: str) -> None:
    loop = Leaves(what)
    ours = linrec.parallelize(copy.deepcopy(loop))
    for length in (20, 64, 30, 100):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        found = []
        for m in (ours, loop):
            written = torch.zeros(2, 3, dtype=torch.float64)
            found.append([*m(x, written), written, m.memory, m.last if m.last is not None else written])
        for a, b in zip(*found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_numbers_of_another_batch_are_no_reason() -> None:
    def loop(x: Tensor) -> Tensor:
        share = 1 / x.shape[0]
        return looped(x, lambda h, t: 0.9 * h + share * x[:, t])

    ours = linrec.parallelize(loop)
    for batch, length in ((3, 20), (2, 20), (2, 64), (5, 100)):
        x = torch.randn(batch, length, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), loop(x))
    assert linrec.report(ours).parallel and not linrec.report(ours).obstructions


@pytest.mark.parametrize("first", [True, False])
def test_two_arguments_that_are_one(first: bool) -> None:
    """As attention layers ask whether keys are queries."""

    class Attends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.proj = nn.Linear(3, 3)

        def forward(self, q: Tensor, kv: Tensor) -> Tensor:
            kv = self.proj(q) if kv is q else kv
            return looped(q, lambda h, t: 0.9 * h + kv[:, t])

    loop = Attends().double()
    ours = linrec.parallelize(copy.deepcopy(loop))
    for length, same in ((20, first), (20, not first), (64, first), (64, not first), (30, True), (30, False)):
        x, y = torch.randn(2, 2, length, 3, dtype=torch.float64)
        y = x if same else y
        torch.testing.assert_close(ours(x, y), loop(x, y))


class Kept(nn.Module):
    """Goes on from the last call's state where that is of as many rows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.linspace(0.3, 0.9, 3, dtype=torch.float64))
        self.h: Any = None

    def forward(self, x: Tensor) -> Tensor:
        fresh = self.h is None or self.h.shape[0] != x.shape[0]
        h, out = torch.zeros_like(x[:, 0]) if fresh else self.h, []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            out.append(h)
        self.h = h.detach()
        return torch.stack(out, 1)


def test_another_state_is_no_reason() -> None:
    ours, loop = linrec.parallelize(Kept()), Kept()
    for batch, length in ((3, 20), (3, 20), (3, 30), (2, 64), (2, 70)):
        x = torch.randn(batch, length, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), loop(x))
    assert linrec.report(ours).parallel and not linrec.report(ours).obstructions


def test_strides_are_no_reason() -> None:
    """What is contiguous already is the argument itself, and a copy otherwise."""

    def loop(x: Tensor) -> Tensor:
        x = x.contiguous().to(torch.float64)
        return looped(x, lambda h, t: 0.9 * h + x[:, t])

    ours = linrec.parallelize(loop)
    for length in (20, 64, 30, 100):
        x = torch.randn(2, 3, length, dtype=torch.float64).transpose(1, 2)
        torch.testing.assert_close(ours(x), loop(x))
    assert linrec.report(ours).parallel and not linrec.report(ours).obstructions


def test_runs_leave_no_marks() -> None:
    """Whatever a model keeps of its calls: its code may look at a tensor's attributes."""

    class Keeps(Kept):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.rows = {**getattr(self, "rows", {}), x.shape[1]: torch.ones(x.shape[1])}
            return y

    ours = linrec.parallelize(Keeps())
    for length in (20, 30, 64):
        y = ours(torch.randn(2, length, 3, dtype=torch.float64))
        assert not any(t.__dict__ for t in (y, ours.h, *ours.rows.values(), *ours.parameters()))


class Config:
    """To which something is added later."""


def missing(name: str) -> float:
    try:
        return ADDED if name == "global" else 1.0  # type: ignore[name-defined]
    except NameError:
        return 1.0


class Asks(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def gain(self) -> float:
        if self.how == "class":
            return getattr(type(self), "added_later", 1.0)
        if self.how == "instance":
            return getattr(self, "added_to_class", 1.0)
        if self.how == "object":
            return Config.boost if hasattr(Config, "boost") else 1.0
        return missing("global")

    def forward(self, x: Tensor) -> Tensor:
        return looped(x, lambda h, t: 0.9 * h + self.gain() * x[:, t])


@pytest.mark.parametrize("how", ["class", "instance", "object", "global"])
def test_names_that_come_later(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, loop = linrec.parallelize(Asks(how)), Asks(how)
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    for _ in range(2):
        torch.testing.assert_close(ours(x), loop(x))
    owner, name = {
        "class": (Asks, "added_later"),
        "instance": (Asks, "added_to_class"),
        "object": (Config, "boost"),
        "global": (__import__("sys").modules[__name__], "ADDED"),
    }[how]
    monkeypatch.setattr(owner, name, 3.0, raising=False)
    for _ in range(2):
        torch.testing.assert_close(ours(x), loop(x))


def test_a_gradient_that_forward_reads() -> None:
    class Looks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(3, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            w = self.w if self.w.grad is None else self.w - 0.1 * self.w.grad
            return looped(x, lambda h, t: 0.9 * h + w * x[:, t])

    ours, loop = linrec.parallelize(Looks()), Looks()
    x = torch.randn(2, 30, 3, dtype=torch.float64)
    for _ in range(3):
        for m in (ours, loop):
            m(x).sum().backward()
        torch.testing.assert_close(ours(x), loop(x))
    assert [o.id for o in linrec.report(ours).obstructions] == ["LR014"]
