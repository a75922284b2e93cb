"""The tool itself: changes are found and made one at a time, reach the live functions, and stay in their own process."""

from __future__ import annotations

import ast
import os

import pytest
import torch

from linrec.analysis.rules import RULES
from linrec.codegen.functions import DERIVATIVES
from linrec.lowering.registry import LOWERINGS
from linrec.runtime.state import frozen_state

from .edits import edited, edits
from .mutants import FILES, all_mutants, of_file
from .run import KILLED, SURVIVED, in_a_fork

SAMPLE = '''
def outer(a, b: int = 3, *, flag: bool = True):
    """Numbers in 1 docstring are no code."""
    if a < 0 and not flag:
        raise ValueError(f"{a + 1} is less than 0")
    total = [x - 1 for x in a if x != b]
    return -f(b, a), any(total)


class Box:
    def method(self, v):
        return g(self, v, 2.5)


register("name", lambda x: x * x)
'''


def test_every_change_is_one_change() -> None:
    found = edits(SAMPLE)
    kinds = {e.kind for e in found}
    assert kinds == {
        "guard dropped",
        "comparison",
        "condition dropped",
        "negation dropped",
        "operand dropped",
        "sign",
        "off by one",
        "number",
        "quantifier",
        "arguments swapped",
        "results swapped",
    }
    assert {e.function for e in found} == {"outer", "Box.method", "name"}
    texts = [ast.unparse(edited(SAMPLE, e)) for e in found]
    assert len(set(texts)) == len(texts)
    assert ast.unparse(ast.parse(SAMPLE)) not in texts
    assert all("b: int=3" in t and "flag: bool=True" in t and "{a + 1} is less than 0" in t for t in texts)


def test_every_rule_is_broken_in_some_way() -> None:
    mutants = all_mutants()
    names = {m.function for m in mutants}
    assert {f"RULES[{target}]" for target in RULES} <= names
    assert {f"DERIVATIVES[{name}]" for name in DERIVATIVES} <= names
    assert {f"LOWERINGS[{lowering.name}]" for lowering in LOWERINGS} <= names
    assert {m.file for m in mutants} >= set(FILES)
    assert {"Plan.admits", "signature"} <= names


def test_a_change_reaches_the_live_function_in_a_fork_only() -> None:
    mutant = next(
        m for m in of_file("runtime.state") if "name not in only" in m.what and m.what.startswith("comparison")
    )
    module = torch.nn.Linear(1, 1)
    before = frozen_state(module, {"in_features"})

    def work() -> tuple[int, str]:
        assert mutant.apply()
        return (SURVIVED if frozen_state(module, {"in_features"}) == before else KILLED), ""

    assert in_a_fork(work, 30)[0] == KILLED
    assert frozen_state(module, {"in_features"}) == before


@pytest.mark.parametrize("how", ["raises", "ends", "hangs"])
def test_a_process_that_comes_to_no_end_is_killed_by_its_mutant(how: str) -> None:
    def work() -> tuple[int, str]:
        if how == "raises":
            raise RuntimeError("no")
        if how == "ends":
            os._exit(7)
        while True:
            pass

    assert in_a_fork(work, 0.5 if how == "hangs" else 30)[0] == KILLED
