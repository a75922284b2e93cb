"""What forward may change that is neither a tensor nor a container: arrays, generators of random numbers, and things
whose changes nobody can take back."""

from __future__ import annotations

import array
import copy
import queue
import random
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch

from linrec.ir.fields import exact, set_slots, slot_names, slots

_MAX_BYTES = 1 << 20
"""Up to which size arrays are compared and put back."""

_ONE_WAY = (queue.Queue, queue.SimpleQueue)

_COMPUTES = {"torch", "numpy", "sympy", "mpmath", "networkx", "numba", "llvmlite", "linrec"}
_FOREIGN = sys.stdlib_module_names | _COMPUTES | {"opt_einsum", "_pytest", "pytest", "IPython"}
"""Packages whose own globals no model changes between two calls; torch's symbolic sizes run sympy's code."""

State = tuple[str, Any, Any, Callable[[Any], Any], Callable[[Any, Any], None]]
"""A name, an object, its state, and what reads and sets that."""


def states(named: Iterable[tuple[str, Any]]) -> list[State]:
    """The states of those of some objects that have one."""
    found: list[State] = []
    seen: set[int] = set()
    for name, x in named:
        if id(x) not in seen:
            seen.add(id(x))
            for get, put in _access(x):
                found.append((name, x, get(x), get, put))
    return found


def changed(saved: Iterable[State]) -> str | None:
    """The name of an object that has changed, if one has."""
    return next((name for name, x, state, get, _ in saved if not _same(get(x), state)), None)


def put_back(saved: Iterable[State]) -> None:
    """Undo every change."""
    for _, x, state, get, put in saved:
        if not _same(get(x), state):
            put(x, state)


def is_foreign(module: str) -> bool:
    """Whether a Python module belongs to a package that no model changes."""
    return module.partition(".")[0] in _FOREIGN


def is_one_way(x: Any) -> bool:
    """Whether to use an object changes it for good: iterators, generators, files, queues."""
    return hasattr(type(x), "__next__") or isinstance(x, _ONE_WAY)


def draws(x: Any) -> bool:
    """Whether an object is a generator of random numbers."""
    numpy = sys.modules.get("numpy")
    own = numpy is not None and isinstance(x, (numpy.random.Generator, numpy.random.RandomState))
    return own or isinstance(x, (random.Random, torch.Generator))


def _access(x: Any) -> list[tuple[Callable[[Any], Any], Callable[[Any, Any], None]]]:
    numpy = sys.modules.get("numpy")
    if slot_names(type(x)) and not is_foreign(type(x).__module__):
        return [(_Slots, set_slots)]
    if isinstance(x, (bytearray, array.array)):
        return [(_content, _refill)] if len(memoryview(x).cast("B")) <= _MAX_BYTES else []
    if isinstance(x, random.Random):
        return [(lambda r: r.getstate(), lambda r, state: r.setstate(state))]
    if isinstance(x, torch.Generator):
        return [(lambda g: g.get_state(), lambda g, state: g.set_state(state))]
    if numpy is None:
        return []
    if isinstance(x, numpy.ndarray):
        fits = x.nbytes <= _MAX_BYTES and x.flags.writeable and not x.dtype.hasobject
        return [(lambda a: a.copy(), _write)] if fits else []
    if isinstance(x, numpy.random.Generator):
        return [(_of_bits, lambda g, state: setattr(g.bit_generator, "state", state))]
    if isinstance(x, numpy.random.RandomState):
        return [(lambda r: r.get_state(legacy=False), lambda r, state: r.set_state(state))]
    return []


def _equal(a: Any, b: Any) -> bool:
    return isinstance(a, (int, float, complex, str, bytes)) and exact(a) == exact(b)


def _content(x: Any) -> Any:
    return x[:]


def _refill(x: Any, state: Any) -> None:
    x[:] = state


def _write(x: Any, state: Any) -> None:
    x[...] = state


def _of_bits(x: Any) -> Any:
    return copy.deepcopy(x.bit_generator.state)


class _Slots(dict[str, Any]):
    """What the slots of an object hold."""

    def __init__(self, x: Any) -> None:
        super().__init__(slots(x))


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, _Slots):
        return a.keys() == b.keys() and all(a[k] is b[k] or _equal(a[k], b[k]) for k in a)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if hasattr(a, "tobytes"):
        return bool(a.tobytes() == b.tobytes())
    return bool(a == b)
