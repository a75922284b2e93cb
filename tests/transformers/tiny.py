"""Tiny models of `transformers`, built from configurations: nothing is downloaded, and nobody's code is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

VOCABULARY = 29


def mamba() -> Any:
    import transformers

    config = transformers.MambaConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, state_size=4, time_step_rank=2, pad_token_id=0
    )
    return transformers.MambaForCausalLM(config)


def falcon_mamba() -> Any:
    import transformers

    config = transformers.FalconMambaConfig(
        vocab_size=VOCABULARY, hidden_size=8, num_hidden_layers=2, state_size=4, time_step_rank=2, pad_token_id=0
    )
    return transformers.FalconMambaForCausalLM(config)


def recurrent_gemma() -> Any:
    import transformers

    config = transformers.RecurrentGemmaConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        lru_width=8,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        attention_window_size=16,
        pad_token_id=0,
    )
    return transformers.RecurrentGemmaForCausalLM(config)


def rwkv() -> Any:
    import transformers

    config = transformers.RwkvConfig(
        vocab_size=VOCABULARY, hidden_size=8, attention_hidden_size=8, num_hidden_layers=2, context_length=64
    )
    return transformers.RwkvForCausalLM(config)


def build(factory: Callable[[], Any], dtype: torch.dtype = torch.float64) -> Any:
    """The same model at each call, in training mode, with no weight left at zero."""
    torch.manual_seed(0)
    model = factory().to(dtype).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype))
    return model


def tokens(batch: int, length: int) -> torch.Tensor:
    """(batch, length) token ids, none of them padding."""
    generator = torch.Generator().manual_seed(100 * batch + length)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator)


def outcome(model: Any, ids: torch.Tensor, **kwargs: Any) -> dict[str, torch.Tensor]:
    """Loss, logits and all gradients of one training step."""
    model.zero_grad()
    found = model(input_ids=ids, labels=ids, **kwargs)
    found.loss.backward()
    values = {name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}
    return {"loss": found.loss.detach(), "logits": found.logits.detach(), **values}


def differences(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], tolerance: float) -> list[str]:
    """What differs by more than `tolerance` of its largest value."""
    assert actual.keys() == expected.keys()
    wrong = []
    for name, value in expected.items():
        if not torch.equal(actual[name].isnan(), value.isnan()):
            wrong.append(f"{name}: not a number elsewhere")
            continue
        value = value.nan_to_num()  # the loss of a single token is a mean of nothing
        largest = (actual[name].nan_to_num() - value).abs().max().item()
        if not largest <= tolerance * max(value.abs().max().item(), 1e-6):
            wrong.append(f"{name}: {largest:.3g} of {value.abs().max().item():.3g}")
    return wrong
