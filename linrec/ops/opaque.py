"""What ``torch.compile`` calls without looking inside: one operator that runs a Python function or module known by a
number, and one for its derivative, which runs the function again. Outside of ``torch.compile`` nothing of this is used.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .precision import no_autocast

_P = ParamSpec("_P")
_R = TypeVar("_R")

Shape = tuple[Sequence[Any], torch.dtype]
"""Shape and dtype of a result."""

_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


class Opaque(nn.Module):
    """A module that `torch.compile` calls as one operator.

    A subclass defines `run`, what the module does, and `shapes`, what comes out for (fake) arguments. Arguments are
    tensors, numbers, strings, None, and lists of these; the result is a list of tensors.
    """

    def __init__(self) -> None:
        super().__init__()
        self.number = register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.number = register(self)

    def forward(self, *args: Any) -> Sequence[Any]:
        """`run`, or one operator in a program that is being compiled."""
        if is_traced():
            found: Sequence[Any] = call(self.number, list(args))
            return found
        return _empty(self.shapes(*args), args) if _only_shapes() else self.run(*args)

    def run(self, *args: Any) -> Sequence[Any]:
        """What the module does."""
        raise NotImplementedError

    def shapes(self, *args: Any) -> list[Shape]:
        """Of the results."""
        raise NotImplementedError


def states_shape(h0: Tensor, length: Any) -> list[Shape]:
    """Of all states of a recurrence, from its initial state."""
    return [((length, *h0.shape), h0.dtype)]


class _Function:
    """A function as `register` wants it; there for ever, as functions are."""

    def __init__(self, function: Callable[..., Any], shapes: Callable[..., list[Shape]]) -> None:
        self.function, self.shapes = function, shapes

    def run(self, *args: Any) -> Sequence[Tensor]:
        out = self.function(*args)
        return [out] if isinstance(out, Tensor) else list(out)


_functions: list[_Function] = []


def opaque(shapes: Callable[..., list[Shape]], listed: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Make a function, of positional arguments as `Opaque` takes them, one operator for `torch.compile`.

    Args:
        shapes: from the arguments to what comes out.
        listed: whether the function returns a list of tensors; otherwise it is one tensor.
    """

    def decorate(function: Callable[_P, _R]) -> Callable[_P, _R]:
        known = _Function(function, shapes)
        _functions.append(known)
        number = register(known)

        @functools.wraps(function)
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if is_traced() and not kwargs:
                out = call(number, list(args))
                return out if listed else out[0]
            if _only_shapes() and not kwargs:
                made = _empty(shapes(*args), args)
                return made if listed else made[0]
            return function(*args, **kwargs)

        return wrapped

    return decorate


def register(owner: Any) -> int:
    """The number of something with `run` and `shapes`; it is known as long as it lives."""
    number = next(_numbers)
    _known[number] = owner
    return number


def is_traced() -> bool:
    """Whether ``torch.compile`` is reading this code. An exported program has to do without Python."""
    return torch.compiler.is_dynamo_compiling() and not torch.compiler.is_exporting()


_local = threading.local()


@contextlib.contextmanager
def only_shapes() -> Iterator[None]:
    """In the block, this thread computes nothing opaque, and goes on with tensors of the right shapes."""
    _local.on = True
    try:
        yield
    finally:
        _local.on = False


def _only_shapes() -> bool:
    return not torch.compiler.is_dynamo_compiling() and getattr(_local, "on", False)


def _empty(shapes: Sequence[Shape], args: Sequence[Any]) -> list[Tensor]:
    device = next(x.device for x in pytree.tree_leaves(args) if isinstance(x, Tensor))
    return [torch.empty([*shape], dtype=dtype, device=device) for shape, dtype in shapes]


def call(number: int, args: list[Any]) -> Any:
    """Call what is registered, as one operator of the program that is being compiled."""
    tensors: list[Tensor] = []
    numbers: list[Any] = []
    spec = _spec(args, tensors, numbers)
    return torch.ops.linrec.opaque(number, spec, tensors, numbers)


def _spec(value: Any, tensors: list[Tensor], numbers: list[Any]) -> str:
    """Arguments as text, tensors and sizes left out."""
    if isinstance(value, (list, tuple)):
        return "[" + "".join([_spec(v, tensors, numbers) + "," for v in value]) + "]"
    if isinstance(value, Tensor):
        tensors.append(value)
        return "T"
    if isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool):
        numbers.append(value)
        return "N"
    return repr(value)


