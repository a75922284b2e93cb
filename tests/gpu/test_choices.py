"""The gallery as a GPU would have it, on a CPU: no compiled loops, lowerings chosen by a GPU's speeds."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

import linrec
from linrec.lowering import cost, registry
from linrec.passes import lower, outline
from models.registry import SAMPLES, Sample
from tests.models.test_parallel import agree, verdict


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(outline, "supported", lambda *args, **options: "a tensor is on a device of another type")
    for module in (lower, registry):
        monkeypatch.setattr(module, "machine", lambda device: cost.CUDA)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_gallery(sample: Sample) -> None:
    model, oracle = linrec.parallelize(sample.factory()), sample.factory()
    agree(sample, model, oracle, 2, 12)
    report = linrec.report(model)
    assert verdict(report) == sample.expect, str(report)
    for batch, length in ((3, 65), (1, 3)):
        agree(sample, model, oracle, batch, length)
