"""At which calls a dispatcher looks for a plan at all, and what it says of those where it does not."""

from __future__ import annotations

import contextlib
import copy
import pickle
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from linrec.capture.discover import TimeAxis
from linrec.capture.source import Assigned
from linrec.capture.trace import Slot
from linrec.ir.extension import PASSING
from linrec.ir.obstruction import NotParallelizable, Obstruction
from linrec.runtime import dispatcher as dispatchers
from linrec.runtime.compile import Compiled, Options
from linrec.runtime.dispatcher import MAX_SIGNATURES, Dispatcher, original_forward
from linrec.runtime.placement import device_set_aside
from linrec.runtime.signature import flattened
from linrec.runtime.turns import inside

from .dispatchers import Made, Model, planned, put
from .plans import LEAF, of, plan, raises

X = of()
LR013, LR014 = Obstruction("LR013", "", "changes"), Obstruction("LR014", "", "asks")


@contextlib.contextmanager
def _nested() -> Iterator[None]:
    inside.depth = 1
    try:
        yield
    finally:
        inside.depth = 0


def test_when_plans_are_wanted(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(), plan()]
    assert planned(module, X)
    with _nested():
        assert not planned(module, X)
    with torch.inference_mode():
        assert not planned(module, X)
    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(planned, module, X).result()
    dispatcher.disabled = True
    assert not planned(module, X) and not dispatcher._wanted()
    dispatcher.disabled = False
    assert planned(module, X) and len(compiler.calls) == 1
    module.eval()
    assert planned(module, X)
    dispatcher.settings.when = "training"
    assert not planned(module, X)
    module.train()
    assert planned(module, X)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("where", ["compiling", "tracing"])
