"""Custom ``torch.autograd.Function`` calls, kept whole in a trace. Tracing runs only their forward, which would replace
a hand-written backward by the derivative of the forward; here each call becomes one opaque operator that the rewritten
graph turns back into ``Function.apply``."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd.function import FunctionCtx
from torch.utils import _pytree as pytree

from linrec.ops.opaque import Shape, opaque
from linrec.ops.precision import AutocastState, autocast_as, autocast_state

_LOCK = threading.Lock()
_CALLS: list[tuple[Any, Any, tuple[Any, ...], AutocastState]] = []


def _run_forward(key: int, tensors: list[Tensor]) -> list[Tensor]:
    function, spec, statics, _ = _CALLS[key]
    args = _assemble(spec, statics, tensors)
    if function.setup_context is not torch.autograd.function._SingleLevelFunction.setup_context:
        out = function.forward(*args)
    else:
        out = function.forward(_Context(), *args)
    outs = out if isinstance(out, tuple) else (out,)
    return [o.clone() for o in outs]


class _Context(FunctionCtx):
    """A stand-in for the ctx of a Function's forward, whose saved values nobody reads."""

    def save_for_backward(self, *tensors: Any) -> None:
        pass

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


@contextlib.contextmanager
def opaque_autograd_functions() -> Iterator[None]:
    """While active, every ``Function.apply`` of this thread becomes one ``linrec.autograd_function`` operator."""
    tracing = threading.get_ident()

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != tracing or kwargs or cls.__module__.startswith("torch."):
            return original.__func__(cls, *args, **kwargs)
        key, tensors = _register(cls, args)
        out = torch.ops.linrec.autograd_function(key, tensors)
        return out[0] if len(out) == 1 else tuple(out)

    base: Any = torch.autograd.Function
    original = base.__dict__["apply"]
    base.apply = classmethod(apply)
    try:
        yield
    finally:
        base.apply = original


def restore_autograd_functions(graph_module: fx.GraphModule) -> None:
    """Turn the opaque operators of a traced graph back into calls that run ``Function.apply``."""
    for node in graph_module.graph.nodes:
        if node.op == "call_function" and node.target is torch.ops.linrec.autograd_function.default:
            node.target = apply_autograd_function
