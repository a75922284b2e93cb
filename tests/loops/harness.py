"""Hold a parallelised module against an oracle built from the same seed, over the calls of an entry's schedule.

What must agree: values, gradients of inputs and of every parameter, exceptions, attributes and buffers after the
call, the types of the outputs; and in eval mode and after `revert`, the original to the bit. Then the verdict of the
report.
"""

from __future__ import annotations

import os
import re
import zlib
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

import linrec

from .entry import At, Call, Entry, as_call
from .observe import differences, observe, snapshot

FULL = bool(os.environ.get("LINREC_LOOPS_FULL"))


def thorough(entry: Entry) -> bool:
    """Whether this entry gets the checks that cost one more compilation each: one in eight, always the same ones."""
    return FULL or zlib.crc32(entry.name.encode()) % 8 == 0


def build(entry: Entry) -> Any:
    """The entry's module in its dtype, the same one at each call; or its function."""
    torch.manual_seed(0)
    made = entry.factory()
    return made.to(entry.dtype) if isinstance(made, nn.Module) else made


def make(entry: Entry, at: At) -> Call:
    """The arguments of one call of the schedule, the same at each call."""
    torch.manual_seed(1000 * at.batch + at.length)
    call = as_call((at.inputs or entry.inputs)(at.batch, at.length))

    def cast(value: Any) -> Any:
        return value.to(entry.dtype) if isinstance(value, torch.Tensor) and value.dtype == torch.float32 else value

    return Call(tree_map(cast, call.args), tree_map(cast, call.kwargs))


def check(entry: Entry, *, verdict: bool = True) -> None:
    """Run the whole schedule. Raises AssertionError with every difference found, one per line."""
    model, oracle = build(entry), build(entry)
    before = snapshot(model) if isinstance(model, nn.Module) else {}
    compiled = linrec.parallelize(model)
    problems: list[str] = []
    if isinstance(model, nn.Module) and compiled is not model:
        problems.append("parallelize returned another object")
    for index, at in enumerate(entry.schedule):
        where = f"call {index} (B={at.batch}, T={at.length})"
        call = make(entry, at)
        for each in (compiled, oracle):
            if at.before:
                at.before(each)
        options = {"grad": index != 2 or not thorough(entry), "mutates": entry.mutates, "seed": index}
        with at.under():
            expected = observe(oracle, call, **options)
            actual = observe(compiled, call, **options)
        if index == 0 and expected.error is not None:
            raise AssertionError(f"{entry}: the entry itself fails") from expected.error
        problems += [f"{where}: {line}" for line in differences(expected, actual, entry.rtol)]
        if actual.error is not None and expected.error is None and os.environ.get("LINREC_LOOPS_RAISE"):
            raise actual.error
    problems += _other_modes(entry, compiled, oracle)
    if isinstance(model, nn.Module) and list(model.state_dict()) != list(oracle.state_dict()):
        problems.append("state dict keys changed")
    report = linrec.report(compiled)
    problems += _obstruction(entry, report)
    if verdict:
        problems += _verdict(entry, report)
    problems += _reverted(entry, compiled, oracle, before)
    if problems:
        raise AssertionError(f"{entry}:\n  " + "\n  ".join(problems))


def _other_modes(entry: Entry, compiled: Any, oracle: Any) -> list[str]:
    """Training mode without gradients; then eval mode, where the original runs and the bits are its own."""
    call, problems = make(entry, entry.schedule[0]), []
    if thorough(entry):
        with torch.no_grad():
            expected, actual = (observe(each, call, grad=False, mutates=True) for each in (oracle, compiled))
        problems += [f"under no_grad: {line}" for line in differences(expected, actual, entry.rtol)]
    if isinstance(compiled, nn.Module):
        expected, actual = (observe(each.eval(), call, mutates=entry.mutates) for each in (oracle, compiled))
        problems += [f"in eval mode: {line}" for line in differences(expected, actual, _exact_or(entry))]
        oracle.train()
        compiled.train()
    return problems


def _exact_or(entry: Entry) -> float:
    """Zero, unless state carried between calls may already differ by rounding."""
    stateful = any(at.before for at in entry.schedule) or entry.carries_over
    return entry.rtol if stateful else 0.0


def _reverted(entry: Entry, compiled: Any, oracle: Any, before: dict[str, Any]) -> list[str]:
    """`revert` gives back the module that came in, which computes what the oracle computes."""
    restored = linrec.revert(compiled)
    if not isinstance(compiled, nn.Module):
        return [] if callable(restored) else ["revert of a function returned no function"]
    after, reference = snapshot(compiled), snapshot(oracle)
    edited = any(at.before for at in entry.schedule)
    problems = [f"after revert: {key!r} left behind or lost" for key in sorted(after.keys() ^ reference.keys())]
    problems += [
        f"after revert: {key!r} is not what it was"
        for key in before.keys() & after.keys()
        if before[key] != after[key] and (key.startswith("class of") or (isinstance(before[key], dict) and not edited))
    ]
    call = make(entry, entry.schedule[0])
    expected, actual = (observe(each, call, mutates=entry.mutates) for each in (oracle, compiled))
    return problems + [f"after revert: {line}" for line in differences(expected, actual, _exact_or(entry))]


def obstructions(report: Any) -> list[Any]:
    """Every obstruction of a report, those of a recurrence and those of none."""
    found = list(getattr(report, "obstructions", ()))
    return found + [each for recurrence in report.recurrences for each in recurrence.obstructions]


def _obstruction(entry: Entry, report: Any) -> list[str]:
    """Whether the reason that the entry asks for was given, at the user's line."""
    if entry.obstruction is None:
        return []
    with open(entry.file) as file:
        lines = file.read().splitlines()
    places = []
    for each in obstructions(report):
        match = re.fullmatch(r"(.*?)([^/\\]+\.py):(\d+)", str(each.location or ""))
        if match and match[2] == os.path.basename(entry.file):
            places.append(lines[int(match[3]) - 1].strip())
        else:
            places.append(f"({each.id} at {each.location!r})")
    if any(entry.obstruction in place for place in places):
        return []
    return [f"no obstruction at {entry.obstruction!r}; there are {places}"]


def _verdict(entry: Entry, report: Any) -> list[str]:
    kinds = [bool(each.parallel) for each in report.recurrences]
    reached = {
        "parallel": bool(kinds) and all(kinds),
        "partial": any(kinds) and not all(kinds),
        "sequential": not any(kinds),
        "stateless": all(kinds),
        "any": True,
    }[entry.verdict]
    if reached:
        return []
    reasons = [f"{each.id} at {each.location}: {each.explanation}" for each in obstructions(report)]
    return [f"verdict: expected {entry.verdict}, recurrences parallel = {kinds}; {reasons}"]
