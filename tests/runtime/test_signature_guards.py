"""What tells calls apart, decision by decision: what is left alone, what a signature is made of, and hooks."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import linrec
from linrec.capture.frozen import Kept, is_fixed
from linrec.ir.members import InFront
from linrec.runtime import shortcut, state
from linrec.runtime import signature as signatures
from linrec.runtime.state import Seen

X = torch.randn(2, 6, 3, dtype=torch.float64)
EVERY = nn.modules.module


class Two(nn.Module):
    """Two modules within, and some attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Identity(), nn.Identity()
        self.gain = 1.0
        self.last: Any = None

    def forward(self, x: Tensor) -> Tensor:
        return x


def of(module: nn.Module, *args: Any, seen: Seen | None = None, **kwargs: Any) -> Any:
    return signatures.signature(module, *signatures.flattened(args, kwargs), seen)


def test_a_tensor_with_attributes_is_left_alone() -> None:
    noted = X.clone()
    noted.note = 1  # type: ignore[attr-defined]
    assert signatures.ordinary([X, X]) and not signatures.ordinary([X, noted]) and not signatures.ordinary([noted, X])


def test_a_default_device_is_no_other_mode() -> None:
    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    with torch.device("cpu"):
        assert signatures.ordinary([X])
        with Watching():
            assert not signatures.ordinary([X])


@pytest.mark.parametrize("value", [1, 1.0, 1j, True, "a", None, X, torch.float64, torch.device("cpu")])
def test_what_is_known(value: Any) -> None:
    assert signatures.known(value)
    assert not signatures.known([value]) and not signatures.known(type("Own", (), {})())


def test_calls_by_position_have_one_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signatures, "_positional", {})
    monkeypatch.setattr(signatures, "_numbers", {})
    leaves, spec = signatures.flattened((X, 1), {})
    assert leaves == [X, 1] and type(leaves) is list and spec == pytree.tree_structure(((X, 1), {}))
    assert signatures.flattened((2.0, X), {})[1] is spec and signatures.is_positional(spec)
    assert signatures._numbers == {id(spec): 2}
    for args, kwargs in (((X,), {"y": 1}), (([X], 1), {}), ((1, (X,)), {})):
        other = signatures.flattened(args, kwargs)[1]
        assert other == pytree.tree_structure((args, kwargs)) and not signatures.is_positional(other)
    assert signatures.flattened((X,), {})[1] != spec


def test_calls_by_name_are_told_apart_by_their_names() -> None:
    module = Two()
    leaves, one = signatures.flattened((X,), {"y": 1})
    same, another = signatures.flattened((X,), {"y": 1})
    assert one is not another
    assert signatures.signature(module, leaves, one) == signatures.signature(module, same, another)
    assert of(module, X, y=1) != of(module, X, z=1)


def test_what_was_seen_is_not_frozen_again(monkeypatch: pytest.MonkeyPatch) -> None:
    module, seen = Two(), Seen()
    first = of(module, X, seen=seen)
    assert first == of(module, X)
    monkeypatch.setattr(state, "frozen_state", lambda *_, **__: pytest.fail("frozen again"))
    assert of(module, X, seen=seen) == first


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_hook_on_one_of_two(which: str) -> None:
    module = Two()
    before = of(module, X)
    handle = getattr(module, which).register_forward_hook(lambda *_: None)
    assert of(module, X) != before
    handle.remove()
    assert of(module, X) == before


def held(value: Any, *args: Any) -> Any:
    module = Two()
    module.last = value
    return signatures._held([module], list(args))


def test_tensors_that_are_held_count_by_the_sizes_that_they_share() -> None:
    zeros = functools.partial(torch.zeros, dtype=torch.float64)
    assert held(zeros(2), X) == (("last", torch.float64, torch.device("cpu"), (0,)),)
    for value, same in ((zeros(6), zeros(6)), (zeros(5, 4), zeros(7, 9)), ([zeros(2, 5)], [zeros(2, 4)])):
        assert held(value, X) == held(same, X) != ()
    others = [
        zeros(2),
        zeros(6),
        zeros(3),
        zeros(5),
        zeros(2, 3),
        zeros(3, 2),
        zeros(2).float(),
        zeros(2, device="meta"),
    ]
    assert len({held(x, X) for x in others}) == len({held([0, x], X) for x in others}) == len(others)
    assert held(zeros(5), X, X[:, :5]) != held(zeros(5), X)
    assert held({1, 2}, X) == held(None, X) == held("a", X) == held(of, X) == held(1.5) == ()


