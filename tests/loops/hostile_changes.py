"""Things that change between two calls of one module, and tensors that are written where others still look."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import At, Call, Table, btd
from .hostile_effects import Hooked, later
from .styles_state import D, Gates

ENTRIES = Table()


class Options(nn.Module):
    """Arguments and attributes that are no tensors decide what the loop is."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gates, self.bias = nn.Parameter(torch.rand(D)), Gates(), None
        self.tau, self.mode, self.taps = 0.5, "plain", [0.5, 0.25]

    def forward(self, x: Tensor, scale: float = 1.0, reverse: bool = False, kind: str = "add") -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in reversed(range(x.shape[1])) if reverse else range(x.shape[1]):
            u = x[:, t] * self.tau + self.taps[0]
            if self.bias is not None:
                u = u + self.bias
            h = self.a * h + (u * scale if kind == "add" else -u)
            ys.append(torch.tanh(h) if self.mode == "tanh" else h)
        return torch.stack(ys, 1)


def with_options(**kwargs: Any) -> Any:
    return lambda batch, length: Call((torch.randn(batch, length, D),), kwargs)


ENTRIES.put(
    "arguments-that-change",
    Options,
    with_options(scale=2.0),
    "any",
    file=__file__,
    schedule=(
        At(2, 12),
        At(3, 23, inputs=with_options(scale=3.0)),
        At(1, 9, inputs=with_options(reverse=True)),
        At(2, 14, inputs=with_options(kind="subtract")),
        At(2, 15, inputs=with_options(scale=2)),
        At(2, 16, inputs=with_options()),
        At(4, 20, inputs=with_options(scale=2.0)),
    ),
)


def toggle_bias(module: Options) -> None:
    """A parameter where there was None, and None again."""
    module.bias = None if module.bias is not None else nn.Parameter(torch.ones(D, dtype=torch.float64))


def lose_parameter(module: Options) -> None:
    """A plain tensor under the name of a parameter."""
    module._parameters.pop("a", None)
    module.a = torch.full((D,), 0.5, dtype=torch.float64)


def swap_precision(module: Options) -> None:
    """float32 parameters under float64 inputs, and back."""
    module.to(torch.float32 if module.a.dtype is torch.float64 else torch.float64)


CHANGES: dict[str, Callable[[Options], Any]] = {
    "float-attribute-changes": lambda m: setattr(m, "tau", m.tau * 0.5),
    "string-attribute-changes": lambda m: setattr(m, "mode", "tanh" if m.mode == "plain" else "plain"),
    "list-attribute-changes": lambda m: m.taps.__setitem__(0, m.taps[0] + 1),
    "bias-appears": toggle_bias,
    "parameter-replaced": lambda m: setattr(m, "a", nn.Parameter(m.a.detach() * 0.5)),
    "parameter-changed-in-place": lambda m: m.a.data.mul_(0.5),
    "parameter-frozen": lambda m: m.a.requires_grad_(not m.a.requires_grad),
    "parameter-becomes-tensor": lose_parameter,
    "submodule-mode-changes": lambda m: m.gates.train(not m.gates.training),
    "parameters-converted": swap_precision,
}
for change, action in CHANGES.items():
    rtol = 1e-6 if action is swap_precision else 1e-8
    ENTRIES.put(
        change, Options, with_options(), "any", file=__file__, schedule=later(action), carries_over=True, rtol=rtol
    )


