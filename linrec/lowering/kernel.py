"""A function of tensors as a lowering: how another library's kernel for a known class of recurrences is registered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from linrec.ir.extension import Extension, ExtensionError, guarded, origin
from linrec.ir.recurrence import LinearRecurrence
from linrec.lowering.dense import is_plain_matrix, transition_matrix
from linrec.lowering.registry import Lowering, Site, coefficients, is_inexact, register, state_size
from linrec.ops.opaque import Opaque, Shape, states_shape

KINDS = ("diagonal", "dense")


class _Kernel(Opaque):
    """A kernel as a module of a graph: gives it full tensors, and looks at what comes back."""

    def __init__(self, name: str, function: Callable[..., Tensor], kind: str) -> None:
        super().__init__()
        self.name, self.function, self.kind = name, function, kind

    def shapes(self, a: Tensor, b: Tensor, h0: Tensor, length: int) -> list[Shape]:
        """Of `run`."""
        return states_shape(h0, length)

    def run(self, a: Tensor, b: Tensor, h0: Tensor, length: int) -> list[Tensor]:
        """All states from transition, drive (T or 1, *state) and the initial state, as a list of one."""
        if self.kind == "diagonal":
            a = a.expand(length, *h0.shape)
        states = self.function(a, b.expand(length, *h0.shape), h0)
        expected = (length, *h0.shape)
        if not isinstance(states, Tensor) or states.shape != expected or states.dtype != h0.dtype:
            got = f"{tuple(states.shape)} {states.dtype}" if isinstance(states, Tensor) else type(states).__name__
            who = Extension("lowering", self.name, origin(self.function))
            raise ExtensionError(f"{who} returned {got} in place of the states: {expected} {h0.dtype}")
        return [states]


class KernelLowering(Lowering):
    """A function that solves one class of recurrences."""

    def __init__(
        self,
        name: str,
        function: Callable[..., Tensor],
        kind: str,
        requires: Callable[[LinearRecurrence], bool] | None,
        cost: Callable[[float, int], float] | None,
    ) -> None:
        self.name, self.kind = name, kind
        self.function = guarded("lowering", name, function)
        self.requires = guarded("lowering", name, requires) if requires else None
        self.price = guarded("lowering", name, cost) if cost else None
        self.__module__ = origin(function)

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the recurrence is of the kernel's class and meets its requirements."""
        if self.kind == "dense":
            fits = is_plain_matrix(recurrence) and recurrence.transition.axis == len(recurrence.update.axes) - 1
        else:
            fits = recurrence.transition.kind in ("identity", "diagonal") and is_inexact(recurrence)
        return fits and (self.requires is None or bool(self.requires(recurrence)))

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> float:
        """What the kernel says, or two operations for each element and step."""
        elements = state_size(recurrence)
        return self.price(elements, length) if self.price else 2 * elements * length

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the call; return (all states, final state) of the carry."""
        state, axes = recurrence.states[0], recurrence.update.axes
        emitter = site.emitter(recurrence)
        if self.kind == "dense":
            transition = transition_matrix(recurrence, site)
        else:
            transition = coefficients(emitter, recurrence.linear_terms(), axes, state)
        drive = coefficients(emitter, recurrence.drive_terms(), axes, state)
        args = (transition, drive, site.initial[0], site.vectorizer.length)
        (states,) = site.call_module(_Kernel(self.name, self.function, self.kind), args, recurrence.states)
        return [(states, site.final(states, state))]


def lowering(
    name: str,
    *,
    kind: str = "diagonal",
    requires: Callable[[LinearRecurrence], bool] | None = None,
    cost: Callable[[float, int], float] | None = None,
    replace: bool = False,
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as an algorithm for a class of recurrences; the cheapest that applies is used.

    The function gets ``(a, b, h0)`` and returns all states ``h[t] = a[t] h[t-1] + b[t]``, (T, *state), differentiable:

    - ``kind="diagonal"``: a, b (T, *state) and h0 (*state), elementwise;
    - ``kind="dense"``: a (D, D) constant, b (T, *batch, D) and h0 (*batch, D), ``h[t] = a h[t-1] + b[t]``.

    Args:
        name: what reports call it.
        kind: the class.
        requires: whether it can solve a given recurrence of the class.
        cost: its multiply-adds for a number of state elements and of steps; two for each by default.
        replace: whether it may take the place of one of the same name.

    Raises:
        ExtensionError: where another lowering has this name.
        ValueError: where there is no such kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {kind!r}")

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        register(KernelLowering(name, function, kind, requires, cost), replace=replace)
        return function

    return decorate
