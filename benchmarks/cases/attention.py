"""Recurrences with a matrix for a state: linear attention with decays of three kinds, and the gated delta rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.variant import Case, Sizes, Variant, optional
from linrec.ops import linear_attention


def gla(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    """S[t] = diag(alpha[t]) S[t-1] + k[t] v[t]^T, y[t] = S[t]^T q[t], with log alpha = logsigmoid(gate) / 16."""
    alpha = torch.exp(F.logsigmoid(gate) / 16)
    S, out = q.new_zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        S = alpha[:, t, :, :, None] * S + k[:, t, :, :, None] * v[:, t, :, None, :]
        out.append((q[:, t, :, None, :] @ S).squeeze(-2))
    return torch.stack(out, dim=1)


def _gla_chunked(q: Tensor, k: Tensor, v: Tensor, gate: Tensor) -> Tensor:
    return linear_attention(q, k, v, torch.exp(F.logsigmoid(gate) / 16))[0]


def _retnet_decay(heads: int) -> Tensor:
    return 1 - 2.0 ** (-5 - torch.arange(heads))


def retnet(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """S[t] = gamma S[t-1] + k[t] v[t]^T with a constant gamma for each head, y[t] = S[t]^T q[t]."""
    gamma = _retnet_decay(q.shape[2])[:, None, None].to(q.dtype)
    S, out = q.new_zeros(*k[:, 0].shape, v.shape[-1]), []
    for t in range(q.shape[1]):
        S = gamma * S + k[:, t].unsqueeze(-1) * v[:, t].unsqueeze(-2)
        out.append(torch.sum(q[:, t].unsqueeze(-1) * S, dim=-2))
    return torch.stack(out, dim=1)


def mamba2(C: Tensor, B: Tensor, x: Tensor, dt: Tensor, A_log: Tensor) -> Tensor:
    """S[t] = exp(-dt[t] exp(A_log)) S[t-1] + dt[t] x[t] B[t]^T, y[t] = S[t] C[t], with dt of each step and head."""
    dt = F.softplus(dt)
    S, out = x.new_zeros(*x[:, 0].shape, B.shape[-1]), []
    for t in range(x.shape[1]):
        decay = torch.exp(-dt[:, t] * torch.exp(A_log))
        S = S * decay[:, :, None, None] + torch.einsum("bh,bhn,bhp->bhpn", dt[:, t], B[:, t], x[:, t])
        out.append(torch.einsum("bhpn,bhn->bhp", S, C[:, t]))
    return torch.stack(out, dim=1)


def _retnet_chunked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return linear_attention(q, k, v, _retnet_decay(q.shape[2])[None, None, :, None].to(q.dtype))[0]


def _mamba2_chunked(C: Tensor, B: Tensor, x: Tensor, dt: Tensor, A_log: Tensor) -> Tensor:
    dt = F.softplus(dt).unsqueeze(-1)
    return linear_attention(C, B, dt * x, torch.exp(-dt * torch.exp(A_log)[:, None]))[0]


def by_chunks(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, chunk: int = 64) -> Tensor:
    """The textbook chunked form with one decay for each head and step, as the logarithms log_decay: (B, T, H)."""
    batch, length, heads, width = q.shape
    pad = -length % chunk
    q, k, v = (
        F.pad(x, (0, 0, 0, 0, 0, pad)).view(batch, -1, chunk, heads, x.shape[-1]).transpose(2, 3) for x in (q, k, v)
    )
    total = F.pad(log_decay, (0, 0, 0, pad)).view(batch, -1, chunk, heads).transpose(2, 3).cumsum(-1)
    between = (total.unsqueeze(-1) - total.unsqueeze(-2)).masked_fill(
        torch.ones(chunk, chunk, dtype=torch.bool).triu(1), -torch.inf
    )
    inside = (q @ k.transpose(-1, -2) * between.exp()) @ v
    written = (k * (total[..., -1:] - total).exp().unsqueeze(-1)).transpose(-1, -2) @ v
    kept = total[..., -1].exp()[..., None, None]
    state, states = q.new_zeros(batch, heads, width, v.shape[-1]), []
    for decay, new in zip(kept.unbind(1), written.unbind(1), strict=True):
        states.append(state)
        state = decay * state + new
    y = inside + (q * total.exp().unsqueeze(-1)) @ torch.stack(states, 1)
    return y.transpose(2, 3).reshape(batch, -1, heads, v.shape[-1])[:, :length]


def _retnet_by_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return by_chunks(q, k, v, _retnet_decay(q.shape[2]).log().to(q.dtype).expand(q.shape[:3]))


def _mamba2_by_chunks(C: Tensor, B: Tensor, x: Tensor, dt: Tensor, A_log: Tensor) -> Tensor:
    dt = F.softplus(dt)
    return by_chunks(C, B, dt.unsqueeze(-1) * x, -dt * torch.exp(A_log))


def _qwen(name: str) -> Any:
    return getattr(optional("transformers.models.qwen3_next.modeling_qwen3_next"), name)


def _delta_rule(name: str) -> Any:
    function = _qwen(name)
    return lambda *given: function(*given, use_qk_l2norm_in_kernel=True)[0]


def _parts(sizes: Sizes) -> list[Tensor]:
    return [torch.randn(sizes["B"], sizes["T"], sizes["H"], sizes["D"]) for _ in range(3)]


def _delta_inputs(sizes: Sizes) -> list[Tensor]:
    g, beta = (torch.randn(sizes["B"], sizes["T"], sizes["H"]) for _ in range(2))
    return [*_parts(sizes), -F.softplus(g), torch.sigmoid(beta)]


def _gla_inputs(sizes: Sizes) -> list[Tensor]:
    return [*_parts(sizes), torch.randn(sizes["B"], sizes["T"], sizes["H"], sizes["D"])]


def _mamba2_inputs(sizes: Sizes) -> list[Tensor]:
    dt = torch.randn(sizes["B"], sizes["T"], sizes["H"]) - 3
    return [*_parts(sizes), dt, torch.log(torch.empty(sizes["H"]).uniform_(1, 16))]


_SIZES: dict[str, Any] = {
    "sizes": {"B": 2, "T": 1024, "H": 4, "D": 32},
    "tiny": {"B": 1, "T": 16, "H": 2, "D": 4},
}
_OURS, _TEXTBOOK = "linrec.ops.linear_attention", "chunks by hand"

CASES = [
    Case(
        "delta-rule",
        "transformers' Qwen3-Next recurrent gated delta rule, unchanged",
        **_SIZES,
        inputs=_delta_inputs,
        loop=lambda sizes: _delta_rule("torch_recurrent_gated_delta_rule"),
        peers={"transformers' chunked form": lambda sizes, loop: Variant(_delta_rule("torch_chunk_gated_delta_rule"))},
        wanted={"transformers' chunked form": 1.5},
    ),
    Case(
        "gla",
        "gated linear attention: a decay for each key channel",
        **_SIZES,
        inputs=_gla_inputs,
        loop=lambda sizes: gla,
        peers={_OURS: lambda sizes, loop: Variant(_gla_chunked)},
        wanted={_OURS: 1.5},
    ),
    Case(
        "retnet",
        "RetNet: a constant decay for each head",
        **_SIZES,
        inputs=_parts,
        loop=lambda sizes: retnet,
        peers={
            _OURS: lambda sizes, loop: Variant(_retnet_chunked),
            _TEXTBOOK: lambda sizes, loop: Variant(_retnet_by_chunks),
        },
        wanted={_OURS: 1.5, _TEXTBOOK: 1.5},
    ),
    Case(
        "mamba2",
        "Mamba-2: a decay for each head and step",
        **_SIZES,
        inputs=_mamba2_inputs,
        loop=lambda sizes: mamba2,
        peers={
            _OURS: lambda sizes, loop: Variant(_mamba2_chunked),
            _TEXTBOOK: lambda sizes, loop: Variant(_mamba2_by_chunks),
        },
        wanted={_OURS: 1.5, _TEXTBOOK: 1.5},
    ),
]
