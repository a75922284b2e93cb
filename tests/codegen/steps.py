"""Steps for the code generator, beyond the affine ones of the lowerings' tests: each with tensors for its carries,
per-step inputs and constants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.analysis.graphs import BATCH as B
from tests.lowering.recurrences import CASES as AFFINE
from tests.lowering.recurrences import Case, Of, complex_, gate, mask, matrix, real, unit

STEPS: list[Case] = []


def step(states: list[Of], xs: list[Of], consts: list[Of] | None = None) -> Callable[[Any], Any]:
    """Register a function (*states, *xs, *consts) -> (*new states, *outputs)."""

    def add(function: Any) -> Any:
        STEPS.append(Case(function.__name__, function, tuple(states), tuple(xs), tuple(consts or ()), ()))
        return function

    return add


H = [real(B, 3)]


@step([real(B, 3), real(B, 3), real(B, 3)], [real(B, 3)])
def cut_off(h: Tensor, once: Tensor, same: Tensor, x: Tensor) -> Any:
    """A state without derivatives, one that never changes, and one that has both."""
    return 0.5 * h + x * same, 0.5 * once.detach(), same, h * once


@step([real(B, 6, 4)], [gate(B, 6), real(B, 6), real(B, 4), real(B, 4)], [real(6, 4)])
def mamba(h: Tensor, dt: Tensor, x: Tensor, b: Tensor, c: Tensor, a: Tensor) -> Any:
    h = torch.exp(-dt.unsqueeze(-1) * a.exp()) * h + (dt * x).unsqueeze(-1) * b.unsqueeze(1)
    return h, (h @ c.unsqueeze(-1)).squeeze(-1)


@step([real(B, 6, 2, 16)], [gate(B, 6), real(B, 2, 16), real(B, 2, 16)])
def sums_of_whole_vectors(h: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Any:
    h = a[:, :, None, None] * h + b.unsqueeze(1)
    return h, torch.tanh(h * c.unsqueeze(1)).sum((-1, -2))


@step([real(B, 2, 3, 4)], [gate(B, 2), unit(B, 2, 3), real(B, 2, 4), real(B, 2, 3), gate(B, 2)])
def gated_delta_rule(s: Tensor, g: Tensor, k: Tensor, v: Tensor, q: Tensor, beta: Tensor) -> Any:
    s = s * g[..., None, None]
    memory = (s * k.unsqueeze(-1)).sum(-2)
    s = s + k.unsqueeze(-1) * ((v - memory) * beta[..., None]).unsqueeze(-2)
    return s, (s * q.unsqueeze(-1)).sum(-2)


@step([real(B, 2, 3, 4)], [gate(B, 2, 1, 4), real(B, 2, 4, 1), real(B, 2, 1, 4), real(B, 2, 3, 4)], [real(4)])
def rwkv7(s: Tensor, w: Tensor, a: Tensor, b: Tensor, kv: Tensor, r: Tensor) -> Any:
    s = s * w + 0.1 * (s @ a) @ b + kv
    return s, s @ r


@step([real(B, 2, 3, 4)], [real(B, 2, 3), real(B, 2, 4), real(B, 2, 3)], [real(2)])
def retention(s: Tensor, k: Tensor, v: Tensor, q: Tensor, d: Tensor) -> Any:
    s = 0.9 * s + k.unsqueeze(-1) * v.unsqueeze(-2)
    return s, (s * q.unsqueeze(-1)).sum(-2) * d[:, None] + v


@step([real(B, 2, 8, 5)], [gate(B, 2), real(B, 2, 8), real(B, 2, 5), real(B, 2, 8)])
def retention_with_gates(s: Tensor, g: Tensor, k: Tensor, v: Tensor, q: Tensor) -> Any:
    s = torch.exp(-g)[..., None, None] * s + torch.einsum("bhk,bhv->bhkv", k, v)
    return s, torch.einsum("bhk,bhkv->bhv", q, s), torch.einsum("bhk,bhkv->bhv", k, s).tanh()


@step([real(B, 4), real(B, 4)], [real(B, 4)], [real(5, 4), real(4, 4), real(4)])
def read_by_constants(h: Tensor, m: Tensor, x: Tensor, c: Tensor, w: Tensor, d: Tensor) -> Any:
    h = 0.8 * h + torch.tanh(x)
    m = torch.sigmoid(d) * m + h
    return h, m, F.linear(h, c).tanh(), torch.exp(m) * d, F.linear(m + x, w)


@step([real(B, 24)], [real(B, 24)], [real(24, 24), real(24, 24)])
def read_by_a_large_constant(h: Tensor, x: Tensor, w: Tensor, c: Tensor) -> Any:
    h = torch.tanh(0.1 * F.linear(h, w) + x)
    return h, torch.tanh(F.linear(h, c))


@step([real(B, 2, 3, 4), real(B, 2, 3)], [gate(B, 2, 3), real(B, 2, 3), real(B, 2, 4), real(B, 2, 3)])
def normalised_linear_attention(s: Tensor, z: Tensor, f: Tensor, k: Tensor, v: Tensor, q: Tensor) -> Any:
    s = f[..., None] * s + k[..., None] * v[..., None, :]
    z = f * z + k
    return s, z, torch.einsum("bhk,bhkv->bhv", q, s) / (1 + torch.einsum("bhk,bhk->bh", q, z).abs())[..., None], z


@step(H, [real(B, 3)], [matrix(3, 3), real(3)])
def elman(h: Tensor, x: Tensor, w: Tensor, b: Tensor) -> Any:
    h = torch.tanh(F.linear(h, w, b) + x)
    return h, h


@step([real(B, 4)], [real(B, 4)] * 3, [real(12, 4), real(12)])
def gru(h: Tensor, x_r: Tensor, x_z: Tensor, x_n: Tensor, w: Tensor, b: Tensor) -> Any:
    h_r, h_z, h_n = F.linear(h, w, b).chunk(3, -1)
    r, z = torch.sigmoid(x_r + h_r), torch.sigmoid(x_z + h_z)
    h = (1 - z) * torch.tanh(x_n + r * h_n) + z * h
    return h, h


@step([real(B, 3)] * 2, [real(B, 2)], [real(12, 2), real(12, 3), real(12), real(12)])
def lstm_cell(h: Tensor, c: Tensor, x: Tensor, w: Tensor, u: Tensor, b: Tensor, d: Tensor) -> Any:
    h, c = torch.lstm_cell(x, (h, c), w, u, b, d)
    return h, c, h


@step([real(B, 3)], [real(B, 2)], [real(9, 2), real(9, 3), real(9), real(9)])
def gru_cell(h: Tensor, x: Tensor, w: Tensor, u: Tensor, b: Tensor, d: Tensor) -> Any:
    h = torch.gru_cell(x, h, w, u, b, d)
    return h, h


@step(H, [real(B, 3)])
def softmax(h: Tensor, x: Tensor) -> Any:
    h = torch.softmax(h + x, -1) + 0.1 * h
    return h, torch.log_softmax(h, -1), torch.logsumexp(h, -1)


@step(H, [real(B, 3)])
def normalised(h: Tensor, x: Tensor) -> Any:
    h = F.normalize(h, dim=-1) + F.layer_norm(x, [3]) + F.rms_norm(h, [3])
    return h, h.norm(dim=-1, keepdim=True), h.var(-1), h.std(-1, keepdim=True)


@step(H, [real(B, 3)])
def extrema(h: Tensor, x: Tensor) -> Any:
    h = torch.maximum(h * 0.5, x) - torch.minimum(h, x).relu()
    return h, h.amax(-1), h.amin(-1, keepdim=True), h.clamp(-0.5, 0.5), h.clamp_min(0.1)


@step(H, [gate(B, 3)])
def smooth_functions(h: Tensor, x: Tensor) -> Any:
    h = F.softplus(h + x) * 0.5 + torch.sin(h) * torch.cos(x) + torch.log1p(x) - torch.log(x + 1) + torch.erf(h)
    y = F.silu(h) + F.gelu(h) + F.gelu(x, approximate="tanh") + F.logsigmoid(h) + F.elu(h) + F.leaky_relu(h)
    z = torch.expm1(x) + torch.sqrt(x) + torch.rsqrt(x) + 1 / x + x**1.5 + x**3 + torch.atan(h) + torch.sinh(x)
    return (
        torch.tanh(h),
        y,
        z,
        torch.logaddexp(h, x),
        torch.exp2(x) + torch.log2(x),
        torch.atan2(h, x),
        torch.hypot(h, x),
    )


@step(H, [mask(B, 3), real(B, 3), mask(3)])
def masks(h: Tensor, m: Tensor, x: Tensor, n: Tensor) -> Any:
    both = (m & n) | ~(h > x)
    h = torch.where(both, h * 0.5 + x, h).masked_fill(m, 0.25)
    return h, both, torch.isnan(h) ^ m, h * m


@step([real(B, 4)], [real(B, 6)])
def cuts(h: Tensor, x: Tensor) -> Any:
    a, b = h.split([1, 3], -1)
    h = torch.cat([b * 0.5, x[:, :1] + a], -1) + torch.stack([x[:, 1], x[:, 2], a[:, 0], b[:, 1]], -1) * 0.1
    return h, h.flip(-1), torch.roll(h, 1, -1), F.pad(h, (1, 2)), x[:, ::2], h[:, -1], h.unbind(1)[2]


@step([real(B, 4, 2)], [real(B, 2)])
def window(buffer: Tensor, x: Tensor) -> Any:
    buffer = torch.cat([buffer[:, 1:], x[:, None]], 1)
    return buffer, (buffer * buffer).mean(1), buffer.prod(1)


@step([real(B, 12)], [gate(B, 3), real(B, 12)])
def reshaped(h: Tensor, a: Tensor, x: Tensor) -> Any:
    s = h.view(-1, 3, 4) * a[:, :, None]
    return (s + x.unflatten(1, (3, 4))).flatten(1), s.transpose(1, 2).reshape(-1, 12), s.permute(2, 0, 1)


@step(H, [real(B, 3)], [matrix(3, 3)])
def gram(h: Tensor, x: Tensor, a: Tensor) -> Any:
    outer = h[:, :, None] * h[:, None, :]
    h = torch.tanh((outer @ a).sum(-1) * 0.1 + torch.einsum("bi,bj->bij", x, h).tril().sum(1))
    return h, outer.triu(1), torch.baddbmm(outer, outer, outer, beta=0.5)


@step([Of((B, 3), torch.int64), real(B, 3)], [Of((B, 3), torch.int64), Of((), torch.int64)])
def counters(n: Tensor, h: Tensor, x: Tensor, t: Tensor) -> Any:
    n = n + x.abs() % 3
    h = h * 0.5 + n / (t.abs() + 1) + (t % 2 == 0) * 0.1
    return n, h, h, n * x - 2, n.to(torch.float64).mean(-1), torch.maximum(n, x)


@step([complex_(B, 3)], [complex_(B, 3, how="unit"), complex_(B, 3)], [complex_(3)])
def complex_readout(h: Tensor, a: Tensor, x: Tensor, c: Tensor) -> Any:
    h = a * h + x / (2 + c * c.conj())
    return h, (h * c).sum(-1).real, h.abs(), torch.view_as_real(h), h.imag


@step([real(B, 4, 3)], [gate(B, 4), real(B, 4, 3)], [matrix(3, 3)])
def flattened(h: Tensor, g: Tensor, x: Tensor, w: Tensor) -> Any:
    """The states leave the loop in another shape."""
    new = h * g[..., None] + 0.3 * h @ w + torch.sigmoid(x)
    return new, new.flatten(1)


@step([real(B, 4, 3)], [real(B, 4), real(B, 3)])
def no_imaginary_part(h: Tensor, x: Tensor, y: Tensor) -> Any:
    """Real numbers, and a mere number, as complex ones."""
    new = 0.5 * h + x[..., None] * (y / y.norm(dim=-1, keepdim=True))[:, None]
    return new, 0.7 * (0.3 * new.mean(1)).to(torch.complex128), torch.full_like(x, 2.0).to(torch.complex128) * 0.5j


@step(H, [real(B, 3)])
def detached(h: Tensor, x: Tensor) -> Any:
    h = 0.5 * h.detach() + 0.3 * torch.sigmoid(h) + x
    return h, h.detach() * x


@step([real(B, 3), real(B, 3)], [real(B, 3)])
def unread_state(h: Tensor, g: Tensor, x: Tensor) -> Any:
    return x, torch.tanh(g + x), h * g


@step([real(1)], [real(B, 3)])
def narrow_state(h: Tensor, x: Tensor) -> Any:
    h = 0.5 * h + x.mean((0, 1)).unsqueeze(0)
    return h, x * h


@step([real(3)], [real(3)], [real(B, 3)])
def shared_by_lanes(h: Tensor, x: Tensor, w: Tensor) -> Any:
    h = torch.tanh(0.5 * h + x)
    return h, h * w, h


@step([real(B, 19)], [gate(B, 19), real(B, 19)], [real(19)])
def wide(h: Tensor, a: Tensor, x: Tensor, w: Tensor) -> Any:
    h = a * h + (1 - a) * torch.tanh(x * w)
    return h, h


ALL = STEPS + [c for c in AFFINE if "small integers" not in c.name]
