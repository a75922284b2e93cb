"""Every rule of vectorisation over time against a Python loop: for each way in which the arguments of an operator
change over time or not, all steps at once are the stack of the steps, in shape, dtype and value.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from linrec.analysis.vectorize import VECTOR_RULES, NotVectorisable, Vectorizer

from .graphs import BATCH, Fakes, aten, evaluate
from .vector_cases import CASES, Arg, Case, N

LENGTH = 4


class Site:
    """An outer graph and a step graph side by side, with the real tensors of both."""

    def __init__(self, symbolic: bool) -> None:
        self.fakes = Fakes(symbolic)
        self.outer, self.step = fx.Graph(), fx.Graph()
        self.length = self.outer.placeholder("length")
        self.length.meta["val"] = LENGTH
        self.size = self.outer.placeholder("size")
        self.size.meta["val"] = self.fakes(torch.empty(BATCH)).shape[0] if symbolic else BATCH
        self.end = self.outer.placeholder("end")
        self.vectorizer = Vectorizer(self.outer, self.end, self.length)
        self.args: list[tuple[Arg, bool, fx.Node, fx.Node]] = []

    def tensor(self, arg: Arg, timed: bool) -> fx.Node:
        step = self.step.placeholder(f"x{len(self.args)}")
        with self.outer.inserting_before(self.end):
            outer = self.outer.placeholder(f"x{len(self.args)}")
        example = torch.empty(arg.shape, dtype=arg.dtype)
        step.meta["val"] = self.fakes(example)
        outer.meta["val"] = self.fakes(example.new_empty((LENGTH, *arg.shape))) if timed else step.meta["val"]
        self.vectorizer.bind(step, outer, timed)
        self.args.append((arg, timed, step, outer))
        return step

    def batch(self) -> Any:
        """The batch size where an operator takes sizes."""
        if not self.fakes.symbolic:
            return BATCH
        known = self.step.placeholder("size")
        known.meta["val"] = self.size.meta["val"]
        self.vectorizer.bind(known, self.size, False)
        return known

    def run(self, node: fx.Node, result: fx.Node, length: int) -> tuple[list[Tensor], list[Tensor]]:
        """The results of the outer graph, and the stacked results of the steps, at some length."""
        values = [arg.draw(*([length] if timed else [])) for arg, timed, _, _ in self.args]
        outer: dict[fx.Node, Any] = {n: v for (*_, n), v in zip(self.args, values, strict=True)}
        found = evaluate(self.outer, outer | {self.length: length, self.size: BATCH})[result]
        rows = []
        for t in range(length):
            at: dict[fx.Node, Any] = {n: BATCH for n in self.step.nodes if n.op == "placeholder"}
            at |= {n: v[t] if timed else v for (_, timed, n, _), v in zip(self.args, values, strict=True)}
            rows.append(pytree.tree_leaves(evaluate(self.step, at)[node]))
        return pytree.tree_leaves(found), [torch.stack(column) for column in zip(*rows, strict=True)]

    def call(self, target: Any, args: Any, kwargs: Any) -> fx.Node:
        node = self.step.call_function(target, args, kwargs)
        fake_args, fake_kwargs = fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.fakes.mode:
            node.meta["val"] = target(*fake_args, **fake_kwargs)
        return node


def tensors_of(c: Case) -> list[Arg]:
    nested = [tensors_of(x) if isinstance(x, Case) else [x] for x in pytree.tree_leaves((c.args, c.kwargs))]
    return [x for part in nested for x in part if isinstance(x, Arg)]


def write(site: Site, c: Case, timed: tuple[bool, ...]) -> fx.Node:
    """The operator, in the step graph."""
    flags = iter(timed)

    def place(x: Any) -> Any:
        if isinstance(x, (list, tuple)):
            return [place(y) for y in x]
        if isinstance(x, Case):
            return site.call(x.target, tuple(place(a) for a in x.args), x.kwargs)
        if x is N:
            return site.batch()
        return site.tensor(x, next(flags)) if isinstance(x, Arg) else x

    return site.call(c.target, tuple(place(x) for x in c.args), dict(c.kwargs))


def combinations(c: Case) -> list[tuple[bool, ...]]:
    """Which arguments change over time: every choice, at least one."""
    return [flags for flags in itertools.product([False, True], repeat=len(tensors_of(c))) if any(flags)]


@pytest.mark.parametrize("c", CASES, ids=repr)
def test_all_steps_at_once_are_the_stack_of_the_steps(c: Case) -> None:
    for timed in combinations(c):
        needed = not c.refused and not any(t and arg.fixed for t, arg in zip(timed, tensors_of(c), strict=True))
        check(c, timed, needed)


def check(c: Case, timed: tuple[bool, ...], needed: bool) -> None:
    torch.manual_seed(0)
    site = Site(c.symbolic)
    node = write(site, c, timed)
    try:
        found = site.vectorizer.run(node)
    except NotVectorisable as refused:
        assert not needed, f"refused: {refused}"
        return
    assert found.timed
    site.outer.lint()
    for length in (1, LENGTH + 3):
        for got, expected in zip(*site.run(node, found.node, length), strict=True):
            assert got.dtype == expected.dtype
            assert got.shape == expected.shape
            if c.target is not aten.new_empty.default:
                exact = expected.dtype in (torch.float64, torch.complex128)
                tolerance = {"rtol": 1e-11, "atol": 1e-12} if exact else {"rtol": 1e-5, "atol": 1e-6}
                torch.testing.assert_close(got, expected, **tolerance)
    val = found.node.meta["val"]
    for fake, real in zip(pytree.tree_leaves(val), pytree.tree_leaves(node.meta["val"]), strict=True):
        assert fake.dtype == real.dtype
        assert tuple(fake.shape[1:]) == tuple(real.shape)


def test_every_rule_has_a_case() -> None:
    assert set(VECTOR_RULES) - {c.target for c in CASES} == set()
