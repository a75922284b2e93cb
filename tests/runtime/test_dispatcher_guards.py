"""Which plan a dispatcher compiles, checks, uses and gives up, with plans made by hand, which return their input itself."""

from __future__ import annotations

import dataclasses
import sys
import threading
import types
import warnings
from typing import Any

import pytest
from torch import Tensor, nn

from linrec.capture.discover import SHORT
from linrec.ir.extension import PASSING
from linrec.ir.obstruction import Obstruction, Refused
from linrec.runtime import dispatcher as dispatchers
from linrec.runtime import trials
from linrec.runtime.compile import Compiled
from linrec.runtime.dispatcher import MAX_SIGNATURES, MOST_OTHERWISE, Dispatcher
from linrec.runtime.further import may_help
from linrec.runtime.plan import OtherBranch, Plan
from linrec.runtime.signature import flattened

from .dispatchers import Made, Model, planned, put
from .plans import of, plan, raises

X = of()
LR013, LR014 = Obstruction("LR013", "", "changes"), Obstruction("LR014", "", "asks")


def test_a_plan_is_compiled_checked_and_used(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    assert planned(module, X) and planned(module, X) and planned(module, of(5, 6, 3))
    assert compiler.looked == len(compiler.calls) == 1 and compiler.checks == [6]
    assert planned(module, of(2, 9, 3)) and planned(module, of(2, 7, 3)) and planned(module, of(2, 9, 3))
    assert compiler.checks == [6, 9] and compiler.checked_with == dispatcher.original
    given = compiler.calls[0]
    assert given[0] is module and given[1] == dispatcher.original and given[3][0] is X and given[4] == ""
    (found,) = dispatcher.compiled.values()
    assert dispatcher.last_plan is found.plans[0] and found.plans[0].seen == {6, 9} and found.plans[0].checked == 9
    assert dispatcher.traced.offers and not dispatcher.disabled


def test_what_is_another_call_is_compiled_anew(made: Made) -> None:
    module, _, compiler = made
    compiler.given = [plan(), plan(), plan()]
    assert planned(module, X) and planned(module, of(4, 6, 3)) and len(compiler.calls) == 1
    assert planned(module, of(1, 6, 3)) and len(compiler.calls) == 2
    module.gain = 3.0
    assert planned(module, X) and len(compiler.calls) == 3
    assert not planned(module, X, 1) and len(compiler.calls) == 4  # nothing more to give
    assert not planned(module, X, 1) and len(compiler.calls) == 4


def test_another_plan_for_the_same_signature(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(guards=[lambda s: s["b"] != 4]), plan()]
    assert planned(module, X) and planned(module, of(4, 6, 3)) and planned(module, X)
    (found,) = dispatcher.compiled.values()
    assert (
        len(found.plans) == 2 == len(compiler.calls) and compiler.calls[1][6] == [{0}] and compiler.calls[1][7] is found
    )


@pytest.mark.parametrize("found", [[LR014], []])
def test_where_there_is_no_plan_it_is_not_asked_again(made: Made, found: Any) -> None:
    module, dispatcher, compiler = made
    compiler.given = [found]
    assert not planned(module, X) and not planned(module, X) and len(compiler.calls) == 1
    assert [c.obstructions for c in dispatcher.compiled.values()] == [found]


def test_what_is_short_may_have_a_plan_when_it_is_longer(made: Made) -> None:
    module, dispatcher, compiler = made
    short = of(2, 3, 3)
    assert not planned(module, short) and not dispatcher.compiled
    compiler.given = [[LR014]]
    assert not planned(module, short) and not planned(module, short) and len(compiler.calls) == 2
    assert trials.may_be_longer([of(3, 3), 1]) and not trials.may_be_longer([of(1, SHORT), 1, of(3)])
    assert trials.may_be_longer([5]) and trials.may_be_longer([])


@pytest.mark.parametrize("error", [Refused(LR014), ValueError("wrong")])
def test_a_compiler_that_fails(made: Made, error: Exception) -> None:
    module, dispatcher, compiler = made
    compiler.given = [error, plan()]
    assert not planned(module, X) and not planned(module, X) and len(compiler.calls) == 1
    (found,) = dispatcher.compiled.values()
    assert [o.id for o in found.obstructions] == [LR014.id if isinstance(error, Refused) else "LR002"]


def test_hooks_keep_the_original(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    module.inner.register_forward_hook(lambda *_: None)
    assert not planned(module, X) and not compiler.calls
    (found,) = dispatcher.compiled.values()
    assert [o.id for o in found.obstructions] == ["LR008"]


def test_when_a_new_plan_would_not_help(made: Made) -> None:
    module, _, _ = made

    def helps(*plans: Plan) -> bool:
        return may_help(Compiled(plans=list(plans)), module, [X])

    other = plan(shapes=[("b", "n", 4)])
    assert not helps() and helps(other) and helps(other, plan(only_length=6)) and helps(plan(min_length=6))
    assert not helps(plan(only_length=7)) and not helps(other, plan(only_length=5))
    assert not helps(plan(min_length=7)) and not helps(other, plan(min_length=7))
    assert not helps(plan(broken_from=(6, LR014))) and not helps(plan(broken_from=(5, LR014)))
    assert helps(plan(broken_from=(7, LR014)))
    assert helps(*[other] * 15) and not helps(*[other] * 16)
    module.register_buffer("total", X[0])
    assert not helps(plan(outputs=[("buffer", "total")])) and helps(plan(outputs=[("buffer", "nothing")]))


def test_calls_of_lengths_that_no_plan_takes(made: Made) -> None:
    module, _, compiler = made
    compiler.given = [plan(min_length=5), plan()]
    assert planned(module, X) and not planned(module, of(2, 4, 3)) and len(compiler.calls) == 1
    assert planned(module, X)


def test_from_where_a_plan_pays(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(pays_from=6)]
    assert not planned(module, of(2, 5, 3)) and not compiler.checks
    assert planned(module, X) and compiler.checks == [6]
    assert dispatcher._plan(*_key(dispatcher, of(2, 5, 3)))[:2] == (None, 5)
    assert dispatcher._plan(*_key(dispatcher, of(2, 3, 3)))[:2] == (None, 0)
    found, length, values = dispatcher._plan(*_key(dispatcher, X))
    assert isinstance(found, Plan) and length == 6 and values is not None and values[0] is X


def _key(dispatcher: Dispatcher, *args: Any) -> Any:
    leaves, spec = flattened(args, {})
    key = dispatchers.signature(dispatcher.module, leaves, spec, dispatcher.seen)
    return key, spec, leaves, [x for x in leaves if isinstance(x, Tensor)]


def test_which_lengths_are_due(made: Made) -> None:
    numbers: Any = types.SimpleNamespace(found={7: []})
    for validate in (True, False):
        dispatcher = put(Model(), validate=validate)
        assert [dispatcher._due(plan(checked=6), n) for n in (6, 7)] == [False, validate]
        assert [dispatcher._due(plan(numbers=numbers), n) for n in (6, 7)] == [True, False]


def test_a_check_that_fails(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given, compiler.problem = [plan(), plan()], LR014
    with pytest.warns(UserWarning, match="keeps the original code of the model"):
        assert not planned(module, X)
    (found,) = dispatcher.compiled.values()
    assert found.plans[0].broken_from == (6, LR014) and not found.plans[0].seen and not found.plans[0].checked
    compiler.problem = None
    assert not planned(module, of(2, 9, 3)) and planned(module, of(2, 5, 3)) and not planned(module, X)
    assert compiler.checks == [6, 5] and len(compiler.calls) == 1


def test_what_is_checked_is_what_was_compiled(made: Made) -> None:
    module, _, compiler = made
    following: Any = lambda x: x  # noqa: E731
    whole = plan()
    compiler.given = [dataclasses.replace(whole, axis=dataclasses.replace(whole.axis, forward=following))]
    assert planned(module, X) and compiler.checked_with is following


def test_another_branch(made: Made) -> None:
    module, dispatcher, compiler = made
    other = OtherBranch("the branch goes otherwise")
    compiler.given = [plan(raises(other))]
    with pytest.warns(UserWarning, match="runs the original code of the model where the branch"):
        assert not planned(module, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not planned(module, X)
    (found,) = dispatcher.compiled.values()
    assert found.plans[0].otherwise == 2 and found.plans[0].broken_from is None


@pytest.mark.filterwarnings("ignore:linrec")
@pytest.mark.parametrize("seen", [set(), {5}])
def test_another_branch_in_a_check(made: Made, seen: set[int]) -> None:
    """A plan that was never used is given up after some calls."""
    module, dispatcher, compiler = made
    compiler.given, compiler.problem = [plan(seen=seen)], OtherBranch("the branch goes otherwise")
    for number in range(1, MOST_OTHERWISE + 2):
        assert not planned(module, X)
        (found,) = dispatcher.compiled.values()
        broken = number >= MOST_OTHERWISE and not seen
        assert (found.plans[0].broken_from is not None) == broken
        assert found.plans[0].otherwise == (min(number, MOST_OTHERWISE) if not seen else number)
    if not seen:
        assert found.plans[0].broken_from is not None and found.plans[0].broken_from[0] == 0
        assert found.plans[0].broken_from[1].id == "LR015"


@pytest.mark.parametrize("error", [RuntimeError("torn"), PASSING[0]("memory")])
def test_a_plan_that_fails(made: Made, error: BaseException) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(raises(error))]
    if isinstance(error, PASSING):
        with pytest.raises(PASSING):
            module(X)
        return
    with pytest.warns(UserWarning, match="torn"):
        assert not planned(module, X)
    (found,) = dispatcher.compiled.values()
    assert found.plans[0].broken_from is not None and found.plans[0].broken_from[0] == 6
    assert found.plans[0].broken_from[1].id == "LR010"


def test_guards_that_fail(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan()]
    monkeypatch.setattr(Plan, "admitted", lambda *_: 1 / 0)
    assert not planned(module, X) and not planned(module, X)
    assert [o.id for o in dispatcher.compiled["failures"].obstructions] == ["LR002"]


def test_a_signature_that_fails(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    module, dispatcher, compiler = made
    monkeypatch.setattr(dispatchers, "signature", lambda *_: 1 / 0)
    assert not planned(module, X) and not compiler.looked
    assert [o.id for o in dispatcher.compiled["failures"].obstructions] == ["LR002"]


def test_a_search_that_fails_is_not_made_again(made: Made) -> None:
    module, _, compiler = made
    compiler.looking = lambda failures: 1 / 0
    assert not planned(module, X) and not planned(module, X) and compiler.looked == 1


def test_who_looks_for_loops(made: Made) -> None:
    module, dispatcher, compiler = made
    dispatcher = put(module, root=False)
    assert not planned(module, X) and not compiler.looked
    dispatcher.owner = True
    compiler.given = [plan()]
    assert planned(module, X) and not compiler.looked
    compiler.owners = ()
    dispatcher = put(module)
    assert not planned(module, X) and not planned(module, X) and compiler.looked == 1 and not dispatcher.owner


def test_owners_within(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.owners = (module.inner, nn.Identity())
    stranger = compiler.owners[1]
    assert not planned(module, X) and not dispatcher.owner and not compiler.calls
    inner: Any = module.inner.__dict__["forward"]
    assert isinstance(inner, Dispatcher) and inner.name == "inner" and inner.owner and not inner.root
    assert inner.settings is dispatcher.settings and "forward" not in stranger.__dict__
    assert not dispatcher.compiled  # no failure
    assert not planned(module, of(2, 30, 3)) and compiler.looked == 1  # what it found holds for longer calls
    assert not planned(module, X, 1) and module.inner.__dict__["forward"] is inner and compiler.looked == 2
    named = Model()
    compiler.owners = (named.other, named)
    outer = put(named)
    outer.name = "model"
    named(X)
    assert named.other.__dict__["forward"].name == "model.other" and outer.owner


def test_a_longer_call_may_show_more(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.owners = ()
    assert not planned(module, X) and not planned(module, of(9, 6, 3)) and compiler.looked == 2
    assert not planned(module, of(8, 8, 3)) and compiler.looked == 3
    assert not planned(module, of(80, 80, 3)) and not planned(module, X) and compiler.looked == 3
    assert trials.clipped([of(3, 2 * SHORT, 99), 1, of()]) == ((3, 2 * SHORT, 2 * SHORT), (2, 6, 3))
    module.inner.__dict__["forward"] = Dispatcher(module.inner, "inner", dispatcher.settings, root=False)
    assert not planned(module, X, 1) and not planned(module, of(2, 7, 3), 1) and compiler.looked == 4
    dispatcher.owner = True
    del module.inner.__dict__["forward"]
    assert not planned(module, X, 2) and not planned(module, of(2, 7, 3), 2) and compiler.looked == 5


def test_how_many_calls_are_looked_at(made: Made) -> None:
    _, dispatcher, _ = made
    dispatcher.looked = set(range(4 * MAX_SIGNATURES - 1))
    assert dispatcher._unseen("key", [X]) and not dispatcher._unseen(3, [X])
    dispatcher.looked.add(("other", trials.clipped([X])))
    assert not dispatcher._unseen("key", [X])
    dispatcher.looked.remove(3)
    assert dispatcher._unseen("key", [X]) and not dispatcher._unseen("other", [X]) and dispatcher._unseen("other", [])


def test_how_many_signatures_are_compiled(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan() for _ in range(MAX_SIGNATURES + 3)]
    for number in range(MAX_SIGNATURES + 3):
        module.gain = 2.0 + number
        assert planned(module, X) == (number < MAX_SIGNATURES)
    assert len(compiler.calls) == MAX_SIGNATURES
    assert [o.id for o in dispatcher.compiled["failures"].obstructions] == ["LR014"]
    module.gain = 2.0
    assert planned(module, X)


def test_another_plan_where_there_are_many_signatures(made: Made) -> None:
    module, dispatcher, compiler = made
    compiler.given = [plan(guards=[lambda s: s["b"] != 4]), plan()]
    assert planned(module, X)
    dispatcher.compiled |= {k: Compiled() for k in range(MAX_SIGNATURES)}
    assert planned(module, of(4, 6, 3)) and len(compiler.calls) == 2


def test_what_was_compiled_holds_while_what_is_read_does(made: Made) -> None:
    _, dispatcher, _ = made
    holding: Any = types.SimpleNamespace(holds=lambda: True)
    changed: Any = types.SimpleNamespace(holds=lambda: False)
    one, two, three = Compiled(watch=changed), Compiled(watch=holding), Compiled()
    assert dispatcher._found("key") == (("key", 0), None)
    dispatcher.compiled = {("key", 0): one}
    assert dispatcher._found("key") == (("key", 1), None)
    dispatcher.compiled = {("key", 0): one, ("key", 1): two, ("key", 2): three}
    assert dispatcher._found("key")[0] == ("key", 1)
    dispatcher.compiled = {("key", 0): one, ("key", 1): three, ("key", 2): two}
    assert dispatcher._found("key")[1] is three
    dispatcher.compiled = {("key", k): one for k in range(MAX_SIGNATURES)}
    assert dispatcher._found("key") == (("key", MAX_SIGNATURES), None)
    dispatcher.compiled["key", MAX_SIGNATURES] = two
    assert dispatcher._found("key")[1] is two


def test_warnings_name_the_line_of_the_user() -> None:
    space: dict[str, Any] = {}
    exec(compile("def inner(f): f('text')\ndef via(f): inner(f)", "<library>", "exec"), space)
    line = sys._getframe().f_lineno
    with pytest.warns(UserWarning, match="text") as direct:
        trials.warn("text")
    with pytest.warns(UserWarning, match="text") as indirect:
        space["via"](trials.warn)
    assert (direct[0].filename, direct[0].lineno) == (__file__, line + 2)
    assert (indirect[0].filename, indirect[0].lineno) == (__file__, line + 4)


def test_warnings_where_no_line_is_the_users() -> None:
    failures: list[Any] = []
    with pytest.warns(UserWarning, match="text"):
        trials.warn("text")
    thread = threading.Thread(target=trials.warn, args=("text",))
    before, threading.excepthook = threading.excepthook, failures.append
    try:
        with pytest.warns(UserWarning, match="text"):
            thread.start()
            thread.join()
    finally:
        threading.excepthook = before
    assert failures == []
