"""Findings as one HTML file that needs nothing else: formulas in MathML, drawings in SVG, no script, no request. What
comes from the user's model is escaped."""

from __future__ import annotations

import re
from collections import Counter
from html import escape

from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import LoopView, Recurrence
from linrec.show.data import Findings, Group, comparison, groups
from linrec.show.mathml import mathml
from linrec.show.style import STYLE
from linrec.show.svg import bars, state_graph

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_LINE = re.compile(r"^(\s*)(.*?)(\s{2,}# .*)?$")
_ASSIGNED = re.compile(r"^\s+([\w, ]+) = (.*?)(?:\s{2,}# .*)?$")
_NAME = re.compile(r"[A-Za-z_]\w*")
_CALL = re.compile(r"^[\w, ]+ = (\w+)\(")


def page(findings: Findings, title: str = "linrec report") -> str:
    """The whole document."""
    body = [f"<h1>{escape(title)}</h1>"]
    if findings.recurrences or findings.obstructions:
        body += [_summary(findings), _table(findings)]
        for number, group in enumerate(groups(findings)):
            body.append(_group(number, group))
        for o in dict.fromkeys(findings.obstructions):
            body.append(f"<section><h2>left as it is</h2>{_obstruction(o)}</section>")
    else:
        body.append(f"<p>{escape(findings.empty)}</p>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body><main>{''.join(body)}</main></body></html>\n"
    )


def _summary(findings: Findings) -> str:
    total = max(len(findings.recurrences), 1)
    share = 100 * findings.done / total
    return (
        f"<p class='headline'>{escape(findings.headline)}</p>"
        f"<div class='share'><div style='width:{share:.1f}%'></div></div>"
    )


def _badge(r: Recurrence) -> str:
    text = f"parallel: {r.lowering}" if r.parallel else "stays a loop"
    return f"<span class='badge {'done' if r.parallel else 'stays'}'>{escape(text)}</span>"


