"""The lowerings: each turns an affine recurrence of some structure into an algorithm that runs all steps at once. The
cheapest that applies is taken; none of them has a privilege that a registered one lacks."""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from linrec.analysis.polynomial import Axes, Monomial
from linrec.analysis.vectorize import Vectorizer
from linrec.capture.normalize import shape_of, value
from linrec.ir.extension import enter
from linrec.ir.recurrence import REFERENCE_LENGTH, LinearRecurrence
from linrec.ir.scan import fresh_name
from linrec.lowering.emission import Emitter

aten = torch.ops.aten


@dataclass
class Site:
    """Where a recurrence is lowered: the outer graph and what is known there.

    Attributes:
        vectorizer: writes values of the step for all steps.
        graph_module: the outer graph's module.
        initial: the outer nodes of the initial states.
        only_last: whether nothing but the final state is read.
    """

    graph_module: fx.GraphModule
    vectorizer: Vectorizer
    initial: list[fx.Node]
    only_last: bool = False

    def emitter(self, recurrence: LinearRecurrence) -> Emitter:
        """An emitter that writes the recurrence's polynomials into the outer graph, for all steps."""
        return Emitter(self.vectorizer, recurrence.algebra, recurrence.states[0])

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Write a call to one of `linrec.ops`, whose result is all states: (length, *state)."""
        graph = self.vectorizer.graph
        with graph.inserting_before(self.vectorizer.before):
            node = graph.call_function(target, args, kwargs or {})
        node.meta["stack_trace"] = like.meta.get("stack_trace", "")
        length = value(self.vectorizer.length)
        with value(like).fake_mode:
            node.meta["val"] = value(like).new_empty((length, *value(like).shape))
        return node

    def call_module(self, module: nn.Module, args: tuple[Any, ...], states: Sequence[fx.Node]) -> list[fx.Node]:
        """Write a call of a module that returns all states of each carry: one node (length, *state) per carry."""
        name = fresh_name(self.graph_module, "recurrence")
        self.graph_module.add_module(name, module)
        graph, length = self.vectorizer.graph, value(self.vectorizer.length)
        found = []
        with graph.inserting_before(self.vectorizer.before):
            call = graph.call_module(name, args)
            for i, state in enumerate(states):
                node = graph.call_function(operator.getitem, (call, i))
                node.meta["stack_trace"] = call.meta["stack_trace"] = state.meta.get("stack_trace", "")
                with value(state).fake_mode:
                    node.meta["val"] = value(state).new_empty((length, *value(state).shape))
                found.append(node)
        call.meta["val"] = [value(n) for n in found]
        return found

    def final(self, states: fx.Node, like: fx.Node) -> fx.Node:
        """The last of all states."""
        return self.vectorizer.emit(last_state, (states,), like)

    def last(self, target: Any, args: tuple[Any, ...], like: fx.Node, kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Write a call whose result is the last state only."""
        node = self.call(target, args, like, kwargs)
        with value(like).fake_mode:
            node.meta["val"] = value(like).new_empty(tuple(value(like).shape))
        return node


class Lowering(ABC):
    """One algorithm for some class of affine recurrences."""

    name: str

    @abstractmethod
    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the algorithm solves this recurrence."""

    @abstractmethod
    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> float:
        """Estimated work of a forward pass at this length, in multiply-adds."""

    @abstractmethod
    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, last state) for each carry. All states may be None where
        ``site.only_last``."""


def last_state(states: Tensor) -> Tensor:
    """The last of all states (T, *state), as a tensor of its own that may be written into."""
    return states[-1].clone()


LOWERINGS: list[Lowering] = []


def register(lowering: Lowering, *, replace: bool = False) -> Lowering:
    """Add a lowering to those that compete for every recurrence.

    Args:
        lowering: the algorithm.
        replace: whether it may take the place of one of the same name.

    Raises:
        ExtensionError: where another lowering has its name.
    """
    known = next((x for x in LOWERINGS if x.name == lowering.name), None)
    enter("lowering", lowering.name, lowering, known, replace)
    if known is not None:
        LOWERINGS.remove(known)
    LOWERINGS.append(lowering)
    return lowering


def ranking(recurrence: LinearRecurrence, site: Site, length: int = REFERENCE_LENGTH) -> list[tuple[Lowering, float]]:
    """The lowerings that apply, each with its cost, the cheapest first."""
    fitting = [(x, x.cost(recurrence, site, length)) for x in LOWERINGS if x.applies(recurrence, site)]
    return sorted(fitting, key=lambda pair: pair[1])


def choose(recurrence: LinearRecurrence, site: Site, length: int = REFERENCE_LENGTH) -> Lowering | None:
    """The cheapest lowering that applies, or None."""
    return next((lowering for lowering, _ in ranking(recurrence, site, length)), None)


def state_size(recurrence: LinearRecurrence) -> float:
    """Number of elements of the state, with symbolic sizes (the batch) counted as 8."""
    return float(math.prod(s if isinstance(s, int) else 8 for s in shape_of(recurrence.states[0])))


def coefficients(emitter: Emitter, terms: tuple[Monomial, ...], axes: Axes, like: fx.Node) -> fx.Node:
    """A sum of monomials as a tensor of the state's dtype, zeros where there are none."""
    node = emitter.terms(terms, axes)
    if node is None:
        node = emitter._full(0, len(axes))
    dtype = value(like).dtype
    if value(node).dtype != dtype:
        node = emitter._emit(aten._to_copy.default, node, dtype=dtype)
    return node


def is_inexact(recurrence: LinearRecurrence) -> bool:
    """Whether the (first) state is floating-point or complex."""
    dtype = value(recurrence.states[0]).dtype
    return bool(dtype.is_floating_point or dtype.is_complex)
