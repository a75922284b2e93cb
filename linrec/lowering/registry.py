"""The lowerings: each turns an affine recurrence of some structure into an algorithm that runs all steps at once. The
cheapest that applies is taken; none of them has a privilege that a registered one lacks."""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from linrec.analysis.polynomial import Axes, Monomial
from linrec.analysis.readout import Readout
from linrec.analysis.semiring_system import SemiringSystem
from linrec.analysis.vectorize import Vectorizer
from linrec.ir.extension import enter
from linrec.ir.location import locate_like
from linrec.ir.nodes import value
from linrec.ir.recurrence import REFERENCE_LENGTH, LinearRecurrence
from linrec.ir.scan import fresh_name
from linrec.ir.sizes import element_count
from linrec.lowering.cost import Work, machine
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
        readouts: what is read of the states, where that is all that is read of them besides the final one.
        read: what a lowering has written for these, by node of the step: their values for all steps.
    """

    graph_module: fx.GraphModule
    vectorizer: Vectorizer
    initial: list[fx.Node]
    only_last: bool = False
    readouts: list[Readout] = field(default_factory=list)
    read: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def emitter(self, recurrence: LinearRecurrence) -> Emitter:
        """An emitter that writes the recurrence's polynomials into the outer graph, for all steps."""
        return Emitter(self.vectorizer, recurrence.algebra, recurrence.states[0])

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node, kwargs: dict[str, Any] | None = None) -> fx.Node:
        """Write a call to one of `linrec.ops`, whose result is all states: (length, *state)."""
        graph = self.vectorizer.graph
        with graph.inserting_before(self.vectorizer.before):
            node = graph.call_function(target, args, kwargs or {})
        locate_like(node, like)
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
                locate_like(node, state)
                locate_like(call, state)
                with value(state).fake_mode:
                    node.meta["val"] = value(state).new_empty((length, *value(state).shape))
                found.append(node)
        call.meta["val"] = [value(n) for n in found]
        return found

    def pair(self, target: Any, args: tuple[Any, ...], like: fx.Node, shape: Sequence[Any]) -> tuple[fx.Node, fx.Node]:
        """Write a call whose results are a value of some shape for all steps, (length, *shape), and the last state."""
        graph, length = self.vectorizer.graph, value(self.vectorizer.length)
        state = self.initial[0]
        with graph.inserting_before(self.vectorizer.before):
            call = graph.call_function(target, args)
            found = [graph.call_function(operator.getitem, (call, i)) for i in range(2)]
        with value(state).fake_mode:
            values = value(state).new_empty((length, *shape)), value(state).new_empty(tuple(value(state).shape))
        call.meta["val"] = values
        for node, val in zip((call, *found), (values, *values), strict=True):
            node.meta["val"] = val
            locate_like(node, like)
        return found[0], found[1]

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
    forms_states = True
    """Whether the states of all steps are formed, and what is read of them is computed from these."""

    @abstractmethod
    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the algorithm solves this recurrence."""

    @abstractmethod
    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> float | Work:
        """Estimated work of a forward pass at this length: a `linrec.Work`, or a number of operations on elements."""

    @abstractmethod
    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, last state) for each carry. All states may be None where
        ``site.only_last``, or where the values of all ``site.readouts`` are put into ``site.read``."""


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


def ranking(recurrence: LinearRecurrence, site: Site, length: int = REFERENCE_LENGTH) -> list[tuple[Lowering, Work]]:
    """The lowerings that apply, each with its work, the one that takes least time first."""
    speeds = machine(value(recurrence.states[0]).device)
    fitting = [(x, work_of(x, recurrence, site, length)) for x in LOWERINGS if x.applies(recurrence, site)]
    return sorted(fitting, key=lambda pair: speeds.seconds(pair[1]))


def work_of(lowering: Lowering, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
    """The work of a lowering, that of reading the states included where it forms them."""
    cost = lowering.cost(recurrence, site, length)
    work = cost if isinstance(cost, Work) else Work(elements=float(cost))
    if lowering.forms_states and site.readouts:
        states = state_size(recurrence) * length * len(site.readouts)
        size = value(recurrence.states[0]).element_size()
        work += Work(elements=states, bytes=2 * states * size, calls=2)
    return work


def state_size(recurrence: LinearRecurrence | SemiringSystem) -> float:
    """Number of elements of all states together, at the sizes of the call that was traced."""
    return float(sum(element_count(value(s)) for s in recurrence.states))


def state_bytes(recurrence: LinearRecurrence | SemiringSystem) -> float:
    """Bytes of all states together."""
    return float(sum(element_count(value(s)) * value(s).element_size() for s in recurrence.states))


def coefficients(emitter: Emitter, terms: tuple[Monomial, ...], axes: Axes, like: fx.Node) -> fx.Node:
    """A sum of monomials as a tensor of the state's dtype, zeros where there are none."""
    node = emitter.terms(terms, axes)
    if node is None:
        node = emitter._full(0, len(axes))
    dtype = value(like).dtype
    if value(node).dtype != dtype:
        node = emitter._emit(aten._to_copy.default, node, dtype=dtype)
    return node


_ZEROS = frozenset((aten.zeros.default, aten.new_zeros.default, aten.zeros_like.default))
_SAME = frozenset(
    (
        aten.expand.default,
        aten.reshape.default,
        aten.unsqueeze.default,
        aten.squeeze.dim,
        aten.permute.default,
        aten.transpose.int,
        aten._to_copy.default,
        aten.clone.default,
    )
)


def is_zero(node: fx.Node) -> bool:
    """Whether a value of the outer graph is zeros, for all that its operators say."""
    while node.target in _SAME:
        node = node.args[0]
    return node.target in _ZEROS or (node.target is aten.full.default and node.args[1] == 0)


def is_inexact(recurrence: LinearRecurrence) -> bool:
    """Whether the (first) state is floating-point or complex."""
    dtype = value(recurrence.states[0]).dtype
    return bool(dtype.is_floating_point or dtype.is_complex)
