"""What a program changes between two calls of a compiled model is respected by the next call."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import linrec

from .samples import (
    WIDTH,
    Gated,
    agree,
    assert_parallel,
    build,
    compiled,
    counted_exports,
    gradients,
    same,
    series,
    steps_of,
)

Pair = tuple[Gated, Gated]


@pytest.fixture(scope="module")
def model() -> Gated:
    return compiled(Gated)


@pytest.fixture
def pair(model: Gated) -> Iterator[Pair]:
    """The compiled model, which gets its state back after the test, and an oracle."""
    attributes, tables = dict(model.__dict__), {}
    for name, sub in model.named_modules():
        tables[name] = (dict(sub._parameters), dict(sub._modules))
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    yield model, build(Gated)
    model.__dict__.update(attributes)
    for name, (parameters, modules) in tables.items():
        sub = model.get_submodule(name) if name in dict(model.named_modules()) else tables[""][1][name]
        for table, content in ((sub._parameters, parameters), (sub._modules, modules)):
            table.clear()
            table.update(content)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.requires_grad_().copy_(values[name])


def test_weights_in_place(pair: Pair) -> None:
    with torch.no_grad():
        for each in pair:
            each.gate.weight.add_(1)
            each.drive.bias.data = torch.ones(WIDTH, dtype=torch.float64)
    same(*pair, series())


def test_a_parameter_is_replaced(pair: Pair) -> None:
    for each in pair:
        each.gate.weight = nn.Parameter(torch.eye(WIDTH, dtype=torch.float64))
        each.drive = nn.Linear(WIDTH, WIDTH, dtype=torch.float64)
    pair[0].drive.load_state_dict(pair[1].drive.state_dict())
    same(*pair, series())
    assert steps_of(lambda: pair[0](series())) == 0


def test_a_parameter_is_tied(pair: Pair) -> None:
    for each in pair:
        each.drive.weight = each.gate.weight
    same(*pair, series())


def test_parameters_are_frozen(pair: Pair) -> None:
    for each in pair:
        each.gate.weight.requires_grad_(False)
    same(*pair, series())
    for each in pair:
        each.requires_grad_(False)
        assert not each(series()).requires_grad
    same(*pair, series())


def test_a_layer_is_taken_out(pair: Pair) -> None:
    for each in pair:
        each.drive = nn.Identity()
    same(*pair, series())


def test_a_bias_is_taken_out(pair: Pair) -> None:
    for each in pair:
        each.drive.bias = None
    same(*pair, series())


@pytest.mark.parametrize("scale", [2.0, 0, True, torch.tensor(3.0, dtype=torch.float64)], ids=str)
def test_a_number_is_changed(pair: Pair, scale: float) -> None:
    for each in pair:
        each.scale = scale
    same(*pair, series())


def test_a_function_is_changed(pair: Pair) -> None:
    for each in pair:
        each.act = torch.tanh
    same(*pair, series())


class Configured(Gated):
    """Reads numbers out of a list, a dict and an object."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = [1.0, 2.0]
        self.options = {"shift": 0.5, "nested": {"factor": 1.0}}
        self.config = type("Config", (), {"gain": 1.0})()

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x) * self.weights[0] + self.options["shift"]
        return y * self.config.gain * self.options["nested"]["factor"]


@pytest.fixture(scope="module")
def configured() -> tuple[Configured, Configured]:
    return compiled(Configured), build(Configured)


def set_in_list(model: Configured) -> None:
    model.weights[0] = 3.0


def set_deep_in_dict(model: Configured) -> None:
    model.options["nested"]["factor"] = 3.0


def set_in_object(model: Configured) -> None:
    model.config.gain = 3.0


@pytest.mark.parametrize("change", [set_in_list, set_deep_in_dict, set_in_object])
def test_a_number_inside_a_container_is_changed(
    configured: tuple[Configured, Configured], change: Callable[[Configured], None]
) -> None:
    for each in configured:
        change(each)
    same(*configured, series())


def test_to_another_dtype(model: Gated) -> None:
    """There and back: both are parallel, and the first plan still holds."""
    oracle = build(Gated, torch.float32)
    model.float()
    same(model, oracle, series(dtype=torch.float32), tolerance=1e-5)
    assert steps_of(lambda: model(series(dtype=torch.float32))) == 0
    model.double()
    oracle.double()
    same(model, oracle, series())
    assert steps_of(lambda: model(series())) == 0
    model.load_state_dict(build(Gated).state_dict())


def test_to_the_meta_device(model: Gated) -> None:
    empty = build(Gated).to("meta")
    linrec.parallelize(empty)
    y = empty(series().to("meta"))
    assert y.device.type == "meta"
    assert y.shape == (2, 12, WIDTH)


