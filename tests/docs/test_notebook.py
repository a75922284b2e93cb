"""The notebook of the tour: made from the page, its cells run in order, and a report is shown typeset."""

from __future__ import annotations

import ast
import json
import linecache
from typing import Any

import linrec
from docs.scripts import notebook


def test_it_is_made_from_the_page() -> None:
    assert notebook.PATH.read_text(encoding="utf-8") == notebook.notebook(), "python -m docs.scripts.notebook"
    whole = json.loads(notebook.PATH.read_text(encoding="utf-8"))
    assert whole["nbformat"] == 4
    assert not any(cell.get("outputs") for cell in whole["cells"])
    text = "".join("".join(cell["source"]) for cell in whole["cells"])
    assert "<!--" not in text and "```text" not in text


def run_cell(code: str, name: str, names: dict[str, Any]) -> Any:
    """Run a cell as a kernel does: its source can be looked up, and the value of a last expression comes back."""
    linecache.cache[name] = (len(code), None, code.splitlines(keepends=True), name)
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    return eval(compile(ast.Expression(last.value), name, "eval"), names) if last else None


def test_its_cells_run() -> None:
    cells = json.loads(notebook.PATH.read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"__name__": "__main__"}
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    results = [run_cell(text, f"<cell {k}>", names) for k, text in enumerate(code)]
    reports = [r for r in results if isinstance(r, linrec.Report)]
    assert [r.parallel for r in reports] == [True, False]
    assert "$$" in reports[0]._repr_html_()
