"""Affine recurrences as steps, one for each structure and way of writing it, for the test of the lowerings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.analysis.graphs import BATCH as B

linear = torch.nn.functional.linear


@dataclass(frozen=True)
class Of:
    """How a tensor of a recurrence is drawn: its shape in one step, its dtype, and what keeps the recurrence stable."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    how: str = ""

    def draw(self, *lead: int, batch: int = B) -> Tensor:
        shape = (*lead, *(batch if s == B else s for s in self.shape))
        if self.dtype is torch.bool:
            return torch.rand(shape) < 0.7
        if not (self.dtype.is_floating_point or self.dtype.is_complex):
            return torch.randint(-5, 6, shape).to(self.dtype)
        x = torch.randn(shape, dtype=self.dtype)
        if self.how == "gate":
            return torch.sigmoid(x)
        if self.how == "matrix":  # of spectral norm 0.9
            return 0.9 * x / torch.linalg.matrix_norm(x, 2)[..., None, None]
        if self.how == "unit":
            return torch.nn.functional.normalize(x, dim=-1)
        return x


def real(*shape: int) -> Of:
    return Of(shape)


def gate(*shape: int) -> Of:
    return Of(shape, how="gate")


def matrix(*shape: int) -> Of:
    return Of(shape, how="matrix")


def unit(*shape: int) -> Of:
    return Of(shape, how="unit")


def mask(*shape: int) -> Of:
    return Of(shape, torch.bool)


def complex_(*shape: int, how: str = "") -> Of:
    return Of(shape, torch.complex128, how)


@dataclass(frozen=True)
class Case:
    """`step(*states, *xs, *consts)` gives the new states, then what is read of them. `by`: the lowerings it needs."""

    name: str
    step: Callable[..., Any]
    states: tuple[Of, ...]
    xs: tuple[Of, ...]
    consts: tuple[Of, ...]
    by: tuple[str, ...]

    def __repr__(self) -> str:
        return self.name


CASES: list[Case] = []
SUM, SCAN, POWERS, FFT, AFFINE = (
    "cumulative sum",
    "diagonal scan",
    "chunked powers",
    "FFT with the impulse response",
    "chunked affine scan",
)


def case(
    name: str,
    step: Callable[..., Any],
    states: list[Of],
    xs: list[Of],
    consts: list[Of] | None = None,
    by: tuple[str, ...] = (),
) -> None:
    CASES.append(Case(name, step, tuple(states), tuple(xs), tuple(consts or ()), by))


