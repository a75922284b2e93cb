"""Recurrences that the library keeps in functions: the gated delta rule of Qwen3-Next, Kimi's delta attention, xLSTM's
matrix memory; and the models around them."""

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


def hold(ours: Any, theirs: Any, outcome_of: Any) -> None:
    """Compare what both return and their derivatives: ``outcome_of(function, batch, length)``, in single precision."""
    for batch, length in ((2, 11), (3, 19), (1, 3)):
        actual, expected = (outcome_of(each, batch, length) for each in (ours, theirs))
        for left, right in zip(actual, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4 * float(right.detach().abs().max()))


def test_gated_delta_rule() -> None:
    module = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    theirs = module.torch_recurrent_gated_delta_rule
    ours = linrec.parallelize(theirs)
    kwargs = {"output_final_state": True, "use_qk_l2norm_in_kernel": True}
    hold(ours, theirs, lambda each, batch, length: with_gradients(each, batch, length, **kwargs))
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


def kimi_linear() -> Any:
    import transformers

    config = transformers.KimiLinearConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        linear_head_dim=4,
        linear_num_heads=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        kv_lora_rank=4,
        q_lora_rank=None,
        qk_nope_head_dim=4,
        qk_rope_head_dim=4,
        v_head_dim=4,
        num_experts=4,
        n_routed_experts=4,
        num_experts_per_token=2,
        moe_intermediate_size=8,
        use_cache=False,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.KimiLinearForCausalLM(config)


def test_kimi_delta_attention() -> None:
    """The decay differs along the keys."""
    module = pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    ours = linrec.parallelize(module.recurrent_kimi_delta_attention)

    def run(each: Any, batch: int, length: int) -> list[Tensor]:
        query, key, value, _, step = inputs(batch, length)
        torch.manual_seed(length)
        decay = -torch.randn(batch, length, 2, 4).exp()
        leaves = [x.requires_grad_() for x in (query, key, value, decay, step)]
        given = {"g": decay, "beta": step, "initial_state": None, "use_qk_l2norm_in_kernel": True}
        out, last = each(query, key, value, output_final_state=True, **given)
        return [out, last, *torch.autograd.grad(out.pow(2).sum() + last.sum(), leaves)]

    hold(ours, module.recurrent_kimi_delta_attention, run)
    (recurrence,) = (each for each in linrec.report(ours) if each.states)
    assert linrec.report(ours).parallel, str(linrec.report(ours))
    assert recurrence.states == ("last_recurrent_state",)


def test_kimi_linear() -> None:
    """The layers call a chunked form in training, beside experts and attention; the model computes what it did."""
    pytest.importorskip("transformers.models.kimi_linear.modeling_kimi_linear")
    model, oracle = linrec.parallelize(build(kimi_linear, torch.float32)), build(kimi_linear, torch.float32)
    ids = tokens(2, 9)
    assert differences(outcome(model, ids), outcome(oracle, ids), 1e-3) == []


def xlstm() -> Any:
    """In the mode in which the library runs its own loop, for what is shorter than a chunk."""
    import transformers

    config = transformers.xLSTMConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=1,
        num_blocks=1,
        num_heads=2,
        qk_dim_factor=1.0,
        v_dim_factor=1.0,
        mode="inference",
        return_last_states=True,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return transformers.xLSTMForCausalLM(config)


def test_xlstm_matrix_memory() -> None:
    module = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    theirs = getattr(module, "mlstm_recurrent_sequence_native", None)
    if theirs is None:
        pytest.skip("the xlstm package is installed, and the library's own loop is not there")
    ours = linrec.parallelize(theirs)

    def run(each: Any, batch: int, length: int) -> list[Tensor]:
        torch.manual_seed(length)
        shape = batch, 2, length
        leaves = [torch.randn(*shape, n) for n in (4, 4, 6)] + [torch.randn(shape), torch.randn(shape) + 2]
        leaves = [x.requires_grad_() for x in leaves]
        out, last = each(*leaves, return_last_states=True)
        return [out, *last, *torch.autograd.grad(out.pow(2).sum() + sum(x.sum() for x in last), leaves)]

    hold(ours, theirs, run)
    report = linrec.report(ours)
    assert report.parallel, str(report)
    assert len([each for each in report if each.states]) == 3


def test_xlstm() -> None:
    """The model writes the states that come out over those that went in, before the backward pass."""
    module = pytest.importorskip("transformers.models.xlstm.modeling_xlstm")
    if not hasattr(module, "mlstm_recurrent_sequence_native"):
        pytest.skip("the xlstm package is installed, and the library's own loop is not there")
    model, oracle = linrec.parallelize(build(xlstm, torch.float32)), build(xlstm, torch.float32)
    for batch, length in ((2, 9), (2, 12)):
        ids = tokens(batch, length)
        assert differences(outcome(model, ids), outcome(oracle, ids), 1e-3) == []
    assert linrec.report(model).parallel, str(linrec.report(model))
