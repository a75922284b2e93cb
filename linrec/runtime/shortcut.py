"""Calls like the one before: most calls of a module differ from the last one in nothing but the numbers in tensors, and
what `signature`, the dispatcher and a plan find out of their arguments is known then."""

from __future__ import annotations

import functools
import itertools
import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._dynamo.guards import GlobalStateGuard, dict_version
from torch.nn.modules import module as _hooks

from linrec.capture.surroundings import Watch
from linrec.ir import members
from linrec.ir.held import lookup, split
from linrec.ops.plain import guards_of
from linrec.runtime.placement import is_any_set_aside
from linrec.runtime.plan import Plan
from linrec.runtime.state import Seen

_SINGLE = (bool, int, type(None))
"""Types of plain arguments of which nothing but their value is to be known."""

_HAVE_VERSIONS = sys.version_info < (3, 12)
"""Whether every change of a dict changes its version."""

_dispatch_modes, _function_modes = torch._C._len_torch_dispatch_stack, torch._C._len_torch_function_stack
_dict_of = operator.attrgetter("__dict__")
_Place = tuple[dict[str, Any], str]
"""A table of parameters or of buffers, and a name in it."""


class Shortcut:
    """What a call was like that a plan served.

    Whatever `signature.ordinary` and `signature.signature` ask of a call, and `Plan.admitted` of its sizes, is asked
    here, too: not what it is, but whether it is the same, which torch's guards are quick to tell. All that can be is
    known of what stays the same.

    Args:
        leaves: the arguments, by position, then by name; names: of those that have names.
        known: of the module's attributes, see `Seen.fixed`; plan: what served the call.
        watch: what code reads elsewhere; length: of the call.
    """

    __slots__ = (
        "_broken",
        "_constants",
        "_count",
        "_fixed",
        "_guards",
        "_hooks",
        "_module",
        "_names",
        "_order",
        "_places",
        "_plain",
        "_shared",
        "_single",
        "_state",
        "_tensors",
        "_watch",
        "length",
        "plan",
    )

    def __init__(
        self,
        module: nn.Module,
        leaves: list[Any],
        names: tuple[str, ...],
        known: Any,
        plan: Plan,
        watch: Watch | None,
        length: int,
    ) -> None:
        self.plan, self.length = plan, length
        self._module, self._watch, self._broken = module, watch, plan.broken_from
        self._names, self._count = names, len(leaves)
        self._tensors = [k for k, x in enumerate(leaves) if isinstance(x, Tensor)]
        self._plain = [(k, type(x), x) for k, x in enumerate(leaves) if k not in self._tensors]
        self._places, self._order, self._shared = _arranged(module, plan, len(self._tensors))
        self._constants = [s.value for s in plan.sources if s.kind == "constant"]
        every: list[Any] = [*(leaves[k] for k in self._tensors), *(table[name] for table, name in self._places)]
        firsts: dict[int, int] = {}
        for k, x in enumerate(every):
            firsts.setdefault(id(x), k)
        self._shared += [(firsts[id(x)], k) for k, x in enumerate(every) if firsts[id(x)] != k]
        self._single = list(firsts.values()) if len(firsts) < len(every) else None
        self._guards = guards_of([every[k] for k in firsts.values()], plan.contiguous)
        self._state = GlobalStateGuard()
        self._fixed = _unchanged(known)
        self._hooks = _hooks_of([sub for sub, *_ in known[1:]])

    @staticmethod
    def of(
        module: nn.Module,
        leaves: list[Any],
        names: tuple[str, ...],
        known: Any,
        plan: Plan,
        watch: Watch | None,
        length: int,
    ) -> Shortcut | None:
        """What to remember of a call that a plan has served, or None where more of it may change than is compared."""
        plain = all(isinstance(x, Tensor) or type(x) in _SINGLE for x in leaves)
        if not plain or plan.numbers is not None or _is_special() or torch._C._is_any_autocast_enabled():
            return None
        for source in plan.sources:
            own = source.kind not in ("input", "constant")
            for name, keys in (((source.name, source.keys),) if own else ()) + source.others:
                if keys or _place(module, name) is None:
                    return None
        return Shortcut(module, leaves, names, known, plan, watch, length)

    def serves(self, args: Any, kwargs: Any) -> tuple[list[Tensor], list[Any]] | None:
        """The tensors of a call, and what the plan's sources have to give; None where the call is not as the one
        before, and has to be looked at."""
        if kwargs:
            if tuple(kwargs) != self._names:
                return None
            args = (*args, *kwargs.values())
        elif self._names:
            return None
        if len(args) != self._count or not self._state.check() or _is_special():
            return None
        for k, kind, value in self._plain:
            if type(args[k]) is not kind or args[k] != value:
                return None
        if any(self._hooks) or not self._fixed() or self.plan.broken_from is not self._broken:
            return None
        tensors = [args[k] for k in self._tensors]
        every = [*tensors, *[table.get(name) for table, name in self._places]]
        # The guards take each tensor once.
        if not self._guards.check(*(every if self._single is None else [every[k] for k in self._single])):
            return None
        for x in tensors:
            if x.__dict__:
                return None
        for a, b in self._shared:
            if every[a] is not every[b]:
                return None
        if self._watch is not None and not self._watch.holds():
            return None
        every += self._constants
        values = [every[k] for k in self._order]
        return None if self.plan.shares_what_it_writes(self._module, tensors, values) else (tensors, values)