def _arguments(spec: str, tensors: Sequence[Tensor], numbers: Sequence[Any]) -> list[Any]:
    rest, counts = iter(tensors), iter(numbers)
    names = {"T": _Mark.TENSOR, "N": _Mark.NUMBER, "nan": float("nan"), "inf": float("inf")}

    def put(value: Any) -> Any:
        if isinstance(value, list):
            return [put(v) for v in value]
        return next(rest) if value is _Mark.TENSOR else next(counts) if value is _Mark.NUMBER else value

    found: list[Any] = put(eval(spec, {"__builtins__": {}}, names))
    return found


class _Mark:
    TENSOR, NUMBER = object(), object()


def _find(number: int) -> Any:
    owner = _known.get(number)
    if owner is None:
        raise RuntimeError("a compiled program calls a part of a model that is gone: compile it again")
    return owner


def _run(number: int, spec: str, tensors: Sequence[Tensor], numbers: Sequence[Any]) -> list[Tensor]:
    with torch.no_grad(), no_autocast():
        results = _find(number).run(*_arguments(spec, tensors, numbers))
    own = {x.untyped_storage().data_ptr() for x in tensors}
    found = []
    for x in results:
        y = x.detach().contiguous()
        y = y.clone() if y.untyped_storage().data_ptr() in own else y
        own.add(y.untyped_storage().data_ptr())
        found.append(y)
    return found


def _shapes(number: int, spec: str, tensors: Sequence[Tensor], numbers: Sequence[Any]) -> list[Tensor]:
    with no_autocast():
        return _empty(_find(number).shapes(*_arguments(spec, tensors, numbers)), tensors)


def _run_backward(
    number: int,
    spec: str,
    tensors: Sequence[Tensor],
    numbers: Sequence[Any],
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
) -> list[Tensor]:
    with _autograd(), torch.enable_grad(), no_autocast():
        own = [x.detach().requires_grad_(i in wanted) for i, x in enumerate(tensors)]
        results = _find(number).run(*_arguments(spec, own, numbers))
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return [torch.zeros_like(tensors[i]) for i in wanted]
        leaves = [own[i] for i in wanted]
        found = torch.autograd.grad([r for r, _ in pairs], leaves, [g for _, g in pairs], allow_unused=True)
    packed = torch.contiguous_format
    return [
        torch.zeros_like(x, memory_format=packed) if g is None else g.clone(memory_format=packed)
        for x, g in zip(leaves, found, strict=True)
    ]


def _autograd() -> Any:
    """Lets operators record derivatives inside the implementation of an operator."""
    kept = torch._C._dispatch_tls_local_exclude_set()
    for name in ("AutogradFunctionality", "AutogradOther", "AutogradCPU", "AutogradCUDA", "ADInplaceOrView"):
        kept = kept.remove(getattr(torch._C.DispatchKey, name))
    return torch._C._ForceDispatchKeyGuard(torch._C._dispatch_tls_local_include_set(), kept)


def _shapes_backward(
    number: int,
    spec: str,
    tensors: Sequence[Tensor],
    numbers: Sequence[Any],
    grads: Sequence[Tensor | None],
    wanted: Sequence[int],
) -> list[Tensor]:
    return [torch.empty_like(tensors[i], memory_format=torch.contiguous_format) for i in wanted]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.number, ctx.spec, tensors, ctx.numbers = inputs
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)


def _derive(ctx: Any, grads: Sequence[Tensor | None]) -> tuple[Any, ...]:
    tensors = list(ctx.saved_tensors)
    wanted = [i for i, need in enumerate(ctx.needs_input_grad[2]) if need]
    out = torch.ops.linrec.opaque_backward(ctx.number, ctx.spec, tensors, ctx.numbers, list(grads), wanted)
    found: list[Tensor | None] = [None] * len(tensors)
    for i, g in zip(wanted, out, strict=True):
        found[i] = g
    return None, None, found, None if ctx.numbers else []  # an empty list counts as one of tensors


_library = torch.library.Library("linrec", "FRAGMENT")
_arguments_of_both = "int number, str spec, Tensor[] tensors, SymInt[] numbers"
_library.define(f"opaque({_arguments_of_both}) -> Tensor[]")
_library.define(f"opaque_backward({_arguments_of_both}, Tensor?[] grads, int[] wanted) -> Tensor[]")
_library.impl("opaque", _run, "CompositeExplicitAutograd")
_library.impl("opaque_backward", _run_backward, "CompositeExplicitAutograd")
torch.library.register_fake("linrec::opaque", _shapes, lib=_library)
torch.library.register_fake("linrec::opaque_backward", _shapes_backward, lib=_library)
torch.library.register_autograd("linrec::opaque", _derive, setup_context=_keep, lib=_library)