def test_parameters_are_not_among_them() -> None:
    module = nn.Linear(3, 3)
    module.register_buffer("more", torch.zeros(3))
    assert signatures._held([module, nn.Sequential(module)], [X]) == ()


def test_why_a_module_must_not_be_run() -> None:
    module = Two()
    assert signatures.one_way(module) is None
    module.first.numbers = iter([1, 2])
    problem = signatures.one_way(module)
    assert problem is not None and problem.id == "LR013" and "'numbers', a list_iterator" in str(problem)


GLOBAL: dict[str, Callable[[], Any]] = {
    "forward": lambda: EVERY.register_module_forward_hook(lambda *_: None),
    "before forward": lambda: EVERY.register_module_forward_pre_hook(lambda *_: None),
    "backward": lambda: EVERY.register_module_full_backward_hook(lambda *_: None),
    "before backward": lambda: EVERY.register_module_full_backward_pre_hook(lambda *_: None),
}


@pytest.fixture
def registered(request: pytest.FixtureRequest) -> Iterator[None]:
    handle = GLOBAL[request.param]()
    yield
    handle.remove()


@pytest.mark.parametrize("registered", GLOBAL, indirect=True)
def test_hooks_for_all_modules(registered: None) -> None:
    problem = signatures.unsupported(Two())
    assert signatures.global_hooks() is True
    assert problem is not None and problem.id == "LR008" and "global" in str(problem)


REGISTER: dict[str, Callable[[nn.Module], Any]] = {
    "forward": lambda m: m.register_forward_hook(lambda *_: None),
    "before forward": lambda m: m.register_forward_pre_hook(lambda *_: None),
    "backward": lambda m: m.register_full_backward_hook(lambda *_: None),
    "before backward": lambda m: m.register_full_backward_pre_hook(lambda *_: None),
}


@pytest.mark.parametrize("what", REGISTER)
def test_hooks_of_a_submodule(what: str) -> None:
    module = Two()
    assert not signatures.global_hooks() and not signatures.hooked(module) and signatures.unsupported(module) is None
    REGISTER[what](module)
    assert signatures.hooked(module) is True and signatures.unsupported(module) is None
    REGISTER[what](module.second)
    problem = signatures.unsupported(module)
    assert problem is not None and problem.id == "LR008" and "'second'" in str(problem)


@pytest.mark.parametrize(("value", "other"), [(0.0, -0.0), (complex(1, 0.0), complex(1, -0.0))])
def test_minus_zero_is_another_number(value: Any, other: Any) -> None:
    """They compare equal, and what is divided by them does not."""
    module = Two()
    assert of(module, X, value) == of(module, X, value * 1) != of(module, X, other)
    for wrap in (lambda x: x, lambda x: (x,), lambda x: [x], lambda x: {"a": x}):
        seen = Seen()
        module.gain = wrap(value)
        before = of(module, X, seen=seen)
        module.gain = wrap(value * 1)
        assert of(module, X, seen=seen) == before
        module.gain = wrap(other)
        assert of(module, X, seen=seen) != before
        assert not Kept(wrap(value)).still(wrap(other))
    assert Kept(value).still(value * 1)


def test_what_is_not_a_number_stays_what_it_is() -> None:
    assert of(Two(), X, float("nan")) == of(Two(), X, float("nan"))


class Gain:
    """Something to call, with a number and a list that it reads."""

    def __init__(self, gain: Any) -> None:
        self.gain, self.gains = gain, [gain]

    def __call__(self, x: Tensor) -> Tensor:
        return x * self.gain * self.gains[0]

    def times(self, x: Tensor) -> Tensor:
        return self(x)


def product(gains: list[float], x: Tensor) -> Tensor:
    return x * gains[0]


def _gain(x: Gain) -> None:
    x.gain += 1.0


