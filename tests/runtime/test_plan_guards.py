"""When a plan holds and what it does when it runs, decision by decision: plans made by hand, without tracing."""

from __future__ import annotations

import dataclasses
import types
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from linrec.capture.decisions import Decision
from linrec.capture.discover import TimeAxis
from linrec.capture.source import Assigned, Source
from linrec.capture.trace import Slot
from linrec.ops.precision import is_autocast
from linrec.runtime.plan import OtherBranch, Plan, TimeDim

from .plans import LEAF, of, plan


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 3, dtype=torch.float64)
        self.register_buffer("total", torch.zeros(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros(3, dtype=torch.float64))
        self.box: Any = [[None, None, None]]


X = of()


def test_one_length_only() -> None:
    assert plan(only_length=6).admits(Model(), [X], 6)
    assert not plan(only_length=7).admits(Model(), [X], 6)
    assert plan(only_length=None).admits(Model(), [X], 6)


def test_every_so_many_lengths() -> None:
    some = plan(period=3, min_length=5)
    assert [n for n in range(2, 15) if some.admits(Model(), [of(2, n, 3)], n)] == [5, 8, 11, 14]
    assert some.fits([of(2, 8, 3)]) and not some.fits([of(2, 9, 3)])
    assert plan(period=1).admits(Model(), [X], 6) and plan(period=1).fits([X])


def test_a_dimension_that_does_not_matter() -> None:
    free = plan(shapes=[(None, TimeDim(0), 3)])
    assert free.admits(Model(), [X], 6) and free.admits(Model(), [of(9, 6, 3)], 6)


def test_what_requires_gradient() -> None:
    model = Model()
    assert plan(flags=None).admits(model, [X], 6)
    asked = plan(flags=(False, True, True))
    assert asked.admits(model, [X], 6)
    assert not asked.admits(model, [of().requires_grad_()], 6)
    model.inner.bias.requires_grad_(False)
    assert not asked.admits(model, [X], 6)
    assert plan(flags=(False, True, False)).admits(model, [X], 6)


def test_where_tensors_must_be_contiguous() -> None:
    turned = of(6, 2, 3).transpose(0, 1)
    two = plan(inputs=2)
    asked = dataclasses.replace(two, contiguous=True)
    assert asked.admits(Model(), [X, X], 6)
    assert two.admits(Model(), [X, turned], 6)
    assert not asked.admits(Model(), [X, turned], 6) and not asked.admits(Model(), [turned, X], 6)


def test_which_lengths_are_checked() -> None:
    known = plan(checked=10, seen={20})
    assert [known.is_checked(n) for n in (9, 10, 11, 20)] == [True, True, False, False]
    asks = dataclasses.replace(known, asks_length=True)
    assert [asks.is_checked(n) for n in (9, 10, 20)] == [False, False, True]
    numbers: Any = types.SimpleNamespace(found={5: [], 20: []})
    computed = dataclasses.replace(known, numbers=numbers)
    assert [computed.is_checked(n) for n in (4, 5, 10, 20)] == [False, True, False, True]
    both = dataclasses.replace(known, numbers=numbers, asks_length=True, seen={6, 20})
    assert [both.is_checked(n) for n in (5, 6, 20)] == [False, False, True]


def test_a_length_is_read_off_its_leaf() -> None:
    axis = TimeAxis(leaf=2, dim=0, dims={0: {1: 0}, 2: {0: 2}}, tensor_leaves=(0, 2), owners=())
    assert plan(axis=axis).length([of(3, 7, 3), of(9, 4)]) == 7


def test_fixed_sizes_that_fit() -> None:
    two = plan(shapes=[("b", TimeDim(0), 3), (5, None)])
    assert two.fits([X, of(5, 1)]) and two.fits([of(1, 1, 3), of(5, 8)])
    assert not two.fits([X, of(4, 1)]) and not two.fits([of(2, 6, 4), of(5, 1)])


def test_where_the_arguments_come_from() -> None:
    model, one = Model(), of(1)
    model.box = {"a": [one]}
    numbers: Any = types.SimpleNamespace(at=lambda n: [n, 10 * n], found={})
    sources = [
        Source("input", index=1),
        Source("constant", value=one),
        Source("number", index=1),
        Source("attribute", "box", keys=("a", 0)),
        Source("parameter", "inner.weight"),
        Source("parameter", "inner.bias"),
        Source("buffer", "total"),
    ]
    found = plan(sources=sources, numbers=numbers).arguments(model, [X, one])
    expected = [one, one, 60, one, model.inner.weight, model.inner.bias, model.total]
    assert all(a is b or a == b == 60 for a, b in zip(found, expected, strict=True))
    assert plan(sources=sources).arguments(model, [X, one])[2] is None


def test_values_that_are_there_are_not_looked_up() -> None:
    values = [of()]
    simple = plan()
    assert simple.arguments(Model(), [X], values) is values
    assert simple.arguments(Model(), [X])[0] is X
    assert simple.run(Model(), [X], values) is values[0]


def test_what_is_written_is_copied_before() -> None:
    model = Model()
    sources = [
        Source("input", "total", index=0),
        Source("constant", "total", value=X),
        Source("buffer", "total"),
        Source("buffer", "count"),
    ]
    writing = plan(sources=sources, outputs=[("user", 0), ("user", 1), ("buffer", "total"), ("user", 2)])
    values = writing.arguments(model, [X])
    assert values[0] is X and values[1] is X and values[3] is model.count
    assert values[2] is not model.total and torch.equal(values[2], model.total)


def test_effects() -> None:
    assert not plan().has_effects and plan()._only_returns
    assigned = plan(attributes=[Assigned("", "box", (), LEAF, [Slot(0)])])
    for kinds in ([("user", 0), ("buffer", "total")], [("input", 0), ("user", 0)], [("buffer", "total")]):
        assert plan(outputs=kinds).has_effects and not plan(outputs=kinds)._only_returns
    assert assigned.has_effects and not assigned._only_returns
    assert plan(dense=[0])._only_returns and not plan(decisions=[decision()])._only_returns
    assert plan(outputs=[("user", 0), ("input", 0), ("buffer", "total")]).written == {"total"}
    assert not plan(outputs=[("user", 0), ("input", 0)]).written


def decision(outcome: bool = True, position: int = 1) -> Decision:
    return Decision(Slot(position), outcome, "model.py:3")


def conditional(**changes: Any) -> Plan:
    """Returns a random number more than x; the branch is on whether x is all positive."""

    def results(graph: fx.Graph, x: fx.Node) -> list[fx.Node]:
        more = graph.call_function(torch.rand_like, (x,))
        positive = graph.call_function(torch.all, (graph.call_function(torch.gt, (x, 0)),))
        return [graph.call_function(torch.add, (x, more)), positive]

    return plan(results, outputs=[("user", 0), ("user", 1)], **changes)


@pytest.mark.parametrize("outcome", [True, False])
def test_another_branch_draws_nothing(outcome: bool) -> None:
    """The original draws the same numbers as if there had been no plan."""
    held, other = (X.abs() + 1, -X.abs() - 1)[:: 1 if outcome else -1]
    model, branching = Model(), conditional(decisions=[decision(outcome)], draws=True)
    before = torch.get_rng_state()
    with pytest.raises(OtherBranch, match=r"the branch at model.py:3 goes otherwise"):
        branching.run(model, [other])
    assert torch.equal(torch.get_rng_state(), before)
    result = branching.run(model, [held])
    assert not torch.equal(torch.get_rng_state(), before)
    torch.set_rng_state(before)
    assert torch.equal(result, held + torch.rand_like(held))


def test_a_state_is_only_kept_where_it_may_be_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read the state of the generator takes longer than a small plan."""
    monkeypatch.setattr(torch, "get_rng_state", lambda: pytest.fail("read"))
    plan(draws=True).run(Model(), [X])
    conditional(decisions=[decision()], draws=False).run(Model(), [X.abs() + 1])
    with pytest.raises(OtherBranch):
        conditional(decisions=[decision()], draws=False).run(Model(), [X])


def test_nothing_is_written_where_it_branches_otherwise() -> None:
    model, x = Model(), -X.abs() - 1
    model.total = torch.zeros_like(x)

    def results(graph: fx.Graph, x: fx.Node) -> list[fx.Node]:
        positive = graph.call_function(torch.all, (graph.call_function(torch.gt, (x, 0)),))
        return [x, positive, x]

    branching = plan(results, outputs=[("user", 0), ("user", 1), ("buffer", "total")], decisions=[decision()])
    with pytest.raises(OtherBranch):
        branching.run(model, [x])
    assert torch.equal(model.total, torch.zeros_like(x))
    branching.run(model, [-x])
    assert torch.equal(model.total, -x)


def test_results_that_are_to_be_contiguous() -> None:
    turned = of(6, 2, 3).transpose(0, 1)
    dense = plan(inputs=2, dense=[1], out_leaves=[Slot(0), Slot(1)], out_spec=pytree.tree_structure((0, 0)))
    first, second = dense.run(Model(), [turned, turned])
    assert first is turned and second.is_contiguous() and torch.equal(second, turned)
    first, second = dense.run(Model(), [X, X])
    assert first is X and second is X


def test_what_is_assigned() -> None:
    model = Model()
    pair = pytree.tree_structure((0, 0))
    attributes = [
        Assigned("", "box", (0, 1), LEAF, [Slot(0)]),
        Assigned("inner", "last", (), pair, [Slot(1), "text"]),
        Assigned("", "pair", (), LEAF, [7]),
    ]
    other = of()
    outputs = [("user", 0), ("input", 1), ("user", 1)]
    returned = plan(
        inputs=2,
        results=lambda graph, x, y: [x, graph.call_function(torch.mul, (y, 2)), y],
        outputs=outputs,
        attributes=attributes,
        out_leaves=[Slot(1)],
    ).run(model, [X, other.clone()])
    assert torch.equal(returned, other * 2)  # the tensor that was written into
    assert model.box == [[None, X, None]]
    assert model.inner.last == (returned, "text") and model.pair == 7


@pytest.mark.parametrize(
    ("value", "leaves"),
    [
        (0, [Slot(1)]),
        ([0], [Slot(1)]),
        ((0,), [Slot(0)]),
        (0, ["plain"]),
        ({"a": 0, "b": [0]}, [Slot(1), 3]),
        ((0, 0), [Slot(1), Slot(0)]),
    ],
)
@pytest.mark.parametrize("effects", [False, True])
def test_results_are_put_together(value: Any, leaves: list[Any], effects: bool) -> None:
    spec = pytree.tree_structure(value)
    other = of()
    returned = plan(inputs=2, out_spec=spec, out_leaves=leaves, dense=[0] if effects else []).run(Model(), [X, other])
    found, same = pytree.tree_flatten(returned)
    expected = [(X, other)[x.position] if isinstance(x, Slot) else x for x in leaves]
    assert same == spec and all(a is b for a, b in zip(found, expected, strict=True))


def test_the_graph_runs_without_autocast() -> None:
    def results(graph: fx.Graph, x: fx.Node) -> list[fx.Node]:
        return [graph.call_function(lambda x: x + is_autocast(), (x,))]

    assert torch.equal(plan(results).run(Model(), [X]), X)
    with torch.autocast("cpu"):
        assert torch.equal(plan(results).run(Model(), [X]), X)


def _written(**changes: Any) -> Plan:
    """Reads two inputs, two buffers and an item of a list; writes one of the buffers."""
    sources = [
        Source("input", index=0),
        Source("input", index=1),
        Source("buffer", "total"),
        Source("buffer", "count"),
        Source("attribute", "box", keys=(0,)),
    ]
    outputs = changes.pop("outputs", [("user", 0), ("user", 1), ("buffer", "total"), ("user", 2), ("user", 3)])
    return plan(inputs=2, sources=sources, shapes=[("b", TimeDim(0), 3), (None,)], outputs=outputs, **changes)


def shared(whole: Plan, model: Model, *tensors: Tensor) -> bool:
    """Whether a plan sees that memory is shared; then it is not used."""
    found = whole.shares_what_it_writes(model, tensors)
    assert whole.admits(model, tensors, 6) is not found
    return found


def test_what_is_written_shares_no_memory() -> None:
    """A view of it, or the same memory under another name, would be read as it was before."""
    model = Model()
    model.box = [of(3)]
    whole = _written()
    assert not shared(whole, model, X, of(3))
    for other in (model.total, model.total.detach(), model.total[2:], model.total.view(3), nn.Parameter(model.total)):
        assert shared(whole, model, X, other)
    assert not shared(whole, model, X, model.count) and not shared(whole, model, X, model.total.clone())
    model.box = [model.total[:1]]
    assert shared(whole, model, X, of(3))
    model.box = [model.count]
    assert not shared(whole, model, X, of(3))
    model.box = [None]
    assert not shared(whole, model, X, of(3))
    model.count = model.total
    assert shared(whole, model, X, of(3))
    model.total = None  # type: ignore[assignment]
    assert not shared(whole, model, X, of(3))
    assert not _written(outputs=[("user", 0)] * 5).shares_what_it_writes(model, [X, of(3)])


def test_parts_of_one_memory_side_by_side() -> None:
    model, whole, memory = Model(), _written(), of(9)
    model.total, model.box = memory[3:6], [None]
    for start in range(7):
        assert shared(whole, model, X, memory[start : start + 3]) == (0 < start < 6)
    model.total = memory[2:7:2]
    for start in range(7):
        assert shared(whole, model, X, memory[start : start + 2]) == (1 <= start <= 6)
    assert not shared(whole, model, X, memory[4:4])


def test_inputs_that_are_written() -> None:
    model, whole = Model(), _written(outputs=[("input", 0), *(("user", k) for k in range(4))])
    model.box = [None]
    assert not shared(whole, model, X, of(3))
    assert shared(whole, model, X, X[0, 0]) and shared(whole, model, X, X[1, 5])
    model.total = X[0, 1]
    assert shared(whole, model, X, of(3))
    model.total = model.count
    assert not shared(whole, model, X, of(3))
    both = _written(outputs=[("input", 0), ("input", 1), *(("user", k) for k in range(3))])
    assert not shared(both, model, X, of(3)) and shared(both, model, X, X[0, 0])


def test_what_is_written_and_not_read() -> None:
    model = Model()
    whole = plan(outputs=[("user", 0), ("buffer", "total")])
    assert not shared(whole, model, X)
    model.total = X[0, 0]
    assert shared(whole, model, X)


def test_tensors_without_memory() -> None:
    model, whole = Model(), _written()
    for total, others in (
        (torch.zeros(3, device="meta"), [torch.zeros(3, device="meta"), of(3), torch.zeros(0)]),
        (of(3).to_sparse(), [of(3), of(3).to_sparse()]),
        (of(3), [of(3).to_sparse(), torch.zeros(3, device="meta"), of(0)]),
    ):
        model.total, model.box = total, [None]
        assert not any(whole.shares_what_it_writes(model, [X, other]) for other in others)
        assert whole.shares_what_it_writes(model, [X, total])
