"""Findings as plain text, at most 118 columns wide: what ``print(report)`` shows."""

from __future__ import annotations

import textwrap

from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import Recurrence
from linrec.show.data import Findings, comparison, groups

WIDTH = 118


def plain(findings: Findings) -> str:
    """The text of some findings, without colour."""
    if not findings.recurrences and not findings.obstructions:
        return "\n".join(textwrap.wrap(f"linrec: {findings.empty}", WIDTH))
    lines = [f"linrec: {findings.headline}"]
    for group in groups(findings):
        lines += ["", group.title]
        for r in group.recurrences:
            lines += _entry(r)
    for o in dict.fromkeys(findings.obstructions):
        lines += ["", "left as it is:", *_obstruction(o, "  ")]
    return "\n".join(lines)


def _wrapped(text: str, indent: str, more: str = "    ") -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent + more) or [indent]


def _entry(r: Recurrence) -> list[str]:
    verdict = f"parallel: {r.lowering}" if r.parallel else "stays a loop"
    lines = []
    for part in r.equation.split("; "):
        lines += _wrapped(part, "  ")
    if r.formula and r.formula.where:
        lines += _wrapped("where " + ", ".join(f"{s} = {text}" for s, text in r.formula.where), "      ")
    lines += _wrapped(f"{r.transition} | {verdict} | {r.location}", "      ")
    if r.source and all(o.source != r.source for o in r.obstructions):
        lines.append(f"      > {r.source if len(r.source) <= WIDTH - 8 else r.source[: WIDTH - 12] + ' ...'}")
    about = comparison(r)
    if about and r.parallel:
        lines += _wrapped(f"estimate: {about}", "      ")
    for o in r.obstructions:
        lines += _obstruction(o, "      ")
    return lines


def _obstruction(o: Obstruction, indent: str) -> list[str]:
    lines = [f"{indent}{o.id} {o.name}{' at ' + o.location if o.location else ''}"]
    if o.source:
        source, caret = o.source, o.caret
        if len(source) > WIDTH - 12:
            # The part around the caret.
            first = max(0, caret.find("^") - 40)
            source, caret = source[first : first + WIDTH - 12], caret[first : first + WIDTH - 12]
        lines += [f"{indent}    {source}", f"{indent}    {caret}"]
    lines += _wrapped(o.explanation, indent + "  ")
    lines += _wrapped(f"hint: {o.hint}", indent + "  ")
    return lines