def _gains(x: Gain) -> None:
    x.gains[0] += 1.0


CALLABLES: dict[str, tuple[Callable[[Gain], Any], Callable[[Gain], None]]] = {
    "object": (lambda g: g, _gain),
    "method": (lambda g: g.times, _gain),
    "list of a method's object": (lambda g: g.times, _gains),
    "partial of an object": (lambda g: functools.partial(g), _gain),
    "partial of a method": (lambda g: functools.partial(g.times), _gain),
    "argument of a partial": (lambda g: functools.partial(product, g.gains), _gains),
    "keyword of a partial": (lambda g: functools.partial(product, x=g), _gain),
    "method of a list": (lambda g: g.gains.__getitem__, _gains),
}


@pytest.mark.parametrize("place", ["attribute", "list", "forward", "forward behind"])
@pytest.mark.parametrize("what", CALLABLES)
def test_what_is_called_counts_with_what_it_holds(what: str, place: str) -> None:
    make, change = CALLABLES[what]
    gain, module, seen = Gain(2.0), Two(), Seen()
    value = make(gain)
    if place == "forward":
        module.second.forward = value
    elif place == "forward behind":
        front = InFront()
        front.own = value
        module.second.__dict__["forward"] = front
    else:
        module.last = value if place == "attribute" else [value]
    before = of(module, X, seen=seen)
    assert of(module, X, seen=seen) == before == of(module, X)
    change(gain)
    assert of(module, X, seen=seen) != before


@pytest.mark.parametrize("value", [torch.tanh, Gain(1.0), Gain(1.0).times, functools.partial(Gain(1.0)), product])
def test_a_forward_that_is_put_in_place_of_that_of_the_class(value: Any) -> None:
    module, seen = Two(), Seen()
    before = of(module, X, seen=seen)
    module.second.forward = value
    after = of(module, X, seen=seen)
    assert after != before and of(module, X, seen=seen) == after
    front = InFront()
    front.own = value
    module.second.__dict__["forward"] = front
    assert of(module, X, seen=seen) == after
    front.own = None
    assert of(module, X, seen=Seen()) == before


def test_a_method_of_a_list_is_kept_with_the_list() -> None:
    items = [1.0]
    method: Any = items.__getitem__
    kept = Kept(method)
    assert kept.still(method) and not is_fixed(method) and is_fixed(torch.tanh) and is_fixed(len)
    items[0] = 2.0
    assert not kept.still(method)


def test_how_deep_methods_are_looked_into() -> None:
    """What is deeper is taken for the object that it is."""
    for depth in range(1, 8):
        module, value = Two(), [1.0]
        module.last = value
        for _ in range(depth):
            module.last = Gain(module.last).times
        before = of(module, X)
        value[0] = 2.0
        assert (of(module, X) != before) is (depth < 4)


class Optional(nn.Module):
    """Scales its input by a tensor that may not be there."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.rand(3, dtype=torch.float64))
        if kind == "buffer":
            self.register_buffer("k", None)
        elif kind == "parameter":
            self.k = nn.Parameter(torch.ones(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        k: Any = getattr(self, "k", None)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w * h + (x[:, t] if k is None else k * x[:, t])
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("kind", ["buffer", "parameter", "nothing"])
@pytest.mark.parametrize("versions", [True, False])
def test_a_tensor_that_comes_and_goes(kind: str, versions: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not versions:
        monkeypatch.setattr(shortcut, "_HAVE_VERSIONS", False)
    torch.manual_seed(0)
    loop = Optional(kind)
    ours = linrec.parallelize(copy.deepcopy(loop))
    x = torch.randn(2, 24, 3, dtype=torch.float64)

    def change(m: Any, k: int) -> None:
        if k == 0:
            return
        if k % 2:
            new = torch.full((3,), 1.0 + k, dtype=torch.float64)
            if kind == "nothing":
                m.register_buffer("k", new)
            else:
                m.k = nn.Parameter(new) if kind == "parameter" else new
        elif kind == "nothing":
            del m.k
        else:
            m.k = None

    for k in range(5):
        change(loop, k)
        change(ours, k)
        for _ in range(3):
            torch.testing.assert_close(ours(x), loop(x))
