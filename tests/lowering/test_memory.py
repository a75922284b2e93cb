"""What matrix states cost in memory where no kernel runs: those at the ends of chunks, never those of all steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import linrec
from benchmarks.measure import peak
from benchmarks.variant import Variant
from linrec.codegen import torch_forms
from linrec.lowering.attention import CHUNK

B, K, V = 1, 128, 128


def decayed(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    S, out = q.new_zeros(q.shape[0], K, V), []
    for t in range(q.shape[1]):
        S = a[:, t, :, None] * S + k[:, t, :, None] * v[:, t, None]
        out.append((q[:, t, None] @ S)[:, 0])
    return torch.stack(out, 1)


def delta(q: Tensor, k: Tensor, v: Tensor, a: Tensor) -> Tensor:
    S, out = q.new_zeros(q.shape[0], K, V), []
    for t in range(q.shape[1]):
        kept = a[:, t, :, None] * S
        S = kept + k[:, t, :, None] * (v[:, t] - (k[:, t, None] @ kept)[:, 0])[:, None]
        out.append((q[:, t, None] @ S)[:, 0])
    return torch.stack(out, 1)


@pytest.mark.parametrize("loop", [decayed, delta])
def test_states_are_kept_at_the_ends_of_chunks(loop: Any) -> None:
    model = linrec.parallelize(loop, lowering="chunked attention")
    found = {}
    for length in (128, 512):
        inputs = [torch.nn.functional.normalize(torch.randn(B, length, K), dim=-1) for _ in range(3)]
        inputs.append(torch.rand(B, length, K))
        with torch_forms():
            model(*inputs)
            found[length] = peak(Variant(model), inputs, None)
    (entry,) = [r for r in linrec.report(model).recurrences if r.states]
    assert entry.lowering == "chunked attention"
    # What a step adds: copies of its keys, values and decays, its row of scores, and its share of the states and
    # transitions at the ends of chunks, with their derivatives.
    state, step = 4 * B * K * V, (found[512] - found[128]) / (512 - 128)
    assert step < 60 * 4 * B * K + 16 * 4 * B * CHUNK + 20 * state / CHUNK, step
    assert 60 * 4 * B * K + 16 * 4 * B * CHUNK + 20 * state / CHUNK < 2 * state
