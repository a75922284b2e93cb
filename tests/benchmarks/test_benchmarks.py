"""The benchmark's runner at tiny sizes: that it compares, times and shows; not how fast anything is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from benchmarks import calls, grid, measure, show
from benchmarks.__main__ import app
from benchmarks.cases import CASES
from benchmarks.measure import Disagreement, Row, check, difference, peak, run, shortened
from benchmarks.variant import Case, Unavailable, Variant

WITHOUT_MODELS = [n for n in CASES if n not in ("mamba", "delta-rule")]


@pytest.mark.parametrize("name", WITHOUT_MODELS)
def test_variants_agree(name: str) -> None:
    case = CASES[name]
    variants, missing = case.build(case.tiny)
    assert {"loop", "linrec"} <= variants.keys() and variants.keys() | missing.keys() >= case.peers.keys()
    errors = check(variants, *shortened(*case.data(case.tiny), case.tiny["T"]))
    assert errors.keys() == {n for n, v in variants.items() if v.same}


@pytest.mark.parametrize("name", ["mamba", "delta-rule"])
def test_models_of_transformers(name: str) -> None:
    pytest.importorskip("transformers")
    case = CASES[name]
    variants, _ = case.build(case.tiny)
    check(variants, *shortened(*case.data(case.tiny), case.tiny["T"]))


def test_wanted_ratios_name_peers() -> None:
    for case in CASES.values():
        assert case.wanted.keys() <= case.peers.keys()


class Off(nn.Module):
    """A gate whose values are right and whose derivative by the gate is not."""

    def forward(self, a: Tensor, x: Tensor) -> Tensor:
        return CASES["gate"].loop({})(a, x) + 0.01 * (a - a.detach())


def test_a_wrong_gradient_is_found() -> None:
    case = CASES["gate"]
    inputs, gradient = case.data(case.tiny)
    with pytest.raises(Disagreement, match="peer is off"):
        check({"loop": Variant(case.loop({})), "peer": Variant(Off())}, inputs, gradient)
    with pytest.raises(Disagreement, match="shapes"):
        difference([torch.zeros(2)], [torch.zeros(3)])
    assert not difference([torch.tensor([float("nan")])], [torch.ones(1)]) <= 1


def test_peers_that_are_not_installed_are_listed() -> None:
    def missing(sizes: Any, loop: Any) -> Variant:
        raise Unavailable("nothing is not installed")

    gate = CASES["gate"]
    case = Case("gate", "", gate.sizes, gate.tiny, gate.inputs, gate.loop, {"nobody": missing})
    rows = run(case, case.tiny, 2, with_loop=False)
    assert [(r.variant, r.note) for r in rows] == [("linrec", ""), ("nobody", "nothing is not installed")]
    assert rows[0].ratio == 1 and rows[0].seconds is not None and rows[1].seconds is None
    assert "nothing is not installed" in show.markdown(rows)


def test_peak_counts_what_is_held_at_once() -> None:
    def twice(x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + 1  # nothing is saved: two at a time
        return x

    x = torch.zeros(1 << 18)
    found = peak(Variant(twice), [x], torch.ones_like(x))
    assert found is not None and 2 << 20 <= found < 3 << 20


def test_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    class Noted(Variant):
        def __init__(self, name: str) -> None:
            self.name = name

        def prepare(self, inputs: Any, gradient: Any) -> Any:
            return lambda: order.append(self.name)

    variants = {n: Noted(n) for n in ("loop", "a", "b")}
    seconds = measure.take_turns(variants, [], None, 3, iter(range(1000)).__next__)
    assert {n: len(s) for n, s in seconds.items()} == {"loop": 2, "a": 3, "b": 3}
    turns = [["a"], ["b"], ["loop"], ["a"], ["b"], ["a"], ["b"], ["loop"], ["b"], ["a"]]
    times = [1, 1, *(1 if n == ["loop"] else measure.WARM + measure.IN_A_TURN for n in turns[2:])]
    assert order == [name for n, k in zip(turns, times, strict=True) for name in n * k]
    assert {x for s in seconds.values() for x in s} == {1}


def test_exponents() -> None:
    rows = [Row("gate", "linrec", 2**k, seconds=3 * 2.0**k, ratio=1.0) for k in range(6)]
    rows += [Row("gate", "one", 64, seconds=1.0, ratio=1.0)]
    assert show.exponents(rows) == {"gate: linrec": pytest.approx(1.0)}


def test_command(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    names = {k: str(tmp_path / f"found.{k}") for k in ("json", "png", "md")}
    args = ["gate", "--tiny", "--rounds", "2", "--threads", "1", "--lengths", "8,16,32", "--loop-up-to", "16"]
    threads = torch.get_num_threads()
    result = CliRunner().invoke(
        app, [*args, "--json", names["json"], "--plot", names["png"], "--markdown", names["md"]]
    )
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    found = json.loads(Path(names["json"]).read_text())
    assert [r["length"] for r in found["rows"] if r["variant"] == "linrec"] == [8, 16, 32]
    assert [r["length"] for r in found["rows"] if r["variant"] == "loop"] == [8, 16]
    assert "gate: linrec" in found["exponents"] and found["machine"]["threads"] == 1
    assert Path(names["png"]).stat().st_size > 1000 and "| linrec |" in Path(names["md"]).read_text()
    assert CliRunner().invoke(app, ["nothing"]).exit_code == 2


def test_grid(tmp_path: Path) -> None:
    path = tmp_path / "grid.json"
    threads = torch.get_num_threads()
    args = ["matrices", "--lengths", "4,12", "--batches", "2", "--widths", "8", "--rounds", "1", "--threads", "1"]
    result = CliRunner().invoke(grid.app, [*args, "--json", str(path)])
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    cells = json.loads(path.read_text())
    assert [c["length"] for c in cells] == [4, 12]
    assert {"as written", "chosen", "loop"} <= cells[0]["seconds"].keys()
    assert cells[0]["ratio"] >= 1


def test_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, threads = tmp_path / "calls.json", torch.get_num_threads()
    monkeypatch.setattr(calls, "_in_a_process", lambda name, threads, cache: calls.first_calls(name, threads))
    done = CliRunner().invoke(calls.app, ["mingru", "--rounds", "1", "--repeats", "1", "--json", str(out)])
    torch.set_num_threads(threads)
    assert done.exit_code == 0, done.output
    found = json.loads(out.read_text())
    filled = found["first calls"]["mingru"]["filled"][0]
    assert filled["parallel"] and filled["first"] > filled["later"] > 0
    assert all(whole > 0 and graph > 0 for whole, graph in found["later calls"].values())
    assert CliRunner().invoke(calls.app, ["nobody"]).exit_code == 2
