"""The small models that the tests of the run time share, and how a parallelised one is held against an oracle.

Each loop calls `step` of its class, which counts: that is how a test sees whether the loop itself ran.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

import linrec
from models.lmu import LMU

WIDTH = 3
TRACED = 12
"""The length of the calls that compile."""


class Tally:
    """Counts where nobody looks: a model that changes what it reads is left alone."""

    __module__ = "torch"  # inside what belongs to torch nobody looks

    def __init__(self) -> None:
        self._count = itertools.count()

    def step(self) -> None:
        """One more."""
        next(self._count)

    @property
    def steps(self) -> int:
        """How many there were."""
        return int(repr(self._count)[len("count(") : -1])


TALLY = Tally()


class Gated(nn.Module):
    """h = gate(x) h + scale in(x), and a few plain attributes that a test may change."""

    def __init__(self, act: Callable[[Tensor], Tensor] = torch.sigmoid, scale: float = 1.0) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, WIDTH)
        self.drive = nn.Linear(WIDTH, WIDTH)
        self.act = act
        self.scale = scale

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        TALLY.step()
        return self.act(self.gate(x)) * h + self.scale * self.drive(x)

    def forward(self, x: Tensor) -> Tensor:
        """The states of all steps: x (B, T, 3) -> (B, T, 3)."""
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


class Nested(nn.Module):
    """Two identical layers with a loop each, between layers without."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(Gated() for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.norm(x)


class Elman(nn.Module):
    """A loop that has to stay one."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.recurrent(h) + x[:, t])
            out.append(h)
        return torch.stack(out, 1)


def small_lmu() -> nn.Module:
    return LMU(WIDTH, WIDTH, order=4, theta=6.0)


KINDS: dict[str, Callable[[], nn.Module]] = {"gated": Gated, "lmu": small_lmu, "nested": Nested}


def build(factory: Callable[[], nn.Module], dtype: torch.dtype = torch.float64) -> Any:
    """The same module at each call."""
    torch.manual_seed(0)
    return factory().to(dtype)


def series(batch: int = 2, length: int = TRACED, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """(batch, length, 3), the same at each call."""
    generator = torch.Generator().manual_seed(seed * 10_000 + batch * 100 + length)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator).to(dtype)


def compiled(factory: Callable[[], nn.Module], dtype: torch.dtype = torch.float64, **options: Any) -> Any:
    """A parallelised model after its first call, with every recurrence parallel."""
    model = linrec.parallelize(build(factory, dtype), **options)
    model(series(dtype=dtype))
    assert_parallel(model)
    return model


def assert_parallel(model: Any) -> None:
    report = linrec.report(model)
    assert report.recurrences, str(report)
    assert all(each.parallel for each in report.recurrences), str(report)


def agree(actual: Any, expected: Any, tolerance: float = 1e-8) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance / 10, equal_nan=True)


def gradients(model: Any, x: Tensor, *args: Any, **kwargs: Any) -> list[Tensor]:
    """The result, and the gradients of a projection of it for the input and each trainable parameter."""
    x = x.detach().clone().requires_grad_()
    output = model(x, *args, **kwargs)
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    wanted = [x, *(p for p in model.parameters() if p.requires_grad)] if isinstance(model, nn.Module) else [x]
    found = torch.autograd.grad((output * weight).sum(), wanted, allow_unused=True)
    return [output.detach(), *(torch.zeros_like(w) if g is None else g for w, g in zip(wanted, found))]


def same(model: Any, oracle: Any, x: Tensor, *args: Any, tolerance: float = 1e-8, **kwargs: Any) -> None:
    """Values and gradients of the two agree."""
    agree(gradients(model, x, *args, **kwargs), gradients(oracle, x, *args, **kwargs), tolerance)


def steps_of(call: Callable[[], Any]) -> int:
    """How many steps of `Gated` loops were run one by one."""
    before = TALLY.steps
    call()
    return TALLY.steps - before


@contextlib.contextmanager
def counted_exports() -> Iterator[list[int]]:
    """The number of traces made in the block, as the only element of a list."""
    original, count = torch.export.export, [0]

    def export(*args: Any, **kwargs: Any) -> Any:
        count[0] += 1
        return original(*args, **kwargs)

    torch.export.export = export
    try:
        yield count
    finally:
        torch.export.export = original


def traces() -> dict[str, Any]:
    """What a compilation could leave behind in the process."""
    hooks = nn.modules.module
    return {
        "Function.apply": torch.autograd.Function.__dict__["apply"],
        "default dtype": torch.get_default_dtype(),
        "forward hooks": len(hooks._global_forward_hooks),
        "forward pre-hooks": len(hooks._global_forward_pre_hooks),
        "grad mode": torch.is_grad_enabled(),
        "function modes": len(torch.overrides._get_current_function_mode_stack()),
        "dispatch modes": len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()),
        "random state": torch.get_rng_state().tolist(),
    }
