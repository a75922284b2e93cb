"""What linrec found, proved, rewrote and refused in a model: for a person at a terminal, in a notebook or with a
browser, and as data."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from linrec.ir.recurrence import Recurrence
from linrec.show import Findings, notebook, page, plain, rich_tree, to_dict


@dataclass
class Report(Findings):
    """The result of `linrec.explain` and `linrec.report`; iterating over it gives its recurrences.

    ``print(report)`` shows it as text, ``rich.print(report)`` as a coloured tree, a notebook with its formulas typeset.

    Attributes:
        recurrences: one entry for each component of each loop, those that stay sequential included.
        obstructions: reasons why whole modules were left as they are.
        modules: names of the modules that own a time loop.
    """

    def __iter__(self) -> Iterator[Recurrence]:
        return iter(self.recurrences)

    def __str__(self) -> str:
        return plain(self)

    def __rich__(self) -> Any:
        return rich_tree(self)

    def _repr_html_(self) -> str:
        return notebook(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as plain data, of the layout that its key ``"schema"`` numbers: see `docs/reference/report.md`."""
        return to_dict(self)

    def to_json(self, indent: int | None = 2) -> str:
        """The report as JSON text, with the keys of `to_dict`."""
        return json.dumps(self.to_dict(), indent=indent, ensure_ascii=False)

    def to_html(self, path: str | os.PathLike[str], title: str = "linrec report") -> Path:
        """Write the report as one HTML file that needs nothing else: no script, no style sheet, no network.

        Args:
            path: where to write; an existing file is replaced.
            title: the page's heading.

        Returns:
            The path of the file.

        Raises:
            OSError: where the file cannot be written.
        """
        target = Path(path)
        target.write_text(page(self, title), encoding="utf-8")
        return target
