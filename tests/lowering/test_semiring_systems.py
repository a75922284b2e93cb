"""Recurrences over (log-sum-exp, +), (max, +) and (min, +) of any structure: values, gradients where operands are equal
too, and what torch's transforms make of them, with the kernels and without."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import linrec
from linrec.codegen import torch_forms

K = 4
Inputs = Callable[[int, int], tuple[Tensor, ...]]
CASES: dict[str, tuple[type[nn.Module], Inputs, str]] = {}


def case(transition: str, inputs: Inputs | None = None) -> Callable[[type[nn.Module]], type[nn.Module]]:
    def add(cls: type[nn.Module]) -> type[nn.Module]:
        CASES[cls.__name__] = cls, inputs or (lambda batch, length: (torch.randn(batch, length, K),)), transition
        return cls

    return add


def coarse(batch: int, length: int) -> tuple[Tensor, ...]:
    """Whole numbers: sums of them are equal, exactly and often."""
    return (torch.randint(-2, 3, (batch, length, K)).double(),)


def with_mask(batch: int, length: int) -> tuple[Tensor, ...]:
    return torch.randn(batch, length, K), torch.rand(batch, length) < 0.7


class Chain(nn.Module):
    """A hidden Markov model in log space; its scores between states are an attribute."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.A = nn.Parameter(torch.randn(K, K))
        self.pi = nn.Parameter(torch.randn(K))

    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return torch.logsumexp(alpha[:, :, None] + self.A, dim=1) + e

    def forward(self, e: Tensor) -> Any:
        alpha = self.pi + e[:, 0]
        out = [alpha]
        for t in range(1, e.shape[1]):
            alpha = self.step(alpha, e[:, t])
            out.append(alpha)
        return torch.stack(out, 1), torch.logsumexp(alpha, 1)


@case("dense log-sum-exp, time-varying")
class Forward(Chain):
    pass


@case("dense log-sum-exp, time-invariant")
class Steady(Chain):
    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return torch.logaddexp(torch.logsumexp(self.A.T + alpha.unsqueeze(1), -1), e - 1.5)


@case("dense log-sum-exp, time-varying")
class Weighted(Chain):
    """Scores that depend on the step, subtracted."""

    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return torch.logsumexp(alpha[:, :, None] - e[:, None, :] * self.A, dim=1, keepdim=True).squeeze(1)


@case("dense log-sum-exp, time-varying", with_mask)
class Field(Chain):
    """A conditional random field's normaliser over padded sequences."""

    def forward(self, e: Tensor, mask: Tensor) -> Any:  # type: ignore[override]
        score = self.pi + e[:, 0]
        for t in range(1, e.shape[1]):
            new = torch.logsumexp(score.unsqueeze(2) + self.A + e[:, t].unsqueeze(1), dim=1)
            score = torch.where(mask[:, t].unsqueeze(1), new, score)
        return torch.logsumexp(score, dim=1)


@case("dense log-sum-exp, time-varying")
class Alignment(nn.Module):
    """As in CTC: a symbol is said again, or the next one is."""

    def forward(self, e: Tensor) -> Tensor:
        alpha = torch.cat([e[:, 0, :1], torch.full_like(e[:, 0, 1:], -1e30)], 1)
        for t in range(1, e.shape[1]):
            before = torch.cat([torch.full_like(alpha[:, :1], -torch.inf), alpha[:, :-1]], 1)
            alpha = torch.logaddexp(alpha, before) + e[:, t]
        return alpha


@case("dense log-sum-exp, time-varying")
class Impossible(Chain):
    """Some transitions, and some first states, have no probability."""

    def forward(self, e: Tensor) -> Any:
        A = self.A.masked_fill(torch.eye(K).roll(1, 0) > 0, -torch.inf)
        alpha = torch.cat([e[:, 0, :1], torch.full_like(e[:, 0, 1:], -torch.inf)], 1)
        out = []
        for t in range(1, e.shape[1]):
            alpha = torch.logsumexp(alpha[:, :, None] + A, dim=1) + e[:, t]
            out.append(alpha.exp().sum(1))
        return torch.stack(out, 1), torch.logsumexp(alpha, 1)


@case("block log-sum-exp, time-varying")
class Pair(nn.Module):
    """Two states that read each other: matches and gaps."""

    def __init__(self) -> None:
        super().__init__()
        self.open = nn.Parameter(torch.tensor(-0.7))

    def forward(self, e: Tensor) -> Tensor:
        m, g = e[:, 0], torch.full_like(e[:, 0], -2.0)
        out = []
        for t in range(1, e.shape[1]):
            m, g = torch.logaddexp(m, g) + e[:, t], torch.logaddexp(m + self.open, g - 0.3)
            out.append(m - g)
        return torch.stack(out, 1)


@case("dense max-plus, time-varying")
class Viterbi(Chain):
    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return torch.max(alpha[:, :, None] + self.A, dim=1)[0] + e


