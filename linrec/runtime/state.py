"""What a plan depends on besides its arguments: the plain values, containers and objects that forward can reach, frozen
into something that compares equal exactly when none of them has changed."""

from __future__ import annotations

import array
import collections
import functools
import operator
import types
import weakref
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from linrec.capture.beside import is_foreign
from linrec.capture.frozen import CONSTANTS, beside_items, is_array, is_key, is_method
from linrec.ir import members
from linrec.ir.fields import attributes, entries, exact
from linrec.ir.held import DEPTH, is_open

_PLAIN = (int, float, complex, bool, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_TABLES = frozenset(
    (
        "_parameters",
        "_buffers",
        "_modules",
        "_non_persistent_buffers_set",
        "_state_dict_hooks",
        "_state_dict_pre_hooks",
        "_load_state_dict_pre_hooks",
        "_load_state_dict_post_hooks",
        "_forward_hooks_with_kwargs",
        "_forward_hooks_always_called",
        "_forward_pre_hooks_with_kwargs",
        "_forward_hooks",
        "_forward_pre_hooks",
        "_backward_hooks",
        "_backward_pre_hooks",
        "_is_full_backward_hook",
        "forward",
        # What torch.compile notes on a module that it compiles.
        "_is_torch_compile",
        "_compiled_call_impl",
    )
)
_DEPTH = 8
_MAX_BYTES = 1 << 16
"""Up to which size the content of an array counts; it is compared at every call."""


def frozen_state(
    module: nn.Module,
    only: set[str] | None = None,
    modules: Iterable[nn.Module] | None = None,
    own: Sequence[nn.Module] = (),
) -> Hashable:
    """Everything plain that the code of a module and its submodules can read from them.

    Args:
        module: the module.
        only: the attribute names that count; all where None.
        modules: it and its submodules, where they are known already.
        own: modules that attributes may hold, too, and that are not looked into there.
    """
    memo: dict[int, Hashable] = {id(m): ("object", id(m)) for m in own}
    parts: list[Any] = []
    for sub in members.modules(module) if modules is None else modules:
        parts.append(type(sub))
        parts.append(tuple([x for x in registered(sub) if only is None or x[0] in only]))
        forward = members.own_forward(sub)
        if forward is not None:  # another code than that of its class
            function = isinstance(forward, types.FunctionType)
            parts.append(("forward", forward if function else _frozen(forward, memo, _DEPTH)))
        for name, value in sub.__dict__.items():
            if name in _TABLES or (only is not None and name not in only):
                continue
            if type(value) in _PLAIN:
                parts.append((name, exact(value)))
            elif isinstance(value, Tensor):
                # Attributes that hold a tensor are looked up at every call; that there is one is what counts.
                parts.append((name, "tensor"))
            else:
                parts.append((name, _frozen(value, memo, _DEPTH, DEPTH + 1)))
    return tuple(parts)


def registered(module: nn.Module) -> tuple[tuple[str, bool], ...]:
    """The names of a module's parameters and buffers, each with whether there is one: code may do otherwise without."""
    tables = (module._parameters, module._buffers)
    return tuple([(name, x is None) for table in tables if table for name, x in table.items()])


_FIXED = frozenset([*_PLAIN, types.FunctionType, types.BuiltinFunctionType, type])
"""Types whose objects do not change."""


class Frozen:
    """A frozen state that is quick to compare."""

    __slots__ = ("hash", "value")

    def __init__(self, value: Hashable) -> None:
        self.value, self.hash = value, hash(value)

    def __hash__(self) -> int:
        return self.hash

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Frozen) and self.hash == other.hash and self.value == other.value)


class Seen:
    """The modules of the last call with attributes of types that do not change, and what was frozen of them: that holds
    as long as the attributes are the same objects."""

    def __init__(self) -> None:
        self._known: list[Any] = []
        self._tree: Hashable = ()

    def frozen(self, modules: list[nn.Module]) -> tuple[Hashable, list[nn.Module]]:
        """The frozen state of some modules, and those of them that have other attributes."""
        known = self._known if len(self._known) == len(modules) else [None] * len(modules)
        parts: list[Hashable] = []
        others: list[nn.Module] = []
        current = []
        for sub, entry in zip(modules, known, strict=True):
            attributes = sub.__dict__
            if (
                entry is None
                or entry[0] is not sub
                or entry[4] is not type(sub)
                or not _same(attributes, entry[1], entry[2])
                or not _same(sub._modules, entry[5], entry[6])
                or registered(sub) != entry[7]
            ):
                entry = self._entry(sub, attributes)
            current.append(entry)
            if entry is None:
                others.append(sub)
            parts.append(None if entry is None else entry[3])
        self._known = current
        if others or not all(map(operator.is_, current, known)):
            self._tree = _tree(modules)
        rest = frozen_state(modules[0], modules=others, own=modules) if others else ()
        return (tuple(parts), self._tree, rest), others

    def fixed(self, frozen: Hashable) -> list[Any] | None:
        """What `are_fixed` compares of some modules that have attributes of such types only; None where other ones are
        known by now.

        Args:
            frozen: what was frozen of them.
        """
        entries = [entry for entry in self._known if entry is not None]
        same = len(entries) == len(self._known) and frozen == (tuple([entry[3] for entry in entries]), self._tree, ())
        return entries if same else None

    @staticmethod
    def are_fixed(known: list[Any]) -> bool:
        """Whether modules have the attributes that they had, and the children."""
        for sub, names, values, _, kind, children, modules, tensors in known:
            if type(sub) is not kind or not _same(sub.__dict__, names, values) or registered(sub) != tensors:
                return False
            if not _same(sub._modules, children, modules):
                return False
        return True

    def _entry(self, sub: nn.Module, attributes: dict[str, Any]) -> Any:
        items = list(attributes.items())
        if not all(name in _TABLES or _is_fixed(value) for name, value in items):
            return None
        if not _is_fixed(members.own_forward(sub)):
            return None
        frozen = Frozen(frozen_state(sub, modules=[sub]))
        children = sub._modules
        names, values = tuple([n for n, _ in items]), [v for _, v in items]
        return sub, names, values, frozen, type(sub), tuple(children), list(children.values()), registered(sub)


