"""Whatever goes wrong inside the compiler, the model computes what it computed, and the report says that it did."""

from __future__ import annotations

from typing import Any

import networkx
import pytest
import sympy
import torch

import linrec
from linrec.codegen import launch
from linrec.codegen import scan as codegen
from linrec.lowering import diagonal
from linrec.runtime import compile as compiler
from linrec.runtime import dispatcher, shortruns, state
from linrec.runtime.plan import Plan

from .samples import Gated, build, same, series

STAGES: dict[str, tuple[Any, str]] = {
    "signature": (state, "frozen_state"),
    "discovery": (dispatcher, "find_time"),
    "axis": (dispatcher, "find_time"),
    "fingerprint": (shortruns, "record"),
    "trace": (compiler, "trace"),
    "normalise": (compiler, "normalize"),
    "re-roll": (compiler, "reroll"),
    "generalise": (compiler, "generalize"),
    "passes": (compiler, "standard"),
    "validation": (compiler, "validate"),
    "guards": (Plan, "admitted"),
    "check": (dispatcher, "check_length"),
    "run": (Plan, "arguments"),
}
ERRORS = (sympy.SympifyError("x"), networkx.NetworkXError("x"), torch._dynamo.exc.Unsupported("x", "y"), TypeError("x"))


@pytest.mark.filterwarnings("ignore:linrec keeps the original")
@pytest.mark.parametrize("number, stage", enumerate(STAGES), ids=STAGES.keys())
def test_a_stage_fails(monkeypatch: pytest.MonkeyPatch, number: int, stage: str) -> None:
    def fails(*args: Any, **kwargs: Any) -> Any:
        raise ERRORS[number % len(ERRORS)]

    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    monkeypatch.setattr(*STAGES[stage], fails)
    for length in (12, 15):
        same(model, oracle, series(2, length))
    report = linrec.report(model)
    assert report.obstructions or stage == "fingerprint", stage
    assert not report.parallel or stage == "fingerprint"
    assert str(report)


@pytest.mark.parametrize("part", ["translation", "forward", "backward", "scan"])
def test_a_kernel_fails(monkeypatch: pytest.MonkeyPatch, part: str) -> None:
    """At the first call or a later one: then the torch form runs, and the loop stays parallel."""

    def fails(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("LLVM ERROR")

    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    if part != "scan":
        same(model, oracle, series(2, 12))
    places: dict[str, tuple[Any, str]] = {
        "translation": (codegen, "_build"),
        "forward": (launch.Compiled, "forward"),
        "backward": (launch.Compiled, "backward"),
        "scan": (diagonal, "linear_scan"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*places[part], fails)
        same(model, oracle, series(3, 14))
    if part == "scan":
        assert [each.id for each in linrec.report(model).obstructions] == ["LR010"]
    else:
        assert linrec.report(model).parallel
    same(model, oracle, series(2, 13))
