"""Models that mix recurrent and attention layers, and those that the library computes by chunks already: unchanged, and
parallel where there is a loop over time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import linrec
from tests.transformers.tiny import VOCABULARY, build, differences, outcome, tokens


def model_of(name: str, **sizes: Any) -> Any:
    """A causal language model of some family, tiny."""
    import transformers

    if not hasattr(transformers, f"{name}Config"):
        pytest.skip(f"this version of transformers has no {name}")
    config = getattr(transformers, f"{name}Config")(vocab_size=VOCABULARY, pad_token_id=0, **sizes)
    return getattr(transformers, f"{name}ForCausalLM")(config)


_ATTENTION = {"num_attention_heads": 2, "num_key_value_heads": 1}
_EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1}


def jamba() -> Any:
    """A Mamba layer, an attention layer with experts."""
    layers = {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1}
    mamba = {"mamba_d_state": 4, "mamba_dt_rank": 2, "use_mamba_kernels": False}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    return model_of("Jamba", **sizes, **layers, **mamba, **_ATTENTION, **_EXPERTS)


def qwen3_next() -> Any:
    """Three layers with the gated delta rule, one with attention."""
    linear = {f"linear_{k}": n for k, n in {"num_key_heads": 2, "num_value_heads": 2, "key_head_dim": 4}.items()}
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "head_dim": 8}
    experts = {**_EXPERTS, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    return model_of("Qwen3Next", **sizes, **linear, linear_value_head_dim=4, **experts, **_ATTENTION)


def mamba2() -> Any:
    """In chunks."""
    return model_of("Mamba2", hidden_size=8, num_hidden_layers=1, state_size=4, num_heads=2, head_dim=8, n_groups=1)


def bamba() -> Any:
    """Mamba-2 and attention."""
    sizes = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "attn_layer_indices": [1]}
    heads = {"mamba_n_heads": 2, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_n_groups": 1}
    return model_of("Bamba", **sizes, **heads, **_ATTENTION)


@pytest.mark.parametrize("factory", [jamba, qwen3_next, mamba2, bamba], ids=lambda f: f.__name__)
def test_it_computes_what_it_did(factory: Callable[[], Any]) -> None:
    """In training, with all gradients; generation gives the same tokens; the loop of Jamba is gone."""
    model, oracle = linrec.parallelize(build(factory, torch.float32)), build(factory, torch.float32)
    for batch, length in ((2, 11), (3, 20)):
        ids = tokens(batch, length)
        actual, expected = (outcome(each, ids, use_cache=False) for each in (model, oracle))
        assert differences(actual, expected, 1e-4) == []
    states = [each.parallel for each in linrec.report(model) if each.states]
    assert states == ([True] if factory is jamba else []), str(linrec.report(model))
    model.eval()
    oracle.eval()
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(*(each.generate(tokens(2, 7), **options) for each in (model, oracle)))


def test_a_cache_in_training_is_a_reason() -> None:
    """Jamba makes one unless told not to; what is written into it is not replayed, so that the loop stays."""
    model, oracle = linrec.parallelize(build(jamba, torch.float32)), build(jamba, torch.float32)
    ids = tokens(2, 11)
    assert differences(outcome(model, ids), outcome(oracle, ids), 0.0) == []
    (reason,) = linrec.report(model).obstructions
    assert reason.id == "LR014"
    assert "Cache" in reason.explanation
    assert "use_cache=False" in str(linrec.report(model))
