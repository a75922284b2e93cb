"""Which function computes an op for given operands: the torch form, or an implementation that was registered for their
device.

An implementation has the signature and meaning of its op and need not be differentiable twice, nor know function
transforms, tracing or tensor subclasses: with any of these the torch form runs, here and in the backward pass.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from ._dtypes import in_old_vmap
from .plain import are_plain, unwatched

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True)
class Implementation:
    """One way to compute an op on one type of device.

    Attributes:
        op: the op's name in `linrec.ops`.
        name: what it is called.
        device: a type of device, as "cuda".
        function: has the op's parameters; differentiable once.
        requires: whether it computes the op for the arguments of a call; None is always.
        reads_values: whether `requires` looks at values, and so makes the host wait for the device.
        complete: whether its backward pass sees to second derivatives, and to many derivatives at once, itself.
    """

    op: str
    name: str
    device: str
    function: Callable[..., Any]
    requires: Callable[..., bool] | None = None
    reads_values: bool = False
    complete: bool = False


OPS: dict[str, Callable[..., Any]] = {}
"""The torch forms of the ops that can have implementations."""

IMPLEMENTATIONS: list[Implementation] = []
"""All that are registered; of those that fit, the last is used."""


def add(new: Implementation) -> None:
    """Register an implementation, in the place of one of the same op, name and device if there is one.

    Raises:
        ValueError: where there is no such op.
    """
    if new.op not in OPS:
        raise ValueError(f"no op is called {new.op!r}; implementations are for {', '.join(sorted(OPS))}")
    IMPLEMENTATIONS[:] = [x for x in IMPLEMENTATIONS if _key(x) != _key(new)] + [new]


def _candidates(op: str, device: str) -> list[Implementation]:
    """Those of an op for a type of device, the last one first."""
    return [x for x in reversed(IMPLEMENTATIONS) if x.op == op and x.device == device]


def _key(x: Implementation) -> tuple[str, str, str]:
    return x.op, x.name, x.device


def find(op: str, name: str, device: str) -> Implementation | None:
    """The implementation of some name, if there is one."""
    return next((x for x in IMPLEMENTATIONS if _key(x) == (op, name, device)), None)


def dispatched(op: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a torch form the op that implementations can be registered for."""
    name = op.__name__
    signature = inspect.signature(op)
    parameters = signature.parameters.values()
    ordered = [x.name for x in parameters if x.kind is x.POSITIONAL_OR_KEYWORD]
    named = [x.name for x in parameters if x.kind is x.KEYWORD_ONLY]
    defaults = {x.name: x.default for x in parameters if x.default is not x.empty}
    OPS[name] = op

    @functools.wraps(op)
    def call(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next((x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor)), "")
        candidates = _candidates(name, device)
        if candidates and unwatched():
            # `signature.bind` takes as long as a kernel.
            given = {**defaults, **dict(zip(ordered, args, strict=False)), **kwargs}
            if len(given) != len(parameters) or len(args) > len(ordered):
                signature.bind(*args, **kwargs)  # which says what is wrong
            tensors = [x for x in given.values() if isinstance(x, Tensor)]
            # Graph edges of tensors that no kernel may read would be lost, as would what a mode wants to see.
            if are_plain(tensors, (device,)):
                positional, options = [given[n] for n in ordered], {n: given[n] for n in named}
                for candidate in candidates:
                    if candidate.requires is None or candidate.requires(*positional, **options):
                        if candidate.complete:
                            result: _R = candidate.function(*positional, **options)
                            return result
                        result = _run(candidate, signature.bind(*positional, **options))
                        return result
        return op(*args, **kwargs)

    return call


def _run(implementation: Implementation, bound: inspect.BoundArguments) -> Any:
    """Compute an op, with a way back to the torch form for derivatives that the implementation lacks."""
    tensors = {name: x for name, x in bound.arguments.items() if isinstance(x, Tensor)}
    if not torch.is_grad_enabled() or not any(x.requires_grad for x in tensors.values()):
        return implementation.function(*bound.args, **bound.kwargs)
    call = _Call(OPS[implementation.op], bound, tuple(tensors))
    entered = _Enter.apply(call, *tensors.values())  # type: ignore[no-untyped-call]
    moving = [name for name, x in tensors.items() if x.requires_grad]
    given = call.bound(dict(tensors) | dict(zip(moving, entered, strict=True)))
    result = implementation.function(*given.args, **given.kwargs)
    results = result if isinstance(result, tuple) else (result,)
    call.results = tuple(i for i, x in enumerate(results) if isinstance(x, Tensor) and x.requires_grad)
    left = iter(_Leave.apply(call, *(results[i] for i in call.results)))  # type: ignore[no-untyped-call]
    found = tuple(next(left) if i in call.results else x for i, x in enumerate(results))
    return found if isinstance(result, tuple) else found[0]