@case("dense max-plus, time-varying", coarse)
class ViterbiOfEquals(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.A = nn.Parameter(torch.zeros(K, K))
        self.pi = nn.Parameter(torch.zeros(K))

    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return torch.max(alpha[:, :, None] + self.A, dim=1).values + e


@case("dense max-plus, time-varying", coarse)
class SharedByEquals(ViterbiOfEquals):
    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return (alpha[:, :, None] + self.A).amax(1) + e


@case("dense min-plus, time-varying", coarse)
class Shortest(ViterbiOfEquals):
    """The cheapest path so far."""

    def step(self, alpha: Tensor, e: Tensor) -> Tensor:
        return (alpha[:, :, None] + self.A).amin(1) + e


@case("dense min-plus, time-varying", coarse)
class Warped(nn.Module):
    def forward(self, e: Tensor) -> Tensor:
        d = e[:, 0]
        for t in range(1, e.shape[1]):
            d = torch.minimum(d, d.roll(1, 1)) + e[:, t]
        return d


def positive_part(bound: Callable[[Tensor], Tensor]) -> type[nn.Module]:
    class Kept(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            s, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                s = bound(s + x[:, t])
                out.append(s)
            return torch.stack(out, 1)

    return Kept


CASES["relu"] = positive_part(torch.relu), coarse, "max-plus, time-varying"
CASES["clamp"] = positive_part(lambda s: s.clamp(min=0)), coarse, "max-plus, time-varying"
CASES["clamp_max"] = positive_part(lambda s: s.clamp(max=1.0)), coarse, "min-plus, time-varying"
CASES["clamp_min"] = positive_part(lambda s: torch.clamp_min(s, -1)), coarse, "max-plus, time-varying"
CASES["tensor"] = positive_part(lambda s: s.clamp(min=torch.zeros(K))), coarse, "max-plus, time-varying"


def run(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Results and gradients."""
    torch.manual_seed(1)
    leaves = [x.detach().clone().requires_grad_(x.is_floating_point()) for x in inputs]
    found = model(*leaves)
    results = list(found) if isinstance(found, tuple) else [found]
    total = sum((y * torch.randn(y.shape)).sum() for y in results if torch.isfinite(y).all())
    wanted = [x for x in leaves if x.requires_grad] + list(model.parameters())
    return [*results, *torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)]  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _double() -> Any:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[nn.Module, nn.Module]:
    """A case with a plan, for calls of any length, and the same as a loop."""
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    cls, inputs, _ = CASES[name]
    loop = cls()
    model = linrec.parallelize(copy.deepcopy(loop))
    run(model, inputs(2, 24))
    return model, loop


@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, transition = CASES[name][1:]
    model, loop = compiled(name, monkeypatch)
    (entry,) = [r for r in linrec.report(model).recurrences if r.states]
    assert entry.parallel and entry.transition == transition
    for batch, length in ((3, 41), (1, 9), (2, 18), (2, 3), (2, 2), (5, 100)):
        given = inputs(batch, length)
        expected = run(loop, given)
        with torch_forms():
            by_torch = run(model, given)
        for found in (run(model, given), by_torch):
            for a, b in zip(found, expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10, equal_nan=True)


@pytest.mark.parametrize("name", ["Forward", "Field", "Pair", "Viterbi", "relu"])
def test_second_derivatives_and_transforms(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = CASES[name][1]
    model, loop = compiled(name, monkeypatch)
    x, *rest = inputs(2, 31)
    v = torch.randn_like(x)

    def value(m: nn.Module, x: Tensor) -> Tensor:
        found = m(x, *rest)
        return (found[0] if isinstance(found, tuple) else found).square().sum()

    def twice(m: nn.Module) -> Tensor:
        leaf = x.clone().requires_grad_()
        (first,) = torch.autograd.grad(value(m, leaf), leaf, create_graph=True)
        return torch.autograd.grad((first * v).sum(), leaf, materialize_grads=True)[0]

    def forward_mode(m: nn.Module) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(value(m, forward_ad.make_dual(x, v))).tangent

    def pushed(m: nn.Module) -> Tensor:
        return torch.func.jvp(lambda y: value(m, y), (x,), (v,))[1]

    def batched(m: nn.Module) -> Tensor:
        return torch.func.vmap(torch.func.grad(lambda y: value(m, y)))(torch.stack([x, v]))

    for what in (twice, forward_mode, pushed, batched):
        with torch_forms():
            torch.testing.assert_close(what(model), what(loop), rtol=1e-9, atol=1e-10)
        torch.testing.assert_close(what(model), what(loop), rtol=1e-9, atol=1e-10)


def test_maxima_of_maxima_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """What equal operands of several maxima have of the derivative depends on how they are put in order."""

    def greatest(x: Tensor) -> Tensor:
        s = x[:, 0]
        for t in range(1, x.shape[1]):
            s = torch.maximum(torch.maximum(s, s.roll(1, 1)), s.roll(2, 1)) + x[:, t]
        return s

    model = linrec.parallelize(greatest)
    given = coarse(2, 30)[0].requires_grad_()
    (mine,) = torch.autograd.grad(model(given).sum(), given)
    (theirs,) = torch.autograd.grad(greatest(given).sum(), given)
    torch.testing.assert_close(mine, theirs)
    assert [o.id for r in linrec.report(model).recurrences for o in r.obstructions] == ["LR003"]
