"""What forward reads and changes beyond its arguments and its own attributes: objects, globals, defaults, containers that
it is given, parameters that are registered nowhere."""

from __future__ import annotations

import contextvars
import copy
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.runtime import dispatcher as dispatchers

D = 3


class Base(nn.Module):
    """A recurrence with an input map."""

    def __init__(self) -> None:
        super().__init__()
        self.drive = nn.Linear(D, D)
        self.prepare()

    def prepare(self) -> None:
        """Attributes."""

    def states(self, x: Tensor, decay: float = 0.9, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All states and the last one."""
        h = torch.zeros_like(x[:, 0]) if h is None else h
        out = []
        for t in range(x.shape[1]):
            h = decay * h + self.drive(x[:, t])
            out.append(h)
        return torch.stack(out, 1), h


class Holder:
    """An object of the user's."""

    def __init__(self) -> None:
        self.h: Tensor | None = None
        self.n, self.decay = 0, 0.9


@pytest.fixture(autouse=True)
def from_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINREC_SHORTEST", "1")


def series(seed: int = 0) -> Tensor:
    return torch.randn(2, 9 + seed, D, generator=torch.Generator().manual_seed(seed))


def refused(model: Any, by: str) -> None:
    found = linrec.report(model).obstructions
    assert [o.id for o in found] == [by], str(linrec.report(model))


class Tied(Base):
    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.tied = [weight]

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[0] @ self.tied[0].t()


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.randn(7, D))
        self.core = Tied(self.embedding)

    def forward(self, ids: Tensor) -> Any:
        return self.core(self.embedding[ids])


class Cells(Base):
    def prepare(self) -> None:
        self.cells = [nn.Linear(D, D)]

    def forward(self, x: Tensor) -> Any:
        return self.cells[0](self.states(x)[0])


def test_tied_weights_that_are_registered_elsewhere() -> None:
    torch.manual_seed(0)
    loop = Language()
    fast = linrec.parallelize(copy.deepcopy(loop))
    ids = torch.randint(0, 7, (2, 12))
    for model in (loop, fast):
        model(ids).square().sum().backward()
    torch.testing.assert_close(fast.embedding.grad, loop.embedding.grad)
    assert linrec.report(fast).parallel


def test_modules_in_a_list() -> None:
    fast = linrec.parallelize(Cells())
    fast(series()).sum().backward()
    assert fast.cells[0].weight.grad is not None
    refused(fast, "LR002")


class Cache(Base):
    def forward(self, x: Tensor, state: Any, key: Any) -> Tensor:
        y, h = self.states(x, h=state[key])
        state[key] = h.detach()
        return y


