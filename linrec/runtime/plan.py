"""A plan: one rewritten graph with what it takes to run it in place of a module's forward, for every length and batch
size that its guards admit."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from linrec.capture.decisions import Decision
from linrec.capture.discover import TimeAxis
from linrec.capture.listed import assembled
from linrec.capture.numbers import StepNumbers
from linrec.capture.ran import Ran
from linrec.capture.source import Assigned, Source
from linrec.ir import members
from linrec.ir.held import attribute, item, lookup, set_item, split
from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import Recurrence
from linrec.ops.precision import is_autocast, no_autocast


@dataclass
class Plan:
    """A compiled forward.

    Attributes:
        graph_module: the rewritten graph; takes one value per source, returns a flat tuple.
        sources: where each argument comes from.
        outputs: what each element of the result is (see `Trace.outputs`).
        out_spec, out_leaves: structure of what forward returns, with `Slot` for tensors.
        attributes: attributes that forward assigns, and items of containers that they hold.
        axis: the time dimension of the call.
        shapes: for each tensor leaf, its dimensions: an int, the name of a symbol, or None for a time dimension.
        min_length: the shortest length that the plan serves.
        recurrences: what the compiler found, for the report.
        guards: conditions on the symbolic sizes that tracing relied on: functions of {symbol: size}.
        checked: the greatest length at which the original was compared.
        flags: which tensors required gradient, where forward asks; None where it does not.
        contiguous: whether it serves contiguous tensors only, because forward asks.
        broken_from: the length from which on the plan must not be used, with the reason.
        until: the length from which on the steps of forward were seen to repeat after more steps than here.
        period: it serves lengths that are some periods more than `min_length`.
        only_length: the only length that it serves, where the number of steps is an argument or an attribute.
        pays_from: the length from which on the plan is expected to be faster than the loop.
        asks_length: whether forward compares or divides the number of steps: then every length is checked once.
        seen: the lengths that were checked.
        numbers: those that Python computes for the steps, where it does.
        reads_numbers: whether forward reads numbers off tensors: those that it calls operators with are others then.
        decisions: the tensors on which forward branches, and how it did when it was traced.
        backward: the code of hand-written derivatives that the graph was made of.
        draws: whether it draws random numbers.
        dense: which of the tensors that forward makes are contiguous there, as callers that reshape them expect.
        otherwise: at how many calls forward was seen to branch otherwise.
        mixed: whether autocast decided on dtypes; its casts are operators of the graph, which runs without it.
    """

    graph_module: fx.GraphModule
    sources: list[Source]
    outputs: list[tuple[str, Any]]
    out_spec: Any
    out_leaves: list[Any]
    attributes: list[Assigned]
    axis: TimeAxis
    shapes: list[tuple[Any, ...]]
    min_length: int
    recurrences: list[Recurrence]
    guards: list[Any] = field(default_factory=list)
    state: list[tuple[torch.dtype, torch.Size, torch.device] | None] = field(default_factory=list)
    checked: int = 0
    flags: tuple[bool, ...] | None = None
    contiguous: bool = False
    broken_from: tuple[int, Obstruction] | None = None
    until: int | None = None
    signature_counts: Any = None
    mixed: bool = False
    pays_from: int = 0
    period: int = 1
    only_length: int | None = None
    asks_length: bool = False
    seen: set[int] = field(default_factory=set)
    numbers: StepNumbers | None = None
    reads_numbers: bool = False
    decisions: list[Decision] = field(default_factory=list)
    backward: Ran = field(default_factory=dict)
    otherwise: int = 0
    draws: bool = False
    dense: list[int] = field(default_factory=list)

    def admits(self, module: nn.Module, tensors: Sequence[Tensor], length: int) -> bool:
        """Whether the guards hold for these tensor leaves."""
        return self.admitted(module, tensors, length) is not None

    def admitted(self, module: nn.Module, tensors: Sequence[Tensor], length: int) -> list[Any] | None:
        """What the sources have to give, where the guards hold for these tensor leaves."""
        if length < self.min_length or (self.broken_from is not None and length >= self.broken_from[0]):
            return None
        if self.only_length is not None and length != self.only_length:
            return None
        if self.until is not None and length >= self.until:
            return None
        if length % self.period != self.min_length % self.period:
            return None
        symbols: dict[str, int] = {}
        for tensor, dims in zip(tensors, self.shapes, strict=True):
            for size, dim in zip(tensor.shape, dims, strict=True):
                if type(dim) is str:
                    if symbols.setdefault(dim, size) != size:
                        return None
                elif type(dim) is int:
                    if dim != size:
                        return None
                elif dim is not None and length + dim.offset != size:
                    return None
        if self.guards and not all(guard(symbols) for guard in self.guards):
            return None
        return self.given(module, tensors, length)

    def given(self, module: nn.Module, tensors: Sequence[Tensor], length: int) -> list[Any] | None:
        """What the sources have to give, where all guards hold but those for the sizes of the tensor leaves, which the
        caller knows to hold."""
        if self.flags is not None and self.flags != gradient_flags(module, tensors):
            return None
        if self.contiguous and not all(x.is_contiguous() for x in tensors):
            return None
        values = self.values(module, tensors, length)
        for value, expected in zip(values, self.state, strict=True):
            if expected is not None and (
                not isinstance(value, Tensor) or (value.dtype, value.shape, value.device) != expected
            ):
                return None
        return values if self._as_shared(module, tensors, values) else None

    def _as_shared(self, module: nn.Module, tensors: Sequence[Tensor], values: Sequence[Any]) -> bool:
        """Whether what was one tensor under several names still is one, and what forward writes has no other name."""
        for value, source in zip(values, self.sources, strict=True):
            for name, keys in source.others:
                if lookup(module, name, keys) is not value:
                    return False
        return not self.shares_what_it_writes(module, tensors, values)

    def shares_what_it_writes(
        self, module: nn.Module, tensors: Sequence[Tensor], values: Sequence[Any] | None = None
    ) -> bool:
        """Whether forward writes into memory in which something else lies that it reads or writes: what the graph makes
        goes there afterwards, and the loop reads it there before."""
        if not self._writes:
            return False
        if values is None:
            values = self.values(module, tensors, self.length(tensors))
        places: dict[Any, Any] = {}
        for value, source in zip(values, self.sources, strict=True):
            if source.kind not in ("constant", "number"):
                places[source.index if source.kind == "input" else (source.name, source.keys)] = value
        own = {what if kind == "input" else (what, ()) for kind, what in self._writes}
        for place in own:
            places[place] = tensors[place] if type(place) is int else lookup(module, place[0])
        return any(_overlap(places[a], x) for a in own for b, x in places.items() if a != b)

    def is_checked(self, length: int) -> bool:
        """Whether the original was seen to do at this length what its short traces predict."""
        if self.numbers is not None:
            return length in self.numbers.found and (not self.asks_length or length in self.seen)
        return length in self.seen if self.asks_length else length <= self.checked

    def length(self, tensors: Sequence[Tensor]) -> int:
        """The length of a call, from its tensor leaves."""
        axis = self.axis
        return tensors[axis.tensor_leaves.index(axis.leaf)].shape[axis.dim] - axis.dims[axis.leaf][axis.dim]

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether the sizes that the plan is made for are those of these tensor leaves."""
        if (self.length(tensors) - self.min_length) % self.period:
            return False
        pairs = [pair for x, dims in zip(tensors, self.shapes, strict=True) for pair in zip(x.shape, dims, strict=True)]
        return all(type(dim) is not int or dim == size for size, dim in pairs)

    def values(self, module: nn.Module, tensors: Sequence[Tensor], length: int) -> list[Any]:
        """What the sources have to give; None for numbers that are not known yet."""
        found: list[Any] = []
        numbers = self.numbers.at(length) if self.numbers is not None else None
        owners: dict[str, Any] = {"": module}
        for s in self.sources:
            if s.kind == "input":
                found.append(tensors[s.index])
            elif s.kind == "constant":
                found.append(s.value)
            elif s.kind == "number":
                found.append(numbers[s.index] if numbers is not None else None)
            else:
                path, name = split(s.name)
                if path not in owners:
                    owners[path] = lookup(module, path)
                value = attribute(owners[path], name)
                for key in s.keys:
                    value = item(value, key)
                found.append(value)
        return found

    def arguments(self, module: nn.Module, tensors: Sequence[Tensor], values: list[Any] | None = None) -> list[Any]:
        """The values of the graph's placeholders for one call; `values` is what `admitted` has found."""
        found = self.values(module, tensors, self.length(tensors)) if values is None else values
        written = self.written
        if not written:
            return found
        # A buffer that is written afterwards may have been saved for backward: the graph gets a copy.
        pairs = zip(self.sources, found, strict=True)
        return [
            x.clone() if s.kind not in ("input", "constant", "number") and s.name in written else x for s, x in pairs
        ]

    @property
    def has_effects(self) -> bool:
        """Whether a call does more than return something."""
        return bool(self.attributes) or any(kind != "user" for kind, _ in self.outputs)

    @functools.cached_property
    def _only_returns(self) -> bool:
        """Whether a call returns what the graph does, and that is all."""
        return not (self.has_effects or self.decisions)

    def _as_dense(self, user: list[Tensor]) -> list[Tensor]:
        for k in self.dense:
            if not user[k].is_contiguous():
                user[k] = user[k].contiguous()
        return user

    @functools.cached_property
    def _writes(self) -> list[tuple[str, Any]]:
        """The inputs and the buffers that forward writes."""
        return [(kind, what) for kind, what in self.outputs if kind != "user"]

    @functools.cached_property
    def written(self) -> set[str]:
        """The buffers that forward writes."""
        return {what for kind, what in self.outputs if kind == "buffer"}

    def run(self, module: nn.Module, tensors: Sequence[Tensor], values: list[Any] | None = None) -> Any:
        """Run the graph, replay the side effects of forward, and return what forward returns; `values` is what
        `admitted` has found."""
        known = values is not None and not self.written
        arguments: Any = values if known else self.arguments(module, tensors, values)
        before = torch.get_rng_state() if self.decisions and self.draws else None
        if is_autocast():
            with no_autocast():
                flat = self.graph_module.forward(*arguments)
        else:
            flat = self.graph_module.forward(*arguments)
        if self._only_returns:
            return assembled(self.out_spec, self.out_leaves, self._as_dense(list(flat)))
        user: list[Tensor] = [x for (kind, _), x in zip(self.outputs, flat, strict=True) if kind == "user"]
        user = self._as_dense(user)
        for d in self.decisions:
            if not d.holds(user[d.condition.position]):
                if before is not None:
                    torch.set_rng_state(before)
                raise OtherBranch(d.otherwise)
        for (kind, what), value in zip(self.outputs, flat, strict=True):
            if kind == "user":
                continue
            if kind == "buffer":
                with torch.no_grad():
                    lookup(module, what).copy_(value)
            else:
                tensors[what].copy_(value)
        for each in self.attributes:
            value = assembled(each.spec, each.leaves, user)
            if each.keys:
                set_item(lookup(module, each.qualified, each.keys[:-1]), each.keys[-1], value)
            else:
                setattr(module.get_submodule(each.path), each.name, value)
        return assembled(self.out_spec, self.out_leaves, user)


class OtherBranch(Exception):
    """Forward takes another branch at these inputs than when it was traced: the plan is none for them."""


def _overlap(a: Any, b: Any) -> bool:
    """Whether two tensors may have memory in common."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    try:
        (start, end), (first, last) = _extent(a), _extent(b)
    except (RuntimeError, NotImplementedError):  # no memory of their own: sparse ones, and those of transforms
        return a is b
    return a is b or (start < last and first < end)


def _extent(x: Tensor) -> tuple[int, int]:
    """The memory of a tensor, from its first element to behind the last."""
    start = x.data_ptr()
    if not start:  # an empty one, or one on the meta device
        return start, start
    return start, start + x.element_size() * (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True)))


def gradient_flags(module: nn.Module, tensors: Sequence[Tensor]) -> tuple[bool, ...]:
    """For each tensor of a call and each parameter, whether it requires gradient."""
    return tuple(x.requires_grad for x in (*tensors, *members.parameters(module)))


@dataclass(frozen=True)
class TimeDim:
    """A dimension of size ``length + offset``."""

    offset: int