@ENTRIES.add(btd(D), "any")
class AliasedOutputs(nn.Module):
    """The classic mistake: every entry of the list is the same tensor."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class AliasedViews(nn.Module):
    """Views of the state are kept, and the state is written afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            ys.append(h[:, :2])
            h[:, 1] = h[:, 0] * 0.1
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class AliasedThenCloned(nn.Module):
    """The output is taken, then the state is changed in place: the stored one changes too."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            y = h
            h += 1
            ys.append(y)
        return torch.stack(ys, 1), h


@ENTRIES.add(btd(D), "any", mutates=True)
class WritesItsInput(nn.Module):
    """In place in the argument, which the caller sees."""

    def forward(self, x: Tensor) -> Tensor:
        for t in range(1, x.shape[1]):
            x[:, t] += 0.5 * x[:, t - 1]
        return x * 2


@ENTRIES.add(btd(D), "any", mutates=True)
class WritesItsInputThroughAlias(nn.Module):
    """The first state is a view of the input."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x[:, 0], []
        for t in range(1, x.shape[1]):
            h.mul_(0.5).add_(x[:, t])
            ys.append(h.clone())
        return torch.stack(ys, 1)


@ENTRIES.add(lambda batch, length: (torch.randn(batch, length, D), torch.zeros(batch, length, D)), "any", mutates=True)
class WritesIntoArgument(nn.Module):
    """`out=` as an argument."""

    def forward(self, x: Tensor, out: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out[:, t] = h
        return h


def same_twice(batch: int, length: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(batch, length, D)
    return x, x


@ENTRIES.add(
    same_twice,
    "any",
    schedule=(At(2, 12), At(3, 23), At(2, 9, inputs=btd(D, 2)), At(2, 23, inputs=btd(D, 2)), At(2, 30)),
)
class SameTensorTwice(nn.Module):
    """One tensor for two arguments at first, two later."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(gate[:, t]) * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class TiedWeights(nn.Module):
    """One parameter under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(D, D), nn.Linear(D, D)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + self.first(x[:, t])
            ys.append(self.second(h))
        return torch.stack(ys, 1)


@ENTRIES.add(
    btd(D),
    "any",
    rtol=3e-2,
    dtype=torch.float32,
    schedule=(
        At(2, 12),
        At(3, 23, under=lambda: torch.autocast("cpu", torch.bfloat16)),
        At(3, 25),
        At(2, 12, under=torch.no_grad),
        At(2, 26, under=lambda: torch.autocast("cpu", torch.bfloat16)),
        At(1, 9),
    ),
)
class AutocastBetweenCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(0.4 * torch.randn(3, 3)), nn.Linear(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        m, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            m = F.linear(m, self.A) + self.B(x[:, t])
            ys.append(m)
        return torch.stack(ys, 1)


@ENTRIES.add(
    btd(D),
    "any",
    schedule=(At(2, 12, under=torch.no_grad), At(3, 23), At(2, 14, under=torch.inference_mode), At(2, 25)),
)
class FirstCallWithoutGradient(Hooked):
    """The plan made without gradients must not serve with them."""


@ENTRIES.add(lambda batch, length: Call((torch.randn(batch, length, 2 * D),)), "any")
class StridedInputs(Hooked):
    """The loop is over a slice of every second channel."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x[..., ::2])


def weaken(module: Any) -> None:
    module.decay *= 0.9


@ENTRIES.add(btd(D), "any", schedule=(At(2, 12), At(2, 12, before=weaken), At(3, 23, before=weaken)))
class ArrayWrittenInPlace(nn.Module):
    """A number read from a numpy array, and a tensor made of one."""

    def __init__(self) -> None:
        super().__init__()
        self.decay, self.same = np.array([0.5, 0.25, 0.5, 0.125]), np.array([0.5, 0.25, 0.5, 0.125])

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tensor(self.decay) * h + float(self.decay[0]) * x[:, t] + 0.1 * h * torch.tensor(self.same)
            ys.append(h)
        return torch.stack(ys, 1)


def frozen(value: bool) -> Callable[[Any], None]:
    return lambda module: module.a.requires_grad_(not value)


@ENTRIES.add(
    btd(D),
    "any",
    schedule=(
        At(2, 12, before=frozen(True)),
        At(2, 12, before=frozen(False)),
        At(3, 23),
        At(2, 12, before=frozen(True)),
    ),
)
class AsksWhatRequiresGradient(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = (self.a if self.a.requires_grad else 0.1 * self.a) * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)
