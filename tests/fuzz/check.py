"""Holds one program against linrec: values and gradients against the module itself at several lengths and batch sizes,
the verdict against the known one, train and eval mode, revert."""

from __future__ import annotations

import importlib.util
import re
import tempfile
import traceback
import warnings
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

import linrec

from .writer import Program

SCHEDULE = ((2, 9), (3, 17), (2, 5), (4, 40), (3, 2), (2, 3))
APART = {2: 2, 3: 7, 4: 6}
"""Batch sizes that no other dimension has, for two programs of three. Where a batch is as large as a state is wide, which
the others try, what is kept from call to call may be of that size by design: linrec compiles anew."""
ONES = ((2, 1), (1, 6))
"""Calls of size 1, each of which is compiled for itself; they are tried on one program in six."""

LIMIT = 1e8
WHOLE = (torch.bool, torch.int64)
NUDGE = 1e-15
"""A few of the last digits of a number in double precision."""


@dataclass
class Outcome:
    """What came of a program.

    Attributes:
        kind: "ok", "invalid" (the module itself fails or explodes), "wrong", "crashed", "caught" (linrec refused its
            own plan: validation failed, or the compiler raised), "missed" (linear by construction, but a loop stays),
            "verdict" (more was claimed than can be).
        rewritten: "fully", "partly" or "not".
        details: one line each.
        reasons: ids of the obstructions.
    """

    kind: str
    rewritten: str = "not"
    details: list[str] = field(default_factory=list)
    reasons: list[str] = field(default_factory=list)


def load(source: str, folder: str) -> Any:
    """The module that a program's source defines."""
    path = Path(folder) / "program.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("program", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inputs(batch: int, length: int, time: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 * batch + length)
    x = torch.randn(batch, length, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, length, generator=generator) < 0.3
    return (x.transpose(0, 1).contiguous(), mask.T.contiguous()) if time == 0 else (x, mask)


def observe(model: nn.Module, batch: int, length: int, time: int, nudge: float = 0.0) -> dict[str, Any]:
    """Values and gradients of one call, by name; `nudge` moves the input by this part of itself."""
    x, mask = inputs(batch, length, time)
    if nudge:
        x = x * (1 + nudge * torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype))
    x.requires_grad_()
    torch.manual_seed(0)
    out, structure = tree_flatten(model(x, mask))
    seen: dict[str, Any] = {f"output {k}": y for k, y in enumerate(out)}
    seen |= {f"self.{k}": v for k, v in vars(model).items() if isinstance(v, Tensor)}
    total: Any = 0.0
    for k, y in enumerate(seen.values()):
        # Of its own for each: whether a result whose gradient is zero says so must not change the others' weights.
        generator = torch.Generator().manual_seed(7 + k)
        if isinstance(y, Tensor) and y.requires_grad and not y.is_leaf:
            real = torch.view_as_real(y.resolve_conj()) if y.is_complex() else y
            total = total + (real * torch.randn(real.shape, generator=generator, dtype=torch.float64)).sum()
    wanted = {"x": x} | {n: p for n, p in model.named_parameters() if p.requires_grad}
    grads: Any = [None] * len(wanted)
    if isinstance(total, Tensor):
        grads = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
    seen = {k: v.detach().clone() if isinstance(v, Tensor) else v for k, v in seen.items()}
    seen["structure"] = structure
    return seen | {f"gradient of {n}": g for n, g in zip(wanted, grads, strict=True)}


def _largest(value: Tensor) -> float:
    return value.abs().max().item() if value.dtype != torch.bool else 1.0


def _difference(name: str, a: Any, b: Any, rtol: float, scale: float, allowed: float) -> str | None:
    if a is None and isinstance(b, Tensor):
        a = torch.zeros_like(b)
    if b is None and isinstance(a, Tensor):
        b = torch.zeros_like(a)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return None if a == b else f"{name}: {b!r} instead of {a!r}"
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"{name}: {b.dtype} {tuple(b.shape)} instead of {a.dtype} {tuple(a.shape)}"
    if not (a.is_floating_point() or a.is_complex()):
        return None if torch.equal(a, b) else f"{name}: other values"
    error = (a - b).abs().max().item() if a.numel() else 0.0
    size = max(a.abs().max().item() if a.numel() else 0.0, scale)
    return (
        None
        if error <= max(rtol * size, 10 * allowed)
        else f"{name}: off by {error:.2e} where the largest is {size:.2e}"
    )