class Given(Base):
    """Hands an unregistered parameter on within a list, or by name."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.held = how, [nn.Parameter(torch.randn(1, D))]

    def forward(self, x: Tensor) -> Tensor:
        y = self.states(x)[0]
        if self.how == "list":
            return y + torch.cat([self.held[0], self.held[0]]).sum(0)
        return torch.addcmul(y, tensor1=self.held[0], tensor2=y)


@pytest.mark.parametrize("how", ["list", "name"])
def test_unregistered_parameters_among_other_arguments(how: str) -> None:
    loop = Given(how)
    fast = linrec.parallelize(copy.deepcopy(loop))
    for model in (loop, fast):
        model(series()).square().sum().backward()
    torch.testing.assert_close(fast.held[0].grad, loop.held[0].grad)
    assert linrec.report(fast).parallel


class Swapped(Base):
    """Two layers, of which one has an attribute that may change."""

    def prepare(self) -> None:
        self.layers = nn.Sequential(nn.Linear(D, D), nn.ReLU())
        self.layers[1].notes = [1]

    def forward(self, x: Tensor) -> Any:
        return self.layers(self.states(x)[0])


def test_layers_that_change_places() -> None:
    torch.manual_seed(0)
    loop = Swapped()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for _ in range(2):
        torch.testing.assert_close(fast(series()), loop(series()))
        for model in (loop, fast):
            model.layers[0], model.layers[1] = model.layers[1], model.layers[0]
    assert linrec.report(fast).parallel


@pytest.mark.parametrize("empty, key", [({"h": None}, "h"), ([None], 0), ({"inner": [None]}, "inner")])
def test_containers_that_are_given(empty: Any, key: Any) -> None:
    torch.manual_seed(0)
    loop = Cache()
    fast = linrec.parallelize(copy.deepcopy(loop))
    mine, theirs = copy.deepcopy(empty), copy.deepcopy(empty)
    if key == "inner":
        mine, theirs, key = mine["inner"], theirs["inner"], 0
    for k in range(3):
        torch.testing.assert_close(fast(series(k), mine, key), loop(series(k), theirs, key))
    torch.testing.assert_close(mine[key], theirs[key])


CONFIG = Holder()
DECAY: contextvars.ContextVar[float] = contextvars.ContextVar("decay", default=0.9)


class Configured(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.states(x, CONFIG.decay)[0]


class InContext(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.states(x, DECAY.get())[0]


class Deep(Base):
    def prepare(self) -> None:
        self.deep = [[[[[0.9]]]]]

    def forward(self, x: Tensor) -> Tensor:
        return self.states(x, self.deep[0][0][0][0][0])[0]


@pytest.mark.parametrize("kind", [Configured, InContext, Deep])
def test_numbers_of_objects(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    loop = kind()
    fast = linrec.parallelize(copy.deepcopy(loop))
    torch.testing.assert_close(fast(series()), loop(series()))
    assert linrec.report(fast).parallel
    monkeypatch.setattr(CONFIG, "decay", 0.5)
    token = DECAY.set(0.5)
    for model in (fast, loop):
        if kind is Deep:
            model.deep[0][0][0][0][0] = 0.5
    torch.testing.assert_close(fast(series()), loop(series()))
    DECAY.reset(token)


class OnAnObject(Base):
    def prepare(self) -> None:
        self.memory = Holder()

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.states(x, h=self.memory.h)
        self.memory.h = h.detach()
        return y


class OnAModule(Base):
    def prepare(self) -> None:
        self.memory = [nn.Identity()]

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.states(x, h=getattr(self.memory[0], "h", None))
        self.memory[0].h = h.detach()
        return y


@pytest.mark.parametrize("kind", [OnAnObject, OnAModule])
def test_states_kept_by_objects(kind: Any) -> None:
    torch.manual_seed(0)
    loop = kind()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for k in range(3):
        torch.testing.assert_close(fast(series(k)), loop(series(k)))
    memory = fast.memory if kind is OnAnObject else fast.memory[0]
    assert type(memory.h) is Tensor
    refused(fast, "LR013")


class Statistics(Base):
    def prepare(self) -> None:
        self.statistics = types.SimpleNamespace()

    def forward(self, x: Tensor) -> Tensor:
        y, h = self.states(x)
        self.statistics.norm = h.norm()
        return y


def test_losses_kept_by_objects() -> None:
    fast = linrec.parallelize(Statistics())
    y = fast(series())
    (y.sum() + fast.statistics.norm).backward()
    refused(fast, "LR013")


METER, CALLS, LOSSES = Holder(), {"n": 0}, []


class Metered(Base):
    def forward(self, x: Tensor) -> Tensor:
        METER.n += 1
        return self.states(x)[0]


class Counted(Base):
    def forward(self, x: Tensor) -> Tensor:
        CALLS["n"] += 1
        return self.states(x)[0]


class Listed(Base):
    def forward(self, x: Tensor) -> Tensor:
        y, h = self.states(x)
        LOSSES.append(h.norm())
        return y


CONTEXT: contextvars.ContextVar[int] = contextvars.ContextVar("steps", default=0)


class CountedInContext(Base):
    def forward(self, x: Tensor) -> Tensor:
        CONTEXT.set(CONTEXT.get() + 1)
        return self.states(x)[0]


class OfTheClass(Base):
    n = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).n += 1
        return self.states(x)[0]


class Default(Base):
    def forward(self, x: Tensor, seen: list[int] = []) -> Tensor:  # noqa: B006
        seen.append(x.shape[1])
        return self.states(x)[0]


class Cast(Base):
    """With defaults that are no numbers, as transformers' models have them."""

    def forward(self, x: Tensor, dtype: torch.dtype = torch.float32, part: slice = slice(None)) -> Tensor:
        return self.states(x.to(dtype)[part])[0]


def test_defaults_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    original = dispatchers.compile_call
    monkeypatch.setattr(dispatchers, "compile_call", lambda *args: compiled.append(1) or original(*args))
    fast = linrec.parallelize(Cast())
    for k in range(4):
        fast(series(k))
    assert len(compiled) == 1 and linrec.report(fast).parallel


COUNTS: dict[Any, Any] = {
    Metered: lambda: METER.n,
    Counted: lambda: CALLS["n"],
    Listed: lambda: len(LOSSES),
    CountedInContext: CONTEXT.get,
    OfTheClass: lambda: OfTheClass.n,
    Default: lambda: len(Default.forward.__defaults__[0]),  # type: ignore[index]
}


@pytest.mark.parametrize("kind", list(COUNTS))
def test_counters(kind: Any) -> None:
    """Compiling calls forward many times: nobody must see that."""
    before = COUNTS[kind]()
    fast = linrec.parallelize(kind())
    for k in range(3):
        fast(series(k))
    assert COUNTS[kind]() - before == 3
    refused(fast, "LR013")


class Plain(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.states(x)[0]


def test_torch_jit_trace() -> None:
    """What records the operators gets the original's."""
    model = Plain()
    expected = model(series())
    linrec.parallelize(model)
    for _ in range(2):
        traced = torch.jit.trace(model, series(), check_trace=False)
        torch.testing.assert_close(traced(series()), expected)
        model(series())