def _same(now: dict[str, Any], names: tuple[str, ...], values: list[Any]) -> bool:
    """Whether a table has the same objects by the same names."""
    return tuple(now) == names and all(map(operator.is_, now.values(), values))


def _tree(modules: list[nn.Module]) -> Hashable:
    """Which of some modules have which by which names: their order is not all that code can tell them by."""
    place = {id(m): k for k, m in enumerate(modules)}
    return tuple([tuple([(name, place.get(id(child))) for name, child in m._modules.items()]) for m in modules])


def _is_fixed(value: Any) -> bool:
    if type(value) is types.BuiltinFunctionType:
        return not is_method(value)
    return type(value) in _FIXED or (type(value) is tuple and all(map(_is_fixed, value)))


def submodules(module: nn.Module) -> list[nn.Module]:
    """A module and all that is within it, each once."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    waiting = [module]
    while waiting:
        sub = waiting.pop()
        if id(sub) not in seen:
            seen.add(id(sub))
            found.append(sub)
            children = sub._modules
            if children:
                waiting += [x for x in reversed(list(children.values())) if x is not None]
    return found


def _frozen(value: Any, memo: dict[int, Hashable], depth: int, open_: int = 0) -> Hashable:
    """Something that compares equal while a value is what it was.

    Args:
        value: the value; memo: what was frozen already, by id; depth: how far to look into it.
        open_: how far what it holds is looked up at every call: that there is a tensor is what counts there.
    """
    if isinstance(value, members.InFront):
        value = value.own
    if type(value) in _PLAIN:
        return exact(value)
    open_ = open_ if is_open(value) or isinstance(value, Tensor) else 0
    if isinstance(value, Tensor) and open_:
        return "tensor"
    if isinstance(value, Tensor):
        # A tensor inside a container is a constant of the plan: another one, or a change of it, needs another plan.
        return ("tensor", id(value), value._version, value.data_ptr() if value.layout is torch.strided else 0)
    if isinstance(value, CONSTANTS):
        return (type(value), repr(value))
    if is_array(value) and value.nbytes <= _MAX_BYTES:  # of objects, where they are
        return ("array", str(value.dtype), value.shape, value.tobytes())
    if isinstance(value, (bytearray, array.array)) and len(value) <= _MAX_BYTES:
        return (type(value), bytes(value))
    key = id(value)
    if key in memo:
        return memo[key]
    memo[key] = ("again", type(value))
    inner = max(open_ - 1, 0)

    def key_of(k: Any) -> Hashable:
        return _frozen(k, memo, depth - 1) if is_key(k) else repr(k)

    if depth == 0:
        found: Hashable = ("object", key)
    elif isinstance(value, (dict, types.MappingProxyType)):
        found = (type(value), tuple((key_of(k), _frozen(v, memo, depth - 1, inner)) for k, v in entries(value)))
    elif isinstance(value, (list, tuple, collections.deque)):
        found = (type(value), tuple(_frozen(v, memo, depth - 1, inner) for v in value))
    elif isinstance(value, (set, frozenset)):
        found = (type(value), frozenset(_frozen(v, memo, depth - 1) for v in value))
    elif isinstance(value, nn.Module):  # one that no module has registered
        own = [(n, v) for n, v in value.__dict__.items() if n not in ("_parameters", "_buffers", "_modules")]
        inside = tuple((n, _frozen(v, memo, depth - 1)) for n, v in [*own, *value._modules.items()])
        found = ("object", key, inside)
    elif is_method(value):
        found = ("method", getattr(value, "__func__", value.__name__), _frozen(value.__self__, memo, depth - 1))
    elif isinstance(value, (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType)):
        found = ("object", key)
    elif isinstance(value, weakref.ref):
        found = ("reference", _frozen(value(), memo, depth - 1))
    elif isinstance(value, functools.partial):
        found = ("partial", key, *(_frozen(x, memo, depth - 1) for x in (value.func, value.args, value.keywords)))
    elif hasattr(value, "__dict__") or not is_foreign(type(value).__module__):
        inside = tuple((n, _frozen(v, memo, depth - 1, inner)) for n, v in attributes(value).items())
        found = (type(value), 0 if open_ else key, inside)
    else:
        found = ("object", key)
    other = beside_items(value) if depth else {}
    if other:
        found = (found, tuple((n, _frozen(v, memo, depth - 1)) for n, v in other.items()))
    memo[key] = found
    return found
