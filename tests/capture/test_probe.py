"""Probes leave no trace: whatever a forward does to the module, its inputs and the random state is undone; and what they
record of a run.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.probe import count_calls, record, resize, undone
from linrec.capture.trace import restore_attributes, snapshot_attributes


class Busy(nn.Module):
    """Has one of everything that a forward can change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("none", None)
        self.child = nn.BatchNorm1d(3)
        self.number = 1
        self.name = "a"
        self.state: Any = None
        self.tensor = torch.zeros(3)
        self.items: list[Any] = [torch.zeros(3), 1]
        self.table: dict[str, Any] = {"a": torch.zeros(3), "b": [1]}
        self.queue: Any = collections.deque([1, 2])
        self.seen: set[int] = {1}
        self.generator = torch.Generator().manual_seed(3)
        self.act: Callable[..., Any] = lambda module, x: None

    def forward(self, x: Tensor) -> Tensor:
        self.act(self, x)
        return x * self.weight


def everything(module: Busy, x: Tensor) -> dict[str, Any]:
    """The state of the module and of what is around it, as plain values."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (id(value), value.tolist(), value.requires_grad)
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, (list, tuple, collections.deque)):
            return (id(value), [plain(v) for v in value])
        return sorted(value) if isinstance(value, set) else repr(value)

    found = {f"{path}.{k}": plain(v) for path, sub in module.named_modules() for k, v in sub.__dict__.items()}
    found["generator"] = module.generator.get_state().tolist()
    return found | {"rng": torch.get_rng_state().tolist(), "random": random.getstate(), "x": plain(x)}


ACTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "nothing": lambda m, x: None,
    "adds to a buffer": lambda m, x: m.count.add_(1),
    "replaces a buffer": lambda m, x: setattr(m, "count", m.count + 1),
    "fills an empty buffer": lambda m, x: setattr(m, "none", torch.ones(2)),
    "registers a buffer": lambda m, x: m.register_buffer("late", torch.ones(2)),
    "drops a buffer": lambda m, x: delattr(m, "count"),
    "runs statistics": lambda m, x: m.child(x),
    "sets a number": lambda m, x: setattr(m, "number", m.number + 1),
    "sets a new attribute": lambda m, x: setattr(m, "fresh", x),
    "sets a state": lambda m, x: setattr(m, "state", (x, [x])),
    "deletes an attribute": lambda m, x: delattr(m, "name"),
    "writes into a tensor": lambda m, x: m.tensor.add_(1),
    "replaces a tensor": lambda m, x: setattr(m, "tensor", m.tensor + 1),
    "appends to a list": lambda m, x: m.items.append(x),
    "clears a list": lambda m, x: m.items.clear(),
    "sets a key": lambda m, x: m.table.update(a=x, c=1),
    "drops a key": lambda m, x: m.table.pop("a"),
    "writes into a tensor of a list": lambda m, x: m.items[0].add_(1),
    "writes into a tensor of a dict": lambda m, x: m.table["a"].add_(1),
    "appends to a list in a dict": lambda m, x: m.table["b"].append(2),
    "appends to a deque": lambda m, x: m.queue.append(3),
    "adds to a set": lambda m, x: m.seen.add(2),
    "draws random numbers": lambda m, x: (torch.randn(3), random.random()),
    "draws from its own generator": lambda m, x: torch.randn(3, generator=m.generator),
    "writes into its input": lambda m, x: x.detach().mul_(2),
    "writes into its parameter": lambda m, x: m.weight.detach().add_(1),
    "freezes its parameter": lambda m, x: m.weight.requires_grad_(False),
    "replaces its parameter": lambda m, x: setattr(m, "weight", nn.Parameter(torch.zeros(3))),
    "changes its mode": lambda m, x: m.child.eval(),
    "changes a child's number": lambda m, x: setattr(m.child, "momentum", 0.5),
    "registers a hook": lambda m, x: m.child.register_forward_hook(lambda *a: None),
    "adds a module": lambda m, x: m.add_module("late", nn.Linear(1, 1)),
    "fails": lambda m, x: (m.count.add_(1), setattr(m, "number", 5), 1 / 0),
}


@pytest.mark.parametrize("name", ACTS)
def test_undone(name: str) -> None:
    module, x = Busy(), torch.ones(2, 3)
    module.act = ACTS[name]
    before = everything(module, x)
    try:
        with undone(module, [x]):
            module(x)
    except ZeroDivisionError:
        assert name == "fails"
    after = everything(module, x)
    assert {k for k in before.keys() | after.keys() if before.get(k) != after.get(k)} == set()


def test_hooks_are_not_called_in_a_probe_and_come_back() -> None:
    module, calls = Busy(), []
    handles = [module.child.register_forward_hook(lambda *a: calls.append("child"))]
    handles.append(module.register_forward_pre_hook(lambda *a: calls.append("pre")))
    module.act = lambda m, x: m.child(x)
    with undone(module):
        module(torch.ones(2, 3))
    assert calls == []
    module(torch.ones(2, 3))
    assert calls == ["pre", "child"]
    for handle in handles:
        handle.remove()
    module(torch.ones(2, 3))
    assert calls == ["pre", "child"]


def test_a_snapshot_is_the_same_module_afterwards() -> None:
    module = Busy()
    saved = snapshot_attributes(module)
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    module.weight = nn.Parameter(torch.zeros(3))
    module.count = torch.ones(())
    module.late = nn.Linear(1, 1)
    restore_attributes(saved)
    assert all(module.get_parameter(n) is p for n, p in parameters.items())
    assert all(module.get_buffer(n) is b for n, b in buffers.items())
    assert not hasattr(module, "late")
    assert list(module.state_dict()) == list(Busy().state_dict())


def test_resize_cuts_and_wraps_around() -> None:
    x = torch.arange(5.0).expand(2, 5)
    short, other = resize([x, 3], {0: {1: 0}}, 3)
    assert (short.tolist(), other) == ([[0.0, 1.0, 2.0]] * 2, 3)
    assert resize([x], {0: {1: 0}}, 7)[0][0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 0.0, 1.0]
    assert resize([x], {0: {1: 1}}, 2)[0].shape == (2, 3)
    same = resize([x], {}, 9)[0]
    assert same.equal(x)
    assert same.data_ptr() != x.data_ptr()


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.Linear(3, 3)
        self.head = nn.Linear(3, 2)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(self.cell(h)) + x[:, t]
            self.steps += 1
        return self.head(h)


def recorded(module: nn.Module, *args: Any, **options: Any) -> Any:
    leaves, spec = pytree.tree_flatten((args, {}))
    return record(module, module.forward, spec, leaves, **options)


def test_a_record_counts_what_each_module_runs() -> None:
    module = Loop()
    short, long = (recorded(module, torch.randn(2, n, 3), per_module=True) for n in (3, 5))
    assert long.own[module] > short.own[module]
    assert long.own[module.cell] == short.own[module.cell]
    assert long.own[module.head] == short.own[module.head]
    assert module.steps.item() == 0


def test_records_of_identical_modules_are_equal() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 3)
    assert recorded(Loop(), x).events == recorded(Loop(), x).events
    assert recorded(Loop(), x).result == recorded(Loop(), x).result

    class Other(Loop):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    assert recorded(Other(), x).events != recorded(Loop(), x).events


def test_a_count_of_calls() -> None:
    module = Loop()
    leaves, spec = pytree.tree_flatten(((torch.randn(2, 4, 3),), {}))
    found = count_calls(module, module.forward, spec, leaves)
    calls = {str(key[0]).split(".")[-1]: n for key, n in found.calls.items()}
    assert calls["tanh"] == 4
    assert calls["linear"] == 5
    assert found.output.shape == (2, 2)
    assert not found.output.requires_grad
    assert module.steps.item() == 0


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand, lambda: 1.0])
def test_draws_outside_torch(draw: Callable[[], float]) -> None:
    """They decide what is traced, and no operator shows them."""

    class Drawing(Loop):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * (2.0 if draw() < 2 else 1.0)

    assert recorded(Drawing(), torch.randn(2, 3, 3)).drew == (draw() != 1.0)


def test_a_count_of_calls_that_take_gradients() -> None:
    """Nothing that is saved for backward is kept, unless forward asks for it."""

    class Inner(Loop):
        def forward(self, x: Tensor) -> Tensor:
            x = x.detach().requires_grad_()
            return torch.autograd.grad((x**2).sum(), x)[0][:, -1, :2]

    module, x = Inner(), torch.randn(2, 4, 3)
    leaves, spec = pytree.tree_flatten(((x,), {}))
    found = count_calls(module, module.forward, spec, leaves)
    torch.testing.assert_close(found.output, 2 * x[:, -1, :2])
    with torch.no_grad():
        assert not any(key[2] for key in count_calls(Loop(), Loop().forward, spec, leaves).calls)


def test_gradient_does_not_stay_in_a_buffer() -> None:
    class Remembers(nn.Module):
        last: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("last", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            self.last.copy_(self.weight * x[0])
            return self.last

    module, x = Remembers(), torch.ones(2, 3)
    with undone(module, [x]):
        assert module(x).requires_grad
    assert not module.last.requires_grad
    assert module.last.tolist() == [0, 0, 0]


def test_what_is_sparse_does_not_keep_others_from_being_put_back() -> None:
    """Batch norm writes its statistics without telling, so that they are compared; torch does not compare sparse ones."""
    module = nn.BatchNorm1d(3)
    before = {name: b.clone() for name, b in module.named_buffers()}
    module._buffers = {"graph": torch.eye(3).to_sparse(), **module._buffers}
    with undone(module):
        module(torch.randn(4, 3))
        module.graph.mul_(2)  # type: ignore[operator]
    assert torch.equal(module.graph.to_dense(), torch.eye(3))  # type: ignore[operator]
    assert all(torch.equal(b, getattr(module, name)) for name, b in before.items())
