"""The report as data, as text, on a terminal, in a notebook and as HTML: complete, stable, and safe with any name."""

from __future__ import annotations

import copy
import importlib.util
import io
import json
import pickle
import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import linrec
from linrec.ir.obstruction import CATALOGUE, Obstruction
from linrec.ir.recurrence import Estimate, LoopView, Recurrence
from linrec.report import Report
from models.registry import SAMPLES

RECURRENCE = {
    "module", "location", "source", "states", "equation", "latex", "where", "transition", "time_invariant", "proof",
    "lowering", "parallel", "estimates", "obstructions",
}  # fmt: skip
OBSTRUCTION = {"id", "name", "location", "source", "caret", "states", "explanation", "hint"}


def explained(name: str) -> Report:
    (sample,) = [s for s in SAMPLES if s.name == name]
    return linrec.explain(sample.factory(), *sample.inputs(2, 20, torch.get_default_dtype()))


@pytest.fixture(scope="module")
def partial() -> Report:
    return explained("context_rnn")


def test_data_has_stable_keys(partial: Report) -> None:
    data = json.loads(partial.to_json())
    assert data == partial.to_dict()
    assert set(data) == {"schema", "parallel", "modules", "recurrences", "obstructions"}
    assert data["schema"] == 1 and data["parallel"] is False
    memory, rnn = data["recurrences"]
    assert set(memory) == set(rnn) == RECURRENCE
    assert memory["states"] == ["s"] and memory["parallel"] and memory["proof"] == ["add", "mul"]
    assert [set(e) for e in memory["estimates"]] == [{"name", "work", "calls", "bytes", "seconds"}] * len(
        memory["estimates"]
    )
    names = [e["name"] for e in memory["estimates"]]
    assert names[0] == memory["lowering"] and names[-1] == "loop" and len(names) > 2
    (obstruction,) = rnn["obstructions"]
    assert set(obstruction) == OBSTRUCTION
    assert obstruction["states"] == ["h"] and obstruction["name"] == CATALOGUE["LR003"][0]


def test_the_caret_is_under_the_operator(partial: Report) -> None:
    (obstruction,) = partial.recurrences[1].obstructions
    start, end = obstruction.caret.index("^"), len(obstruction.caret)
    assert obstruction.source[start:end] == "torch.sigmoid"


def test_the_cycle_is_named() -> None:
    (entry,) = explained("lmu_coupled")
    (obstruction,) = entry.obstructions
    assert "h -> u -> m -> h" in obstruction.explanation and "'tanh'" in obstruction.explanation


def test_text(partial: Report) -> None:
    text = str(partial)
    assert all(len(line) <= 118 for line in text.splitlines())
    for part in ("1 of 2 recurrences parallel", "s[t] = 0.95 s[t-1]", "parallel: diagonal scan", "next best", "hint: "):
        assert part in text


def test_terminal(partial: Report) -> None:
    for width in (60, 120):
        out = io.StringIO()
        Console(file=out, width=width, force_terminal=False).print(partial)
        text = out.getvalue()
        assert "s[t] = 0.95 s[t-1]" in text and "^^^" in text and "proved by the rules of add, mul" in text
        assert all(len(line.rstrip()) <= width for line in text.splitlines())


def test_notebook(partial: Report) -> None:
    html = partial._repr_html_()
    assert r"$$s_{t} = 0.95 \, s_{t-1} + (1 - a) \, \operatorname{B}\left(x_{t}\right)$$" in html
    assert html.count("<tr>") == html.count("</tr>") == 3


def test_an_empty_report(tmp_path: Path) -> None:
    empty = linrec.report(linrec.parallelize(nn.Linear(2, 2)))
    assert str(empty).startswith("linrec: no loop over time")
    assert "no loop over time" in empty._repr_html_()
    assert "no loop over time" in empty.to_html(tmp_path / "empty.html").read_text(encoding="utf-8")
    assert empty.to_dict()["recurrences"] == []
    Console(file=io.StringIO()).print(empty)


class _Balance(HTMLParser):
    """Tags that are open, and everything that could run or ask for something."""

    VOID = frozenset(["meta", "br", "path", "circle", "rect", "mspace"])

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.suspicious: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("script", "link", "img", "iframe", "object", "b1"):
            self.suspicious.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("src", "href") and not str(value).startswith("#")):
                self.suspicious.append(f"{name}={value}")

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag


def assert_sound(html: str) -> None:
    parser = _Balance()
    parser.feed(html)
    assert parser.open == [] and parser.suspicious == []
    assert "http" not in re.sub(r"http-equiv", "", html)


