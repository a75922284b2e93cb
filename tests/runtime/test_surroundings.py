"""What forward reads besides its arguments and its module's attributes, and what it asks of its arguments besides
operators: a plan serves while that is as it was, and is checked at every length that forward decides something by.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import Tally

GAIN = 0.5
TABLE = {"gain": 0.5, "other": [1, 2]}
TENSOR = torch.tensor(0.5)


class Settings:
    gain = 0.5


def helper() -> float:
    return TABLE["gain"]  # type: ignore[return-value]


class Leaky(nn.Module):
    """A leaky integrator whose gain comes from somewhere."""

    K = 0.5

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))

    def gain(self) -> Any:
        return 0.5

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.gain() * h * self.w + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def enclosed() -> tuple[type[Leaky], list[float]]:
    box = [0.5]

    class Enclosed(Leaky):
        def gain(self) -> Any:
            return box[0]

    return Enclosed, box


class FromGlobal(Leaky):
    def gain(self) -> Any:
        return GAIN


class FromSpace(Leaky):
    def gain(self) -> Any:
        return globals()["GAIN"]


class FromModule(Leaky):
    def gain(self) -> Any:
        return importlib.import_module(__name__).GAIN


class FromHelper(Leaky):
    def gain(self) -> Any:
        return helper()


class FromClass(Leaky):
    def gain(self) -> Any:
        return self.K


class FromOtherClass(Leaky):
    def gain(self) -> Any:
        return Settings.gain


class FromTensor(Leaky):
    def gain(self) -> Any:
        return TENSOR


class FromEnvironment(Leaky):
    def gain(self) -> Any:
        return float(os.environ.get("LEAKY_GAIN", "0.5"))


def series(batch: int = 2, length: int = 30) -> Tensor:
    return torch.randn(batch, length, 3, dtype=torch.float64)


def same(ours: nn.Module, oracle: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(ours(x), oracle(x), rtol=1e-10, atol=1e-10)


CHANGES: list[tuple[type[Leaky], Callable[[pytest.MonkeyPatch], None]]] = [
    (FromGlobal, lambda m: m.setitem(globals(), "GAIN", 0.8)),
    (FromSpace, lambda m: m.setitem(globals(), "GAIN", 0.8)),
    (FromModule, lambda m: m.setitem(globals(), "GAIN", 0.8)),
    (FromHelper, lambda m: m.setitem(TABLE, "gain", 0.8)),
    (FromClass, lambda m: m.setattr(FromClass, "K", 0.8, raising=False)),
    (FromOtherClass, lambda m: m.setattr(Settings, "gain", 0.8)),
    (FromTensor, lambda m: m.setitem(globals(), "TENSOR", torch.tensor(0.8))),
    (FromEnvironment, lambda m: m.setenv("LEAKY_GAIN", "0.8")),
]


@pytest.mark.parametrize("kind, change", CHANGES, ids=[kind.__name__ for kind, _ in CHANGES])
def test_what_is_read_from_elsewhere_may_change(
    kind: type[Leaky], change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, oracle = linrec.parallelize(kind()), kind()
    same(ours, oracle, series())
    before = linrec.graph(ours)
    same(ours, oracle, series())
    assert linrec.graph(ours) is before
    change(monkeypatch)
    same(ours, oracle, series())
    assert linrec.report(ours).parallel


class WithStep(Leaky):
    def step(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.5 * h + x

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.step(h, x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def test_a_global_called_like_an_attribute_is_another_thing(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in `for step in range(1000): model(x)`, in the file of a model that has a method of that name.
    model, plans = linrec.parallelize(WithStep()), []
    for step in range(3):
        monkeypatch.setitem(globals(), "step", step)
        same(model, WithStep(), series())
        plans.append(linrec.graph(model))
    assert plans[0] is plans[1] is plans[2]


def test_a_variable_of_the_enclosing_function_may_change() -> None:
    kind, box = enclosed()
    ours, oracle = linrec.parallelize(kind()), kind()
    same(ours, oracle, series())
    box[0] = 0.8
    same(ours, oracle, series())


class Counting(Leaky):
    calls: list[int] = []  # noqa: RUF012

    def gain(self) -> Any:
        self.calls.append(1)
        return 0.5


def test_a_forward_that_changes_what_it_reads_is_left_alone() -> None:
    ours, oracle = linrec.parallelize(Counting()), Counting()
    same(ours, oracle, series())
    assert [o.id for o in linrec.report(ours).obstructions] == ["LR013"]
    before = len(Counting.calls)
    ours(series(2, 30))
    assert len(Counting.calls) == before + 30


class Held(Leaky):
    """The numbers of a tensor, which may be written into or replaced."""

    def __init__(self, read: str) -> None:
        super().__init__()
        self.t = torch.tensor([0.5])
        self.read = read

    def gain(self) -> Any:
        found = {
            "item": lambda: self.t.item(),
            "float": lambda: float(self.t),
            "tolist": lambda: self.t.tolist()[0],
            "branch": lambda: 0.8 if self.t > 0.6 else 0.5,
        }
        return found[self.read]()


@pytest.mark.filterwarnings("ignore:linrec runs the original code")
@pytest.mark.parametrize("read", ["item", "float", "tolist", "branch"])
def test_numbers_that_are_read_from_a_tensor(read: str) -> None:
    ours, oracle = linrec.parallelize(Held(read)), Held(read)
    same(ours, oracle, series())
    for model in (ours, oracle):
        model.t.fill_(0.8)
    same(ours, oracle, series())
    for model in (ours, oracle):
        model.t = torch.tensor([0.3])
    same(ours, oracle, series())
    # A branch that goes the same way in all steps is asked at every call, and leaves the calls in which it goes otherwise.
    assert [o.id for o in linrec.report(ours).obstructions] == ([] if read == "branch" else ["LR015"])


class Asking(Leaky):
    """A gain that depends on the length, at some lengths only."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        steps = {"shape": lambda: x.shape[1], "size": lambda: x.size(1), "len": lambda: len(x[0])}.get(
            self.how, lambda: x.shape[1]
        )()
        gain = 1.0
        if self.how == "between":
            gain = 2.0 if 40 < steps < 100 else 1.0
        elif self.how == "largest":
            gain = 2.0 if max(steps - 64, 0) == 0 and steps // 2 == 32 else 1.0
        elif steps % 16 == 0:
            gain = 2.0
        return super().forward(x * gain)


