"""Custom ``torch.autograd.Function`` calls, kept whole in a trace. Tracing runs only their forward, which would replace
a hand-written backward by the derivative of the forward; here each call becomes one opaque operator that the rewritten
graph turns back into ``Function.apply``."""

from __future__ import annotations

import contextlib
import threading
import types
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from linrec.ops.opaque import Shape, opaque
from linrec.ops.precision import AutocastState, autocast_as, autocast_state
from linrec.ops.surrogate import surrogate

_LOCK = threading.Lock()
_CALLS: list[tuple[Any, Any, tuple[Any, ...], AutocastState]] = []


def _run_forward(key: int, tensors: list[Tensor]) -> list[Tensor]:
    out, _ = _forward(key, tensors, _Context())
    outs = out if isinstance(out, tuple) else (out,)
    return [o.clone() for o in outs]


def _forward(key: int, tensors: list[Tensor], context: _Context) -> tuple[Any, tuple[Any, ...]]:
    """What a Function's forward returns, and its arguments."""
    function, spec, statics, _ = _CALLS[key]
    args = _assemble(spec, statics, tensors)
    context.needs_input_grad = tuple(is_differentiated(a) for a in args)
    if function.setup_context is torch.autograd.function._SingleLevelFunction.setup_context:
        return function.forward(context, *args), args
    out = function.forward(*args)
    function.setup_context(context, args, out)
    return out, args


def backward_of(key: int, tensors: list[Tensor], gradient: Tensor) -> tuple[Tensor, list[Tensor | None]]:
    """What a Function of one result returns, and what its backward does with a gradient: the derivative by each tensor
    that it takes, None where there is none.

    Raises:
        ValueError: where it has more results, or takes tensors in containers.
    """
    context = _Context()
    out, args = _forward(key, tensors, context)
    if not isinstance(out, Tensor) or any(isinstance(a, (list, tuple, dict)) for a in args):
        raise ValueError("not a function of tensors with one result")
    found = _CALLS[key][0].backward(context, gradient)
    grads = found if isinstance(found, tuple) else (found,)
    own = [g for a, g in zip(args, grads, strict=True) if isinstance(a, Tensor)]
    return out, [g if is_differentiated(x) else None for x, g in zip(tensors, own, strict=True)]


def is_differentiated(x: Any) -> bool:
    """Whether there is a gradient by an argument."""
    return isinstance(x, Tensor) and x.dtype.is_floating_point


class _Context(FunctionCtx):
    """A stand-in for the ctx of a Function."""

    saved_tensors: tuple[Any, ...] = ()
    needs_input_grad: tuple[bool, ...] = ()

    def save_for_backward(self, *tensors: Any) -> None:
        self.saved_tensors = tensors

    def save_for_forward(self, *tensors: Any) -> None:
        pass

    def mark_dirty(self, *tensors: Any) -> None:
        raise NotImplementedError("an autograd.Function that writes into its input cannot be traced")

    def mark_non_differentiable(self, *tensors: Any) -> None:
        pass

    def set_materialize_grads(self, value: bool) -> None:
        pass


def _assemble(spec: Any, statics: tuple[Any, ...], tensors: list[Tensor]) -> tuple[Any, ...]:
    rest = iter(tensors)
    leaves = [next(rest) if s is _TENSOR else s for s in statics]
    return tuple(pytree.tree_unflatten(leaves, spec))


class _TensorMark:
    def __repr__(self) -> str:
        return "tensor"


_TENSOR = _TensorMark()

_library = torch.library.Library("linrec", "FRAGMENT")
_library.define("autograd_function(int key, Tensor[] tensors) -> Tensor[]")
_library.impl("autograd_function", _run_forward, "CompositeExplicitAutograd")
torch.library.register_fake("linrec::autograd_function", _run_forward, lib=_library)


def _register(function: Any, args: tuple[Any, ...]) -> tuple[int, list[Tensor]]:
    leaves, spec = pytree.tree_flatten(args)
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    statics = tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    state = autocast_state()
    with _LOCK:
        for key, (known, known_spec, known_statics, known_state) in enumerate(_CALLS):
            same = len(statics) == len(known_statics) and all(
                a is b or (type(a) is type(b) and a == b) for a, b in zip(statics, known_statics, strict=True)
            )
            if known is function and known_spec == spec and known_state == state and same:
                return key, tensors
        _CALLS.append((function, spec, statics, state))
        return len(_CALLS) - 1, tensors


def _shapes(key: int, tensors: list[Tensor]) -> list[Shape]:
    with autocast_as(_CALLS[key][3]):
        return [(x.shape, x.dtype) for x in _run_forward(key, tensors)]


@opaque(_shapes, listed=True)
def apply_autograd_function(key: int, tensors: list[Tensor]) -> list[Tensor]:
    """Run the recorded ``Function.apply`` with its own backward (what a rewritten graph calls)."""
    function, spec, statics, state = _CALLS[key]
    with autocast_as(state):
        out = function.apply(*_assemble(spec, statics, tensors))
    return list(out) if isinstance(out, tuple) else [out]


_local = threading.local()


def _replacement() -> types.CodeType:
    """Code for ``Function.apply`` while this module traces. What is named `apply` already (``spike = Spike.apply`` in a
    module or an attribute) holds the function itself, so that its code is exchanged, not the method of the class."""
    __class__ = None

    def apply(cls, *args, **kwargs):  # type: ignore[no-untyped-def]
        __class__  # noqa: B018  (what it closes over has to be as much as before)
        from linrec.capture.autograd_function import applied

        return applied(cls, args, kwargs)

    return apply.__code__


def applied(cls: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Called for ``cls.apply(*args, **kwargs)``: one operator in a thread that traces."""
    if not getattr(_local, "tracing", False) or kwargs or cls.__module__.startswith("torch."):
        return _apply(cls, *args, **kwargs)
    key, tensors = _register(cls, args)
    out = torch.ops.linrec.autograd_function(key, tensors)
    return out[0] if len(out) == 1 else tuple(out)


_method: Any = torch.autograd.Function.__dict__["apply"].__func__
_apply = types.FunctionType(
    _method.__code__, _method.__globals__, _method.__name__, _method.__defaults__, _method.__closure__
)
_tracing: list[None] = []


@contextlib.contextmanager
def opaque_autograd_functions() -> Iterator[None]:
    """While active, every ``Function.apply`` of this thread becomes one ``linrec.autograd_function`` operator."""
    with _LOCK:
        _tracing.append(None)
        _method.__code__ = _replacement()
    before, _local.tracing = getattr(_local, "tracing", False), True
    try:
        yield
    finally:
        _local.tracing = before
        with _LOCK:
            _tracing.pop()
            if not _tracing:
                _method.__code__ = _apply.__code__


def restore_autograd_functions(graph_module: fx.GraphModule) -> None:
    """Turn the opaque operators of a traced graph back into calls that run ``Function.apply``; those with a slope of
    their own into what transforms of `torch.func` see through."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function":
            node.target = _RESTORED.get(node.target, node.target)


_RESTORED: dict[Any, Any] = {
    torch.ops.linrec.autograd_function.default: apply_autograd_function,
    torch.ops.linrec.surrogate.default: surrogate,
}
