"""Loops whose steps take turns in ways that neither few steps nor the number of operators show, that take whole chunks
only, or that write their results in some of the steps."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import linrec

from .test_periods import Loop, differences, truncated

D = 3


def first(x: Tensor) -> Tensor:
    return torch.zeros_like(x[:, 0])


def memory(m: Any, x: Tensor) -> Tensor:
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def last_flag(m: Any, x: Tensor) -> Any:
    return memory(m, x), x[:, -1] if x.shape[1] % 2 else x[:, 0]


def factor_of_the_length(m: Any, x: Tensor) -> Any:
    return memory(m, x) * (2 if x.shape[1] % 3 else 3)


def results_in_turns(m: Any, x: Tensor) -> Any:
    h, g = first(x), first(x)
    for t in range(x.shape[1]):
        h, g = m.a * h + x[:, t], m.w.bias * g + x[:, t]
    return (h, g) if x.shape[1] % 2 else (g, h)


def parameters_in_turns(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    every = [m.a, m.w.bias, m.w.weight[0]]
    for t in range(x.shape[1]):
        h = every[t % 3] * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def signs(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t] if t % 2 == 0 else m.a * h - x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def second_loop(m: Any, x: Tensor) -> Any:
    states = memory(m, x)
    g, out = first(x), []
    for t in reversed(range(x.shape[1])):
        g = (m.a if t % 3 else m.w.bias) * g + states[:, t]
        out.append(g)
    return torch.stack(out, 1)


def held(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t - t % 3] * x[:, min(t ^ 1, x.shape[1] - 1)]
        out.append(h)
    return torch.stack(out, 1)


def detached_in_turns(m: Any, x: Tensor) -> Any:
    """The values of all steps are those of the same operators."""
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = m.a * h.detach() + x[:, t] if t % 3 == 2 else m.a.detach() * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def written(m: Any, x: Tensor) -> Any:
    h, out = first(x), torch.zeros_like(x)
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t % 3 == 0:
            out[:, t] = h
    return out, h


def written_twice(m: Any, x: Tensor) -> Any:
    h, out = first(x), torch.ones_like(x)
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        if t % 4 < 2:
            out[:, t] = h
        if t % 2 == 0:
            out[:, t] = out[:, t] + 2 * h
    return out


def written_over_inputs(m: Any, x: Tensor) -> Any:
    h, own = first(x), x * 2
    for t in range(x.shape[1]):
        h = m.a * h + own[:, t]
        if t % 3 == 0 and t + 1 < x.shape[1]:
            own[:, t + 1] = h
    return own, h


def written_apart(m: Any, x: Tensor) -> Any:
    h, out = first(x), x.new_zeros(x.shape[0], 2 * x.shape[1], D)
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        out[:, 2 * t] = h
    return out


def written_together(m: Any, x: Tensor) -> Any:
    h, out = first(x), x.new_zeros(x.shape[0], -(-x.shape[1] // 3), D)
    for t in range(x.shape[1]):
        h = m.a * h + x[:, t]
        out[:, t // 3] += h
    return out


def padded(m: Any, x: Tensor) -> Any:
    y = F.pad(x, (0, 0, 0, -x.shape[1] % 4)).view(x.shape[0], -1, 4, D)
    return in_chunks(m, y)[:, : x.shape[1]]


def in_chunks(m: Any, y: Tensor) -> Tensor:
    """Linear attention of (B, chunks, steps, D)."""
    s, out = y.new_zeros(y.shape[0], D, D), []
    mask = torch.ones(y.shape[2], y.shape[2], dtype=y.dtype).tril()
    for q in y.unbind(1):
        k = m.w(q)
        out.append(q @ s + ((q @ k.transpose(1, 2)) * mask) @ q)
        s = s + k.transpose(1, 2) @ q
    return torch.cat(out, 1)


TURNS: dict[str, Any] = {f.__name__: f for f in (last_flag, factor_of_the_length, results_in_turns, signs, held)}
TURNS |= {f.__name__: f for f in (parameters_in_turns, second_loop, detached_in_turns, padded, written)}
TURNS |= {f.__name__: f for f in (written_twice, written_over_inputs, written_apart, written_together)}


@pytest.mark.parametrize("name", list(TURNS))
def test_values_and_gradients(name: str) -> None:
    model, oracle = linrec.parallelize(Loop(TURNS[name]), when="always"), Loop(TURNS[name])
    for length in (44, 45, 58, 63, 25, 5, 3):
        assert differences(model, oracle, length) == []
    assert linrec.report(model).parallel, str(linrec.report(model))


def reset(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    for t in range(x.shape[1]):
        if t % 24 == 0:
            h = first(x)
        h = m.a * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def another_parameter(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = (m.w.bias if t % 22 == 21 else m.a) * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


LONG: dict[str, tuple[Any, tuple[int, ...]]] = {
    "truncated backpropagation": (truncated(32), (200, 20, 201, 110, 31, 65)),
    "after shorter calls": (truncated(21), (20, 30, 95, 74, 21)),
    "resets": (reset, (22, 120, 145, 23)),
    "another parameter": (another_parameter, (20, 120, 142, 40)),
}


@pytest.mark.parametrize("name", list(LONG))
def test_periods_that_few_steps_do_not_show(name: str) -> None:
    run, lengths = LONG[name]
    model, oracle = linrec.parallelize(Loop(run), when="always"), Loop(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a call may be long enough to show that steps differ, and no more
        for length in lengths:
            assert differences(model, oracle, length) == []
    assert linrec.report(model).parallel, str(linrec.report(model))


def at(*steps: int) -> Any:
    """Looks like every so many steps, up to some length."""

    def run(m: Any, x: Tensor) -> Any:
        h, out = first(x), []
        for t in range(x.shape[1]):
            if t in steps:
                h = h.detach()
            h = m.a * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)

    return run


def two_periods(m: Any, x: Tensor) -> Any:
    h, out = first(x), []
    for t in range(x.shape[1]):
        if t % 20 == 19:
            h = h.detach()
        if t % 28 == 27:
            h = h * 0.5
        h = m.a * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def later_otherwise(m: Any, x: Tensor) -> Any:
    """The same operators as before, on other parameters."""
    h, out = first(x), []
    for t in range(x.shape[1]):
        a = m.a if t % 20 or t > 110 else m.w.bias
        h = a * h + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def gradients_otherwise(m: Any, x: Tensor) -> Any:
    """The same operators and the same values as in the steps before, but other gradients."""
    h, out = first(x), []
    for t in range(x.shape[1]):
        a, b = (m.a.detach(), h) if t < 60 else (m.a, h.detach())
        h = a * b + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


def gradients_of_another(m: Any, x: Tensor) -> Any:
    """As above, with the same gradients missing, of other factors."""
    h, out = first(x), []
    for t in range(x.shape[1]):
        h = m.a * h.detach() + 0.5 * h + x[:, t] if t < 60 else m.a * h + 0.5 * h.detach() + x[:, t]
        out.append(h)
    return torch.stack(out, 1)


UNSURE = {
    "other gradients": (gradients_otherwise, (40, 62, 100, 41)),
    "gradients of others": (gradients_of_another, (40, 62, 100, 41)),
    "few": (at(20, 40, 60, 80, 100), (100, 101, 130, 101)),
    "shifted": (at(20, 40, 60, 80, 101, 121), (100, 121, 99)),
    "two periods": (two_periods, (90, 130, 150, 91)),
    "later otherwise": (later_otherwise, (100, 120, 101, 140, 80)),
}


@pytest.mark.parametrize("name", list(UNSURE))
def test_what_only_looks_like_a_long_period(name: str) -> None:
    run, lengths = UNSURE[name]
    model, oracle = linrec.parallelize(Loop(run), when="always"), Loop(run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for length in lengths:
            assert differences(model, oracle, length) == []


def whole_chunks(size: int) -> Any:
    def run(m: Any, x: Tensor) -> Any:
        return in_chunks(m, x.view(x.shape[0], x.shape[1] // size, size, D))

    return run


def checked_chunks(m: Any, x: Tensor) -> Any:
    if x.shape[1] % 6:
        raise ValueError("whole chunks only")
    h, out = first(x), []
    for t in range(0, x.shape[1], 6):
        h = m.a * h + m.w(x[:, t : t + 6]).mean(1)
        out.append(h)
    return torch.stack(out, 1)


def chunks_in_turns(m: Any, x: Tensor) -> Any:
    y = x.view(x.shape[0], -1, 4, D)
    h, out = first(x), []
    for i in range(y.shape[1]):
        h = m.a * h + y[:, i].sum(1) if i % 2 else m.w.bias * h + y[:, i].mean(1)
        out.append(h)
    return torch.stack(out, 1)


CHUNKS = {"four": (whole_chunks(4), 4), "eight": (whole_chunks(8), 8), "six, checked": (checked_chunks, 6)}
CHUNKS |= {"four, in turns": (chunks_in_turns, 4)}


@pytest.mark.parametrize("name", list(CHUNKS))
def test_chunks_of_which_whole_ones_are_taken(name: str) -> None:
    run, size = CHUNKS[name]
    model, oracle = linrec.parallelize(Loop(run), when="always"), Loop(run)
    for chunks in (10, 17, 9, 4, 1, 26):
        assert differences(model, oracle, size * chunks) == []
    assert linrec.report(model).parallel, str(linrec.report(model))
    with pytest.raises((RuntimeError, ValueError)):
        model(torch.zeros(2, 10 * size + 1, D, dtype=torch.float64))


class Late(nn.Module):
    """Runs with no fewer steps than twelve."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] < 12:
            raise ValueError("too short")
        h, out = first(x), []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1) * self.gain(x)

    def gain(self, x: Tensor) -> float:
        return 1.0


class ReadsNumbers(Late):
    def gain(self, x: Tensor) -> float:
        return float(len(str(x[0, 0].round().tolist()[0])))


class AsksForGradients(Late):
    def gain(self, x: Tensor) -> float:
        return 2.0 if x.requires_grad else 1.0


class Draws(Late):
    def gain(self, x: Tensor) -> float:
        return random.random()


@pytest.mark.parametrize("kind", [Late, ReadsNumbers, AsksForGradients, Draws])
def test_what_is_asked_of_short_runs_is_asked_of_those_that_forward_takes(kind: type[Late]) -> None:
    model, oracle = linrec.parallelize(kind(), when="always"), kind()
    for k in range(6):
        x = torch.randn(2, 40, D, dtype=torch.float64) * 10.0 ** (3 * (k % 2))
        x.requires_grad_(k in (2, 3))
        found = []
        for each in (model, oracle):
            random.seed(k)
            found.append(each(x))
        torch.testing.assert_close(*found)
    assert linrec.report(model).parallel == (kind in (Late, AsksForGradients))
