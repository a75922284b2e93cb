"""The generalised delta rule: a matrix state with a transition that is diagonal plus low rank, and a readout.

Within a chunk, what the low-rank factors read of the state solves a unit triangular system (the WY form); its solution
is affine in the state that the chunk starts from. So each chunk is one dense transition and one drive of the state, and
only the states at chunk boundaries are formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._dtypes import broadcast_shape, compute_dtype, result_dtype
from .cut import Cut, boundary_states
from .decay import decay_of, split_axis
from .dispatch import dispatched
from .precision import own_precision


@own_precision
@dispatched
def dplr_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    w: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """y[t] = q[t]^T S[t], where S[t] = (diag(decay[t]) + sum_i u[t,i] w[t,i]^T) S[t-1] + sum_i k[t,i] v[t,i]^T.

    DeltaNet, S[t] = (I - b k k^T) S[t-1] + b k v^T, is u = -b k, w = k; Gated DeltaNet, a (I - b k k^T) S + b k v^T,
    is decay = a, u = -a b k, w = k; RWKV-7 has its own u and w.

    Args:
        q: readout, (B, T, ..., K), time at `dim`; all operands broadcast against each other but for their last axes.
        k: (B, T, ..., s, K), s rows a step.
        v: (B, T, ..., s, V).
        u: (B, T, ..., r, K), r rows a step: the rank of what the transition adds to its diagonal.
        w: (B, T, ..., r, K).
        decay: (B, T, ..., K), or (B, T, ..., 1) for one number a step; size 1 in time for a constant. None is ones.
            Any number may be a decay: zero, negative, complex or greater than one.
        h0: state before the first step, broadcastable to (B, ..., K, V); zeros if None.
        chunk: steps in a chunk, a power of two.
        reads_old: read the state before its update, y[t] = q[t]^T S[t-1].

    Returns:
        y, (B, T, ..., V), and the state after the last step, (B, ..., K, V). Half precision is computed in float32.

    Memory: the states and (K, K) transitions at chunk boundaries, T / chunk of them, and T * chunk scores for each pair
    of rows. A NaN or infinity at step t can reach all steps of its chunk, and none of an earlier chunk.

    Raises:
        ValueError: if `chunk` is not a power of two, or `dim` is an axis of a step.

    Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule over Sequence Length" (2024), section 3;
    with decays, "Gated Delta Networks" (2024), section 3.3. How decays are multiplied is in `linrec.ops.decay`.
    """
    dtype = result_dtype(q, k, v, u, w, decay, h0)
    compute = compute_dtype(dtype)
    cut = Cut.of(dim, chunk, ((q, 1), (k, 2), (v, 2), (u, 2), (w, 2), (decay, 1)))
    q, k, v, u, w = (x.to(compute) for x in (q, k, v, u, w))
    start = cut.start(h0, k.shape[-1], v.shape[-1], v)
    if cut.length == 0:
        return cut.without_steps(v.shape[-1], v).to(dtype), start.to(dtype)
    k, v, u, w = (cut.chunks(x, features=2) for x in (k, v, u, w))
    q = cut.chunks(q).unsqueeze(-2)
    gates = None if decay is None else cut.chunks(decay.to(compute), fill=1)
    kept = decay_of(gates)

    # The factors w and the readout q are what reads; the factors u and the input k are what writes.
    past_q = q if reads_old or gates is None else q * gates.unsqueeze(-2)
    (wu, wk), (qu, qk) = kept.scores([w, past_q], [u, k])
    values = v.flatten(-3, -2)
    # What the factors read, w[t]^T S[t-1], is `of_start` times the state before the chunk plus `of_chunk`.
    right_sides = _columns(kept.of_start(w).flatten(-3, -2), wk @ values)
    solution = torch.linalg.solve_triangular(-wu, right_sides, upper=False, unitriangular=True)
    of_start, of_chunk = solution.split((k.shape[-1], v.shape[-1]), -1)

    write_u, write_k = (kept.at_end(x).flatten(-3, -2).mT for x in (u, k))
    total = kept.total(k)
    transition = torch.diag_embed(total.expand(*total.shape[:-1], k.shape[-1])) + write_u @ of_start
    states = boundary_states(transition, write_u @ of_chunk + write_k @ values, start, dense=True)
    before = states[..., :-1, :, :]

    read = of_start @ before + of_chunk
    y = kept.of_start(past_q).flatten(-3, -2) @ before + qu @ read + qk @ values
    if not reads_old:
        read = split_axis(read, -2, u.shape[-2])
        y = y + ((q * u).sum(-1, keepdim=True) * read).sum(-2) + ((q * k).sum(-1, keepdim=True) * v).sum(-2)
    return cut.whole(y).to(dtype), states[..., -1, :, :].to(dtype)


@own_precision
@dispatched
def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """y[t] = q[t]^T S[t], where S[t] = (I - beta[t] k[t] k[t]^T) diag(decay[t]) S[t-1] + beta[t] k[t] v[t]^T.

    Args:
        q: readout, (B, T, ..., K), time at `dim`; all operands broadcast against each other but for the last axis.
        k: (B, T, ..., K); not normalised here.
        v: (B, T, ..., V).
        beta: (B, T, ..., 1), how far a step goes towards what it writes.
        decay: (B, T, ..., K), or (B, T, ..., 1) for one number a step; size 1 in time for a constant. None is ones.
        h0: state before the first step, broadcastable to (B, ..., K, V); zeros if None.
        chunk: steps in a chunk, a power of two.

    Returns:
        y, (B, T, ..., V), and the state after the last step, (B, ..., K, V), as `dplr_attention` does.

    Raises:
        ValueError: if `chunk` is not a power of two, or `dim` is the last axis.

    Source: DeltaNet and Gated DeltaNet, see `dplr_attention`; with a decay for each key, Kimi Team, "Kimi Linear"
    (2025), equation 1.
    """
    dtype = result_dtype(q, k, v, beta, decay, h0)
    k, v, beta = (x.to(compute_dtype(dtype)) for x in (k, v, beta))
    written = beta * k
    read = k if decay is None else decay * k
    k, v, u, w = (x.unsqueeze(-2) for x in (written, v, -written, read))
    y, state = dplr_attention(q, k, v, u, w, decay, h0, dim=dim, chunk=chunk)
    return y.to(dtype), state.to(dtype)


def _columns(first: Tensor, second: Tensor) -> Tensor:
    """The columns of both, which broadcast along the axes before the last two."""
    lead = broadcast_shape(first.shape[:-2], second.shape[:-2])
    return torch.cat([x.expand(*lead, *x.shape[-2:]) for x in (first, second)], -1)
