"""Calls like the one before are served without another look at what cannot have changed; whatever else changed is seen."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import BaseTorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import linrec
from linrec.capture.numbers import StepNumbers
from linrec.runtime import dispatcher as dispatchers
from linrec.runtime import shortcut as shortcuts
from linrec.runtime.dispatcher import Dispatcher
from linrec.runtime.placement import default_device, without_default_device
from linrec.runtime.shortcut import Shortcut
from linrec.runtime.state import Seen, submodules

from .plans import plan

RATE = 0.5


class Inner(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([gain, 0.4, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Model(nn.Module):
    """Reads everything that there is to read: two children, an attribute, a buffer, a global."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Inner(0.9), Inner(0.2)
        self.decay = 0.7
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))

    def forward(self, x: Tensor, scale: int = 1) -> Tensor:
        h, out = self.first(x[:, 0]) * 0, []
        drive = self.second(self.first(x)) + self.shift * RATE
        for t in range(x.shape[1]):
            h = self.decay * h + drive[:, t] * scale
            out.append(h)
        return torch.stack(out, 1)


def of(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


class Pair:
    """A model, the loop that it was, and how many of its calls were served at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.model, self.oracle = linrec.parallelize(Model()), Model()
        self.served = 0
        serves = Shortcut.serves

        def counted(known: Shortcut, args: Any, kwargs: Any) -> Any:
            found = serves(known, args, kwargs)
            self.served += found is not None
            return found

        monkeypatch.setattr(Shortcut, "serves", counted)

    def same(self, *args: Any) -> bool:
        """Compare a call, and say whether it was served at once."""
        before = self.served
        ours, theirs = ([*torch.autograd.grad(y.sum(), m.first.weight), y] for m, y in self._results(args))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        return self.served > before

    def _results(self, args: Any) -> list[tuple[Any, Tensor]]:
        return [(m, m(*args)) for m in (self.model, self.oracle)]

    def both(self, change: Callable[[Any], None]) -> None:
        for m in (self.model, self.oracle):
            change(m)


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    made = Pair(monkeypatch)
    made.same(of(2, 20, 3))
    made.same(of(2, 20, 3))
    assert made.same(of(2, 20, 3))
    return made


def test_other_numbers_are_served_at_once(pair: Pair) -> None:
    with torch.no_grad():
        pair.both(lambda m: m.first.weight.mul_(0.5))
    assert pair.same(of(2, 20, 3) * 2)


def test_other_sizes_are_looked_at(pair: Pair) -> None:
    for shape in ((2, 21, 3), (3, 20, 3), (1, 20, 3), (2, 1, 3), (2, 300, 3)):
        assert not pair.same(of(*shape))


def _swap(model: Any) -> None:
    """The same modules in the same order, by each other's names."""
    modules = model._modules
    first, second = modules.pop("first"), modules.pop("second")
    modules["second"], modules["first"] = first, second


CHANGES: dict[str, Callable[[Any], Any]] = {
    "attribute": lambda m: setattr(m, "decay", 0.3),
    "new attribute": lambda m: setattr(m, "other", 1.0),
    "child": lambda m: setattr(m, "second", Inner(0.5)),
    "grandchild": lambda m: m.second.add_module("more", nn.Identity()),
    "names": _swap,
    "class": lambda m: setattr(m.second, "__class__", Doubled),
    "own forward": lambda m: setattr(m.second, "forward", lambda x: x * 3.0 * m.second.weight),
    "hook": lambda m: m.second.register_forward_hook(lambda mod, args, y: y * 2.0) and None,
    "hook on the first": lambda m: m.first.register_forward_hook(lambda mod, args, y: y * 2.0) and None,
    "hook before": lambda m: m.second.register_forward_pre_hook(lambda mod, args: (args[0] * 2.0,)) and None,
    "buffer of another size": lambda m: setattr(m, "shift", torch.tensor(0.25, dtype=torch.float64)),
}


class Doubled(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return 2.0 * super().forward(x)


@pytest.mark.parametrize("name", CHANGES)
def test_what_changes_is_seen(pair: Pair, name: str) -> None:
    pair.both(CHANGES[name])
    assert not pair.same(of(2, 20, 3))
    pair.same(of(2, 20, 3))


def test_modules_of_other_classes_by_each_others_names(pair: Pair) -> None:
    pair.both(CHANGES["class"])
    pair.same(of(2, 20, 3))
    pair.same(of(2, 20, 3))
    pair.both(lambda m: setattr(m, "scale", [1]))  # looked at in full from here on
    pair.same(of(2, 20, 3))
    pair.both(_swap)
    pair.same(of(2, 20, 3))
    pair.both(lambda m: delattr(m, "scale"))
    pair.same(of(2, 20, 3))
    pair.both(_swap)
    assert not pair.same(of(2, 20, 3))


def test_parameters_and_buffers_are_looked_up(pair: Pair) -> None:
    def replace(m: Any) -> None:
        m.second.weight = nn.Parameter(torch.tensor([0.6, 0.7, 0.8], dtype=torch.float64))
        m.shift = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    pair.both(replace)
    assert pair.same(of(2, 20, 3))


def test_globals_are_looked_at(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RATE", 0.25)
    assert not pair.same(of(2, 20, 3))
    monkeypatch.undo()


def test_plain_arguments(pair: Pair) -> None:
    for scale in (2, 3, True, 2):
        pair.same(of(2, 20, 3), scale)
        pair.same(of(2, 20, 3), scale)
        assert pair.same(of(2, 20, 3), scale)
    assert not pair.same(of(2, 20, 3), 1)
    assert not pair.same(of(2, 20, 3))
    pair.model(of(2, 20, 3), scale=2)
    torch.testing.assert_close(pair.model(of(2, 20, 3), scale=2), pair.oracle(of(2, 20, 3), scale=2))


def test_other_kinds_of_tensors(pair: Pair) -> None:
    model, x = pair.model, of(2, 20, 3)
    marked = x.clone()
    marked.note = 1  # type: ignore[attr-defined]
    wrapped = torch.Tensor._make_subclass(Sub, x)
    for other in (marked, wrapped, x.float(), x[:, :0]):
        before = pair.served
        if other.numel():
            model(other)
        assert pair.served == before
    pair.same(x)
    assert pair.same(x.transpose(0, 1).contiguous().transpose(0, 1))


class Sub(torch.Tensor):
    pass


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "how", ["grad", "autocast", "device", "default dtype", "dispatch", "eval", "trace", "hook for all"]
)
def test_other_modes(pair: Pair, how: str) -> None:
    x, before = of(2, 20, 3), pair.served
    if how == "grad":
        with torch.no_grad():
            pair.model(x)
    elif how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            pair.model(x)
    elif how == "device":
        with torch.device("cpu"):
            pair.model(x)
    elif how == "default dtype":
        torch.set_default_dtype(torch.float64)
        try:
            pair.model(x)
        finally:
            torch.set_default_dtype(torch.float32)
    elif how == "dispatch":
        with Watching():
            pair.model(x)
    elif how == "eval":
        pair.model.eval()(x)
        pair.model.train()
    elif how == "trace":
        with warnings.catch_warnings(action="ignore"):
            torch.jit.trace(pair.model, x, check_trace=False)
    else:
        handle = nn.modules.module.register_module_forward_hook(lambda module, args, result: None)
        try:
            pair.model(x)
        finally:
            handle.remove()
    assert pair.served == before
    pair.same(x)
    assert pair.same(x)


def test_a_plan_that_broke(pair: Pair) -> None:
    dispatcher = pair.model.__dict__["forward"]
    assert isinstance(dispatcher, Dispatcher) and dispatcher.last_plan is not None
    dispatcher.last_plan.broken_from = (0, linrec.Obstruction("LR010", "", "broken"))
    assert not pair.same(of(2, 20, 3))


def shortcut(leaves: list[Any], **changes: Any) -> Shortcut | None:
    """What is remembered of a call of a module without attributes, by a plan made by hand."""
    module, seen = nn.Identity(), Seen()
    frozen, _ = seen.frozen(submodules(module))
    known = seen.fixed(frozen)
    assert known is not None
    return Shortcut.of(module, leaves, (), known, plan(**changes), None, 6)


def test_of_which_calls_nothing_is_remembered() -> None:
    x = of(2, 6, 3)
    assert shortcut([x]) is not None and shortcut([x, 1]) is not None
    assert shortcut([x, 1.5]) is None and shortcut([x, "mean"]) is None
    assert shortcut([x], numbers=StepNumbers([])) is None
    with Watching():
        assert shortcut([x]) is None
    with torch.autocast("cpu", torch.bfloat16):
        assert shortcut([x]) is None
    with BaseTorchFunctionMode():
        assert shortcut([x]) is None
    with torch.device("cpu"), without_default_device():
        assert default_device() is None and shortcut([x]) is None


class Decay(nn.Module):
    """Has nothing of its own, so that all that a plan takes is what a call gives, and numbers."""

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        h, out = x[:, 0] * 0, []
        for t in range(x.shape[1]):
            h = a[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1) * torch.tensor(0.5)


def test_arguments_stay_in_order() -> None:
    model = linrec.parallelize(Decay())
    for scale in (0.1, 0.2, 0.3, 0.4):
        a, x = of(2, 20, 3) * scale, of(2, 20, 3)
        torch.testing.assert_close(model(a, x), Decay()(a, x))
    dispatcher = model.__dict__["forward"]
    assert dispatcher.shortcut.serves((a, x), {}) is not None
    assert dispatcher.last_plan.broken_from is None


def test_one_tensor_for_two_arguments() -> None:
    model = linrec.parallelize(Decay())
    a, x = of(2, 20, 3) * 0.1, of(2, 20, 3)
    for args in ((a, a), (a, x), (x, x), (x, a)):
        for _ in range(2):
            torch.testing.assert_close(model(*args), Decay()(*args))
        known = model.__dict__["forward"].shortcut
        one = args[0] is args[1]
        assert (known.serves((a, a), {}) is not None) == one and (known.serves((a, x), {}) is None) == one
        torch.testing.assert_close(model(x, a), Decay()(x, a))


def test_arguments_by_name_come_in_any_order() -> None:
    model = linrec.parallelize(Decay())
    a, x = of(2, 20, 3) * 0.1, of(2, 20, 3)
    for _ in range(3):
        torch.testing.assert_close(model(x=x, a=a), Decay()(a, x))
    known = model.__dict__["forward"].shortcut
    assert known.serves((), {"x": x, "a": a}) is not None
    for args, kwargs in (((), {"a": a, "x": x}), ((x,), {"a": a}), ((x, a), {}), ((a,), {"x": x})):
        assert known.serves(args, kwargs) is None
    torch.testing.assert_close(model(a=a, x=x), Decay()(a, x))
    torch.testing.assert_close(model(x, a), Decay()(x, a))
    torch.testing.assert_close(model(a, x=x), Decay()(a, x))
    torch.testing.assert_close(model(a, x=x), Decay()(a, x))


def test_calls_that_are_served_are_not_looked_at(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def looked(*args: Any) -> Any:
        raise AssertionError("looked at")

    monkeypatch.setattr(dispatchers, "flattened", looked)
    assert pair.same(of(2, 20, 3))


def test_after_a_check() -> None:
    model = linrec.parallelize(Decay())
    a, x = of(2, 20, 3) * 0.1, of(2, 20, 3)
    model(a, x)
    assert model.__dict__["forward"].shortcut.serves((a, x), {}) is not None


def test_what_other_calls_have_changed_meanwhile() -> None:
    first, second, seen = Inner(0.5), nn.Dropout(0.1), Seen()
    frozen = seen.frozen([first])[0]
    assert seen.fixed(frozen) is not None
    seen.frozen([second])
    assert seen.fixed(frozen) is None
    seen.frozen([first, second])
    assert seen.fixed(frozen) is None and seen.fixed(seen.frozen([first, second])[0]) is not None


def test_tensors_that_are_elsewhere_or_otherwise() -> None:
    x = of(2, 6, 3)
    known = shortcut([x])
    assert known is not None and known.serves((x + 1,), {}) is not None
    assert known.serves((x.to("meta"),), {}) is None and known.serves((x.to_sparse(),), {}) is None
    served = []
    torch.func.vmap(lambda each: (served.append(known.serves((each,), {})), each)[1])(torch.stack([x, x]))
    assert served == [None]


def test_what_is_no_tensor_where_one_was() -> None:
    known = shortcut([of(2, 6, 3), 1])
    assert known is not None and known.serves((of(2, 6, 3), 1), {}) is not None
    for other in (None, 1, [of(2, 6, 3)], of(2, 6, 3).numpy(), nn.Parameter(of(2, 6, 3)), of(2, 6, 3).requires_grad_()):
        assert known.serves((other, 1), {}) is None
    for number in (True, 1.0, 2, None, of(1)):
        assert known.serves((of(2, 6, 3), number), {}) is None
    assert known.serves((of(2, 6, 3),), {}) is None and known.serves((of(2, 6, 3), 1, 1), {}) is None


def _set_often(model: Any, value: float) -> None:
    """Set an attribute so often that Python has found a quick way to do it."""
    for k in range(200):
        model.decay = 0.9 if k < 199 else value


def test_attributes_that_are_set_often(pair: Pair) -> None:
    pair.both(lambda m: _set_often(m, 0.7))
    pair.same(of(2, 20, 3))
    assert pair.same(of(2, 20, 3))
    pair.both(lambda m: _set_often(m, 0.3))
    assert not pair.same(of(2, 20, 3))
    pair.both(lambda m: m.__dict__.update(decay=0.4))
    assert not pair.same(of(2, 20, 3))
    pair.both(lambda m: object.__setattr__(m, "__dict__", {**m.__dict__, "decay": 0.5}))
    assert not pair.same(of(2, 20, 3)) and pair.same(of(2, 20, 3))


def test_without_versions_of_dicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shortcuts, "_HAVE_VERSIONS", False)
    pair = Pair(monkeypatch)
    for _ in range(2):
        pair.same(of(2, 20, 3))
    assert pair.same(of(2, 20, 3))
    for change in ("attribute", "child", "class"):
        pair.both(CHANGES[change])
        assert not pair.same(of(2, 20, 3)) and pair.same(of(2, 20, 3))


class Shared(nn.Module):
    """Has a weight by two names, asks whether it is to be trained, and keeps its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.9, 0.4, 0.3], dtype=torch.float64))
        self.again, self.idle = self.weight, nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.register_buffer("last", torch.zeros(2, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        h, out = self.last.clone(), []
        drive = x * self.again if self.idle.requires_grad else x * 2.0
        for t in range(x.shape[1]):
            h = self.weight * h + drive[:, t]
            out.append(h)
        self.last.copy_(h.detach())
        return torch.stack(out, 1)


def test_names_flags_and_buffers_that_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(monkeypatch)
    pair.model, pair.oracle = linrec.parallelize(Shared()), Shared()

    def same() -> bool:
        before, x = pair.served, of(2, 20, 3)
        ours, theirs = pair.model(x), pair.oracle(x)
        grads = [torch.autograd.grad(y.sum(), m.weight)[0] for m, y in ((pair.model, ours), (pair.oracle, theirs))]
        for a, b in ((ours, theirs), grads, (pair.model.last, pair.oracle.last)):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        return pair.served > before

    def served() -> bool:
        same()
        return same()

    assert served() and served()
    pair.both(lambda m: m.idle.requires_grad_(False))
    assert not same() and served()
    pair.both(lambda m: setattr(m, "again", nn.Parameter(torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64))))
    assert not same() and served()
    pair.both(lambda m: m._buffers.update(last=m.weight.detach()[None].expand(2, 3)))
    before = pair.served
    for m in (pair.model, pair.oracle):
        with pytest.raises(RuntimeError):
            m(of(2, 20, 3))
    assert pair.served == before


class Dense(nn.Module):
    """Asks how its input lies in memory."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = x[:, 0] * 0, []
        scale = 1.0 if x.is_contiguous() else 2.0
        for t in range(x.shape[1]):
            h = 0.5 * h + scale * x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def test_how_tensors_lie_where_forward_asks() -> None:
    model = linrec.parallelize(Dense())
    x = of(2, 20, 3)
    other = x.transpose(0, 1).contiguous().transpose(0, 1)
    for each in (x, x, x, other, other, x):
        torch.testing.assert_close(model(each), Dense()(each))


def test_a_parameter_that_is_gone(pair: Pair) -> None:
    def without(m: Any) -> None:
        m.first._parameters["weight"] = None

    pair.both(without)
    before = pair.served
    with pytest.raises(TypeError):
        pair.model(of(2, 20, 3))
    assert pair.served == before


def test_strict_models_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    model = linrec.parallelize(Model(), strict=True)
    for _ in range(3):
        model(of(2, 20, 3))
    assert model.__dict__["forward"].shortcut is None
