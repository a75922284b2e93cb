"""Whole language models after one added line: Mamba, FalconMamba and RecurrentGemma have no loop over time left, RWKV
computes what it computed; and generation runs the library's own code."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import linrec
from tests.transformers.tiny import build, differences, falcon_mamba, mamba, outcome, recurrent_gemma, rwkv, tokens

MODELS = {
    # These compute their recurrence in float32, whatever the model holds.
    "mamba": (mamba, 2, 1e-5),
    "falcon_mamba": (falcon_mamba, 2, 1e-5),
    "recurrent_gemma": (recurrent_gemma, 2, 1e-4),
}
CALLS = [(2, 11), (3, 24), (1, 37), (2, 6), (2, 3), (2, 1)]


@pytest.fixture(scope="module", params=list(MODELS))
def case(request: pytest.FixtureRequest) -> tuple[Any, Any, int, float]:
    """A parallelised model after one training step, its oracle, how many recurrences it has, and the tolerance."""
    factory, count, tolerance = MODELS[request.param]
    model = linrec.parallelize(build(factory))
    outcome(model, tokens(2, 11))
    return model, build(factory), count, tolerance


def test_everything_is_parallel(case: tuple[Any, Any, int, float]) -> None:
    model, _, count, _ = case
    report = linrec.report(model)
    assert len([each for each in report if each.states]) == count, str(report)
    assert report.parallel, str(report)
    assert not report.obstructions, str(report)
    assert not [each for each in report if each.obstructions], str(report)


@pytest.mark.parametrize("batch, length", CALLS)
def test_training_step(case: tuple[Any, Any, int, float], batch: int, length: int) -> None:
    model, oracle, _, tolerance = case
    ids = tokens(batch, length)
    assert differences(outcome(model, ids), outcome(oracle, ids), tolerance) == []
    assert linrec.report(model).parallel


def test_new_sizes_compile_nothing(case: tuple[Any, Any, int, float], monkeypatch: pytest.MonkeyPatch) -> None:
    """One plan serves every length, and every batch size unless the model keeps its state as an attribute of that
    size (RecurrentGemma): then there is one for each."""
    model, exports = case[0], []
    if "RecurrentGemma" in type(model).__name__:
        outcome(model, tokens(4, 12))
        outcome(model, tokens(5, 12))
    original = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *args, **kwargs: exports.append(1) or original(*args, **kwargs))
    outcome(model, tokens(4, 17))
    outcome(model, tokens(5, 9))
    assert not exports


def test_generation(case: tuple[Any, Any, int, float]) -> None:
    """In eval mode the tokens are the same ones, with the cache, greedily and sampled."""
    model, oracle = (each.eval() for each in case[:2])
    try:
        for options in ({"do_sample": False}, {"do_sample": True, "top_k": 5}):
            found = []
            for each in (model, oracle):
                torch.manual_seed(0)
                found.append(each.generate(tokens(2, 7), max_new_tokens=8, use_cache=True, **options))
            assert torch.equal(*found)
        assert torch.equal(model(tokens(2, 9)).logits, oracle(tokens(2, 9)).logits)
    finally:
        model.train()
        oracle.train()


def test_a_few_steps_of_training(case: tuple[Any, Any, int, float]) -> None:
    """The same losses; the weights are put back afterwards."""
    losses: list[list[float]] = []
    for each in case[:2]:
        kept = {name: value.clone() for name, value in each.state_dict().items()}
        optimiser = torch.optim.AdamW(each.parameters(), lr=1e-2)
        losses.append([])
        for step in range(3):
            losses[-1].append(float(outcome(each, tokens(2, 12))["loss"]))
            optimiser.step()
        each.load_state_dict(kept)
    assert losses[0][0] > losses[0][-1]
    assert losses[0] == pytest.approx(losses[1], rel=10 * case[3])


def test_padding(case: tuple[Any, Any, int, float]) -> None:
    """With an attention mask, which the convolution and the state have to respect."""
    model, oracle, _, tolerance = case
    ids = tokens(2, 13)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    arguments = {"attention_mask": mask}
    assert differences(outcome(model, ids, **arguments), outcome(oracle, ids, **arguments), tolerance) == []


def test_state_dict_and_saving(case: tuple[Any, Any, int, float], tmp_path: Any) -> None:
    """What `save_pretrained` writes is read back into a model that knows nothing of linrec."""
    model, oracle, _, tolerance = case
    assert list(model.state_dict()) == list(oracle.state_dict())
    model.save_pretrained(tmp_path)
    read = type(oracle).from_pretrained(tmp_path, dtype=torch.float64).train()
    ids = tokens(2, 9)
    assert differences(outcome(read, ids), outcome(oracle, ids), tolerance) == []


def test_single_precision() -> None:
    model, oracle = linrec.parallelize(build(mamba, torch.float32)), build(mamba, torch.float32)
    for batch, length in ((2, 11), (3, 24)):
        ids = tokens(batch, length)
        assert differences(outcome(model, ids), outcome(oracle, ids), 1e-4) == []
    assert linrec.report(model).parallel


def test_gradient_checkpointing_and_revert() -> None:
    """Checkpointing as the library's trainer switches it on, before the first step."""
    model, oracle, tolerance = build(mamba), build(mamba), MODELS["mamba"][2]
    for each in (model, oracle):
        each.gradient_checkpointing_enable()
    linrec.parallelize(model)
    for length in (11, 20):
        assert differences(outcome(model, tokens(2, length)), outcome(oracle, tokens(2, length)), tolerance) == []
    assert linrec.report(model).parallel

    linrec.revert(model)
    assert not [name for name, sub in model.named_modules() if "forward" in sub.__dict__]
    assert differences(outcome(model, tokens(2, 11)), outcome(oracle, tokens(2, 11)), 0.0) == []


def test_rwkv() -> None:
    """Its loop over time is in a function of the library that keeps a running maximum."""
    model, oracle = linrec.parallelize(build(rwkv)), build(rwkv)
    for batch, length in ((2, 11), (3, 20), (2, 3), (2, 1)):
        ids = tokens(batch, length)
        assert differences(outcome(model, ids), outcome(oracle, ids), 1e-6) == []
    model.eval()
    oracle.eval()
    assert torch.equal(*(each.generate(tokens(2, 7), max_new_tokens=6, do_sample=False) for each in (model, oracle)))
    assert str(linrec.report(model)).startswith("linrec: ")
