"""A compilation that is interrupted or fails leaves the model working and the process as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

import linrec

from .samples import Gated, Nested, agree, assert_parallel, build, counted_exports, same, series, steps_of, traces


def raising(error: type[BaseException], at: int) -> Callable[..., Any]:
    """An `export` that raises at its `at`-th call."""
    original, calls = torch.export.export, [0]

    def export(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at:
            raise error("out of the blue")
        return original(*args, **kwargs)

    return export


@pytest.mark.parametrize("at", [1, 2])
def test_an_interrupt_during_export(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """It comes through; the next call compiles."""
    model, oracle = linrec.parallelize(build(Nested)), build(Nested)
    before = traces()
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", raising(KeyboardInterrupt, at))
        with pytest.raises(KeyboardInterrupt):
            model(series())
    assert traces() == before
    assert list(model.state_dict()) == list(oracle.state_dict())
    same(model, oracle, series())
    assert_parallel(model)


@pytest.mark.parametrize("error", [RuntimeError, MemoryError, RecursionError])
def test_an_export_that_fails(monkeypatch: pytest.MonkeyPatch, error: type[Exception]) -> None:
    """The call gives the original's result, the report has the reason, and nothing is tried again at each call."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    before = traces()
    with monkeypatch.context() as patch:
        patch.setattr(torch.export, "export", raising(error, 1))
        agree(model(series()), oracle(series()))
    assert traces() == before
    with counted_exports() as exports:
        same(model, oracle, series())
        assert exports[0] == 0
    report = linrec.report(model)
    assert [each.id for each in report.obstructions] == ["LR002"]
    assert "out of the blue" in str(report)


def test_example_inputs_and_explain_that_are_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    model, oracle = build(Nested), build(Nested)
    kept = [dict(sub.__dict__) for sub in model.modules()]
    for entry in (linrec.explain, linrec.parallelize):
        with monkeypatch.context() as patch:
            patch.setattr(torch.export, "export", raising(KeyboardInterrupt, 1))
            with pytest.raises(KeyboardInterrupt):
                entry(model, series())
        linrec.revert(model)
        assert [dict(sub.__dict__) for sub in model.modules()] == kept
    same(linrec.parallelize(model), oracle, series())
    assert_parallel(model)


STAGES: dict[str, Callable[[Tensor], bool]] = {
    "at a short length": lambda x: x.shape[1] < 7 and not isinstance(x, FakeTensor),
    "in the trace": lambda x: isinstance(x, FakeTensor),
    "in double precision": lambda x: x.dtype == torch.float64,
    "at the length of the call": lambda x: x.shape[1] == 12,
}


class Fragile(Gated):
    """Raises at one stage of a compilation."""

    error: Any = None
    where: Any = None

    def forward(self, x: Tensor) -> Tensor:
        reached = Fragile.where(x)  # in every call: it reads sizes, which is part of what forward does
        if Fragile.error is not None and reached:
            raise Fragile.error("out of the blue")
        return super().forward(x)


@pytest.mark.parametrize("where", STAGES.values(), ids=STAGES.keys())
def test_an_interrupt_in_the_users_code(monkeypatch: pytest.MonkeyPatch, where: Callable[[Tensor], bool]) -> None:
    model, oracle = (build(Fragile, torch.float32) for _ in range(2))
    linrec.parallelize(model)
    identities = [id(p) for p in model.parameters()]
    x, before = series(dtype=torch.float32), traces()
    monkeypatch.setattr(Fragile, "where", staticmethod(where))
    with monkeypatch.context() as patch:
        patch.setattr(Fragile, "error", KeyboardInterrupt)
        with pytest.raises(KeyboardInterrupt):
            model(x)
    assert traces() == before
    assert [id(p) for p in model.parameters()] == identities
    agree(list(model.parameters()), list(oracle.parameters()))
    same(model, oracle, x, tolerance=1e-5)
    assert_parallel(model)
    assert steps_of(lambda: model(x)) == 0
