"""Findings for a terminal, as a rich tree, and for a notebook, as HTML whose formulas are LaTeX."""

from __future__ import annotations

from html import escape
from typing import Any

from linrec.ir.obstruction import Obstruction
from linrec.ir.recurrence import Recurrence
from linrec.show.data import Findings, comparison, groups


def rich_tree(findings: Findings) -> Any:
    """A `rich.tree.Tree`: modules, their recurrences, and what is to be said about each."""
    from rich.text import Text
    from rich.tree import Tree

    if not findings.recurrences and not findings.obstructions:
        return Text(f"linrec: {findings.empty}")
    tree = Tree(Text.assemble(("linrec ", "bold"), findings.headline), guide_style="dim")
    for group in groups(findings):
        branch = tree.add(Text(group.title, style="bold"))
        for r in group.recurrences:
            _entry(branch, r)
    for o in dict.fromkeys(findings.obstructions):
        _obstruction(tree.add(Text("left as it is", style="yellow")), o)
    return tree


def _entry(branch: Any, r: Recurrence) -> None:
    from rich.syntax import Syntax
    from rich.text import Text

    style = "green" if r.parallel else "yellow"
    pretty = r.formula.pretty if r.formula else r.equation
    node = branch.add(Text(pretty, style=f"bold {style}"))
    if r.formula and r.formula.where:
        node.add(Text("where " + ", ".join(f"{s} = {text}" for s, text in r.formula.where), style="dim"))
    if r.source and all(o.source != r.source for o in r.obstructions):
        code = Syntax(r.source, "python", theme="ansi_light", background_color="default", word_wrap=True)
        node.add(Text(r.location, style="cyan")).add(code)
    verdict = f"parallel: {r.lowering}" if r.parallel else "stays a loop"
    node.add(Text.assemble(r.transition, ", ", (verdict, style)))
    if r.proof:
        node.add(Text(f"proved by the rules of {', '.join(r.proof)}", style="dim"))
    about = comparison(r)
    if about and r.parallel:
        node.add(Text(about, style="dim"))
    for o in r.obstructions:
        _obstruction(node, o)


def _obstruction(node: Any, o: Obstruction) -> None:
    from rich.text import Text

    own = node.add(Text.assemble((f"{o.id} {o.name}", "bold yellow"), f" {o.location}"))
    if o.source:
        own.add(Text.assemble(o.source, "\n", (o.caret, "bold red")))
    own.add(Text(o.explanation))
    own.add(Text.assemble(("hint: ", "italic"), o.hint))


def notebook(findings: Findings) -> str:
    """HTML for a notebook, which renders the LaTeX between dollar signs."""
    if not findings.recurrences and not findings.obstructions:
        return f"<p><b>linrec</b>: {escape(findings.empty)}</p>"
    parts = [f"<p><b>linrec</b>: {escape(findings.headline)}</p>"]
    for group in groups(findings):
        rows = "".join(_row(r) for r in group.recurrences)
        parts.append(
            f"<h4>{escape(group.title)}</h4><table><thead><tr><th>recurrence</th><th>structure</th><th>result</th>"
            f"<th>where</th></tr></thead><tbody>{rows}</tbody></table>"
        )
    for o in dict.fromkeys(findings.obstructions):
        parts.append(f"<p>left as it is:</p>{_remark(o)}")
    return "".join(parts)


def _row(r: Recurrence) -> str:
    # A dollar sign ends a formula, and LaTeX of the user's names has its own escapes already.
    formula = f"$${escape(r.formula.latex)}$$" if r.formula else escape(r.equation)
    where = "".join(f"<br><code>{escape(s)} = {escape(t)}</code>" for s, t in (r.formula.where if r.formula else ()))
    verdict = f"parallel: {r.lowering}" if r.parallel else "stays a loop"
    remarks = "".join(_remark(o) for o in r.obstructions)
    return (
        f"<tr><td style='text-align:left'>{formula}{where}</td><td>{escape(r.transition)}</td>"
        f"<td style='text-align:left'>{escape(verdict)}{remarks}</td><td>{escape(r.location)}</td></tr>"
    )


def _remark(o: Obstruction) -> str:
    source = f"<pre>{escape(o.source)}\n{escape(o.caret)}</pre>" if o.source else ""
    return (
        f"<div><b>{escape(o.id)} {escape(o.name)}</b> {escape(o.location)}{source}{escape(o.explanation)}"
        f"<br><i>{escape(o.hint)}</i></div>"
    )