# The step returns the new states; what is read is every state, and here and there a function of old and new.
def one(update: Callable[..., Tensor]) -> Callable[..., tuple[Tensor, ...]]:
    def step(h: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        new = update(h, *rest)
        return new, new

    return step


H = [real(B, 3)]
case("sum", one(lambda h, x: h + x), H, [real(B, 3)], by=(SUM, SCAN))
case("sum of a broadcast", one(lambda h, x: h + x), H, [real(1)], by=(SUM, SCAN))
case("sum of a constant", one(lambda h, x, w: h + w), H, [real(B, 3)], [real(3)], by=(SUM, SCAN))
case("difference", one(lambda h, x: h - x * x), H, [real(B, 3)], by=(SUM, SCAN))
case("sum of integers", one(lambda h, x: h + x), [Of((B, 3), torch.int64)], [Of((B, 3), torch.int64)], by=(SUM,))
case("sum of small integers", one(lambda h, x: h + x), [Of((3,), torch.int8)], [Of((3,), torch.int8)], by=(SUM,))
case("count", one(lambda h, x: h + x), [Of((B,), torch.int64)], [mask(B)], by=(SUM,))
case("sum of scalars", one(lambda h, x: h + x.mean()), [real()], [real(B, 3)], by=(SUM, SCAN))
case("sum of complex numbers", one(lambda h, x: h + x), [complex_(B, 3)], [real(B, 3)], by=(SUM, SCAN))
case(
    "sum of outer products",
    one(lambda h, k, v: h + k[:, :, None] * v[:, None]),
    [real(B, 3, 4)],
    [real(B, 3), real(B, 4)],
    by=(SUM, SCAN),
)

case("decay", one(lambda h, x: 0.9 * h + x), H, [real(B, 3)], by=(SCAN,))
case("negative decay", one(lambda h, x: x - 0.5 * h), H, [real(B, 3)], by=(SCAN,))
case("gate", one(lambda h, a, x: a * h + (1 - a) * x), H, [gate(B, 3), real(B, 3)], by=(SCAN,))
case("gate per row", one(lambda h, a, x: a[:, :1] * h + x), H, [gate(B, 3), real(B, 3)], by=(SCAN,))
case("gate per step", one(lambda h, a, x: a * h + x), H, [gate(), real(B, 3)], by=(SCAN,))
case("weight per channel", one(lambda h, x, w: w * h + x), H, [real(B, 3)], [gate(3)], by=(SCAN,))
case("weight and gate", one(lambda h, a, x, w: a**w * h + x), H, [gate(B, 3), real(B, 3)], [gate(3)], by=(SCAN,))
case("no drive", one(lambda h, a: a * h), H, [gate(B, 3)], by=(SCAN,))
case("a drive that never changes", one(lambda h, a, w: a * h + w), H, [gate(B, 3)], [real(3)], by=(SCAN,))
case("a drive of one number", one(lambda h, a: a * h + 1), H, [gate(B, 3)], by=(SCAN,))
case(
    "two terms of one state",
    one(lambda h, a, c, x: a * h + x + 0.3 * c * h),
    H,
    [gate(B, 3), gate(3), real(B, 3)],
    by=(SCAN,),
)
case("division", one(lambda h, a, x: (h + x) / (1 + a)), H, [gate(B, 3), real(B, 3)], by=(SCAN,))
case("interpolation", one(lambda h, a, x: torch.lerp(x, h, 0.7) * a), H, [gate(B, 3), real(B, 3)], by=(SCAN,))
case("resets", one(lambda h, m, x: torch.where(m, 0.9 * h, 0.0) + x), H, [mask(B, 1), real(B, 3)], by=(SCAN,))
case(
    "padding keeps the state",
    one(lambda h, m, x: torch.where(m, 0.5 * h + x, h)),
    H,
    [mask(B, 1), real(B, 3)],
    by=(SCAN,),
)
case("filled where masked", one(lambda h, m, x: h.masked_fill(m, 0.5) + x), H, [mask(3), real(B, 3)], by=(SCAN,))
case("a mask of constants", one(lambda h, x, m: torch.where(m, h, 0.5 * h) + x), H, [real(B, 3)], [mask(3)], by=(SCAN,))
case(
    "two masks",
    one(lambda h, m, n, x: torch.where(m, torch.where(n, h, x), 0.5 * h)),
    H,
    [mask(B, 1), mask(3), real(B, 3)],
    by=(SCAN,),
)
case("an opened square", one(lambda h, x: 0.1 * ((h + x) ** 2 - h**2 - x**2) + x), H, [gate(B, 3)], by=(SCAN,))
case("complex", one(lambda h, a, x: a * h + x), [complex_(B, 3)], [complex_(B, 3, how="unit"), real(B, 3)], by=(SCAN,))
case(
    "complex constant",
    one(lambda h, x, w: torch.exp(1j * w) * 0.95 * h + x),
    [complex_(B, 3)],
    [real(B, 3)],
    [real(3)],
    by=(SCAN,),
)
case(
    "vector decay of a matrix",
    one(lambda h, a, k, v: a[:, :, None] * h + k[:, :, None] * v[:, None]),
    [real(B, 3, 4)],
    [gate(B, 3), real(B, 3), real(B, 4)],
    by=(SCAN,),
)
case(
    "decay of the other axis",
    one(lambda h, a, x: h * a[:, None] + x),
    [real(B, 3, 4)],
    [gate(B, 4), real(3, 1)],
    by=(SCAN,),
)
case(
    "per head",
    one(lambda h, x, w: torch.exp(-w)[:, None, None] * h + x),
    [real(B, 2, 3, 4)],
    [real(B, 2, 3, 1)],
    [gate(2)],
    by=(SCAN,),
)
case("no batch", one(lambda h, a, x: a * h + x), [real(3)], [gate(3), real(3)], by=(SCAN,))
case("a scalar", one(lambda h, x: 0.9 * h + x.sum()), [real()], [real(B, 3)], by=(SCAN,))
case("size one", one(lambda h, a, x: a * h + x), [real(B, 1)], [gate(B, 1), real(B, 1)], by=(SCAN,))
case(
    "a reshaped state",
    one(lambda h, a, x: (h.reshape(-1, 3, 4) * a[:, :, None]).reshape(-1, 12) + x),
    [real(B, 12)],
    [gate(B, 3), real(B, 12)],
    by=(SCAN,),
)
case(
    "integers times integers",
    one(lambda h, a, x: a * h + x),
    [Of((B, 3), torch.int64)],
    [Of((B, 3), torch.int64)] * 2,
    by=(SCAN,),
)

A3 = [matrix(3, 3)]
case("dense", one(lambda h, x, a: h @ a + x), H, [real(B, 3)], A3, by=(POWERS, AFFINE))
case(
    "dense by linear",
    one(lambda h, x, w, b: linear(h, w, b) + x),
    H,
    [real(B, 3)],
    [matrix(3, 3), real(3)],
    by=(POWERS, AFFINE),
)
case("dense, no drive", one(lambda h, x, a: h @ a), H, [real(B, 3)], A3, by=(POWERS, AFFINE))
case(
    "dense, one input",
    one(lambda h, u, a, b: h @ a.T + u * b),
    H,
    [real(B, 1)],
    [matrix(3, 3), real(3)],
    by=(POWERS, FFT, AFFINE),
)
case(
    "dense, two inputs",
    one(lambda h, u, a, b: linear(h, a) + linear(u, b)),
    H,
    [real(B, 2)],
    [matrix(3, 3), real(3, 2)],
    by=(POWERS, FFT, AFFINE),
)
case(
    "dense per channel",
    one(lambda m, u, a, b: m @ a.T + u.unsqueeze(-1) * b),
    [real(B, 2, 3)],
    [real(B, 2)],
    [matrix(3, 3), real(3)],
    by=(POWERS, FFT, AFFINE),
)
case(
    "dense on the first axis", one(lambda h, x, a: a @ h + x), [real(B, 3, 4)], [real(B, 3, 4)], A3, by=(POWERS, AFFINE)
)
case("dense, by its change", one(lambda h, x, a: h + 0.1 * (h @ a - h) + x), H, [real(B, 3)], A3, by=(POWERS, AFFINE))
case("dense, no batch", one(lambda h, x, a: a @ h + x), [real(3)], [real(3)], A3, by=(POWERS, AFFINE))
case(
    "mean over the state",
    one(lambda h, x: 0.9 * (h - 0.5 * h.mean(-1, keepdim=True)) + x),
    H,
    [real(B, 3)],
    by=(POWERS, AFFINE),
)
case(
    "two matrices",
    one(lambda h, x, a, b: 0.5 * (h @ a) + 0.5 * (h @ b) + x),
    H,
    [real(B, 3)],
    [matrix(3, 3)] * 2,
    by=(POWERS, AFFINE),
)
case(
    "dense and masked by constants",
    one(lambda h, x, a, m: torch.where(m, h @ a, 0.5 * h) + x),
    H,
    [real(B, 3)],
    [matrix(3, 3), mask(3)],
    by=(POWERS, AFFINE),
)
case(
    "dense complex",
    one(lambda h, x, a: h @ a + x),
    [complex_(B, 3)],
    [real(B, 3)],
    [complex_(3, 3, how="matrix")],
    by=(POWERS, AFFINE),
)

case(
    "dense, changing",
    one(lambda h, a, x: torch.einsum("bi,bij->bj", h, a) + x),
    H,
    [matrix(B, 3, 3), real(B, 3)],
    by=(AFFINE,),
)
case(
    "dense, changing, shared by the batch", one(lambda h, a, x: h @ a + x), H, [matrix(3, 3), real(B, 3)], by=(AFFINE,)
)
case(
    "dense, changing, complex",
    one(lambda h, a, x: torch.einsum("bi,bij->bj", h, a) + x),
    [complex_(B, 3)],
    [complex_(B, 3, 3, how="matrix"), real(B, 3)],
    by=(AFFINE,),
)
case(
    "dense and padded",
    one(lambda h, m, x, a: torch.where(m, h @ a + x, h)),
    H,
    [mask(B, 1), real(B, 3)],
    A3,
    by=(AFFINE,),
)
case(
    "dense and reset",
    one(lambda h, m, x, a: torch.where(m, h @ a, 0.0) + x),
    H,
    [mask(B, 1), real(B, 3)],
    A3,
    by=(AFFINE,),
)
case("dense and gated", one(lambda h, g, x, a: g * (h @ a) + x), H, [gate(B, 3), real(B, 3)], A3, by=(AFFINE,))
case(
    "a rank-one change",
    one(lambda h, k, x: h - k * (k * h).sum(-1, keepdim=True) + x),
    H,
    [unit(B, 3), real(B, 3)],
    by=(AFFINE,),
)


def householder(s: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return s + torch.einsum("bk,bv->bkv", k, v - torch.einsum("bk,bkv->bv", k, s))


def delta(s: Tensor, k: Tensor, v: Tensor, beta: Tensor) -> tuple[Tensor, ...]:
    s = s + torch.einsum("bk,bv->bkv", beta * k, v - torch.einsum("bk,bkv->bv", k, s))
    return s, torch.einsum("bk,bkv->bv", k, s)


def gated_delta(s: Tensor, k: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    s = a[:, :, None] * s
    s = s + k[:, :, None] * (v - (k[:, :, None] * s).sum(1))[:, None]
    return s, s


def rank_one_from_the_right(s: Tensor, a: Tensor, b: Tensor, w: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    s = s * w[:, None] + (s @ a.unsqueeze(-1)) @ b.unsqueeze(1) + v.unsqueeze(-1) @ k.unsqueeze(1)
    return s, s


S = [real(B, 3, 4)]
case("delta rule", delta, S, [unit(B, 3), real(B, 4), gate(B, 1)], by=(AFFINE, "chunked attention"))
case("gated delta rule", gated_delta, S, [unit(B, 3), real(B, 4), gate(B, 3)], by=(AFFINE,))
case(
    "diagonal plus rank one, from the right",
    rank_one_from_the_right,
    S,
    [unit(B, 4), unit(B, 4), gate(B, 4), real(B, 4), real(B, 3)],
    by=(AFFINE,),
)
case(
    "two Householders",
    one(lambda s, k, q, x: householder(householder(s, k, x[:, 0]), q, x[:, 1])),
    S,
    [unit(B, 3), unit(B, 3), real(B, 2, 4)],
    by=(AFFINE,),
)
case(
    "from both sides",
    one(lambda h, x, a, b: a @ h @ b + x),
    S,
    [real(B, 3, 4)],
    [matrix(3, 3), matrix(4, 4)],
    by=(AFFINE,),
)
case("transposed", one(lambda h, x: 0.9 * h.mT + x), [real(B, 3, 3)], [real(B, 3, 3)], by=(AFFINE,))
case("symmetrised", one(lambda h, x: 0.4 * (h + h.mT) + x), [real(B, 3, 3)], [real(B, 3, 3)], by=(AFFINE,))
case(
    "a matrix in a vector",
    one(lambda h, x, a: (a @ h.reshape(-1, 3, 4)).reshape(-1, 12) + x),
    [real(B, 12)],
    [real(B, 12)],
    A3,
    by=(AFFINE,),
)
case("total of a matrix", one(lambda h, x: h - h.sum((1, 2), keepdim=True) / 24 + x), S, [real(B, 3, 4)], by=(AFFINE,))


def reshaped_pair(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    new = 0.7 * a.reshape(-1, 2, 2).mul(0.6).flatten(1) + 0.4 * b + x
    return new, 0.2 * new + x, new, b


def rotation(re: Tensor, im: Tensor, x: Tensor, w: Tensor) -> tuple[Tensor, ...]:
    re, im = w.cos() * re - w.sin() * im + x, w.sin() * re + w.cos() * im
    return re, im, re, im


def momentum(s: Tensor, m: Tensor, k: Tensor, v: Tensor, a: Tensor) -> tuple[Tensor, ...]:
    m = 0.5 * m + k[:, :, None] * (v - (k[:, :, None] * s).sum(1))[:, None]
    s = a * s + 0.5 * m
    return s, m, s, m


def autoregression(one: Tensor, two: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    new = 0.5 * one - 0.3 * two + x
    return new, one, new


def matrix_and_vector(s: Tensor, z: Tensor, k: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return 0.5 * s + k[:, :, None] * z[:, None], 0.5 * z + (k[:, :, None] * s).sum(1) * 0.3 + x, s, z


def cross(a: Tensor, b: Tensor, x: Tensor, w: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    a, b = 0.5 * a + 0.4 * b @ w + x, 0.5 * b + 0.4 * a @ v
    return a, b, a, b


def masked_pair(a: Tensor, b: Tensor, m: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    a, b = torch.where(m, 0.5 * a + 0.3 * b, a) + x, torch.where(m, b - 0.3 * a, 0.0)
    return a, b, a, b


def swapped(a: Tensor, b: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    return 0.9 * b + x, 0.9 * a, a


PAIR = [real(B, 3)] * 2
case("rotation", rotation, PAIR, [real(B, 3)], [real(3)], by=(AFFINE,))
case("a pair, one of them reshaped", reshaped_pair, [real(B, 4)] * 2, [real(B, 4)], by=(AFFINE,))
case("rotation that changes", rotation, PAIR, [real(B, 3), real(B, 3)], by=(AFFINE,))
case("momentum and memory", momentum, S * 2, [unit(B, 3), real(B, 4), gate(B, 1, 1)], by=(AFFINE,))
case("two lags", autoregression, PAIR, [real(B, 3)], by=(AFFINE,))
case("a matrix and a vector", matrix_and_vector, [real(B, 3, 4), real(B, 4)], [unit(B, 3), real(B, 4)], by=(AFFINE,))
case("dense pair", cross, [real(B, 3), real(B, 2)], [real(B, 3)], [matrix(2, 3), matrix(3, 2)], by=(AFFINE,))
case("masked pair", masked_pair, PAIR, [mask(B, 1), real(B, 3)], by=(AFFINE,))
case(
    "masked pair, masks of constants",
    lambda a, b, x, m: masked_pair(a, b, m, x),
    PAIR,
    [real(B, 3)],
    [mask(3)],
    by=(AFFINE,),
)
case("swapped", swapped, PAIR, [real(B, 3)], by=(AFFINE,))
case("complex pair", rotation, [complex_(B, 3)] * 2, [real(B, 3)], [real(3)], by=(AFFINE,))
case("pair of scalars", rotation, [real()] * 2, [real()], [real()])
