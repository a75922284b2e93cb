"""Modes that record a run: its operators and where their arguments come from, its calls, what it asks of tensors."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from linrec.capture.arguments import leaves_of
from linrec.capture.decisions import is_asked
from linrec.capture.numbers import Call, number
from linrec.capture.ran import Ran
from linrec.ir.location import is_library


@dataclass
class Record:
    """What a recorded run did.

    Attributes:
        events: one entry per operator, in order: name, plain arguments, for tensors where they came from, and what kind
            of tensors it returned.
        own: for each module, the largest number of operators and child calls that one call of it ran itself.
        result: the pytree structure and, per leaf of the result, where it came from.
        calls: how often each torch function was called (with its floating-point arguments, and in which gradient mode).
            Unlike `events` this does not depend on strides.
        order: how often each function was called after which other one, with arguments that come from where, and of
            which some have a gradient, where that was asked for.
        log: the calls in order, each with all numbers among its arguments, where that was asked for.
        replaced: the names of parameters, buffers and attributes whose `data` was assigned.
        decisions: what the tensors were on which the run branched, in order, and which lines asked.
        set: the properties of tensors that were assigned: "data", "grad", "requires_grad".
        drew: whether Python's or numpy's random generator was used.
        output: what the run returned; left: what it left behind, by name, where that was asked for.
        ran: the code of the user's that ran, where that was asked for and can be said.
        asked: for which properties of a tensor's memory the user's code asked.
        wrote: the memory that was there before and that it wrote into, by address.
    """

    events: list[tuple[Hashable, ...]] = field(default_factory=list)
    own: dict[nn.Module, int] = field(default_factory=dict)
    result: Hashable = None
    calls: Counter[Hashable] = field(default_factory=Counter)
    order: Counter[Hashable] = field(default_factory=Counter)
    log: list[Call] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    decisions: list[tuple[bool, str]] = field(default_factory=list)
    set: set[str] = field(default_factory=set)
    drew: bool = False
    output: Any = None
    left: dict[str, Any] = field(default_factory=dict)
    ran: Ran | None = None
    wrote: frozenset[int] = frozenset()
    asked: frozenset[str] = frozenset()


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor has memory of its own; a sharded parameter has not."""
    return type(tensor) is Tensor or type(tensor.data) is Tensor


def place(tensor: Tensor) -> Hashable:
    """What identifies a tensor through the views that autograd makes of it: its memory and geometry."""
    if tensor.layout is not torch.strided or not is_plain(tensor):
        return id(tensor)
    start = tensor.untyped_storage().data_ptr()
    return (start, tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.is_conj())


class OperatorCounter(TorchDispatchMode):
    """Counts the operators of each module.

    Attributes:
        stack: the modules that are running, each with the number of operators and child calls that it ran itself.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.stack: list[list[Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.stack:
            self.stack[-1][1] += 1
        return func(*args, **(kwargs or {}))


class Recorder(OperatorCounter):
    """Records every operator, and names its tensors by where they come from."""

    def __init__(self, record: Record, labels: dict[Hashable, Hashable]) -> None:
        super().__init__()
        self.record, self.labels = record, labels
        self.alive: list[Any] = []

    def label(self, tensor: Tensor) -> Hashable:
        """The name of a tensor; of one that comes from nowhere known, its numbers."""
        found = self.labels.get(place(tensor))
        if found is None:
            self.alive.append(tensor)
            small = tensor.numel() <= 4096 and tensor.device.type != "meta"
            found = (
                ("constant", str(tensor.dtype), tuple(tensor.flatten().tolist()))
                if small
                else ("unknown", place(tensor))
            )
            self.labels[place(tensor)] = found
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = leaves_of(args, kwargs)
        inputs = tuple(self.label(x) if isinstance(x, Tensor) else repr(x) for x in leaves)
        floats = tuple(x for x in leaves if type(x) is float)
        out = func(*args, **kwargs)
        results = leaves_of(out)
        kinds = tuple((x.dtype, x.device) for x in results if isinstance(x, Tensor))
        self.record.events.append((str(func), floats, inputs, kinds))
        number = len(self.record.events)
        for k, leaf in enumerate(results):
            if isinstance(leaf, Tensor):
                self.labels[place(leaf)] = (number, k)
                self.alive.append(leaf)
        if self.stack:
            self.stack[-1][1] += 1
        return out


READS_REQUIRES_GRAD = "Tensor.requires_grad"
"""The name under which a read of this property is counted."""
_REQUIRES_GRAD: Any = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_GRAD: Any = cast(Any, Tensor.grad).__get__


_SETTERS = {getattr(Tensor, name).__set__: name for name in ("data", "grad", "requires_grad")}


_MEMORY: dict[Any, str] = {cast(Any, getattr(Tensor, n)).__get__: n for n in ("_version", "_base", "grad")}
_MEMORY_METHODS = frozenset(("is_contiguous", "stride", "storage_offset", "data_ptr", "untyped_storage", "storage"))
"""What tells tensors apart that have the same numbers, and what a backward pass has left."""


def _by_library(frame: Any) -> bool:
    """Whether it is torch, or another library, that asks."""
    while frame is not None and frame.f_code.co_filename == __file__:
        frame = frame.f_back
    return frame is None or is_library(frame.f_code.co_filename)


def _by(frame: Any) -> str:
    """The lines of a library, and the line of the user's, that ask something of a tensor."""
    found = []
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__:
            found.append(f"{os.path.basename(path)}:{frame.f_lineno}")
            if not is_library(path):
                break
        frame = frame.f_back
    return " ".join(reversed(found))