@pytest.mark.parametrize("name", ["context_rnn", "gated_deltanet", "rwkv4", "slstm"])
def test_html(name: str, tmp_path: Path) -> None:
    report = explained(name)
    html = report.to_html(tmp_path / "r.html").read_text(encoding="utf-8")
    assert_sound(html)
    assert html.count("<math") == len(report.recurrences)
    assert "State graph" in html and "Graph before and after" in html
    for r in report:
        assert r.location in html
    assert ("line moved" in html) and ("line solved" in html or not any(r.parallel for r in report))


EVIL = '<b1 onclick="x">&\'"</b1><script>alert(1)</script>'


def test_colours_tell_what_became_of_a_line(tmp_path: Path) -> None:
    """Two calls of one line of the user's, one of which reads the state, and a loop that is compiled but stays one."""
    path = tmp_path / "report.html"
    explained("lmu_coupled").to_html(str(path))
    before, after = re.findall(r"<pre>(.*?)</pre>", path.read_text(), re.DOTALL)[-2:]
    kinds = {m[2]: m[1] for m in re.finditer(r"<span class='line (\w+)'>\s*([\w, ]+ = \w+\([\w, ]+)", before)}
    assert kinds["linear = linear(x_2, cell_e_x_weight"] == "moved"
    assert kinds["linear_2 = linear(h, cell_e_h_weight"] == "kept"
    assert "class='line kept'>states_0" in after


def test_what_comes_from_the_user_is_escaped(tmp_path: Path) -> None:
    obstruction = Obstruction("LR003", EVIL, EVIL, EVIL, EVIL, EVIL, (EVIL,))
    view = LoopView((EVIL, "h"), ((0, 1), (0, 0), (1, 0)), ((0, 1),), EVIL, f"    {EVIL}\n{EVIL}")
    entry = Recurrence(EVIL, EVIL, (EVIL,), EVIL, EVIL, False, EVIL, False, [obstruction], source=EVIL, view=view)
    entry.estimates = (Estimate(EVIL, 10.0), Estimate("loop", 0.0, 3))
    entry.proof = (EVIL,)
    report = Report([entry], [obstruction], [EVIL])
    for html in (report._repr_html_(), report.to_html(tmp_path / "evil.html", EVIL).read_text(encoding="utf-8")):
        assert_sound(html)
        assert "<script" not in html and "&lt;script&gt;" in html
    Console(file=io.StringIO()).print(report)
    assert EVIL[:20] in str(report)


SOURCE = """
import torch

def forward(x):
    {name}, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        {name} = 0.5 * {name} + x[:, t]  # [red]{{$\\\\frac$}}[/red] <i>
        out.append({name})
    return torch.stack(out, 1)
"""


def from_source(text: str, folder: Path, stem: str) -> ModuleType:
    path = folder / f"{stem}.py"
    path.write_text(text, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["größe", "状態", "_", "h_t", "bold", "I", "E", "diag", "lambda_"])
def test_any_name_of_a_state(name: str, tmp_path: Path) -> None:
    """Names in other scripts, names that mean something to sympy or rich, and markup in the source line."""
    module = from_source(SOURCE.format(name=name), tmp_path, "loop")
    report = linrec.explain(module.forward, torch.randn(2, 12, 3))
    (entry,) = report
    assert entry.parallel and entry.states == (name.removesuffix("_t") or name,)
    assert entry.equation == f"{entry.states[0]}[t] = 0.5 {entry.states[0]}[t-1] + x[t]"
    out = io.StringIO()
    Console(file=out, width=150, force_terminal=False).print(report)
    assert "[red]" in out.getvalue()
    assert_sound(report.to_html(tmp_path / "r.html").read_text(encoding="utf-8"))


def test_source_that_is_gone(tmp_path: Path) -> None:
    """Code without a file still gets a report."""
    import linecache

    namespace: dict[str, Any] = {}
    exec(compile(SOURCE.format(name="h"), str(tmp_path / "never.py"), "exec"), namespace)
    linecache.clearcache()
    report = linrec.explain(namespace["forward"], torch.randn(2, 12, 3))
    assert report.parallel and "h[t-1]" in str(report)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the extent of expressions is recorded from 3.11 on")
def test_code_over_several_lines(tmp_path: Path) -> None:
    text = SOURCE.format(name="h").replace(
        "0.5 * h + x[:, t]", "(\n            0.5\n            * h\n            + x[:, t].tanh()\n        )"
    )
    (entry,) = linrec.explain(from_source(text, tmp_path, "long").forward, torch.randn(2, 12, 3))
    assert entry.equation == "h[t] = 0.5 h[t-1] + tanh(x[t])"


def test_a_report_can_be_copied_and_pickled(partial: Report) -> None:
    assert copy.deepcopy(partial).to_dict() == partial.to_dict()
    small = Report([Recurrence("", "", ("h",), "h[t] = 0", "", True, "loop", False)])
    assert pickle.loads(pickle.dumps(small)).to_dict() == small.to_dict()