@pytest.mark.parametrize("how", ["shape", "size", "len", "between", "largest"])
def test_a_length_that_is_asked_for_is_checked(how: str) -> None:
    ours, oracle = linrec.parallelize(Asking(how)), Asking(how)
    # What every sixteenth length does is a turn, which has a plan of its own; the others have none.
    turns = how not in ("between", "largest")
    with contextlib.nullcontext() if turns else pytest.warns(UserWarning, match="LR011|LR010"):
        for length in (25, 131, 64, 64, 25, 50, 131):
            same(ours, oracle, series(2, length))


class Stepwise(Leaky):
    """Asks what is the same at every length that a plan is for."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == x.clone().size(1)
        if x.shape[1] == 1 or x.shape[1] - 1 <= 0:
            return x
        return super().forward(x)


@pytest.mark.parametrize("kind", [Leaky, Stepwise])
def test_a_length_that_is_not_asked_for_is_checked_once_for_all_below(
    kind: type[Leaky], monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, oracle = linrec.parallelize(kind()), kind()
    tally, gain = Tally(), Leaky.gain

    def counted(self: Leaky) -> Any:
        tally.step()
        return gain(self)

    monkeypatch.setattr(Leaky, "gain", counted)
    same(ours, oracle, series(2, 60))
    before = tally.steps
    for length in (30, 41, 52):
        ours(series(2, length))
    assert tally.steps == before


class Carried(nn.Module):
    """A state from call to call, dropped where the batch has another size."""

    def __init__(self) -> None:
        super().__init__()
        self.h: Tensor | None = None
        self.w = nn.Parameter(torch.tensor([0.9, 0.8, 0.7], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        fits = self.h is not None and self.h.size(0) == x.size(0)
        h = self.h.detach() if fits else torch.zeros_like(x[:, 0])  # type: ignore[union-attr]
        out = []
        for t in range(x.shape[1]):
            h = self.w * h + x[:, t]
            out.append(h)
        self.h = h
        return torch.stack(out, 1)


def test_a_carried_state_is_dropped_where_the_loop_drops_it() -> None:
    oracle = Carried()
    ours = linrec.parallelize(copy.deepcopy(oracle))
    for batch, length in ((2, 40), (3, 37), (2, 24), (2, 24), (3, 24), (2, 24), (2, 24), (3, 37), (3, 37), (3, 30)):
        same(ours, oracle, series(batch, length))