class _Call:
    """One call of an op: what does not change in it, and, while a backward pass needs it, the results' derivatives."""

    def __init__(self, op: Callable[..., Any], bound: inspect.BoundArguments, names: tuple[str, ...]) -> None:
        self.op, self.names = op, names
        self.signature = bound.signature
        self.rest = {name: x for name, x in bound.arguments.items() if name not in names}
        self.results: tuple[int, ...] = ()
        self.grads: tuple[Tensor | None, ...] | None = None

    def bound(self, tensors: dict[str, Tensor]) -> inspect.BoundArguments:
        """The arguments with some tensors."""
        values = self.rest | tensors
        ordered = {name: values[name] for name in self.signature.parameters if name in values}
        return inspect.BoundArguments(self.signature, ordered)


class _Enter(torch.autograd.Function):
    """The operands, on their way into an implementation: aliases of those that have a derivative.

    Their derivatives come from the implementation, or, where that one's would be wrong (see `_Leave`), from here.
    """

    @staticmethod
    def forward(ctx: Any, call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.save_for_backward(*tensors)
        ctx.moving = [i for i in range(len(tensors)) if ctx.needs_input_grad[1 + i]]
        return tuple(tensors[i].detach() for i in ctx.moving)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        call: _Call = ctx.call
        found: dict[int, Tensor | None] = dict(zip(ctx.moving, grads, strict=True))
        if call.grads is not None:
            found, call.grads = _by_torch(call, ctx.saved_tensors, ctx.moving, call.grads), None
        return None, *(found.get(i) for i in range(len(call.names)))


class _Leave(torch.autograd.Function):
    """The results, on their way out. Backward, this comes first, and sees whether the derivatives are special: to be
    differentiated themselves, or many at once. Then the implementation gets zeros, and `_Enter` the derivatives."""

    @staticmethod
    def forward(ctx: Any, call: _Call, *results: Tensor) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.like = [(x.shape, x.dtype, x.device) for x in results]
        ctx.set_materialize_grads(False)
        return tuple(x.detach() for x in results)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled() and not in_old_vmap(*grads) and unwatched():
            return None, *grads
        ctx.call.grads = grads
        return None, *(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like)


def by_torch(
    op: str,
    operands: tuple[Tensor | None, ...],
    options: dict[str, Any],
    needed: tuple[bool, ...],
    grads: tuple[Tensor | None, ...],
) -> list[Tensor | None]:
    """The derivatives of an op's operands by its torch form, for a complete implementation's backward pass.

    Args:
        op: the op's name; operands: its operands in order; options: its other arguments.
        needed: for each operand, whether its derivative is wanted; grads: of the results.
    """
    names = tuple(n for n, p in inspect.signature(OPS[op]).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD)
    given = {n: x for n, x in zip(names, operands, strict=True) if x is not None}
    bound = inspect.signature(OPS[op]).bind(*operands, **options)
    call = _Call(OPS[op], bound, tuple(given))
    call.results = tuple(range(len(grads)))
    places = {n: i for i, n in enumerate(given)}
    moving = [places[n] for n, wanted in zip(names, needed, strict=True) if wanted and n in places]
    found = _by_torch(call, tuple(given.values()), moving, grads)
    return [found.get(places[n]) if n in places else None for n in names]


def _by_torch(
    call: _Call, tensors: tuple[Tensor, ...], moving: list[int], grads: tuple[Tensor | None, ...]
) -> dict[int, Tensor | None]:
    """The operands' derivatives by the torch form, with a graph of their own where one is wanted."""
    again = torch.is_grad_enabled()
    # Aliases, so that an operand computed from another one does not lead there.
    own = [x.view_as(x) if again else x.detach().requires_grad_(i in moving) for i, x in enumerate(tensors)]
    with torch.enable_grad():
        given = call.bound(dict(zip(call.names, own, strict=True)))
        results = call.op(*given.args, **given.kwargs)
        results = results if isinstance(results, tuple) else (results,)
        pairs = [(results[i], g) for i, g in zip(call.results, grads, strict=True) if g is not None]
        pairs = [(r, g) for r, g in pairs if r.requires_grad]
        if not pairs:
            return {}
        batched = in_old_vmap(*(g for _, g in pairs))
        found = torch.autograd.grad(
            [r for r, _ in pairs],
            [own[i] for i in moving],
            [g.to(r.dtype) for r, g in pairs],
            create_graph=again,
            retain_graph=again or batched,
            allow_unused=True,
        )
    return dict(zip(moving, found, strict=True))
