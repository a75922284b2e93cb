"""Find out which dimension of a call is time, and which modules own a loop over it: the same call is run at two short
lengths, and whose operators grow in number owns the loop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from linrec.capture.probe import Dims, Record, record, resize

SHORT = 4
"""The shortest length that is ever traced; a loop below it always runs as it was written."""


@dataclass(frozen=True)
class TimeAxis:
    """The time dimension of a call.

    Attributes:
        leaf, dim: where the length is read off.
        dims: all dimensions that grow with it.
        owners: the modules whose own operators grow in number with it, in order of first call.
        tensor_leaves: the positions of tensors among the leaves of the call.
        shown_at: the shortest length at which it shows. A loop that begins after some steps may fail at shorter ones.
    """

    leaf: int
    dim: int
    dims: Dims
    owners: tuple[nn.Module, ...]
    tensor_leaves: tuple[int, ...]
    shown_at: int = SHORT


def candidates(leaves: Sequence[Any]) -> Iterator[tuple[int, int, Dims]]:
    """Ways in which the call could have a time dimension: (leaf, dim, all dimensions that would grow together)."""
    tensors = [(i, x) for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim() > 0]
    if not tensors:
        return
    seen: set[Any] = set()
    ranks = max(x.dim() for _, x in tensors)
    order = [d for d in (1, 0, *range(2, ranks)) if d < ranks]
    for i, x in tensors:
        for d in order:
            if d >= x.dim() or x.shape[d] < SHORT:
                continue
            size = x.shape[d]
            groups = (
                {j: {e: 0 for e in range(y.dim()) if y.shape[e] == size} for j, y in tensors},
                {j: {d: 0} for j, y in tensors if d < y.dim() and y.shape[d] == size},
                {i: {d: 0}},
                # With one step more or less, as values have beside rewards.
                {j: {d: y.shape[d] - size} for j, y in tensors if d < y.dim() and abs(y.shape[d] - size) <= 1},
            )
            for group in groups:
                kept = {j: dims for j, dims in group.items() if dims}
                key = tuple((j, tuple(dims.items())) for j, dims in kept.items())
                if key not in seen:
                    seen.add(key)
                    yield i, d, kept


def find_time(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> Iterator[TimeAxis]:
    """All ways in which the number of operators of a call grows with a dimension of its inputs, likeliest first."""
    for leaf, dim, dims in candidates(leaves):
        grown = None
        for short in (SHORT, 4 * SHORT, 12 * SHORT):
            if short + 2 > leaves[leaf].shape[dim] + 2 * SHORT:
                break
            records: list[Record] = []
            try:
                for length in (short, short + 2):
                    records.append(record(module, forward, spec, resize(leaves, dims, length), per_module=True))
            except Exception:  # the model may raise anything at a size that is not its own: then this is not time
                continue
            grown = _owners(*records)
            break
        if grown:
            tensors = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor))
            yield TimeAxis(leaf, dim, dims, grown, tensors, short)


_IN_ONE_CALL = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
"""torch's recurrent layers loop inside one operator, not in Python."""


def _owners(shorter: Record, longer: Record) -> tuple[nn.Module, ...]:
    grown = (m for m, count in longer.own.items() if count > shorter.own.get(m, count))
    return tuple(m for m in grown if type(m).forward not in _IN_ONE_CALL)
