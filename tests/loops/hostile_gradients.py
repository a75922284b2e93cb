"""Loops whose values are affine and whose gradients are not, and other differentiation inside the step: detach,
no_grad, hooks, custom functions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .entry import At, Table, btd
from .hostile_states import Loop
from .styles_state import D, Gates

ENTRIES = Table()
LONG = (At(2, 12), At(3, 23), At(1, 60), At(2, 3))


@ENTRIES.add(btd(D), "any")
class DetachEveryStep(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h.detach() + x


@ENTRIES.add(btd(D), "any")
class DataOfState(Loop):
    """The old spelling."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h.data + x


@ENTRIES.add(btd(D), "any")
class DetachPartOfTheState(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h + 0.3 * h.detach() + x


@ENTRIES.add(btd(D), "any")
class DetachCancels(Loop):
    """`h - h.detach()` is zero, with a gradient."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.5 * (h - h.detach()) + self.a * x


@ENTRIES.add(btd(D), "any")
class DetachDecay(Loop):
    """A detached parameter is a constant; nothing is wrong with that."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a.detach() * h + self.a * x


@ENTRIES.add(btd(D), "any")
class DetachOutputOnly(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            ys.append(h.detach())
        return torch.stack(ys, 1), h


class Truncated(nn.Module):
    """Truncated backpropagation every `every` steps."""

    every = 4

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            if t % self.every == 0:
                h = h.detach()
            h = self.a * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class DetachEveryFourth(Truncated):
    pass


@ENTRIES.add(btd(D), "any", schedule=LONG)
class DetachEverySixteenth(Truncated):
    """Never seen by a short trace, and never by a forward."""

    every = 16


@ENTRIES.add(btd(D), "any", schedule=LONG)
class GradientOnlyAtTheEnd(nn.Module):
    """`set_grad_enabled(t >= T - 5)`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            with torch.set_grad_enabled(t >= x.shape[1] - 5):
                h = self.a * h + x[:, t]
        return h


@ENTRIES.add(btd(D), "any")
class NoGradAroundPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Parameter(torch.rand(D)), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            with torch.no_grad():
                u = self.w(x[:, t])
            h = self.a * h + u * x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class NoGradAroundState(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            with torch.no_grad():
                h = self.a * h
            h = h + self.a * x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class NoGradSlowCopy(nn.Module):
    """A target network's average: one state with gradient, one without."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, slow, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            f, v = self.gates(x[:, t])
            h = f * h + v
            with torch.no_grad():
                slow = 0.9 * slow + 0.1 * h
            ys.append(h * slow)
        return torch.stack(ys, 1), slow


@ENTRIES.add(btd(D), "any")
class NoGradDecorated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    @torch.no_grad()
    def decay(self) -> Tensor:
        return torch.exp(-self.a)

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.decay() * h + self.a * x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class NoGradWholeLoop(nn.Module):
    """A frozen feature extractor before a trained head."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Parameter(torch.rand(D)), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h, ys = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = self.a * h + x[:, t]
                ys.append(h)
        return self.head(torch.stack(ys, 1))


@ENTRIES.add(btd(D), "any")
class EnableGradInsideNoGrad(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        with torch.no_grad():
            for t in range(x.shape[1]):
                with torch.enable_grad():
                    u = self.a * x[:, t]
                    ys.append(u + h)
                h = 0.9 * h + u
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class HookOnState(Loop):
    """Gradient clipping at each step."""

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        h = self.a * h + x
        if h.requires_grad:
            h.register_hook(lambda gradient: gradient.clamp(-0.5, 0.5))
        return h


class ClipGradient(torch.autograd.Function):
    """The identity, with a clipped gradient."""

    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.clamp(-0.5, 0.5)


class ReversedScale(torch.autograd.Function):
    """Doubles forward; backward it triples and turns the sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return -3 * gradient


class SurrogateSpike(torch.autograd.Function):
    """A step forward, a bump backward."""

    @staticmethod
    def forward(ctx: Any, v: Tensor) -> Tensor:
        ctx.save_for_backward(v)
        return (v > 0).to(v.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (v,) = ctx.saved_tensors
        return gradient / (1 + 10 * v.abs()) ** 2


@ENTRIES.add(btd(D), "any")
class CustomFunctionOnState(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return ClipGradient.apply(self.a * h + x)


@ENTRIES.add(btd(D), "any")
class CustomFunctionOnInput(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h + ReversedScale.apply(self.w(x))


@ENTRIES.add(btd(D), "any")
class CustomFunctionOnOutput(nn.Module):
    """A spiking readout of a leaky membrane, never fed back."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        v, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v = self.a * v + x[:, t]
            ys.append(SurrogateSpike.apply(v - 1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class CustomFunctionFedBack(nn.Module):
    """The same with a soft reset."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        v, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            v = self.a * v + x[:, t]
            spike = SurrogateSpike.apply(v - 1)
            v = v - spike
            ys.append(spike)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class CustomFunctionBeforeAndAfter(nn.Module):
    """Outside the loop: it must survive the rewrite of what is inside."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        x = ReversedScale.apply(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            ys.append(h)
        return ClipGradient.apply(torch.stack(ys, 1))


@ENTRIES.add(btd(D), "any")
class CheckpointedStep(Loop):
    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return checkpoint(lambda h, x: self.a * h + self.w(x), h, x, use_reentrant=False)


@ENTRIES.add(btd(D), "any")
class GradientInsideTheStep(nn.Module):
    """Test-time training: the state is a weight, updated by autograd's own gradient of an inner loss."""

    def forward(self, x: Tensor) -> Tensor:
        weight, ys = torch.zeros_like(x[:, 0]).requires_grad_(), []
        for t in range(x.shape[1]):
            with torch.enable_grad():
                loss = ((weight - x[:, t]) ** 2).sum()
                (step,) = torch.autograd.grad(loss, weight, create_graph=True)
            weight = weight - 0.1 * step
            ys.append(weight)
        return torch.stack(ys, 1)


def growing(batch: int, length: int) -> Tensor:
    """Values that are large only at lengths beyond those that are validated."""
    return torch.randn(batch, length, D) * (1e4 if length > 30 else 1)


@ENTRIES.add(growing, "any", schedule=LONG)
class HookForLargeGradients(nn.Module):
    """It does nothing to the gradients that a validation sees."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t] ** 2
            if h.requires_grad:
                h.register_hook(lambda gradient: gradient.clamp(-1e3, 1e3))
            ys.append(h * x[:, t])
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any", schedule=LONG)
class BurnInWithoutGradient(Loop):
    """The last 40 steps carry gradient: at the lengths that are traced, all do."""

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            with torch.set_grad_enabled(torch.is_grad_enabled() and t >= x.shape[1] - 40):
                h = self.update(h, x[:, t])
            ys.append(h + x[:, t])
        return torch.stack(ys, 1)

    def update(self, h: Tensor, x: Tensor) -> Tensor:
        return self.a * h + x
