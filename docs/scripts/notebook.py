"""The notebook of the tour, `docs/tour.ipynb`, from `docs/tour.md`: `python -m docs.scripts.notebook`.

A cell of code for each Python block, a cell of text for what stands between. A block that ends in `print(report)` for a
report shows the report itself instead, which a notebook typesets. The outputs are left to whoever runs it.
"""

from __future__ import annotations

import json
import re
from typing import Any

from docs.scripts.pages import DOCS, blocks

PATH = DOCS / "tour.ipynb"


def cells() -> list[tuple[str, str]]:
    """("markdown" or "code", text) of each cell."""
    page = DOCS / "tour.md"
    text = page.read_text(encoding="utf-8")
    found, at = [], 0
    for block in blocks(page):
        if block.language != "python" and not block.printed:
            continue
        begin = text.rindex("```", 0, block.span[0])
        found.append(("markdown", text[at:begin]))
        if block.language == "python":
            found.append(("code", re.sub(r"^print\((linrec\.explain\(.*\))\)$", r"\1", block.code, flags=re.M)))
        at = text.index("```", block.span[1]) + 3
    found.append(("markdown", text[at:]))
    kept = [(kind, _plain(part) if kind == "markdown" else part) for kind, part in found]
    return [(kind, part.strip("\n")) for kind, part in kept if part.strip()]


def _plain(text: str) -> str:
    text = text.replace("<!-- printed -->", "")
    text = re.sub(r" The blocks of this page, .*?`docs/tour.ipynb`\.", "", text, flags=re.S)
    return re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)


def notebook() -> str:
    """The notebook as text."""
    content: list[dict[str, Any]] = []
    for k, (kind, text) in enumerate(cells()):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{k}", "metadata": {}}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        content.append(cell | {"source": text.splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    whole = {"cells": content, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    PATH.write_text(notebook(), encoding="utf-8")


if __name__ == "__main__":
    main()
