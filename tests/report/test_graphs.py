"""Graphs as text: the stages of a compilation against golden files, and ``print_readable`` with the user's names.

``LINREC_UPDATE_GOLDEN=1 pytest tests/report/test_graphs.py`` writes the files anew.
"""

from __future__ import annotations

import os
import pathlib
import re

import pytest
import torch
from torch import Tensor

import linrec
from linrec.codegen import CompiledScan
from linrec.ir.readable import readable

from .samples import CASES, X

GOLDEN = pathlib.Path(__file__).with_name("golden")
SHOWN = ("named_gate", "delta_rule", "stabiliser", "elman", "Memory")


@pytest.mark.parametrize("name", SHOWN)
def test_stages(name: str) -> None:
    (case,) = [c for c in CASES if repr(c) == name]
    stages = linrec.passes.trace(case.function, *case.inputs)
    assert [s.name for s in stages] == [
        "input",
        "draw",
        "simplify",
        "decompose",
        "booleans",
        "parts",
        "sink",
        "outline",
        "split",
        "hoist",
        "lower",
    ]
    # Lines of this folder's files move when they are edited.
    found = "\n".join(re.sub(r"(samples\.py):\d+", r"\1", text) for text in linrec.passes.differences(stages)) + "\n"
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("LINREC_UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert found == path.read_text(encoding="utf-8"), f"{path} differs; LINREC_UPDATE_GOLDEN=1 writes it anew"


def test_no_golden_file_is_left_over() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == set(SHOWN)


def test_print_readable() -> None:
    (case,) = [c for c in CASES if repr(c) == "named_gate"]
    parallel = linrec.parallelize(case.function, case.inputs)
    parallel(*case.inputs)
    graph = linrec.graph(parallel)
    text = graph.print_readable(print_output=False)
    (loop,) = [m for m in graph.modules() if isinstance(m, CompiledScan)]
    step = loop.step.print_readable(print_output=False)
    assert "z: " in step and "sigmoid" in step, step
    for part in ("samples.py", "code: z = torch.sigmoid(x[:, t])", "in named_gate", "recurrence"):
        assert part in text, text
    assert "linrec_user_frame" not in text and "Annotation" not in text
    assert not re.search(r"\b(tensors_\d|p_inner)", text)
    torch.testing.assert_close(graph(*case.inputs)[0], case.function(*case.inputs))


def test_names_in_a_graph_are_distinct() -> None:
    def confusing(x: Tensor) -> Tensor:
        h = out = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            x_t = torch.tanh(x[:, t])
            h = 0.5 * h + x_t
            h = h + 1
            out = out + torch.tanh(h + out)
        return out

    (stage, *_) = linrec.passes.trace(confusing, X)
    names = [line.strip().partition(" = ")[0] for line in stage.text.splitlines() if " = " in line]
    assert len(names) == len(set(names)) > 5


def test_a_graph_without_a_module_prints() -> None:
    graph = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU()))
    assert "inputs" in readable(graph)
