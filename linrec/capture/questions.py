"""What forward asks of a call besides the operators that it runs: comparisons and divisions of the number of steps, on
which it may decide something that shows at some lengths only (`linrec.capture.counted` has those of numbers that Python
counts), and the numbers in tensors, which a trace would take for fixed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from linrec.capture.arguments import leaves_of
from linrec.capture.counted import Records, differ, watched
from linrec.capture.decisions import is_asked
from linrec.capture.discover import SHORT
from linrec.capture.probe import Dims, resize, undone
from linrec.ir import members

_LENGTHS = (11, 4)
"""Numbers of steps at which forward is watched, the first that it takes: rarely the size of something else."""
_SHAPE: Any = Tensor.shape.__get__  # type: ignore[attr-defined]
_NBYTES: Any = Tensor.nbytes.__get__  # type: ignore[attr-defined]
_COMPARISONS = frozenset(("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"))
_READS = frozenset(("item", "tolist", "numpy", "__float__", "__int__", "__index__", "__complex__", "__array__"))
_local = threading.local()


@dataclass
class Questions:
    """What forward asked.

    Attributes:
        length: whether it compared or divided the number of steps, took its remainder, or the like.
        branches: whether it branched on a tensor.
        value: the method by which it read the numbers of a tensor that is neither a parameter nor a buffer, or "". A
            trace knows `item`, but where all that goes into the tensor was there before, it takes the number for fixed.
        gradient: whether it asked tensors if they require gradient.
    """

    length: bool = False
    branches: bool = False
    value: str = ""
    gradient: bool = False


class _Length(int):
    """A number of steps. Sums and products with other numbers are lengths again; what else is done with it is noted."""

    form: tuple[int, int] = (1, 0)
    """The factor and the summand that made this number of the number of steps."""


def _made(number: int, form: tuple[int, int]) -> _Length:
    new = _Length(number)
    new.form = form
    return new


def _kept(name: str, form: Callable[[tuple[int, int], int], tuple[int, int]]) -> None:
    plain = getattr(int, name)

    def method(self: _Length, other: Any) -> Any:
        result = plain(self, other)
        if type(other) is int and result is not NotImplemented:
            return _made(result, form(self.form, other))
        return result

    setattr(_Length, name, method)


def _is_settled(length: _Length, other: Any) -> bool:
    """Whether a comparison has the same answer at every length that plans are for: lengths of two inputs that are equal
    are so always, and ``T == 1`` never holds."""
    if isinstance(other, _Length):
        return other.form == length.form
    factor, summand = length.form
    return type(other) is int and factor == 1 and other - summand < SHORT


def _noted(name: str) -> None:
    plain = getattr(int, name)

    def method(self: _Length, *others: Any) -> Any:
        if not (name in _COMPARISONS and _is_settled(self, others[0])):
            _local.asked = True
        return plain(self, *others)

    setattr(_Length, name, method)


for _name in ("__add__", "__radd__"):
    _kept(_name, lambda f, n: (f[0], f[1] + n))
_kept("__sub__", lambda f, n: (f[0], f[1] - n))
_kept("__rsub__", lambda f, n: (-f[0], n - f[1]))
for _name in ("__mul__", "__rmul__"):
    _kept(_name, lambda f, n: (f[0] * n, f[1] * n))
for _name in ("eq", "ne", "lt", "le", "gt", "ge", "hash", "bool", "mod", "rmod", "floordiv", "rfloordiv", "truediv"):
    _noted(f"__{_name}__")
for _name in ("rtruediv", "divmod", "rdivmod", "pow", "rpow", "float", "and", "rand", "or", "ror", "xor", "rxor"):
    _noted(f"__{_name}__")
for _name in ("rshift", "rrshift", "lshift", "rlshift", "str", "repr", "format"):
    _noted(f"__{_name}__")


class _Watch(TorchFunctionMode):
    def __init__(self, length: int, odd: bool, own: set[int], inputs: Sequence[Any], found: Questions) -> None:
        super().__init__()
        self.length, self.odd, self.own, self.found = length, odd, own, found
        self.traced = own | {id(x) for x in inputs}
        self.alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [x for x in leaves_of(args, kwargs) if isinstance(x, Tensor)]
        if any(id(x) in self.traced for x in given):
            made = [x for x in leaves_of(out) if isinstance(x, Tensor)]
            self.alive.append(made)  # an id is one's own only as long as one lives
            self.traced |= {id(x) for x in made}
        name = getattr(func, "__name__", "")
        if func in (_SHAPE, _NBYTES) or name in ("size", "numel", "nelement"):
            return self._lengths(out)
        if name == "__len__" and out == self.length:
            self.found.length = True  # what becomes of the number cannot be seen
        elif is_asked(func, args, kwargs or {}):
            self.found.branches = True
        elif name in _READS and isinstance(args[0], Tensor):
            known = self.traced if name == "item" else self.own
            if id(args[0]) not in known:
                self.found.value = name
        return out

    def _lengths(self, size: Any) -> Any:
        if isinstance(size, torch.Size):
            return torch.Size([self._lengths(s) for s in size])
        if type(size) is not int or size % self.length or not size:
            return size
        whole = size == self.length
        return _made(size, (size // self.length, 0)) if whole or self.odd else size


def questions(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], dims: Dims, shown_at: int = SHORT, unit: int = 1
) -> Questions:
    """Watch one short run of forward, and another for the numbers that count the steps.

    Args:
        module: the module; forward: its own; spec, leaves: of the call; dims: those that grow with the length.
        shown_at: a length that forward takes; unit: of which it takes the multiples.
    """
    own = {id(t) for t in (*members.parameters(module), *members.buffers(module))}

    def watch(length: int) -> tuple[Questions, Records] | None:
        found, numbers = Questions(), Records()
        sized = resize(leaves, dims, length)
        args, kwargs = pytree.tree_unflatten(sized, spec)
        _local.asked = False
        try:
            mode = _Watch(length, length == _LENGTHS[0] * unit, own, sized, found)
            with undone(module, sized), mode, watched(numbers):
                forward(*args, **kwargs)
        except Exception:  # a length that the model does not take, or a number that it cannot use
            return None
        found.length |= _local.asked
        return found, numbers

    for length in (*(n * unit for n in _LENGTHS), shown_at):
        seen = watch(length)
        if seen is None:
            continue
        found, numbers = seen
        later = None if found.length else watch(length + unit)
        if later is not None:
            found.length = differ(numbers, later[1], SHORT, (length, length + unit))
        return found
    return Questions(length=True)
