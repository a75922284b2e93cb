"""The graph after each pass, as text, against the files in golden/; and in numbers against the loop, after each pass.

``LINREC_UPDATE_GOLDEN=1 pytest tests/passes/test_golden.py`` writes the files anew.
"""

from __future__ import annotations

import os
import pathlib

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree

from linrec.passes import standard
from tests.capture.rolled import roll, sized

from .loops import LOOPS, Loop, X, text

GOLDEN = pathlib.Path(__file__).with_name("golden")
UPDATE = bool(os.environ.get("LINREC_UPDATE_GOLDEN"))


@pytest.mark.parametrize("case", LOOPS, ids=repr)
def test_golden(case: Loop) -> None:
    tensors = [X, *case.rest]
    rolled = roll(case.function, *tensors, lengths=case.lengths)
    time = [1, *[None] * len(case.rest)]
    inputs = sized(tensors, time, 11)
    expected = pytree.tree_leaves(case.function(*inputs))
    stages: list[str] = []

    def observe(name: str, graph_module: fx.GraphModule) -> None:
        stages.append(f"== {name}\n{text(graph_module)}")
        for a, b in zip(expected, graph_module(*inputs), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10, msg=lambda m: f"after {name}: {m}")

    result = standard(observe=observe).run(rolled.graph_module)
    stages.append("== report\n" + "\n".join(str(r) for r in result.recurrences))
    found = "\n".join(stages) + "\n"
    path = GOLDEN / f"{case.name}.txt"
    if UPDATE:
        path.parent.mkdir(exist_ok=True)
        path.write_text(found)
    assert found == path.read_text(), f"{path} differs; LINREC_UPDATE_GOLDEN=1 writes it anew"


def test_no_golden_file_is_left_over() -> None:
    assert {p.stem for p in GOLDEN.glob("*.txt")} == {case.name for case in LOOPS}
