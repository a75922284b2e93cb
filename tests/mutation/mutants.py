"""The mutants: changes of the code of every file that decides or computes something, and of the registries themselves.

A change is made by putting new code into the functions that are there already, so whatever refers to them (registries,
imports, methods) runs it; the process that does it is a fork of its own.
"""

from __future__ import annotations

import gc
import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import torch

from linrec.analysis import rules
from linrec.codegen import functions as elements
from linrec.lowering.registry import LOWERINGS

from .edits import Edit, edited, edits

aten = torch.ops.aten
ROOT = Path(__file__).parents[2]

PROVE = (
    "analysis.rules",
    "analysis.complex_rules",
    "analysis.selection",
    "analysis.polynomial",
    "analysis.structure",
    "analysis.semiring",
)
MOVE = (
    "analysis.vector_rules",
    "analysis.vectorize",
    "passes.booleans",
    "passes.decompose",
    "passes.detached",
    "passes.parts",
    "passes.split",
    "passes.hoist",
    "passes.sink",
    "passes.lower",
)
LOWER = (
    "lowering.affine",
    "lowering.dense",
    "lowering.diagonal",
    "lowering.emission",
    "lowering.kernel",
    "lowering.semirings",
    "capture.functionalize",
    "capture.reroll",
    "capture.generalize",
    "capture.listed",
    "capture.masks",
    "capture.numbers",
    "capture.surrogates",
)
COMPUTE = (
    "codegen.functions",
    "codegen.pointwise",
    "ops.scan",
    "ops.chunked",
    "ops.cut",
    "ops.decay",
    "ops.lti",
    "ops.semiring",
)
GUARD = (
    "runtime.plan",
    "runtime.dispatcher",
    "runtime.signature",
    "runtime.state",
    "runtime.shortruns",
    "runtime.shortcut",
    "runtime.trials",
    "runtime.further",
    "runtime.repeating",
    "capture.repeats",
    "capture.frozen",
    "capture.surroundings",
    "capture.snapshot",
    "capture.decisions",
)
FILES = PROVE + MOVE + LOWER + COMPUTE + GUARD

NOT_AFFINE = ("tanh", "sigmoid", "relu", "abs", "exp", "sin", "sgn", "reciprocal", "sqrt", "gelu", "silu")
"""Operators that a broken rule may call affine."""


Key = tuple[str, str, int]


@dataclass(frozen=True)
class Mutant:
    """One way to be wrong.

    Attributes:
        file: module below `linrec`; function: qualified name; what: kind and text.
        codes: what it changes, found when asked for; None where every test with the operator's name may notice.
        apply: makes it, in this process, and says whether anything changed; line: where it is, 0 for a registry.
    """

    file: str
    function: str
    what: str
    codes: Callable[[], set[Key]] | None
    apply: Callable[[], bool]
    line: int = 0

    @property
    def name(self) -> str:
        return f"{self.file}.{self.function}: {self.what}"


def key(code: CodeType) -> Key:
    """What tells a function's code from all others: file below `linrec`, name, first line."""
    return (code.co_filename.rpartition("/linrec/")[2], code.co_name, code.co_firstlineno)


def _codes(code: CodeType) -> dict[Key, CodeType]:
    found = {}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            found[key(inner)] = inner
            found |= _codes(inner)
    return found


class Source:
    """A file of linrec, and the live functions that came from it."""

    def __init__(self, file: str) -> None:
        self.file = file
        module = importlib.import_module(f"linrec.{file}")
        self.path = str(inspect.getsourcefile(module))
        self.text = Path(self.path).read_text()
        self.codes = _codes(compile(self.text, self.path, "exec", dont_inherit=True))

    def new(self, edit: Edit) -> dict[Key, CodeType]:
        """The code objects that an edit changes."""
        codes = _codes(compile(edited(self.text, edit), self.path, "exec", dont_inherit=True))
        return {k: c for k, c in codes.items() if self.codes.get(k) is not None and not _same(c, self.codes[k])}


def _same(a: CodeType, b: CodeType) -> bool:
    if a.co_code != b.co_code or a.co_names != b.co_names or len(a.co_consts) != len(b.co_consts):
        return False
    return all(
        _same(x, y) if isinstance(x, CodeType) else type(x) is type(y) and x == y
        for x, y in zip(a.co_consts, b.co_consts, strict=True)
    )


def put(new: dict[Key, CodeType], path: str) -> int:
    """Give the live functions of a file new code; returns how many there were."""
    count = 0
    for f in gc.get_objects():
        if type(f) is FunctionType and f.__code__.co_filename == path and key(f.__code__) in new:
            f.__code__ = new[key(f.__code__)]
            count += 1
    return count


def of_file(file: str) -> list[Mutant]:
    """The changes of one file's functions."""
    source = Source(file)

    def applying(edit: Edit) -> Callable[[], bool]:
        return lambda: bool(put(source.new(edit), source.path))

    def changed(edit: Edit) -> Callable[[], set[Key]]:
        return lambda: _innermost(source.new(edit))

    return [
        Mutant(file, e.function, f"{e.kind}: {e.text}", changed(e), applying(e), e.line) for e in edits(source.text)
    ]


def _innermost(codes: dict[Key, CodeType]) -> set[Key]:
    """Of changed code objects, those that hold no other one: a class and a function change with what is inside."""
    return {k for k, code in codes.items() if not set(_codes(code)) & set(codes)}


def _told(function: Any) -> Any:
    """The function that a function was made from, where it is one line around it."""
    cells = [c.cell_contents for c in function.__closure__ or ()]
    return next((c for c in cells if type(c) is FunctionType), function)


def _only(code: CodeType) -> Callable[[], set[Key]]:
    return lambda: {key(code)}


def of_registries() -> list[Mutant]:
    """Rules taken out, and rules that call a nonlinear operator linear."""
    found = []
    for target, f in rules.RULES.items():
        code = inspect.unwrap(f).__code__

        def drop(target: Any = target) -> bool:
            del rules.RULES[target]
            return True

        found.append(Mutant("analysis.rules", f"RULES[{target}]", "rule taken out", _only(code), drop))
    for name in NOT_AFFINE:
        target = getattr(aten, name).default

        def pretend(target: Any = target) -> bool:
            rules.RULES[target] = lambda algebra, node, a, *_, **__: a
            return True

        found.append(Mutant("analysis.rules", f"RULES[{target}]", "called linear", None, pretend))
    for function in elements.DERIVATIVES:

        def forget(function: str = function) -> bool:
            del elements.DERIVATIVES[function]
            return True

        f = elements.DERIVATIVES[function]
        found.append(Mutant("codegen.functions", f"DERIVATIVES[{function}]", "taken out", _only(f.__code__), forget))
    for lowering in LOWERINGS:

        def remove(lowering: Any = lowering) -> bool:
            LOWERINGS.remove(lowering)
            return True

        code = type(lowering).emit.__code__
        found.append(Mutant("lowering.registry", f"LOWERINGS[{lowering.name}]", "taken out", _only(code), remove))
    return found


def all_mutants() -> list[Mutant]:
    """Every mutant there is, in a fixed order."""
    return [*of_registries(), *(m for file in FILES for m in of_file(file))]