def test_a_parametrization_is_added(pair: Pair) -> None:
    class Doubled(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    for each in pair:
        parametrize.register_parametrization(each.gate, "weight", Doubled())
    same(*pair, series())
    for each in pair:
        parametrize.remove_parametrizations(each.gate, "weight", leave_parametrized=False)
    same(*pair, series())


class Effects(Gated):
    """Forward changes buffers in place, and keeps its last states in attributes."""

    count: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(1, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.count += 1
        self.mean.mul_(0.9).add_(0.1 * y.detach().mean((0, 1)))
        self.last = y[:, -1]
        self.kept = {"first": y[:, 0], "number": 3}
        return y


def test_effects_of_forward() -> None:
    model, oracle = compiled(Effects), build(Effects)
    oracle(series())
    for batch, length in ((2, 12), (3, 20), (2, 2)):
        same(model, oracle, series(batch, length))
        assert model.count.item() == oracle.count.item()
        agree(model.mean, oracle.mean)
        assert type(model.last) is Tensor
        assert list(model.kept) == ["first", "number"]
        for name in ("last", "kept"):
            left, right = (getattr(m, name) for m in (model, oracle))
            agree(left, right)
        found = []
        for each in (model, oracle):
            x = series(batch, length).requires_grad_()
            each(x)
            loss = each.last.sum() + each.kept["first"].pow(2).sum()
            found.append(torch.autograd.grad(loss, [x, each.gate.weight, each.drive.weight]))
        agree(*found)

    assert_parallel(model)


class Counting(Gated):
    """Counts its calls in a plain attribute, and lets that decide."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * (2 if self.calls % 3 == 0 else 1)


def test_a_counter() -> None:
    model, oracle = linrec.parallelize(build(Counting)), build(Counting)
    with counted_exports() as exports:
        for _ in range(7):
            same(model, oracle, series())
            assert model.calls == oracle.calls
        assert exports[0] <= 4


class Rebound(Gated):
    """A buffer is assigned another tensor at each call, beside one that is counted up in place."""

    last: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(1, WIDTH))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.count.add_(1)
        self.last = y[:, -1].detach()
        return y


def test_a_buffer_is_assigned_by_forward() -> None:
    model, oracle = linrec.parallelize(build(Rebound)), build(Rebound)
    for batch, length in ((2, 12), (2, 12), (3, 20)):
        held = [(each.last, each.last.clone()) for each in (model, oracle)]
        same(model, oracle, series(batch, length))
        agree(dict(model.named_buffers()), dict(oracle.named_buffers()))
        for tensor, value in held:
            assert torch.equal(tensor, value)


class Historian(Gated):
    """Forward appends to a list and writes into a dict that live on."""

    def __init__(self) -> None:
        super().__init__()
        self.history: list[Tensor] = []
        self.newest: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.history.append(y[:, -1])
        self.newest["y"] = y
        return y


def test_containers_that_forward_changes() -> None:
    model, oracle = linrec.parallelize(build(Historian)), build(Historian)
    history, newest = model.history, model.newest
    for batch, length in ((2, 12), (2, 12), (3, 20)):
        y = model(series(batch, length))
        agree(y, oracle(series(batch, length)))
        agree(model.history, oracle.history)
        agree(model.newest, oracle.newest)
        assert all(type(each) is Tensor and each.requires_grad for each in (*model.history, model.newest["y"]))
    assert model.history is history
    assert model.newest is newest


class Stateful(Gated):
    """The state goes on from call to call (truncated backpropagation between them)."""

    h: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], WIDTH) if self.h is None else self.h
        out = []
        for x_t in x.unbind(1):
            h = self.step(x_t, h)
            out.append(h)
        self.h = h.detach()
        return torch.stack(out, 1)


def test_a_state_that_lives_between_calls() -> None:
    model, oracle = linrec.parallelize(build(Stateful)), build(Stateful)
    for length in (12, 12, 20, 3, 15):
        same(model, oracle, series(2, length))
        agree(model.h, oracle.h)
    assert_parallel(model)
    for each in (model, oracle):
        each.h = None
    same(model, oracle, series(3, 14))


class Scheduled(Gated):
    def forward(self, x: Tensor, rate: float = 1.0, mode: str = "plain", *, skip: bool = False) -> Tensor:
        y = super().forward(x) * rate
        return y if skip else y.flip(1) if mode == "flip" else y + 1


def test_arguments_that_are_not_tensors() -> None:
    """Each value counts, by position or by keyword, and one that comes again does not compile again."""
    model, oracle = linrec.parallelize(build(Scheduled)), build(Scheduled)
    with counted_exports() as exports:
        for kwargs in ({}, {"mode": "flip"}, {"mode": "flip"}, {}):
            same(model, oracle, series(), **kwargs)
        same(model, oracle, series(), 1.0, "flip")
        assert exports[0] <= 6
    same(model, oracle, series(), rate=0.5)


def test_gradients_after_many_changes(pair: Pair) -> None:
    """The compiled model is still the one that the module began with."""
    agree(gradients(pair[0], series()), gradients(pair[1], series()))