_ASKS_GRADIENT = (getattr(Tensor, "requires_grad").__set__, Tensor.requires_grad_)  # noqa: B009


_MAY_BE_SELF = frozenset(
    ("contiguous", "to", "type", "type_as", "float", "double", "half", "bfloat16", "int", "long", "bool", "cpu", "cuda")
)
"""What returns its argument where that is as it is wanted, which may be a matter of its strides."""

_MADE_BY = "_linrec_made_by"
"""An attribute of tensors that a run has made."""


class Calls(TorchFunctionMode):
    """Counts the calls, and notes in which gradient mode they are made, which operators themselves do not show.

    Args:
        record: is told; grad: whether the gradient mode is noted; log: whether the calls are listed.
        keep: whether the tensors that the run makes are kept, so that one is known as such.
        known: names of tensors, by id, for a run of which nothing stays: calls are told apart by which of them they are
            given, and what they make is marked.
    """

    def __init__(
        self,
        record: Record,
        grad: bool,
        log: bool = False,
        keep: bool = False,
        known: Mapping[int, str] | None = None,
    ) -> None:
        super().__init__()
        self.known = known
        self.record, self.grad, self.log, self.keep = record, grad, log, keep
        self.made: dict[int, Tensor] = {}
        self.last: Hashable = None

    def has_made(self, x: Any) -> bool:
        """Whether a value is a leaf that a function has returned in this run, and is none of its arguments."""
        with torch._C.DisableTorchFunction():  # it is not forward that asks
            return isinstance(x, Tensor) and id(x) in self.made and x.is_leaf

    def wants_gradient(self, x: Any) -> bool:
        """Whether a value is such a leaf, and a gradient was asked of it."""
        with torch._C.DisableTorchFunction():
            return self.has_made(x) and bool(x.requires_grad)

    def _asks_of_its_own(self, func: Any, args: Any) -> bool:
        """Whether gradient is asked of a tensor that the run has just made, as of a first state: nobody outside can
        read it."""
        return func in _ASKS_GRADIENT and bool(args) and self.has_made(args[0])

    def _keep(self, leaves: list[Any], out: Any) -> None:
        given = {id(x) for x in leaves}
        self.made |= {id(x): x for x in leaves_of(out) if isinstance(x, Tensor) and id(x) not in given}

    def _origin(self, x: Tensor) -> Hashable:
        """Which known tensor one is, or the function that made it, with the known ones that this was given."""
        assert self.known is not None
        return self.known.get(id(x)) or x.__dict__.get(_MADE_BY)

    def _follow(self, func: Any, name: str, listed: bool, given: list[Tensor], flags: list[Any], out: Any) -> None:
        """Count a call by what it is given, and note on what it has made, which may live for a step only, where that
        comes from."""
        assert self.known is not None
        names = [origin if isinstance(origin, str) else "" for origin, _ in flags]
        made_by: Hashable = (name, frozenset(names) if listed else tuple(names))
        if name.rpartition(".")[2] in _MAY_BE_SELF and given:
            made_by = flags[0][0]
        old = {id(x) for x in given}
        for x in leaves_of(out) if func != _GRAD else ():  # a gradient may have been there before
            if isinstance(x, Tensor) and id(x) not in old and id(x) not in self.known:
                x.__dict__[_MADE_BY] = made_by
        if isinstance(out, (Tensor, list, tuple)) and type(out) is not torch.Size:
            # What gives no tensor, as a look at a size, may come between others in some of the steps.
            which = frozenset(flags) if listed else tuple(flags)
            self.record.order[(name, self.last, torch.is_grad_enabled(), which)] += 1
            self.last = (name, which)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.grad and not torch.is_grad_enabled():
            self.record.events.append(("no_grad", (), (str(getattr(func, "__name__", func)),)))
        leaves = leaves_of(args, kwargs)
        if self._asks_of_its_own(func, args):
            return func(*args, **(kwargs or {}))
        if func in _SETTERS:
            self.record.set.add(_SETTERS[func])
        name = READS_REQUIRES_GRAD if func == _REQUIRES_GRAD else getattr(func, "__qualname__", None) or str(func)
        if (func in _MEMORY or name.rpartition(".")[2] in _MEMORY_METHODS) and not _by_library(sys._getframe(1)):
            self.record.asked |= {_MEMORY.get(func) or name.rpartition(".")[2]}
        if self.log:
            numbers = tuple(n for n in map(number, leaves) if n is not None)
            self.record.log.append((name, numbers, torch.is_grad_enabled()))
        if name == "aten::detach":  # TorchScript's own: how many it runs depends on how often it was called before
            return func(*args, **(kwargs or {}))
        grad = torch.is_grad_enabled()
        self.record.calls[(name, tuple(x for x in leaves if type(x) is float), grad)] += 1
        given = [] if self.known is None else [x for x in leaves if isinstance(x, Tensor)]
        flags = [(self._origin(x), grad and x.requires_grad) for x in given]
        out = func(*args, **(kwargs or {}))
        if self.known is not None:
            listed = bool(args) and isinstance(args[0], (list, tuple))  # of all steps, maybe
            self._follow(func, name, listed, given, flags, out)
        if self.keep and not name.endswith("__get__"):  # a property may be there already, as a gradient is
            self._keep(leaves, out)
        if is_asked(func, args, kwargs or {}):
            self.record.decisions.append((bool(out), _by(sys._getframe(1))))
        return out
