"""The page `docs/obstructions.md`, from the catalogue in `linrec.ir.obstruction` and an example for each entry."""

from __future__ import annotations

import re

from docs.scripts.obstruction_examples import EXAMPLES, Example
from linrec.ir.obstruction import CATALOGUE

HEAD = """# Obstructions

<!-- Written by `python -m docs.scripts.update` from linrec/ir/obstruction.py and obstruction_examples.py. -->

What linrec cannot prove it leaves as it is, and says why. A reason is an `Obstruction`: an id, the line of your code,
what happens there and what would help. `print(linrec.explain(model, x))` shows it with carets under the operator;
`strict=True` raises it as `linrec.NotParallelizable`.

Two kinds of places hold them: `report.recurrences[i].obstructions` for a recurrence that stays inside a loop that was
understood, and `report.obstructions` for a module that keeps its own code altogether.

Each example runs as it stands after `import torch` and `import linrec`, and is run by the tests.

"""


def page() -> str:
    """The whole page."""
    index = ["| id | name | meaning |", "|---|---|---|"]
    index += [f"| [{id}](#{id.lower()}-{name}) | {name} | {meaning} |" for id, (name, meaning, _) in CATALOGUE.items()]
    return HEAD + "\n".join(index) + "\n\n" + "\n".join(_entry(id, EXAMPLES[id]) for id in CATALOGUE)


def _entry(id: str, example: Example) -> str:
    name, meaning, hint = CATALOGUE[id]
    parts = [f"## {id} {name}", meaning, f"**Remedy.** {hint}"]
    parts.append(_code(example.code))
    if example.remedy:
        parts += ["Without it:", _code(example.remedy)]
    if example.advice:
        parts.append(example.advice)
    return "\n\n".join(parts) + "\n"


def _code(text: str) -> str:
    spaced = re.sub(r"(?<=\n)(    .*|\S.*\))\n\n(?=\S)", r"\1\n\n\n", text.strip())
    return f"<!-- not run: tests/docs/test_generated.py runs it and reads the report -->\n```python\n{spaced}\n```"
