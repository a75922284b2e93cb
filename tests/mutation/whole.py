"""Whole programs for the mutants: small recurrent modules through `linrec.parallelize`, with validation, against their own
loops. What they trace to does not depend on what is mutated, so each is traced once, before the processes part."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import linrec
from linrec.capture.trace import Trace
from linrec.runtime import compile as compiling

CALLS = ((3, 9), (2, 21))
"""Batch sizes and lengths."""

Step = Callable[["Loop", Tensor, Tensor], Tensor]


class Loop(nn.Module):
    """h = step(h, x[:, t]) over all steps; returns all states and the last."""

    def __init__(self, step: Step, start: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.step, self.start = step, start
        self.a = nn.Parameter(torch.rand(4))
        self.W = nn.Parameter(0.3 * torch.randn(4, 4))
        self.K = nn.Parameter(torch.randn(4, 3))
        self.taps = nn.Parameter(0.3 * torch.randn(1, 1, 3))
        self.lin, self.norm = nn.Linear(4, 4), nn.LayerNorm(4)
        self.pole = nn.Parameter(torch.polar(0.9 * torch.rand(4), torch.randn(4)))
        self.double()
        self.pole.data = self.pole.data.to(torch.complex128)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, found = self.start(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.step(self, h, x[:, t])
            found.append(h)
        return torch.stack(found, 1), h


def _none(x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _matrix(x: Tensor) -> Tensor:
    return x.new_zeros(x.shape[0], 4, 3)


def _complex(x: Tensor) -> Tensor:
    return torch.zeros(x.shape, dtype=torch.complex128)


def _keys(m: Loop, x: Tensor) -> Tensor:
    return F.normalize(x @ m.K, dim=-1)


STEPS: dict[str, tuple[Step, Callable[[Tensor], Tensor]]] = {
    "gate": (lambda m, h, x: torch.sigmoid(x) * h + (1 - torch.sigmoid(x)) * m.lin(x), _none),
    "sum": (lambda m, h, x: h + x * m.a, _none),
    "constant": (lambda m, h, x: m.a * h - 0.5 * x, lambda x: x),
    "fused": (lambda m, h, x: torch.addcmul(torch.lerp(h, x, torch.sigmoid(x)) / 2.0, m.a, h, value=-0.5), _none),
    "masks": (lambda m, h, x: torch.where(x > 0.3, 0.5 * h, x).masked_fill(x < -0.6, 0.25), lambda x: x),
    "cancels": (lambda m, h, x: 0.4 * (h + x) ** 2 - 0.4 * h**2 - 0.4 * x.square() + x, _none),
    "dense": (lambda m, h, x: F.linear(h, m.W, m.a) + torch.addmm(x, h, m.W), _none),
    "moved": (lambda m, h, x: 0.4 * h.roll(1, -1) - 0.3 * h.flip(1) + torch.cat([h[:, 2:], x[:, :2]], 1) * 0.2, _none),
    "stacked": (
        lambda m, h, x: 0.4 * torch.stack([h[:, 1], x[:, 0], h[:, 3], h[:, 0]], -1) + F.pad(h[:, :3], (1, 0)) / 4,
        _none,
    ),
    "convolved": (lambda m, h, x: F.conv1d(h[:, None], m.taps, padding=1)[:, 0] + x, _none),
    "changing": (lambda m, h, x: torch.bmm(h[:, None], 0.2 * x[:, :, None] * m.W)[:, 0] + x, _none),
    "means": (lambda m, h, x: 0.5 * (h - h.mean(-1, keepdim=True)) + 0.1 * h.sum(1)[:, None] * x, _none),
    "shapes": (
        lambda m, h, x: (
            0.6 * h.view(-1, 2, 2).transpose(1, 2).reshape(-1, 4) + x.unsqueeze(1).expand(-1, 1, 4).squeeze(1)
        ),
        _none,
    ),
    "attention": (lambda m, h, x: torch.sigmoid(x)[..., None] * h + x[..., None] * _keys(m, x)[:, None], _matrix),
    "delta": (
        lambda m, h, x: h - 0.5 * (h @ _keys(m, x)[..., None]) * _keys(m, x)[:, None] + x[..., None] * 0.1,
        _matrix,
    ),
    "einsum": (lambda m, h, x: torch.einsum("de,ben->bdn", m.W, h) + torch.einsum("bd,dn->bdn", x, m.K), _matrix),
    "complex": (lambda m, h, x: m.pole * h + torch.complex(x, x * 0.5), _complex),
    "greatest": (lambda m, h, x: torch.maximum(h - 0.1, x), _none),
    "logarithmic": (lambda m, h, x: torch.logaddexp(h + F.logsigmoid(x), m.lin(x)), _none),
    "tanh": (lambda m, h, x: torch.tanh(m.lin(h) + x) * torch.sigmoid(x * h), _none),
    "curves": (
        lambda m, h, x: F.softplus(0.3 * h) + F.elu(x - h) * torch.sin(h) + (h * h + 1).sqrt().reciprocal() + F.gelu(h),
        _none,
    ),
    "corners": (
        lambda m, h, x: torch.relu(h + x) * 0.5 + h.clamp(-0.5, 0.5) - F.leaky_relu(h - x) * 0.3 + 0.1 * h.abs(),
        _none,
    ),
    "spread": (lambda m, h, x: torch.softmax(h + x, -1) + m.norm(h) * 0.3, _none),
    "hoisted": (
        lambda m, h, x: (
            0.5 * h + m.norm(x) + torch.softmax(x, -1).cumsum(-1).flip(-1) + x.roll(1, -1) + torch.outer(x.sum(-1), m.a)
        ),
        _none,
    ),
    "detached": (lambda m, h, x: 0.5 * h.detach() + x, _none),
}


@dataclasses.dataclass
class Whole:
    """A program with what its loop computes."""

    name: str
    expected: list[list[Tensor]]
    traced: bool = False

    def trace(self) -> None:
        """Have it traced in this process, once."""
        if not self.traced:
            self.traced = not self.problem()

    def model(self) -> Loop:
        return Loop(*STEPS[self.name])

    def observe(self, model: nn.Module) -> list[list[Tensor]]:
        """Values and gradients, for every call."""
        found = []
        for batch, length in CALLS:
            generator = torch.Generator().manual_seed(length)
            x = torch.randn(batch, length, 4, generator=generator, dtype=torch.float64, requires_grad=True)
            out = list(model(x))
            total = torch.zeros((), dtype=torch.float64)
            for y in out:
                real = torch.view_as_real(y) if y.is_complex() else y
                total = total + (real * torch.randn(real.shape, generator=generator, dtype=torch.float64)).sum()
            wanted = [x, *(p for p in model.parameters() if p.requires_grad)]
            grads = torch.autograd.grad(total, wanted, allow_unused=True)
            zeros = [torch.zeros_like(w) if g is None else g for w, g in zip(wanted, grads, strict=True)]
            found.append([y.detach() for y in out] + zeros)
        return found

    def problem(self) -> str:
        """What reaches the caller that should not, empty where nothing does."""
        model = self.model()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                linrec.parallelize(model)
                found = self.observe(model)
            except Exception as error:
                return f"{self.name} raises {type(error).__name__}: {error}"
        for (batch, length), ours, theirs in zip(CALLS, found, self.expected, strict=True):
            for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
                if a.shape != b.shape or not (a - b).abs().max() <= 1e-6 * b.abs().max().clamp(min=1):
                    return f"{self.name} (batch {batch}, length {length}): tensor {k} differs"
        return ""


def programs() -> list[Whole]:
    """All programs, with what their loops compute."""
    found = [Whole(name, []) for name in STEPS]
    for whole in found:
        whole.expected = whole.observe(whole.model())
    return found


def trace_once() -> None:
    """From here on a program that was traced is not traced again: `torch.export` is most of what compiling takes."""
    known: dict[Any, Trace] = {}
    trace = compiling._trace

    def remembered(
        module: nn.Module,
        forward: Any,
        spec: Any,
        leaves: Any,
        axis: Any,
        length: int,
        *rest: Any,
        listed: bool = False,
    ) -> Trace:
        if not isinstance(module, Loop):
            return trace(module, forward, spec, leaves, axis, length, *rest, listed=listed)
        varied, _, asked, periods = rest
        at = (module.step, length, str(varied), str(asked), str(periods), listed, torch.is_grad_enabled())
        if at not in known:
            known[at] = trace(module, forward, spec, leaves, axis, length, *rest, listed=listed)
        return dataclasses.replace(known[at], graph_module=_copy(known[at].graph_module))

    compiling._trace = remembered


def _copy(graph_module: fx.GraphModule) -> fx.GraphModule:
    graph = fx.Graph()
    output = graph.graph_copy(graph_module.graph, env := {})
    graph.output(output)
    for old in graph_module.graph.nodes:
        if old.op == "output":
            list(graph.nodes)[-1].meta = dict(old.meta)
        else:
            env[old].meta = dict(old.meta)
    return fx.GraphModule(graph_module, graph)