def _arranged(module: nn.Module, plan: Plan, inputs: int) -> tuple[list[_Place], list[int], list[tuple[int, int]]]:
    """Where all tensors are that a plan asks about, for those that are no arguments; which of the arguments, these and
    the constants, in one row, each source is; and which of them have to be one."""
    places: list[_Place] = []
    order: list[int] = []
    shared: list[tuple[int, int]] = []
    known: dict[tuple[int, str], int] = {}

    def number(place: _Place | None) -> int:
        assert place is not None
        key = id(place[0]), place[1]
        if key not in known:
            known[key] = inputs + len(places)
            places.append(place)
        return known[key]

    for source in plan.sources:
        if source.kind == "constant":
            order.append(-1)
        else:
            order.append(source.index if source.kind == "input" else number(_place(module, source.name)))
        shared += [(order[-1], number(_place(module, name))) for name, _ in source.others]
    if plan.flags is not None:
        for sub in members.modules(module):
            for name, parameter in sub._parameters.items():
                if parameter is not None:
                    number((sub._parameters, name))
    constants = itertools.count(inputs + len(places))
    return places, [next(constants) if k < 0 else k for k in order], shared


def _place(module: nn.Module, name: str) -> _Place | None:
    """The table that has a parameter or a buffer, by qualified name; None for what is something else."""
    path, own = split(name)
    owner = lookup(module, path) if path else module
    if isinstance(owner, nn.Module):
        for table in (owner._parameters, owner._buffers):
            if isinstance(table.get(own), Tensor):
                return table, own
    return None


def _unchanged(known: Any) -> Callable[[], bool]:
    """What tells whether modules have the attributes that they had, and the children."""
    if not _HAVE_VERSIONS:
        return functools.partial(Seen.are_fixed, known)
    modules = [sub for sub, *_ in known]
    children = [sub._modules for sub in modules]
    tables = [table for sub in modules for table in (sub._parameters, sub._buffers)]
    absent = [(table, name) for table in tables for name, x in table.items() if x is None]

    def now() -> list[Any]:
        versions = [*map(dict_version, map(_dict_of, modules)), *map(dict_version, children)]
        return [*map(type, modules), *versions, *map(len, tables)]

    before = now()
    return lambda: now() == before and all(table.get(name, table) is None for table, name in absent)


def _hooks_of(modules: list[nn.Module]) -> list[dict[int, Any]]:
    """The tables of hooks of modules, and of those for all modules."""
    found: list[Any] = [
        _hooks._global_forward_hooks,
        _hooks._global_forward_pre_hooks,
        _hooks._global_backward_hooks,
        _hooks._global_backward_pre_hooks,
    ]
    for sub in modules:
        found += [sub._forward_hooks, sub._forward_pre_hooks, sub._backward_hooks, sub._backward_pre_hooks]
    return found


def _is_special() -> bool:
    """Whether torch is asked to do something out of the ordinary with all operators, or somebody reads the code."""
    return bool(_dispatch_modes() or _function_modes() or is_any_set_aside() or torch.compiler.is_compiling())
