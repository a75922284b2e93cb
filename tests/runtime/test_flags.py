"""Flags that are states: masks of what has ended, latches, toggles. Each is a gated recurrence, whatever its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

Update = Callable[[Tensor, Tensor], Tensor]
"""The new flag (B), of the old one and the tokens of the step (B)."""

UPDATES: dict[str, Update] = {
    "or": lambda s, k: s | (k == 0),
    "or, the other way round": lambda s, k: (k == 0) | s,
    "or in place": lambda s, k: s.clone().logical_or_(k == 0),
    "and": lambda s, k: s & (k != 0),
    "logical": lambda s, k: torch.logical_or(s, k == 0),
    "exclusive": lambda s, k: s ^ (k < 3),
    "not": lambda s, k: ~s,
    "and not": lambda s, k: s & ~(k == 0),
    "set and reset": lambda s, k: (s | (k == 0)) & (k != 3),
    "times": lambda s, k: s * (k != 0),
    "largest": lambda s, k: torch.maximum(s, k == 0),
    "least": lambda s, k: torch.minimum(s, k != 0),
    "where": lambda s, k: torch.where(k == 0, torch.ones_like(s), s),
    "filled": lambda s, k: s.masked_fill(k == 0, True),
    "compared": lambda s, k: (s.float() * 0.5 + k / 8) > 0.9,
    "compared in double precision": lambda s, k: (s.double() * 0.1 + 0.2) >= (k.float() * 0 + 0.3),
    "compared in half precision": lambda s, k: (s.float() * 0.1001 + 0.2) > (k.half() * 0 + 0.3),
    "unequal": lambda s, k: s != (k < 4),
}


class Ending(nn.Module):
    """A leaky sum that is zero where a flag says so, and the flag itself."""

    def __init__(self, update: Update, begin: bool) -> None:
        super().__init__()
        self.update, self.begin = update, begin
        self.a = nn.Parameter(torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, flag = torch.zeros_like(x[:, 0]), torch.full((x.shape[0],), self.begin, device=x.device)
        out, flags = [], []
        for t in range(x.shape[1]):
            flag = self.update(flag, tokens[:, t])
            h = self.a * h + x[:, t]
            out.append(torch.where(flag[:, None], torch.zeros_like(h), h))
            flags.append(flag)
        return torch.stack(out, 1), torch.stack(flags, 1), flag


def given(batch: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 * batch + length)
    x = torch.randn(batch, length, 3, dtype=torch.float64, generator=generator)
    return x.requires_grad_(), torch.randint(0, 9, (batch, length), generator=generator)


def observed(model: nn.Module, batch: int, length: int) -> list[Tensor]:
    x, tokens = given(batch, length)
    y, flags, last = model(x, tokens)
    return [y, flags, last, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def same(model: nn.Module, oracle: nn.Module) -> Any:
    for batch, length in ((3, 30), (2, 17), (5, 41), (3, 3)):
        for ours, theirs in zip(observed(model, batch, length), observed(oracle, batch, length), strict=True):
            assert ours.dtype == theirs.dtype
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    return linrec.report(model)


@pytest.mark.parametrize("begin", [False, True])
@pytest.mark.parametrize("name", UPDATES)
def test_a_flag(name: str, begin: bool) -> None:
    report = same(linrec.parallelize(Ending(UPDATES[name], begin)), Ending(UPDATES[name], begin))
    assert not report.obstructions
    assert all(r.parallel for r in report.recurrences)


class Coupled(Ending):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The flag depends on a state, which does not depend on the flag."""
        h, flag, out, flags = torch.zeros_like(x[:, 0]), torch.zeros(x.shape[0], dtype=torch.bool), [], []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            flag = flag | (h.sum(-1) > 3)
            out.append(h * flag[:, None])
            flags.append(flag)
        return torch.stack(out, 1), torch.stack(flags, 1), flag


def test_a_flag_that_depends_on_another_state() -> None:
    report = same(linrec.parallelize(Coupled(UPDATES["or"], False)), Coupled(UPDATES["or"], False))
    assert all(r.parallel for r in report.recurrences)


class Counted(Ending):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Truth values that Python computes; the flag begins with what looks like the end of a step."""
        h, flag, out, flags = x[:, 0].tanh(), x[:, 0, 0] > 0, [], []
        for t in range(x.shape[1]):
            flag = flag.to(torch.int64) + (tokens[:, t] == 0) > 0
            toggled = flag ^ (t % 3 == 0)
            h = self.a * h * toggled[:, None] + x[:, t]
            out.append(h)
            flags.append(toggled)
        return torch.stack(out, 1), torch.stack(flags, 1), flag


class Summed(Ending):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Functions of flags and of whole numbers have the default dtype, whatever the rest is computed in."""
        flag, out, flags, count = x[:, 0, 0] > 0, [], [], 0.0
        for t in range(x.shape[1]):
            out.append(self.a * x[:, t] * torch.tanh(tokens[:, t])[:, None])
            flag = flag | (tokens[:, t] == 0)
            count = count + flag
            flags.append(torch.sqrt(tokens[:, t]))
        return torch.stack(out, 1), torch.stack(flags, 1), count


@pytest.mark.parametrize("kind", [Counted, Summed])
def test_flags_beside_numbers(kind: type[Ending]) -> None:
    report = same(linrec.parallelize(kind(UPDATES["or"], False)), kind(UPDATES["or"], False))
    assert not report.obstructions
    assert all(r.parallel for r in report.recurrences)


class Moved(Ending):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Flags that go from place to place: no function of one flag."""
        flag, out, flags = x[:, 0] > 0, [], []
        for t in range(x.shape[1]):
            flag = flag.roll(1, -1) ^ (x[:, t] > 0.3)
            out.append(self.a * x[:, t] * flag)
            flags.append(flag)
        return torch.stack(out, 1), torch.stack(flags, 1), flag


class Looped(Ending):
    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A flag and a state that read each other, with flags joined in every way."""
        h, flag, out, flags = torch.zeros_like(x[:, 0]), x[:, 0] > 0, [], []
        for t in range(x.shape[1]):
            flag = torch.maximum(h > x[:, t], torch.minimum(flag, x[:, t] > 0))
            h = torch.tanh(self.a * h * flag + x[:, t])
            out.append(h)
            flags.append(flag)
        return torch.stack(out, 1), torch.stack(flags, 1), flag


@pytest.mark.parametrize("kind", [Moved, Looped])
def test_flags_that_stay_in_a_loop(kind: type[Ending]) -> None:
    report = same(linrec.parallelize(kind(UPDATES["or"], False)), kind(UPDATES["or"], False))
    assert not report.obstructions


class Alternating(nn.Module):
    """Its last flag depends on whether the number of steps is even, which is the same at all lengths that are traced."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flag, out = torch.zeros(x.shape[0], dtype=torch.bool), None
        for t in range(x.shape[1]):
            out = flag.unsqueeze(0) if out is None else torch.cat([out, flag.unsqueeze(0)], 0)
            flag = flag ^ (t % 2 == 0)
        return torch.tanh(out), flag


def test_a_flag_that_differs_is_said_to_differ() -> None:
    model, oracle = linrec.parallelize(Alternating(), when="always"), Alternating()
    for length in (12, 13, 21):
        x = torch.randn(2, length, 3)
        assert all(map(torch.equal, model(x), oracle(x)))
    assert [o.id for o in linrec.report(model).obstructions] in ([], ["LR010"]), str(linrec.report(model))