def _table(findings: Findings) -> str:
    rows = []
    for number, group in enumerate(groups(findings)):
        for r in group.recurrences:
            rows.append(
                f"<tr><td><a href='#g{number}'>{escape(group.title)}</a></td><td><code>{escape(r.equation)}</code></td>"
                f"<td>{escape(r.transition)}</td><td>{_badge(r)}</td><td>{escape(r.location)}</td></tr>"
            )
    return (
        "<table><thead><tr><th>module</th><th>recurrence</th><th>transition</th><th>result</th><th>source</th></tr>"
        f"</thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _group(number: int, group: Group) -> str:
    parts = [f"<section id='g{number}'><h2>{escape(group.title)}</h2>"]
    parts += [_card(r) for r in group.recurrences]
    view = next((r.view for r in group.recurrences if r.view), None)
    if view is not None:
        parts.append(_states(view, group))
        parts.append(_graphs(view, {n for r in group.recurrences if not r.parallel for n in r.states}))
    return "".join(parts) + "</section>"


def _card(r: Recurrence) -> str:
    formula = mathml(r.formula) if r.formula else f"<p class='formula'><code>{escape(r.equation)}</code></p>"
    parts = [f"<article class='{'done' if r.parallel else 'stays'}'><div class='formula'>{formula}</div>"]
    if r.formula and r.formula.where:
        listed = "".join(f"<li><code>{escape(s)} = {escape(t)}</code></li>" for s, t in r.formula.where)
        parts.append(f"<ul class='where'>{listed}</ul>")
    parts.append(f"<p>{_badge(r)} <span class='quiet'>{escape(r.transition)}</span></p>")
    if r.source and all(o.source != r.source for o in r.obstructions):
        parts.append(f"<pre class='source'><span class='quiet'>{escape(r.location)}</span>\n{escape(r.source)}</pre>")
    if r.proof:
        parts.append(f"<p class='quiet'>Proved affine by the rules of {escape(', '.join(r.proof))}.</p>")
    parts += [_obstruction(o) for o in r.obstructions]
    drawn = bars(r.estimates, r.lowering)
    if drawn:
        about = comparison(r) if r.parallel else ""
        about = about or "Multiply-adds of a forward pass"
        parts.append(f"<figure>{drawn}<figcaption>{escape(about)}, by the cost model.</figcaption></figure>")
    return "".join(parts) + "</article>"


def _obstruction(o: Obstruction) -> str:
    source = ""
    if o.source:
        source = f"<pre class='source'>{escape(o.source)}\n<span class='caret'>{escape(o.caret)}</span></pre>"
    place = f" <span class='quiet'>{escape(o.location)}</span>" if o.location else ""
    return (
        f"<div class='obstruction'><p><b>{escape(o.id)} {escape(o.name)}</b>{place}</p>{source}"
        f"<p>{escape(o.explanation)}</p><p class='quiet'>{escape(o.hint)}</p></div>"
    )


def _states(view: LoopView, group: Group) -> str:
    solved = {r.states: r.parallel for r in group.recurrences}
    flags = [solved.get(tuple(view.states[i] for i in part), False) for part in view.groups]
    drawn = state_graph(view, flags)
    if not drawn:
        return ""
    return (
        f"<h3>State graph</h3><figure>{drawn}<figcaption>An arrow from a to b: the update of b reads a. Each box is "
        "one recurrence; <span class='badge done'>green</span> ones left the loop, "
        "<span class='badge stays'>yellow</span> ones stay.</figcaption></figure>"
    )


def _graphs(view: LoopView, staying: set[str]) -> str:
    """The graph before and after; `staying` are the states whose recurrences stay loops."""
    if not view.before or not view.after:
        return ""
    was = Counter(_key(line) for line in view.before.splitlines() if not line.startswith(" "))
    outside = Counter(_key(line) for line in view.after.splitlines() if not line.startswith(" "))
    was_inside = {_key(line) for line in view.before.splitlines() if line.startswith(" ")}
    moved = {key for key in was_inside if key[0] and outside[key] > was[key]}
    reading = set(staying)
    before = []
    for line in view.before.splitlines():
        assigned = _ASSIGNED.match(line)
        stays = bool(reading & set(_NAME.findall(assigned.group(2)))) if assigned else False
        if assigned and stays:
            reading.update(_NAME.findall(assigned.group(1)))
        before.append(_line(line, _fate(line, moved, stays)))
    after = [_line(line, _fate_after(line, moved)) for line in view.after.splitlines()]
    return (
        "<h3>Graph before and after</h3><div class='graphs'>"
        f"<div><h4>before</h4><pre>{''.join(before)}</pre></div><div><h4>after</h4><pre>{''.join(after)}</pre></div></div>"
        "<p class='quiet'><span class='line moved'>left the loop, now for all steps at once</span> "
        "<span class='line solved'>replaced by an algorithm</span> "
        "<span class='line kept'>still one step after the other</span></p>"
    )


def _key(line: str) -> tuple[str, str]:
    """(operator, place in the user's code) of a line."""
    call = _CALL.match(line.strip())
    place = line.rpartition("  ")[2].strip() if "# " in line else ""
    return (call.group(1) if call else "", place)


def _fate(line: str, moved: set[tuple[str, str]], stays: bool) -> str:
    key = _key(line)
    if not line.startswith(" ") or not key[0]:
        return ""
    return "kept" if stays else "moved" if key in moved else "solved"


_OURS = ("scan_states", "running_sum", "affine_scan", "dense_states", "convolved", "semiring_states", "delayed")


def _fate_after(line: str, moved: set[tuple[str, str]]) -> str:
    if line.startswith((" ", "loop")) or _key(line)[0] == "compiled_scan":
        return "kept"
    return "moved" if _key(line) in moved else "solved" if _key(line)[0].startswith(_OURS) else ""


def _line(line: str, kind: str) -> str:
    match = _LINE.match(line)
    assert match is not None
    indent, code, comment = match.group(1), match.group(2), match.group(3) or ""
    text = f"{indent}{escape(code)}<span class='quiet'>{escape('  ' + comment.strip() if comment else '')}</span>"
    return f"<span class='line {kind}'>{text}</span>\n" if kind else f"{text}\n"