def compare(model: nn.Module, oracle: nn.Module, batch: int, length: int, program: Program, rtol: float) -> list[str]:
    """Where a model differs from its oracle in one call. Raises what the oracle raises."""
    expected = observe(oracle, batch, length, program.time)
    actual = observe(model, batch, length, program.time)
    if expected.keys() != actual.keys():
        return [f"B={batch} T={length}: {sorted(expected.keys() ^ actual.keys())}"]
    scales = {}
    for is_gradient in (False, True):
        sizes = [
            _largest(v)
            for k, v in expected.items()
            if isinstance(v, Tensor) and v.dtype not in WHOLE and v.numel() and k.startswith("grad") == is_gradient
        ]
        scales[is_gradient] = 1e-3 * max(sizes, default=1.0)

    def lines(allowed: dict[str, float]) -> list[str]:
        found = (
            _difference(k, v, actual[k], rtol, scales[k.startswith("grad")], allowed.get(k, 0.0))
            for k, v in expected.items()
        )
        return [f"B={batch} T={length}: {line}" for line in found if line]

    found = lines({})
    if found and rtol:
        # What rounding of the input alone would do, and more, is no mistake: some programs make much of it.
        found = lines(_of_rounding(expected, observe(oracle, batch, length, program.time, NUDGE)))
    return found


def _of_rounding(expected: dict[str, Any], nudged: dict[str, Any]) -> dict[str, float]:
    """By how much each value moves with the last digits of the input."""
    pairs = ((k, v, nudged.get(k)) for k, v in expected.items())
    return {
        k: (a - b).abs().max().item()
        for k, a, b in pairs
        if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dtype not in WHOLE and a.numel() and a.shape == b.shape
    }


def check(program: Program, ones: bool = True) -> Outcome:
    """Run one program through linrec; `ones` allows for calls of size 1."""
    drawn = zlib.crc32(program.source.encode())
    schedule = SCHEDULE if drawn % 3 == 0 else tuple((APART[batch], length) for batch, length in SCHEDULE)
    schedule += ONES if ones and drawn % 6 == 0 else ()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            built = load(program.source, folder)
            models = []
            for _ in range(2):
                torch.manual_seed(0)
                models.append(built.Model().double())
            model, oracle = models
            for batch, length in schedule:
                seen = observe(oracle, batch, length, program.time)
                for v in seen.values():
                    if isinstance(v, Tensor) and v.numel() and not _largest(v) < LIMIT:
                        return Outcome("invalid", details=["explodes"])
        except Exception as error:
            return Outcome("invalid", details=[f"{type(error).__name__}: {error}"])
        oracle = models[1]
        return _check(program, model, oracle, schedule)


def _check(program: Program, model: nn.Module, oracle: nn.Module, schedule: Any) -> Outcome:
    before = {k: id(v) for k, v in vars(model).items()}
    attributes = set(vars(oracle))
    linrec.parallelize(model)
    problems: list[str] = []
    try:
        for batch, length in (*schedule, schedule[-1]):  # a call like the one before is served without another look
            problems += compare(model, oracle, batch, length, program, program.rtol)
        report = linrec.report(model)
        for training in (False, True):
            model.train(training)
            oracle.train(training)
            problems += compare(model, oracle, 2, 7, program, 0.0 if not model.training else program.rtol)
        linrec.revert(model)
        if set(vars(model)) != attributes or any(
            id(vars(model)[k]) != v for k, v in before.items() if k != "training" and k[0] == "_"
        ):
            problems.append("revert left something behind")
        problems += [f"after revert: {p}" for p in compare(model, oracle, 2, 4, program, 0.0)]
    except Exception as error:
        return Outcome("crashed", details=[f"{type(error).__name__}: {error}", traceback.format_exc(limit=-3)])
    parallel = [r.parallel for r in report.recurrences]
    found = [*report.obstructions, *(o for r in report.recurrences for o in r.obstructions)]
    rewritten = "not" if not any(parallel) else "fully" if all(parallel) and not report.obstructions else "partly"
    outcome = Outcome("ok", rewritten, problems, sorted({o.id for o in found}))
    said = [f"{o.id} at {o.location.rpartition('/')[2]}: {o.explanation}" for o in found]
    if problems:
        outcome.kind = "wrong"
    elif any(o.id == "LR010" or (o.id == "LR002" and "compiler failed" in o.explanation) for o in found):
        outcome.kind, outcome.details = "caught", said
    elif program.verdict == "parallel" and rewritten != "fully":
        outcome.kind, outcome.details = "missed", said
    elif program.verdict == "not parallel" and rewritten == "fully":
        outcome.kind, outcome.details = "verdict", [str(r) for r in report.recurrences]
    outcome.details = [re.sub(r"/\S*/", "", d) for d in outcome.details]
    return outcome
