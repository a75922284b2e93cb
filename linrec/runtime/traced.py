"""A parallelised module inside ``torch.compile``: one operator of the compiled program, that calls the module's
dispatcher as an uncompiled program would. So the plan is chosen, and checked at new lengths, when the program runs.

Only a module that has a plan already is called so, and only if the plan shows all that a call does: no side effects, no
random numbers. Everything else is compiled from its original code, its loop unrolled.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._dynamo.eval_frame import set_eval_frame
from torch.nn.utils import stateless
from torch.utils import _pytree as pytree

from linrec.capture.listed import Slot
from linrec.ir.scan import is_random
from linrec.ops.opaque import Shape, call, only_shapes, register
from linrec.ops.precision import is_autocast
from linrec.runtime.plan import Plan

if TYPE_CHECKING:
    from linrec.runtime.dispatcher import Dispatcher

_PLAIN = (int, bool, str, type(None))
Offer = tuple[tuple[Any, ...], Plan]


class Traced:
    """What a compiled program calls in place of a dispatcher.

    Attributes:
        number: of this, for the operator.
        form: how many tensors a call returns, 0 for a single one that is no tuple; None where it must not be called.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.number = register(self)
        self.form: int | None = None
        self.offers: list[Offer] = []

    def offer(self, plan: Plan, leaves: Sequence[Any], args: Any, kwargs: Any) -> None:
        """Take note of a plan that was made for a call; one for calls without gradient is none for a program."""
        if not torch.is_grad_enabled():
            return
        form = _form(plan)
        flat = all(isinstance(x, Tensor) or type(x) in _PLAIN for x in (*args, *kwargs.values()))
        if form is None or not flat or (self.offers and form != self.form):
            # Calls of another form would have to be told apart by what a compiler cannot see.
            self.form = None
            return
        self.form = form
        self.offers.append((_kinds(leaves), plan))

    def call(self, module: Any, args: Any, kwargs: Any) -> Any:
        """The call as an operator. ``torch.compile`` reads this code."""
        state = [*module.parameters(), *module.buffers()]
        out = call(self.number, [state, list(args), list(kwargs), list(kwargs.values())])
        return out[0] if self.form == 0 else tuple(out)

    def run(self, state: list[Tensor], args: list[Any], names: list[str], values: list[Any]) -> Sequence[Tensor]:
        """What an uncompiled program does, with derivatives: a plan serves calls that want them."""
        dispatcher = self.dispatcher
        kwargs = dict(zip(names, values, strict=True))
        with _uncompiled(), torch.enable_grad(), self._holding(state), dispatcher.settings.turns.running():
            out = dispatcher._call(tuple(args), kwargs)
        return [out] if isinstance(out, Tensor) else list(out)

    def shapes(self, state: list[Tensor], args: list[Any], names: list[str], values: list[Any]) -> list[Shape]:
        """By a plan that fits, otherwise by the original."""
        kwargs = dict(zip(names, values, strict=True))
        leaves, _ = pytree.tree_flatten((tuple(args), kwargs))
        tensors = [x for x in leaves if isinstance(x, Tensor)]
        module = self.dispatcher.module
        with torch.no_grad(), self._holding(state):
            for kinds, plan in self.offers:
                if kinds == _kinds(leaves) and plan.admits(module, tensors, plan.length(tensors)):
                    with only_shapes():
                        out: Any = plan.graph_module(*plan.arguments(module, tensors))
                    break
            else:
                out = self.dispatcher.original(*args, **kwargs)
        return [(x.shape, x.dtype) for x in ([out] if isinstance(out, Tensor) else out)]

    def _holding(self, state: Sequence[Tensor]) -> contextlib.AbstractContextManager[None]:
        """The module with the values that the program gives it."""
        module = self.dispatcher.module
        own = [*module.named_parameters(), *module.named_buffers()]
        if len(own) != len(state):
            raise RuntimeError(f"the parameters of {type(module).__name__} are others than in the compiled program")
        given = {name: value for (name, _), value in zip(own, state, strict=True)}
        return stateless._reparametrize_module(module, given, tie_weights=True)


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Without ``torch.compile`` for what runs in the block: the original that a plan is compared with at a new length
    would be compiled, and its calls not seen."""
    before = set_eval_frame(None)
    try:
        yield
    finally:
        set_eval_frame(before)


def is_callable(traced: Traced, args: Any, kwargs: Any) -> bool:
    """Whether a call in a program that is being compiled goes to a plan. ``torch.compile`` reads this code."""
    if traced.form is None or is_autocast() or not torch.is_grad_enabled():
        return False
    # A number that differs between calls is a symbol there, and not a constant.
    return all(isinstance(x, (Tensor, int, str)) or x is None for x in [*args, *kwargs.values()])


def _kinds(leaves: Sequence[Any]) -> tuple[Any, ...]:
    return tuple((x.dtype, x.device) if isinstance(x, Tensor) else (type(x), x) for x in leaves)


def _form(plan: Plan) -> int | None:
    """How many tensors a plan returns, 0 for one that is no tuple; None where a call does more than return tensors."""
    if plan.has_effects or plan.mixed or plan.decisions:
        return None
    if not all(type(x) is Slot for x in plan.out_leaves) or len({x.position for x in plan.out_leaves}) < len(
        plan.out_leaves
    ):
        return None
    graphs = [g.graph for g in plan.graph_module.modules() if isinstance(g, torch.fx.GraphModule)]
    if any(is_random(n) for g in graphs for n in g.nodes):
        return None
    count = len(plan.out_leaves)
    for form, out in ((0, 0), (count, (0,) * count)):
        if pytree.tree_structure(out) == plan.out_spec:
            return form
    return None
