"""A dispatcher whose compiler is a list of plans made by hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from linrec.capture.discover import TimeAxis
from linrec.runtime.compile import Options
from linrec.runtime.dispatcher import Dispatcher
from linrec.runtime.placement import default_device
from linrec.runtime.plan import Plan
from linrec.runtime.settings import Settings


class Model(nn.Module):
    """Its original returns another tensor, which a plan does not."""

    def __init__(self, gain: float = 2.0) -> None:
        super().__init__()
        self.inner, self.other = nn.Identity(), nn.Identity()
        self.gain = gain

    def forward(self, x: Tensor, *more: Any, **named: Any) -> Tensor:
        return x * self.gain

    def direct(self, x: Tensor) -> Tensor:
        return self.forward(x)


class Compiler:
    """Gives out what it was given, one at each call.

    Attributes:
        given: plans, obstructions or errors; calls: what it was called with.
        owners: the modules with a loop; looked: how often they were looked for; checks: lengths that were checked.
        problem: what a check finds.
    """

    def __init__(self, module: nn.Module) -> None:
        self.given: list[Any] = []
        self.calls: list[Any] = []
        self.owners: tuple[nn.Module, ...] = (module,)
        self.looked = 0
        self.looking: Any = None
        self.checks: list[int] = []
        self.checked_with: Any = None
        self.problem: Any = None

    def compile_call(self, *args: Any) -> Any:
        assert default_device() is None
        self.calls.append(args)
        now = self.given.pop(0) if self.given else []
        if isinstance(now, Exception):
            raise now
        return (now, []) if isinstance(now, Plan) else (None, now)

    def find_time(self, module: nn.Module, forward: Any, spec: Any, leaves: Any, failures: Any) -> Iterator[TimeAxis]:
        assert isinstance(module, nn.Module)
        self.looked += 1
        if self.looking is not None:
            self.looking(failures)
        yield TimeAxis(leaf=0, dim=1, dims={0: {1: 0}}, owners=self.owners, tensor_leaves=(0,))

    def check_length(self, plan: Plan, module: nn.Module, forward: Any, spec: Any, leaves: Any, length: int) -> Any:
        assert isinstance(plan, Plan) and isinstance(module, nn.Module)
        self.checks.append(length)
        self.checked_with = forward
        if isinstance(self.problem, Exception):
            raise self.problem
        return self.problem


def put(
    module: nn.Module, when: str = "always", strict: bool = False, validate: bool = True, **more: Any
) -> Dispatcher:
    """A new dispatcher in front of a module."""
    if isinstance(module.__dict__.get("forward"), Dispatcher):
        del module.__dict__["forward"]
    found = Dispatcher(module, "", Settings(when, strict, Options(validate)), **{"root": True, **more})
    module.__dict__["forward"] = found
    return found


def planned(module: nn.Module, *args: Any, **kwargs: Any) -> bool:
    """Whether a plan ran."""
    x = args[0] if args else kwargs["x"]
    result = module(*args, **kwargs)
    if result is x:
        return True
    assert torch.equal(result, x * module.gain)
    return False


Made = tuple[Model, Dispatcher, Compiler]
