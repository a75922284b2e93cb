"""An extension of mkdocstrings: the bare doctests in a docstring become a section of code."""

from __future__ import annotations

from typing import Any

import griffe


class Doctests(griffe.Extension):
    """Puts the doctests at the end of a docstring under the heading that the Google style has for them."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        lines = obj.docstring.value.splitlines()
        first = next((k for k, line in enumerate(lines) if line.startswith(">>> ")), None)
        if first is not None:
            examples = ["    " + line if line else "" for line in lines[first:]]
            obj.docstring.value = "\n".join([*lines[:first], "Examples:", *examples])
