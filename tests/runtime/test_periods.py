"""Loops whose steps take turns: at every length, whatever remains of it after whole periods."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

D = 3
LENGTHS = (44, 45, 57, 64, 24, 5, 3)


class Loop(nn.Module):
    """A recurrence, given as a function of the module and its input."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.w = nn.Linear(D, D)
        self.a = nn.Parameter(torch.tensor([0.9, 0.8, 0.7]))
        self.run = run
        self.double()

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def truncated(every: int) -> Any:
    def run(m: Any, x: Tensor) -> Any:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            if t and t % every == 0:
                h = h.detach()
            h = torch.sigmoid(m.w(x[:, t])) * h + m.a * x[:, t]
            out.append(h)
        return torch.stack(out, 1), h

    return run


def truncated_matrices(m: Any, x: Tensor) -> Any:
    s, n, out = x.new_zeros(x.shape[0], D, D), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        if (t + 1) % 3 == 0:
            s, n = s.detach(), n.detach()
        s = 0.9 * s + x[:, t, :, None] * m.w(x[:, t])[:, None, :]
        n = m.a * n + x[:, t]
        out.append((s @ x[:, t, :, None])[..., 0] * n)
    return torch.stack(out, 1), s


def detached_always(m: Any, x: Tensor) -> Any:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h.detach() + m.w(x[:, t])
        out.append(h)
    return torch.stack(out, 1), h


def detached_before_use(m: Any, x: Tensor) -> Any:
    """The gradient of the other state passes on."""
    h, c, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        c = m.a * c + x[:, t]
        h = 0.5 * h.detach() + c * x[:, t]
        out.append(h)
    return torch.stack(out, 1), c


def every_other(m: Any, x: Tensor) -> Any:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t % 2 == 0:
            out.append(h)
    return torch.stack(out, 1)


def sliced(m: Any, x: Tensor) -> Any:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        out.append(h)
    return torch.stack(out[1::3])


def turns(m: Any, x: Tensor) -> Any:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t] if t % 2 == 0 else m.w(h) - x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def clockwork(m: Any, x: Tensor) -> Any:
    """A slow state beside a fast one (Koutnik et al., "A Clockwork RNN", 2014)."""
    fast, slow, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        fast = m.a * fast + x[:, t]
        if t % 4 == 0:
            slow = 0.5 * slow + m.w(fast)
        out.append(fast + slow)
    return torch.stack(out, 1)


def strided(m: Any, x: Tensor) -> Any:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(0, x.shape[1], 2):
        h = m.a * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def chunked(size: int) -> Any:
    """Linear attention in chunks: within a chunk at once, from one to the next by a state."""

    def run(m: Any, x: Tensor) -> Any:
        s, out = x.new_zeros(x.shape[0], D, D), []
        mask = torch.ones(size, size, dtype=x.dtype).tril()
        for i in range(0, x.shape[1], size):
            q = x[:, i : i + size]
            k, n = m.w(q), q.shape[1]
            out.append(q @ s + ((q @ k.transpose(1, 2)) * mask[:n, :n]) @ q)
            s = s + k.transpose(1, 2) @ q
        return torch.cat(out, 1)

    return run


def averages(m: Any, x: Tensor) -> Any:
    h, mean, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t % 2 == 1:
            with torch.no_grad():
                mean = 0.9 * mean + 0.1 * h
        out.append(h - mean)
    return torch.stack(out, 1)


LINEAR: dict[str, Any] = {
    "truncated backpropagation": truncated(4),
    "truncated backpropagation of a period of eleven": truncated(11),
    "truncated backpropagation of matrices": truncated_matrices,
    "detached in every step": detached_always,
    "detached beside another state": detached_before_use,
    "every other step": every_other,
    "a slice of the steps": sliced,
    "two kinds of steps": turns,
    "a clockwork": clockwork,
    "strides": strided,
    "chunks of four": chunked(4),
    "chunks of ten": chunked(10),
    "averages of every other step": averages,
}


def differences(model: nn.Module, oracle: nn.Module, length: int) -> list[int]:
    """The positions of results and gradients that differ, in batches of two sizes."""
    x = torch.randn(2 + length % 2, length, D, dtype=torch.float64, requires_grad=True)
    found = []
    for each in (model, oracle):
        out = each(x)
        every = [out] if isinstance(out, Tensor) else list(out)
        weights = [torch.linspace(0.5, 1, y.numel(), dtype=y.dtype).view_as(y) for y in every]
        loss = sum((y * w).sum() for y, w in zip(every, weights, strict=True))
        gradients = torch.autograd.grad(loss, [x, *each.parameters()], allow_unused=True)  # type: ignore[arg-type]
        found.append([*every, *(torch.zeros_like(x) if g is None else g for g in gradients)])
    return [k for k, (a, b) in enumerate(zip(*found, strict=True)) if not torch.allclose(a, b, rtol=1e-9, atol=1e-11)]


@pytest.mark.parametrize("name", list(LINEAR))
def test_values_and_gradients(name: str) -> None:
    model, oracle = linrec.parallelize(Loop(LINEAR[name]), when="always"), Loop(LINEAR[name])
    for length in LENGTHS:
        assert differences(model, oracle, length) == []
    assert linrec.report(model).parallel, str(linrec.report(model))


def late(m: Any, x: Tensor) -> Any:
    """Looks like every other step, until it does otherwise."""
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t % 2 == 0:
            h = h * (0.5 if t == 50 else 0.9)
            if t >= 90:
                h = h + 1
        out.append(h)
    return torch.stack(out, 1)


def grows(m: Any, x: Tensor) -> Any:
    """The turns become longer."""
    h, out, last = torch.zeros_like(x[:, 0]), [], 1
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t == 2 * last:
            h, last = h.detach(), t
        out.append(h)
    return torch.stack(out, 1)


@pytest.mark.parametrize("run", [late, grows])
def test_what_only_looks_like_turns(run: Any) -> None:
    model, oracle = linrec.parallelize(Loop(run), when="always"), Loop(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in (20, 21, 49, 60, 61, 120, 30):
            assert differences(model, oracle, length) == []