def test_what_others_record_is_the_original(made: Made, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    assert planned(module, X)
    if where == "compiling":
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not planned(module, X)
    else:
        traced = torch.jit.trace(module, X, check_trace=False)
        assert torch.equal(traced(X), X * module.gain)
    assert len(compiler.calls) == 1 == len(dispatcher.compiled)


def test_in_a_program_that_is_compiled(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, _ = made
    answers = {"is_traced": True, "is_callable": True}
    monkeypatch.setattr(torch.compiler, "is_dynamo_compiling", lambda: True)
    monkeypatch.setattr(dispatchers, "is_traced", lambda: answers["is_traced"])
    monkeypatch.setattr(dispatchers, "is_callable", lambda t, a, k: t is dispatcher.traced and answers["is_callable"])
    traced: Any = types.SimpleNamespace(call=lambda m, args, kwargs: (m, args, kwargs))
    dispatcher.traced = traced
    assert dispatcher(X, more=1) == (module, (X,), {"more": 1})
    for name in answers:
        answers[name] = False
        assert torch.equal(dispatcher(X), X * module.gain)
        answers[name] = True
    dispatcher.disabled = True
    assert torch.equal(dispatcher(X), X * module.gain)


def test_a_shallow_copy_runs_its_own_code(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    other = copy.copy(module)
    other.gain = 5.0
    assert planned(module, X) and module.direct(X) is X and dispatcher(X) is X
    assert torch.equal(other(X), 5 * X) and torch.equal(other.direct(X), 5 * X)

    class Parent(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return module.forward(x)

    def called_by(self: Any) -> Any:
        return dispatcher(X)

    assert Parent()(X) is X and called_by(None) is X and called_by(types.SimpleNamespace(forward=dispatcher)) is X


def test_a_dispatcher_is_copied_without_its_plans(made: Made) -> None:
    module, _, compiler = made
    dispatcher = put(module, when="training", strict=True, validate=False)
    dispatcher.settings.options = Options(False, lowering="loop", shared={1: ()})  # type: ignore[dict-item]
    compiler.given = [plan()]
    assert planned(module, X)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        found = other.__dict__["forward"]
        settings = found.settings
        assert (settings.when, settings.strict, settings.options) == ("training", True, Options(False, lowering="loop"))
        assert found.module is other and found.traced is not dispatcher.traced and not found.traced.offers
        assert not (found.compiled or found.looked or found.last_plan or found.brief) and found.owner and found.root
    fresh = Dispatcher(Model(), "", dispatcher.settings, root=False)
    assert (fresh.owner, fresh.disabled, fresh.changes, fresh.root) == (False, False, 0, False)


class _Callable:
    def __call__(self, x: Tensor) -> str:
        return "class"


class ByObject(nn.Module):
    forward = _Callable()  # type: ignore[assignment]


def test_whose_forward_it_is(made: Made) -> None:
    module, dispatcher, _ = made
    assert original_forward(module) == dispatcher.original == Model.forward.__get__(module)
    assert original_forward(Model(5.0))(X).equal(5 * X)
    own = Model()
    own.forward = lambda x: "own"  # type: ignore[method-assign,assignment]
    assert original_forward(own)(X) == "own"
    assert put(own).original(X) == "own" == original_forward(own)(X)
    by_object: Any = ByObject()
    assert original_forward(by_object)(X) == put(by_object).original(X) == "class"
    assert dispatchers.names_of(module) == [module.inner, module.other]


def test_inside_a_transform(made: Made) -> None:
    module, dispatcher, compiler = made
    by_plan = torch.func.vmap(lambda x: x + (module(x) is x))
    by_original = X[None] + 0
    compiler.given = [plan()]
    assert by_plan(X[None]).equal(by_original) and not compiler.calls  # none is compiled there
    assert planned(module, X)
    assert by_plan(X[None]).equal(by_original + 1)
    assert by_plan(of(1, 2, 9, 3)).sum().isfinite() and compiler.checks == [6]
    longer = of(1, 2, 9, 3)
    assert by_plan(longer).equal(longer)  # not checked yet
    (found,) = dispatcher.compiled.values()
    found.plans[0] = plan(checked=9, outputs=[("user", 0), ("buffer", "total")], results=lambda g, x: [x, x])
    module.register_buffer("total", of())
    assert by_plan(X[None]).equal(by_original)
    attributes = [Assigned("", "last", (), LEAF, [Slot(0)])]
    found.plans[0] = plan(checked=9, attributes=attributes)
    assert by_plan(X[None]).equal(by_original) and not hasattr(module, "last")


def test_objects_inside_a_transform(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    strange, seen = types.SimpleNamespace(), []

    def call(x: Tensor) -> Tensor:
        seen.append(module(x, strange) is x)
        return x

    torch.func.vmap(call)(X[None])
    assert seen == [False] and not dispatcher.compiled
    planned(module, X)
    dispatcher.compiled = {k: v for k, v in dispatcher.compiled.items()}
    (found,) = dispatcher.compiled.values()
    found.plans[0] = plan(raises(ValueError("knows no transforms")), checked=9)
    assert torch.func.vmap(module)(X[None]).equal(2 * X[None])
    found.plans[0] = plan(raises(PASSING[0]("memory")), checked=9)
    with pytest.raises(PASSING):
        torch.func.vmap(module)(X[None])


def test_under_a_default_device(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(), plan()]
    asides = []
    kept = dispatcher._ordinary
    monkeypatch.setattr(dispatcher, "_ordinary", lambda *args: (asides.append(device_set_aside()), kept(*args))[1])
    with torch.device("cpu"):
        assert planned(module, X)
    assert planned(module, X) and asides == [torch.device("cpu"), None] and len(compiler.calls) == 2


class Strange:
    pass


def test_arguments_that_cannot_be_traced(made: Made) -> None:
    module, dispatcher, compiler = made
    assert not planned(module, X, Strange(), 1) and not dispatcher.compiled and not compiler.looked
    dispatcher.owner = True
    assert not planned(module, X, Strange(), 1, Strange()) and not planned(module, X, Strange())
    (problem,) = dispatcher.compiled["failures"].obstructions
    assert problem.id == "LR014" and "type Strange." in problem.explanation


def test_calls_that_are_too_short_at_a_glance(made: Made) -> None:
    _, dispatcher, _ = made
    assert not dispatcher._is_brief((X,))
    dispatcher.brief = (1, 1, 7)
    assert dispatcher._is_brief((0, X)) and not dispatcher._is_brief((0, of(2, 7, 3)))
    assert (
        not dispatcher._is_brief((X,)) and not dispatcher._is_brief((X, 3)) and not dispatcher._is_brief((X, X[0, 0]))
    )
    assert not dispatcher._is_brief(()) and dispatcher._is_brief((0, X[0]))


def _noted(dispatcher: Dispatcher, pays: int, leaf: int = 0, dim: int = 1, offset: int = 0, **kwargs: Any) -> Any:
    axis = TimeAxis(leaf=leaf, dim=dim, dims={leaf: {dim: offset}}, owners=(), tensor_leaves=(leaf,))
    dispatcher._note_brief(plan(pays_from=pays, axis=axis), flattened((X, X), kwargs)[1])
    return dispatcher.brief


def test_by_which_argument_a_call_is_seen_to_be_short(made: Made) -> None:
    module, dispatcher, _ = made
    assert _noted(dispatcher, 10) == (0, 1, 10)
    dispatcher.compiled = {0: Compiled(plans=[plan()])}
    assert _noted(dispatcher, 12) == (0, 1, 10) and _noted(dispatcher, 8) == (0, 1, 8)
    assert _noted(dispatcher, 5, leaf=1) is None and _noted(dispatcher, 5) is None
    assert _noted(put(module), 10, leaf=1, dim=0, offset=2) == (1, 0, 12)
    assert _noted(put(module), 10, more=1) is None and _noted(put(module, strict=True), 10) is None
    dispatcher = put(module)
    dispatcher.compiled = {0: Compiled(plans=[plan()])}
    assert _noted(dispatcher, 10) is None
    dispatcher = put(module)
    _noted(dispatcher, 10)
    dispatcher.compiled = {0: Compiled(plans=[plan()])}
    assert _noted(dispatcher, 10, dim=0) is None
    dispatcher = put(module)
    _noted(dispatcher, 10)
    assert _noted(dispatcher, 20, dim=2) == (0, 2, 10)


def test_a_call_too_short_for_any_plan_runs_the_original(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(pays_from=6)]
    assert planned(module, X) and dispatcher.brief == (0, 1, 6)
    monkeypatch.setattr(dispatcher, "_ordinary", lambda *_: pytest.fail("looked for a plan"))
    assert not planned(module, of(2, 5, 3))


def test_what_is_noted(made: Made) -> None:
    _, dispatcher, _ = made
    for problem in (LR013, LR014, LR013):
        dispatcher.note(problem)
    assert dispatcher.compiled["failures"].obstructions == [LR013, LR014]


def _first() -> None:
    raise IndexError("first")


def _second() -> None:
    raise IndexError("second")


def test_a_number_of_steps_that_comes_from_elsewhere(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.owners = ()

    def looking(failures: list[IndexError]) -> None:
        for fails in (_first, _second):
            try:
                fails()
            except IndexError as error:
                failures.append(error)

    compiler.looking = looking
    assert not planned(module, X)
    (problem,) = dispatcher.compiled["failures"].obstructions
    assert problem.id == "LR005" and "first" in problem.explanation
    assert problem.location.endswith(f".py:{_first.__code__.co_firstlineno + 1}")
    with pytest.raises(NotParallelizable, match="first"):
        put(module, strict=True)(X)
    compiler.looking = None
    assert put(module, strict=True)(X).equal(X * module.gain)


def test_a_module_that_must_not_be_run(made: Made) -> None:
    module, dispatcher, compiler = made
    module.numbers = iter([1])
    assert not planned(module, X) and not planned(module, X) and not compiler.looked
    assert [o.id for o in dispatcher.compiled["failures"].obstructions] == ["LR013"]
    assert len(dispatcher.looked) == 1


def test_while_another_thread_compiles(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, compiler = made
    free = []

    @contextlib.contextmanager
    def alone() -> Iterator[bool]:
        yield free.pop(0)

    monkeypatch.setattr(dispatcher.settings.turns, "alone", alone)
    compiler.given = [plan()]
    free[:] = [False]
    assert not planned(module, X) and not compiler.looked and not dispatcher.looked
    free[:] = [True, False]
    assert not planned(module, X) and compiler.looked == 1 and not compiler.calls and not dispatcher.compiled
    free[:] = [True, False]
    assert not planned(module, X) and not compiler.checks and len(compiler.calls) == 1
    free[:] = [True]
    assert planned(module, X) and compiler.checks == [6] and not free


def test_changes_that_are_made_at_every_call(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [[LR014, LR013], plan(), [LR014], [LR013]]
    assert not planned(module, X) and dispatcher.changes == 1 and not dispatcher.disabled
    dispatcher.note(LR013)
    dispatcher.note(LR014)
    assert planned(module, X, 1)
    assert [c.obstructions for c in dispatcher.compiled.values()] == [[LR014], [LR014], []]
    dispatcher.note(LR013)
    assert not planned(module, X, 2) and not dispatcher.disabled and dispatcher.changes == 1
    assert dispatcher.compiled["failures"].obstructions == [LR014, LR013]
    assert not planned(module, X, 3) and dispatcher.disabled and dispatcher.changes == 2
    assert not planned(module, X, 1)


def test_obstructions_are_told_once(made: Made) -> None:
    module, dispatcher, compiler = made
    other = Obstruction("LR014", "", "another")
    compiler.given = [plan(guards=[lambda s: s["b"] != 4]), [LR014, other], [other]]
    assert planned(module, X) and not planned(module, of(4, 6, 3)) and not planned(module, of(4, 6, 3))
    (found,) = dispatcher.compiled.values()
    assert found.obstructions == [LR014, other] and len(found.plans) == 1 and len(compiler.calls) == 3


@pytest.mark.filterwarnings("error")
def test_strictly(made: Made) -> None:
    module, _, compiler = made
    sequential: Any = types.SimpleNamespace(parallel=False, obstructions=[LR014])
    parallel: Any = types.SimpleNamespace(parallel=True, obstructions=[LR013])
    compiler.given = [[LR014]]
    put(module, strict=True)
    for _ in range(2):
        with pytest.raises(NotParallelizable):
            module(X)
    put(module, strict=True)
    compiler.given = [plan(recurrences=[parallel, sequential])]
    with pytest.raises(NotParallelizable) as error:
        module(X)
    assert error.value.obstructions == [LR014]
    put(module, strict=True)
    compiler.given = [plan(recurrences=[parallel])]
    assert planned(module, X)
    compiler.problem = LR013
    with pytest.raises(NotParallelizable, match="changes"):
        module(of(2, 9, 3))
    dispatcher = put(module, strict=True)
    dispatcher._strictly(None)
    dispatcher.compiled = {k: Compiled() for k in range(MAX_SIGNATURES)}
    with pytest.raises(NotParallelizable, match="more than"):
        module(X)
    lenient = put(module)
    lenient._strictly(Compiled(obstructions=[LR014]))
    lenient._strictly(None)
