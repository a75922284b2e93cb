"""The comparison of a plan with the original, beside a GPU that the program has not used yet."""

from __future__ import annotations

import pytest
import torch

from linrec.runtime import outcome


@pytest.mark.parametrize("in_use", [False, True])
def test_a_gpu_that_is_not_in_use_keeps_its_seed(in_use: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: in_use)
    seeded: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with torch.random.fork_rng(devices=[]):
        outcome.seed_generators(7)
        first = torch.rand(3)
        outcome.seed_generators(7)
        assert torch.equal(first, torch.rand(3))
    assert seeded == ([7, 7] if in_use else [])
