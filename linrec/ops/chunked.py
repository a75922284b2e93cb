"""Linear attention with or without decay: a matrix state, an outer-product input and a contracted readout.

Time is cut into chunks. Within a chunk the readout is a product of scores and values; between chunks only the states at
chunk boundaries exist, as a diagonal scan. So the states of all steps are never formed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ._dtypes import compute_dtype, result_dtype
from .cut import Cut, boundary_states
from .decay import Products, block_products, decay_of, split_mask
from .dispatch import dispatched
from .precision import own_precision


@own_precision
@dispatched
def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    value_decay: Tensor | None = None,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """y[t] = q[t]^T S[t], where S[t] = diag(decay[t]) S[t-1] diag(value_decay[t]) + k[t] v[t]^T and S[-1] = h0.

    Args:
        q: readout, (B, T, ..., K), time at `dim`; all operands broadcast against each other but for the last axis.
        k: (B, T, ..., K).
        v: (B, T, ..., V).
        decay: (B, T, ..., K), or (B, T, ..., 1) for one number a step; size 1 in time for a constant. None is no decay.
            Any number may be a decay: zero, negative, complex or greater than one.
        h0: state before the first step, broadcastable to (B, ..., K, V); zeros if None.
        chunk: steps in a chunk, a power of two.
        value_decay: as `decay`, over the value axis.
        reads_old: read the state before its update, y[t] = q[t]^T S[t-1].

    Returns:
        y, (B, T, ..., V), and the state after the last step, (B, ..., K, V). Half precision is computed in float32.

    Memory: the states at chunk boundaries, T / chunk of them, and T * chunk scores. The product of a chunk's decays
    must be representable. A NaN or infinity at step t can reach all steps of its chunk, and none of an earlier chunk.

    Raises:
        ValueError: if `chunk` is not a power of two, or `dim` is the last axis.

    Source: Yang et al., "Gated Linear Attention Transformers with Hardware-Efficient Training" (2024), section 4, and
    Dao and Gu, "Transformers are SSMs" (2024), section 6. How decays are multiplied is in `linrec.ops.decay`.
    """
    dtype = result_dtype(q, k, v, decay, h0, value_decay)
    compute = compute_dtype(dtype)
    cut = Cut.of(dim, chunk, ((q, 1), (k, 1), (v, 1), (decay, 1), (value_decay, 1)))
    q, k, v = (x.to(compute) for x in (q, k, v))
    start = cut.start(h0, k.shape[-1], v.shape[-1], v)
    if cut.length == 0:
        return cut.without_steps(v.shape[-1], v).to(dtype), start.to(dtype)
    q, k, v = (cut.chunks(x) for x in (q, k, v))
    gates, value_gates = (None if x is None else cut.chunks(x.to(compute), fill=1) for x in (decay, value_decay))

    # What the new state holds of the past is the old state, decayed once more; what it holds of the present is apart.
    past_q = q if reads_old or gates is None else q * gates
    y, last = _read_past(past_q, k, v, gates, value_gates, start)
    if not reads_old:
        y = y if value_gates is None else y * value_gates
        y = y + (q * k).sum(-1, keepdim=True) * v
    return cut.whole(y).to(dtype), last.to(dtype)


def _read_past(
    q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, value_gates: Tensor | None, start: Tensor
) -> tuple[Tensor, Tensor]:
    """The readout of the state before each step's update, by chunks, and the state after the last step."""
    keys = decay_of(gates)
    readers, writers = q.unsqueeze(-2), k.unsqueeze(-2)
    total, contents, values = keys.total(k).unsqueeze(-1), v, None
    if value_gates is not None:
        values = block_products(value_gates)
        total, contents = total * values[-1].total, v * values[-1].write
    states = boundary_states(total, keys.at_end(writers).squeeze(-2).mT @ contents, start, dense=False)
    y = keys.of_start(readers).squeeze(-2) @ states[..., :-1, :, :]
    if values is None:
        return y + keys.scores([readers], [writers])[0][0] @ v, states[..., -1, :, :]
    return y * values[-1].read + _recent_by_value(q, k, v, gates, values), states[..., -1, :, :]


def _recent_by_value(q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None, values: list[Products]) -> Tensor:
    """The readout of what the same chunk has written, where decays differ between values, and with them the scores."""
    y = torch.zeros_like(v)
    scores = decay_of(gates).scores([q.unsqueeze(-2)], [k.unsqueeze(-2)])[0][0]
    for value in values[:-1]:
        pairs = scores.where(split_mask(scores.shape[-1], value.size, scores.device), 0)
        y = y + value.read * (pairs @ (value.write * v))
    return y
