"""Recurrences of which nothing but readouts is read: sums over the state's dimensions, so that an algorithm may do
without the states. What looks like one and is none has its place here too."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.analysis.graphs import BATCH as B

from .recurrences import AFFINE, FFT, POWERS, SCAN, SUM, case, complex_, gate, mask, matrix, real, unit

ATTENTION, FOLDED, READ = "chunked attention", "FFT, readout folded in", "diagonal scan, readout fused in"

Update = Callable[..., Tensor]


def read(
    update: Update, by: Callable[..., Tensor] | None = None, old: bool = False
) -> Callable[..., tuple[Tensor, ...]]:
    """The last input reads the state, by a product unless it is said how."""

    def step(s: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        *rest, q = given
        new = update(s, *rest)
        how = by or (lambda m, q: (q[:, None].to(m.dtype) @ m)[:, 0])
        return new, how(s if old else new, q)

    return step


def written(k: Tensor, v: Tensor) -> Tensor:
    return k[:, :, None] * v[:, None]


S = [real(B, 3, 4)]
K, V, Q = real(B, 3), real(B, 4), real(B, 3)
BY = (ATTENTION, SCAN, READ)
OLD = (ATTENTION, SCAN)

case("linear attention", read(lambda s, k, v: s + written(k, v)), S, [K, V, Q], by=(ATTENTION, SUM, SCAN, READ))
case("read before", read(lambda s, k, v: 0.9 * s + written(k, v), old=True), S, [K, V, Q], by=OLD)
case(
    "a decay for each key", read(lambda s, a, k, v: a[:, :, None] * s + written(k, v)), S, [gate(B, 3), K, V, Q], by=BY
)
case("a decay for each value", read(lambda s, a, k, v: a[:, None] * s + written(k, v)), S, [gate(B, 4), K, V, Q], by=BY)
case("one decay a step", read(lambda s, a, k, v: a * s + written(k, v)), S, [gate(), K, V, Q], by=BY)
case("a negative decay", read(lambda s, k, v: written(k, v) - 0.7 * s), S, [K, V, Q], by=BY)
case("a gate of its own", read(lambda s, f, v: f[:, :, None] * s + written(1 - f, v)), S, [gate(B, 3), V, Q], by=BY)
case(
    "two outer products",
    read(lambda s, k, v, u, w: 0.8 * s + written(k, v) - 0.5 * written(u, w)),
    S,
    [K, V, K, V, Q],
    by=BY,
)
case(
    "values in front",
    read(lambda s, k, v: 0.9 * s + written(v, k), lambda s, q: (s * q[:, None]).sum(-1)),
    [real(B, 4, 3)],
    [K, V, Q],
    by=BY,
)
case(
    "read by einsum",
    read(lambda s, k, v: 0.9 * s + torch.einsum("bk,bv->bkv", k, v), lambda s, q: torch.einsum("bkv,bk->bv", s, q)),
    S,
    [K, V, Q],
    by=BY,
)
case(
    "heads",
    read(
        lambda s, g, k, v: g[:, :, None, None] * s + k[..., None] * v[..., None, :],
        lambda s, q: torch.einsum("bhkv,bhk->bvh", s, q),
    ),
    [real(B, 2, 3, 4)],
    [gate(B, 2), real(B, 2, 3), real(B, 2, 4), real(B, 2, 3)],
    by=BY,
)
case(
    "keys of two dimensions",
    read(lambda s, k, v: 0.9 * s + k[..., None] * v[:, None, None], lambda s, q: torch.einsum("bijv,bij->bv", s, q)),
    [real(B, 2, 3, 4)],
    [real(B, 2, 3), V, real(B, 2, 3)],
    by=BY,
)
case(
    "a bonus",
    lambda s, u, k, v, q: (0.9 * s + written(k, v), (q[:, None] @ (s + u[:, :, None] * written(k, v)))[:, 0]),
    S,
    [K, K, V, Q],
    by=OLD,
)
case(
    "two readouts",
    lambda s, k, v, q, r: (0.9 * s + written(k, v), (q[:, None] @ s)[:, 0], (r[:, None] @ s)[:, 0] + v),
    S,
    [K, V, Q, Q],
    by=OLD,
)
case(
    "a complex state",
    read(lambda s, a, k, v: a[:, :, None] * s + written(k, v)),
    [complex_(B, 3, 4)],
    [complex_(B, 3, how="unit"), K, V, Q],
    by=BY,
)
case("shared keys", read(lambda s, k, v: 0.9 * s + k[None, :, None] * v[:, None]), S, [real(3), V, Q], by=BY)


def delta(s: Tensor, b: Tensor, k: Tensor, v: Tensor) -> Tensor:
    b = b[:, None]
    return s + k[:, :, None] * (b * (v - (k[:, None] @ s)[:, 0]))[:, None]


def gated_delta(s: Tensor, a: Tensor, b: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return delta(a[:, :, None] * s, b, k, v)


def two_householders(s: Tensor, k: Tensor, j: Tensor, v: Tensor) -> Tensor:
    for x in (k, j):
        s = s - x[:, :, None] * (x[:, None] @ s)
    return s + written(k, v)


case("read delta rule", read(delta), S, [gate(B), unit(B, 3), V, Q], by=(ATTENTION, AFFINE))
case("read gated delta rule", read(gated_delta), S, [gate(B, 3), gate(B), unit(B, 3), V, Q], by=(ATTENTION, AFFINE))
case("read delta rule before", read(delta, old=True), S, [gate(B), unit(B, 3), V, Q], by=(ATTENTION, AFFINE))
case("read two reflections", read(two_householders), S, [unit(B, 3), unit(B, 3), V, Q], by=(ATTENTION, AFFINE))
case(
    "read low rank",
    read(lambda s, a, u, w, k, v: a[:, :, None] * s + 0.3 * u[:, :, None] * (w[:, None] @ s) + written(k, v)),
    S,
    [gate(B, 3), unit(B, 3), unit(B, 3), K, V, Q],
    by=(ATTENTION, AFFINE),
)
# What an algorithm without states must leave alone.
case(
    "a mask on the state",
    read(lambda s, m, k, v: torch.where(m[:, :, None], s, 0.0) + written(k, v)),
    S,
    [mask(B, 1), K, V, Q],
    by=(SCAN,),
)
case("no outer product", read(lambda s, x: 0.9 * s + x), S, [real(B, 3, 4), Q], by=(SCAN, READ))
case(
    "more than readouts",
    lambda s, k, v, q: (0.9 * s + written(k, v), (q[:, None] @ s)[:, 0], s),
    S,
    [K, V, Q],
    by=(SCAN,),
)
case(
    "a decay for each element",
    read(lambda s, a, k, v: a * s + written(k, v)),
    S,
    [gate(B, 3, 4), K, V, Q],
    by=(SCAN, READ),
)
case(
    "a readout that spreads",
    read(lambda s, k, v: 0.9 * s + written(k, v), lambda s, q: torch.einsum("bkv,bkn->bvn", s, q)),
    S,
    [K, V, real(B, 3, 2)],
    by=(SCAN,),
)

H3, A3, B3 = [real(B, 3)], matrix(3, 3), real(3)
LTI = (FOLDED, FFT, POWERS, AFFINE)


def memory(m: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return m @ a.T + x[:, None] * b


case(
    "read memory",
    lambda m, x, a, b, c: ((n := memory(m, x, a, b)), n @ c.T),
    H3,
    [real(B)],
    [A3, B3, real(2, 3)],
    by=LTI,
)
case(
    "read with a bias",
    lambda m, x, a, b, c, d: ((n := memory(m, x, a, b)), torch.nn.functional.linear(n, c, d) + x[:, None]),
    H3,
    [real(B)],
    [A3, B3, real(2, 3), real(2)],
    by=LTI,
)
case(
    "read by a vector",
    lambda m, x, a, b, c: ((n := memory(m, x, a, b)), (n * c).sum(-1)),
    H3,
    [real(B)],
    [A3, B3, real(3)],
    by=LTI,
)
case(
    "read by two matrices",
    lambda m, x, a, b, c, d: ((n := memory(m, x, a, b)), n @ c.T, (n @ d.T) * 2),
    H3,
    [real(B)],
    [A3, B3, real(2, 3), real(4, 3)],
    by=LTI,
)
case(
    "read memories of channels",
    lambda m, x, a, b, c: (
        (n := torch.einsum("bcd,ed->bce", m, a) + x[..., None] * b),
        torch.einsum("bcd,pd->bpc", n, c),
    ),
    [real(B, 2, 3)],
    [real(B, 2)],
    [A3, B3, real(4, 3)],
    by=LTI,
)
case(
    "read by what changes",
    lambda m, x, c, a, b: ((n := memory(m, x, a, b)), (n * c).sum(-1)),
    H3,
    [real(B), real(B, 3)],
    [A3, B3],
    by=(FFT, POWERS),
)
case(
    "read memory before",
    lambda m, x, a, b, c: (memory(m, x, a, b), m @ c.T),
    H3,
    [real(B)],
    [A3, B3, real(2, 3)],
    by=(FFT, POWERS),
)
