"""Recurrences that the library keeps in functions: the gated delta rule of Qwen3-Next; OLMo Hybrid around its own."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor

import linrec
from tests.transformers.tiny import VOCABULARY, build, differences, outcome, tokens


def inputs(batch: int, length: int, heads: int = 2, width: int = 4) -> list[Tensor]:
    """Query, key and value (B, T, H, K), log decay and step size (B, T, H)."""
    generator = torch.Generator().manual_seed(10 * length + batch)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    shape = (batch, length, heads)
    query, key, value = (normal(*shape, width) for _ in range(3))
    return [query, key, value, -normal(*shape).exp(), torch.sigmoid(normal(*shape))]


def with_gradients(function: Any, batch: int, length: int, **kwargs: Any) -> list[Tensor]:
    leaves = [each.requires_grad_() for each in inputs(batch, length)]
    query, key, value, decay, step = leaves
    out, last = function(query, key, value, g=decay, beta=step, initial_state=None, **kwargs)
    loss = out.pow(2).sum() + (0 if last is None else last.sum())
    return [out.detach(), *([] if last is None else [last.detach()]), *torch.autograd.grad(loss, leaves)]


def test_gated_delta_rule() -> None:
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    theirs = module.torch_recurrent_gated_delta_rule
    ours = linrec.parallelize(theirs)
    kwargs = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    for batch, length in ((2, 11), (3, 19), (1, 3)):
        actual, expected = (with_gradients(each, batch, length, **kwargs) for each in (ours, theirs))
        for left, right in zip(actual, expected):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))
    report = linrec.report(ours)
    (recurrence,) = (each for each in report if each.states)
    assert recurrence.states == ("last_recurrent_state",)
    assert "not affine" not in str(report)


def olmo_hybrid() -> Any:
    import transformers

    config = transformers.OlmoHybridConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        num_key_value_heads=2,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=4,
        linear_value_head_dim=8,
        pad_token_id=0,
        eos_token_id=None,
    )
    return transformers.OlmoHybridForCausalLM(config)


def test_olmo_hybrid() -> None:
    """The layers call a chunked form in training; whatever becomes of it, the model computes what it did."""
    try:
        importlib.import_module("transformers.models.olmo_hybrid.modeling_olmo_hybrid")
    except ImportError:
        pytest.skip("this version of transformers has no OLMo Hybrid")
    model, oracle = linrec.parallelize(build(olmo_hybrid, torch.float32)), build(olmo_hybrid, torch.float32)
    for batch, length in ((2, 9), (1, 20)):
        ids = tokens(batch, length)
        assert differences(outcome(model, ids), outcome(oracle, ids), 1e-3) == []
