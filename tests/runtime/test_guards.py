"""When a plan may run: every condition of `Plan.admits` and every part of a call's signature by itself, without tracing."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from linrec.capture.discover import TimeAxis
from linrec.capture.source import Assigned, Source
from linrec.capture.trace import Slot
from linrec.ir.held import DEPTH, lookup, places
from linrec.ir.obstruction import Obstruction
from linrec.runtime import signature as signatures
from linrec.runtime.plan import Plan, TimeDim
from linrec.runtime.state import frozen_state


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3)
        self.register_buffer("total", torch.zeros(3))
        self.steps = 2
        self.names = ["a", {"b": 1.0}]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        return x


def plan(**changes: Any) -> Plan:
    """A plan for x (batch, time, 3) and other (time + 1, batch) that returns x; reads one parameter."""
    graph = fx.Graph()
    x, *_ = (graph.placeholder(name) for name in ("x", "other", "w"))
    graph.output((x,))
    whole = Plan(
        graph_module=fx.GraphModule(nn.Module(), graph),
        sources=[Source("input", index=0), Source("input", index=1), Source("parameter", name="inner.weight")],
        outputs=[("user", 0)],
        out_spec=pytree.tree_structure(0),
        out_leaves=[Slot(0)],
        attributes=[],
        axis=TimeAxis(leaf=0, dim=1, dims={0: {1: 0}, 1: {0: 1}}, tensor_leaves=[0, 1], owners=[]),
        shapes=[("b", TimeDim(0), 3), (TimeDim(1), "b")],
        min_length=4,
        recurrences=[],
        state=[None, None, (torch.float32, torch.Size([3, 3]), torch.device("cpu"))],
    )
    return dataclasses.replace(whole, **changes)


def sized(batch: int, length: int, width: int = 3, other: tuple[int, int] | None = None) -> list[Tensor]:
    return [torch.randn(batch, length, width), torch.randn(*(other or (length + 1, batch)))]


def test_any_length_and_batch_is_admitted() -> None:
    model = Model()
    for batch, length in ((2, 4), (7, 4), (2, 5), (1, 1000)):
        assert plan().admits(model, sized(batch, length), length)


@pytest.mark.parametrize(
    ("tensors", "length"),
    [
        (sized(2, 3), 3),
        (sized(2, 6, width=4), 6),
        (sized(2, 6, other=(7, 3)), 6),
        (sized(2, 6, other=(6, 2)), 6),
        (sized(2, 6), 5),
    ],
    ids=["too short", "other width", "two batch sizes", "other offset", "other length"],
)
def test_other_sizes_are_not(tensors: list[Tensor], length: int) -> None:
    assert not plan().admits(Model(), tensors, length)


def test_from_where_it_broke_it_is_not_admitted() -> None:
    broken = plan(broken_from=(10, Obstruction("LR011", "", "")))
    assert broken.admits(Model(), sized(2, 9), 9)
    assert not broken.admits(Model(), sized(2, 10), 10)
    assert not broken.admits(Model(), sized(2, 11), 11)


def test_guards_see_the_sizes() -> None:
    guarded = plan(guards=[lambda sizes: True, lambda sizes: sizes["b"] % 2 == 0])
    assert guarded.admits(Model(), sized(4, 6), 6)
    assert not guarded.admits(Model(), sized(3, 6), 6)


@pytest.mark.parametrize(
    "weight",
    [
        None,
        nn.Parameter(torch.zeros(3, 4)),
        nn.Parameter(torch.zeros(3, 3).double()),
        nn.Parameter(torch.zeros(3, 3, device="meta")),
    ],
    ids=["none", "shape", "dtype", "device"],
)
def test_another_kind_of_parameter_is_not_admitted(weight: nn.Parameter | None) -> None:
    model = Model()
    model.inner.weight = weight
    assert not plan().admits(model, sized(2, 6), 6)


def test_what_a_plan_writes() -> None:
    model = Model()
    graph = fx.Graph()
    x, total, weight = (graph.placeholder(name) for name in ("x", "total", "weight"))
    added = graph.call_function(torch.add, (total, 1))
    doubled = graph.call_function(torch.mul, (x, 2))
    graph.output((doubled, added, doubled, weight))
    sources = [Source("input", index=0), Source("buffer", name="total"), Source("parameter", name="inner.weight")]
    outputs = [("user", 0), ("buffer", "total"), ("input", 0), ("user", 1)]
    leaf = pytree.tree_structure(0)
    attributes = [Assigned("inner", "last", (), leaf, [Slot(0)]), Assigned("", "names", (1,), leaf, [Slot(0)])]
    model.names = [None, None]
    whole = plan(
        graph_module=fx.GraphModule(nn.Module(), graph),
        sources=sources,
        outputs=outputs,
        attributes=attributes,
        out_spec=pytree.tree_structure({"y": 0, "w": (0, 0)}),
        out_leaves=[Slot(0), Slot(1), "plain"],
    )
    assert whole.written == {"total"}
    inputs = [torch.ones(2, 4, 3)]
    saved = whole.arguments(model, inputs)
    assert saved[0] is inputs[0]
    assert saved[1] is not model.total
    returned = whole.run(model, inputs)
    assert returned["w"][0] is model.inner.weight
    assert returned["w"][1] == "plain"
    result = returned["y"]
    assert torch.equal(result, torch.full((2, 4, 3), 2.0))
    assert torch.equal(inputs[0], result)
    assert torch.equal(model.total, torch.ones(3))
    assert model.inner.last is result
    assert model.names == [None, result]
    assert lookup(model, "inner.weight") is model.inner.weight
    assert lookup(model, "nowhere.weight") is None


def signature(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
    leaves, spec = signatures.flattened(args, kwargs)
    return signatures.signature(model, leaves, spec)


@pytest.mark.parametrize(
    "args", [(), (1, None), (torch.ones(2), 2.0, "a"), (torch.ones(2), [torch.ones(1)]), ((1, 2),)]
)
@pytest.mark.parametrize("kwargs", [{}, {"a": 1}])
def test_arguments_are_put_together_again(args: Any, kwargs: Any) -> None:
    leaves, spec = signatures.flattened(args, kwargs)
    expected, other = pytree.tree_flatten((args, kwargs))
    assert len(leaves) == len(expected) and all(a is b for a, b in zip(leaves, expected, strict=True))
    assert spec == other and pytree.tree_unflatten(leaves, spec)[1] == kwargs


X = torch.randn(2, 6, 3)


def _hooked(model: Model) -> None:
    model.inner.register_forward_hook(lambda *_: None)


def _hooked_before(model: Model) -> None:
    model.inner.register_forward_pre_hook(lambda *_: None)


def _hooked_behind(model: Model) -> None:
    model.inner.register_full_backward_hook(lambda *_: None)


def _hooked_behind_before(model: Model) -> None:
    model.inner.register_full_backward_pre_hook(lambda *_: None)


CHANGES: dict[str, Callable[[Model], Any]] = {
    "a number": lambda m: setattr(m, "steps", 3),
    "its type": lambda m: setattr(m, "steps", 2.0),
    "a list": lambda m: m.names.append("c"),
    "deep in a list": lambda m: m.names[1].update(b=2.0),
    "a new attribute": lambda m: setattr(m, "more", True),
    "a tensor in place of nothing": lambda m: setattr(m, "more", torch.zeros(2)),
    "eval": lambda m: m.inner.eval(),
    "a forward hook": _hooked,
    "a hook before forward": _hooked_before,
    "a backward hook": _hooked_behind,
    "a hook before backward": _hooked_behind_before,
    "a submodule": lambda m: setattr(m, "inner", nn.Sequential(nn.Linear(3, 3))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_changed_module_is_another_signature(what: str) -> None:
    model = Model()
    before = signature(model, X, X)
    assert signature(model, X, X) == before
    CHANGES[what](model)
    assert signature(model, X, X) != before


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((X.double(), X), {}),
        ((X, X.to("meta")), {}),
        ((X[:1], X), {}),
        ((X, X[:, :1]), {}),
        ((X, X[0]), {}),
        ((X,), {}),
        ((X,), {"other": X}),
        ((X, X, 1), {}),
        (([X, X],), {}),
    ],
    ids=["dtype", "device", "size 1", "length 1", "rank", "fewer", "by name", "number", "in a list"],
)
def test_another_call_is_another_signature(args: Any, kwargs: Any) -> None:
    assert signature(Model(), *args, **kwargs) != signature(Model(), X, X)


def test_plain_arguments_count_with_their_type() -> None:
    model = Model()
    assert signature(model, X, 1) == signature(model, X, 1)
    assert len({signature(model, X, value) for value in (1, 1.0, True, 2, "1", None)}) == 6


def test_the_context_counts() -> None:
    model = Model()
    usual = signature(model, X, X)
    with torch.no_grad():
        assert signature(model, X, X) != usual
    with torch.autocast("cpu"):
        assert signature(model, X, X) != usual
    handles = [
        nn.modules.module.register_module_forward_hook(lambda *_: None),
        nn.modules.module.register_module_forward_pre_hook(lambda *_: None),
        nn.modules.module.register_module_full_backward_hook(lambda *_: None),
        nn.modules.module.register_module_full_backward_pre_hook(lambda *_: None),
    ]
    for handle in handles[1:]:
        handle.remove()
    assert signature(model, X, X) != usual
    handles[0].remove()
    assert signature(model, X, X) == usual
    for register in (
        nn.modules.module.register_module_forward_pre_hook,
        nn.modules.module.register_module_full_backward_hook,
        nn.modules.module.register_module_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert signature(model, X, X) != usual
        handle.remove()


def test_hooks_of_the_module_itself_are_run_around_it() -> None:
    model = Model()
    before = signature(model, X, X)
    model.register_forward_hook(lambda *_: None)
    assert signature(model, X, X) == before


def test_sizes_besides_one_are_no_part_of_a_signature() -> None:
    model = Model()
    assert signature(model, X, X.clone()) == signature(model, torch.randn(4, 9, 5), torch.randn(3, 8, 3))
    assert signature(model, X, X.clone()) != signature(model, X, X), "forward may ask whether they are one"


def test_only_some_attributes_count_where_asked() -> None:
    a, b = Model(), Model()
    b.names = a.names
    b.steps = 5
    assert frozen_state(a) != frozen_state(b)
    assert frozen_state(a, {"names", "training"}) == frozen_state(b, {"names", "training"})
    assert frozen_state(a, {"steps"}) != frozen_state(b, {"steps"})


def _nested(depth: int, inside: Any) -> Any:
    for k in range(depth):
        inside = {"x": inside} if k % 2 else [inside]
    return inside


class _Settings:
    def __init__(self, number: float) -> None:
        self.number = number


def test_containers_are_compared_by_what_they_hold() -> None:
    model, other = Model(), Model()
    number = float("1.5")
    for value, same, changed in (
        ([number], [float("1.5")], [2.5]),
        ((1, "a"), (1, "a"), (1, "b")),
        ({"k": number}, {"k": float("1.5")}, {"k": 2.5}),
        ({"a", "b"}, {"b", "a"}, {"a", "c"}),
        (_nested(4, 1), _nested(4, 1), _nested(4, 2)),
    ):
        model.names, other.names = value, same
        assert frozen_state(model) == frozen_state(other)
        other.names = changed
        assert frozen_state(model) != frozen_state(other)


def test_objects_are_compared_by_what_they_are_and_hold() -> None:
    model = Model()
    model.names = [_Settings(1.0), _nested(2, _Settings(2.0)), model.forward, nn.ReLU, torch.tanh]
    before = frozen_state(model)
    assert frozen_state(model) == before
    model.names[0].number = 3.0
    changed = frozen_state(model)
    assert changed != before
    model.names[1]["x"][0].number = 3.0
    assert frozen_state(model) != changed
    changed = frozen_state(model)
    # Three objects and a number below the attribute: as deep as it is looked.
    model.names = _Settings(_Settings(_Settings(_Settings(1.0))))  # type: ignore[arg-type]
    before = frozen_state(model)
    model.names.number.number.number.number = 2.0
    assert frozen_state(model) != before
    for _ in range(5000):
        model.names = _Settings(model.names)
    assert frozen_state(model) == frozen_state(model)
    model.names = [0, 0, model.forward]
    changed = frozen_state(model)
    model.names[2] = Model().forward
    assert frozen_state(model) != changed


def test_tensors_of_objects_are_compared_by_identity_and_version() -> None:
    model = Model()
    model.names = _Settings(torch.zeros(2))
    before = frozen_state(model)
    assert frozen_state(model) == before
    model.names.number.add_(1)
    written = frozen_state(model)
    assert written != before
    model.names.number = torch.ones(2)
    assert frozen_state(model) != written


@pytest.mark.parametrize("depth", range(1, 7))
def test_tensors_in_containers_are_looked_up(depth: int) -> None:
    """At every call, so that there is one is what counts: as deep as places are known."""

    def nested(x: Tensor) -> Any:
        value: Any = x
        for k in range(depth):
            value = [value] if k % 2 else {"x": value}
        return value

    model = Model()
    model.names = nested(torch.zeros(2))
    before = frozen_state(model)
    model.names = nested(torch.ones(2))
    (place,) = [p for found in places(model).values() for p in found if p[0] == "names"] or [None]
    assert (place is not None) == (frozen_state(model) == before) == (depth <= DEPTH)
    assert place is None or torch.equal(lookup(model, *place), torch.ones(2))
    model.names = nested(None)  # type: ignore[arg-type]
    assert frozen_state(model) != before


def test_one_tensor_under_two_names() -> None:
    model = Model()
    sources = [Source("input", index=0), Source("parameter", "inner.weight", others=(("names", (0,)),))]
    whole = plan(sources=sources, state=[None, None])
    model.names = [model.inner.weight]
    assert whole.admits(model, sized(2, 6), 6)
    model.names = [nn.Parameter(model.inner.weight.detach())]
    assert not whole.admits(model, sized(2, 6), 6)
    model.names = []
    assert not whole.admits(model, sized(2, 6), 6)


def test_what_is_written_has_no_other_name() -> None:
    model = Model()
    sources = [Source("input", index=0), Source("buffer", "total"), Source("attribute", "names", keys=(0,))]
    whole = plan(sources=sources, outputs=[("buffer", "total")], state=[None, None, None])
    model.names = [torch.zeros(3)]
    assert whole.admits(model, sized(2, 6), 6)
    model.names = [model.total]
    assert not whole.admits(model, sized(2, 6), 6)


def test_containers_that_have_no_end() -> None:
    model = Model()
    model.names = _nested(5000, 0)
    assert frozen_state(model) == frozen_state(model)
    model.names = [1]
    model.names.append(model.names)
    assert frozen_state(model) == frozen_state(model)


class _Own(Tensor):
    """A class that may mean something else by every operator."""


@pytest.mark.parametrize(
    ("leaf", "ordinary"),
    [
        (X, True),
        (nn.Parameter(X), True),
        (1, True),
        (2.5, True),
        (None, True),
        ("text", True),
        (torch.float64, True),
        (torch.device("cpu"), True),
        (X[:0], False),
        (X.to_sparse(), False),
        (X.as_subclass(_Own), False),
        (object(), False),
    ],
    ids=lambda x: type(x).__name__,
)
def test_what_can_be_traced(leaf: Any, ordinary: bool) -> None:
    assert signatures.ordinary([X, leaf]) == ordinary
    assert signatures.ordinary([leaf, X]) == ordinary


def test_calls_under_another_mode_are_left_alone() -> None:
    class Watching(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    class WatchingBelow(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return func(*args, **(kwargs or {}))

    for mode in (Watching(), WatchingBelow()):
        with mode:
            assert not signatures.ordinary([X])
    assert torch.func.vmap(lambda x: x if signatures.ordinary([x]) else x + 1)(X).equal(X + 1)
