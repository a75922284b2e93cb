"""A case of the benchmark and its variants: the loop as it is written, the same loop parallelised, and its peers. All
compute the same values and gradients."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import linrec

Sizes = Mapping[str, int]


class Unavailable(Exception):
    """What a variant needs is not installed."""


class Variant:
    """Something whose training step is timed. A step gets fresh leaves, so that nothing is carried over.

    Args:
        call: a module, or a function of the case's inputs; returns one tensor.
        static: arguments after the inputs, which need no derivative.
        derived: whether a step takes derivatives by the inputs.
        same: whether it computes what the loop does; if not, it is there to compare with, and its results are not.
    """

    def __init__(
        self, call: Callable[..., Tensor], static: Sequence[Any] = (), derived: bool = True, same: bool = True
    ) -> None:
        self.call = call
        self.static = tuple(static)
        self.derived, self.same = derived, same

    def prepare(self, inputs: Sequence[Tensor], gradient: Tensor | None) -> Callable[[], Any]:
        """A training step that has all it needs, to be timed.

        Args:
            inputs: of the case.
            gradient: the loss's derivative by the result; None for the mean of its squares as the loss.
        """
        given = [x.detach().requires_grad_(self.derived) for x in inputs]
        leaves = given if self.derived else []
        parameters = list(self.call.parameters()) if isinstance(self.call, nn.Module) else []

        def step() -> tuple[Tensor, ...]:
            result = self.call(*given, *self.static)
            target = result if gradient is not None else result.square().mean()
            return result, *torch.autograd.grad(target, [*leaves, *parameters], gradient)

        return step

    def collect(self, results: Any) -> list[Tensor]:
        """Of a step: the result, the inputs' derivatives, and the parameters' in the order of their names."""
        names = [n for n, _ in self.call.named_parameters()] if isinstance(self.call, nn.Module) else []
        plain = len(results) - len(names)
        own = sorted(zip(names, results[plain:], strict=True))
        return [*results[:plain], *(g for _, g in own)]


class JaxVariant(Variant):
    """A function of JAX arrays under jit, with its vector-Jacobian product."""

    def prepare(self, inputs: Sequence[Tensor], gradient: Tensor | None) -> Callable[[], Any]:
        """See `Variant`."""
        jax = optional("jax")
        given = [jax.numpy.asarray(x.numpy()) for x in inputs]
        along = None if gradient is None else jax.numpy.asarray(gradient.numpy())
        step = self._compiled()
        return lambda: jax.block_until_ready(step(along, *given))

    def _compiled(self) -> Any:
        if not hasattr(self, "_step"):
            jax = optional("jax")

            def step(along: Any, *given: Any) -> Any:
                result, back = jax.vjp(self.call, *given)
                return result, *back(2 / result.size * result if along is None else along)

            self._step = jax.jit(step)
        return self._step

    def collect(self, results: Any) -> list[Tensor]:
        """See `Variant`."""
        numpy = optional("numpy")
        return [torch.from_numpy(numpy.array(x)) for x in results]


def optional(name: str) -> Any:
    """A module of another package.

    Raises:
        Unavailable: where it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Unavailable(f"{name.partition('.')[0]} is not installed") from error


@dataclass(frozen=True)
class Case:
    """A recurrence, at some sizes.

    Attributes:
        name: for the command line.
        title: what it is.
        sizes: sizes by name; "T" is the number of steps in time.
        tiny: the same, for a test.
        inputs: makes the inputs that are differentiated.
        loop: makes the module or function as it is written.
        peers: make other forms; each is given the sizes and the loop, whose parameters it takes over.
        static: makes arguments after the inputs, of the loop and of linrec's form of it.
        gradient: makes the loss's derivative by the result from the inputs; without it the loss is the mean of squares.
        wanted: for a peer, how many times faster than it linrec ought to be.
        derived: whether a step takes derivatives by the inputs, too, or they are data.
    """

    name: str
    title: str
    sizes: dict[str, int]
    tiny: dict[str, int]
    inputs: Callable[[Sizes], list[Tensor]]
    loop: Callable[[Sizes], Callable[..., Tensor]]
    peers: dict[str, Callable[[Sizes, Any], Variant]] = field(default_factory=dict)
    static: Callable[[Sizes], Sequence[Any]] = lambda sizes: ()
    gradient: Callable[[list[Tensor]], Tensor] | None = None
    wanted: dict[str, float] = field(default_factory=dict)
    derived: bool = True

    def build(self, sizes: Sizes) -> tuple[dict[str, Variant], dict[str, str]]:
        """The variants by name, and why others are missing."""
        torch.manual_seed(0)
        loop, static = self.loop(sizes), self.static(sizes)
        found = {"loop": Variant(loop, static), "linrec": Variant(linrec.parallelize(copy.deepcopy(loop)), static)}
        missing = {}
        for name, make in self.peers.items():
            try:
                found[name] = make(sizes, loop)
            except Unavailable as why:
                missing[name] = str(why)
        for variant in found.values():
            variant.derived = self.derived
        return found, missing

    def data(self, sizes: Sizes) -> tuple[list[Tensor], Tensor | None]:
        """Inputs, and the derivative that is given."""
        torch.manual_seed(1)
        inputs = self.inputs(sizes)
        return inputs, None if self.gradient is None else self.gradient(inputs)
