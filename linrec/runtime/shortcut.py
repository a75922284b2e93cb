"""Calls like the one before: most calls of a module differ from the last one in nothing but the numbers in tensors, and
what `signature`, the dispatcher and a plan find out of their arguments is known then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _hooks

from linrec.capture.surroundings import Watch
from linrec.runtime.placement import device_set_aside
from linrec.runtime.plan import Plan
from linrec.runtime.state import Seen

_SINGLE = (bool, int, type(None))
"""Types of plain arguments of which nothing but their value is to be known."""


class Shortcut:
    """What a call was like that a plan served.

    Whatever `signature.ordinary` and `signature.signature` ask of a call, and `Plan.admitted` of its sizes, is asked
    here, too: not what it is, but whether it is the same. All that can be is known of what stays the same.

    Args:
        module: the module; leaves: the arguments, by position; known: of the module's attributes, see `Seen.fixed`.
        plan: what served the call; watch: what code reads elsewhere; length: of the call.
    """

    __slots__ = (
        "_broken",
        "_hooks",
        "_known",
        "_leaves",
        "_modes",
        "_module",
        "_shapes",
        "_takes_all",
        "_watch",
        "length",
        "plan",
    )

    def __init__(
        self, module: nn.Module, leaves: list[Any], known: Any, plan: Plan, watch: Watch | None, length: int
    ) -> None:
        self.plan, self.length = plan, length
        self._module, self._known, self._watch = module, known, watch
        self._leaves = [(type(x), x.dtype, x.device, None) if isinstance(x, Tensor) else (type(x), x) for x in leaves]
        self._shapes = [x.shape for x in leaves if isinstance(x, Tensor)]
        self._modes = _modes()
        self._broken = plan.broken_from
        self._takes_all = plan.takes_all()
        self._hooks = [
            _hooks._global_forward_hooks,
            _hooks._global_forward_pre_hooks,
            _hooks._global_backward_hooks,
            _hooks._global_backward_pre_hooks,
        ]
        for sub, *_ in known[1:]:
            self._hooks += [
                sub._forward_hooks,
                sub._forward_pre_hooks,
                sub._backward_hooks,
                sub._backward_pre_hooks,
            ]

    @staticmethod
    def of(
        module: nn.Module, leaves: list[Any], known: Any, plan: Plan, watch: Watch | None, length: int
    ) -> Shortcut | None:
        """What to remember of a call that a plan has served, or None where more of it may change than is compared."""
        plain = all(isinstance(x, Tensor) or type(x) in _SINGLE for x in leaves)
        if not plain or plan.numbers is not None or _modes() is None:
            return None
        return Shortcut(module, leaves, known, plan, watch, length)

    def serves(self, args: Sequence[Any]) -> tuple[list[Tensor], list[Any]] | None:
        """For a call by position, its tensors and what the plan's sources have to give; None where the call is not as
        the one before, and has to be looked at."""
        if len(args) != len(self._leaves) or _modes() != self._modes or any(self._hooks):
            return None
        tensors: list[Tensor] = []
        for x, leaf in zip(args, self._leaves, strict=True):
            if type(x) is not leaf[0]:
                return None
            if len(leaf) == 2:
                if x != leaf[1]:
                    return None
                continue
            if (
                x.dtype is not leaf[1]
                or x.device != leaf[2]
                or x.shape != self._shapes[len(tensors)]
                or x.layout is not torch.strided
                or x.__dict__
                or torch._C._functorch.is_functorch_wrapped_tensor(x)
            ):
                return None
            tensors.append(x)
        plan = self.plan
        if plan.broken_from is not self._broken or not Seen.are_fixed(self._known):
            return None
        if self._watch is not None and not self._watch.holds():
            return None
        if self._takes_all:
            return tensors, plan.values(self._module, tensors, self.length)
        values = plan.given(self._module, tensors, self.length)
        return None if values is None else (tensors, values)


def _modes() -> tuple[bool, torch.dtype] | None:
    """What torch is asked to do with all operators; None where that is something out of the ordinary."""
    if (
        torch._C._is_any_autocast_enabled()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or device_set_aside() is not None
    ):
        return None
    return torch.is_grad_enabled(), torch.get_default_dtype()
