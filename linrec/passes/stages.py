"""The graph after each pass, as text, and what each pass changed in it."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from linrec.ir.readable import readable


@dataclass(frozen=True)
class Stage:
    """The graph of one loop after one pass.

    Attributes:
        name: the pass, or "input" for the graph that the first one gets.
        text: the graph, as `linrec.ir.readable.readable` writes it.
    """

    name: str
    text: str

    def __str__(self) -> str:
        return f"after {self.name}:\n{self.text}"


def trace(model: Any, *example_inputs: Any, **keywords: Any) -> list[Stage]:
    """The graph of every loop of a model after each pass; changes nothing.

    Args:
        model: a module or a function.
        example_inputs, keywords: the arguments of one call.

    Returns:
        The stages in order; one named "input" begins each loop. A loop for which capture fails has none.

    >>> import torch
    >>> def ema(x):
    ...     h, out = torch.zeros_like(x[:, 0]), []
    ...     for t in range(x.shape[1]):
    ...         h = 0.9 * h + x[:, t]
    ...         out.append(h)
    ...     return torch.stack(out, 1)
    >>> [stage.name for stage in trace(ema, torch.randn(2, 20, 3))]
    ['input', 'draw', 'simplify', 'decompose', 'booleans', 'parts', 'sink', 'outline', 'split', 'hoist', 'lower']
    """
    stages: list[Stage] = []

    def observe(name: str, graph_module: fx.GraphModule) -> None:
        text = readable(graph_module)
        if name == "input":
            begins = [k for k, stage in enumerate(stages) if stage.name == "input"]
            if begins and _operators(stages[begins[-1]].text) == _operators(text):
                # The same loop once more, traced with other sizes: what counts is the last attempt.
                del stages[begins[-1] :]
        stages.append(Stage(name, text))

    # Tracing runs the whole compiler, which lies above the passes.
    importlib.import_module("linrec.api").explained(model, example_inputs, keywords, observe)
    return stages


def _operators(text: str) -> list[str]:
    """The lines of a graph without shapes and places."""
    return [line.partition("  #")[0] for line in text.splitlines() if not line.startswith("inputs ")]


def differences(stages: Sequence[Stage]) -> list[str]:
    """For each loop its first graph in full, then for each pass the lines that it took out and put in."""
    found = []
    before: list[str] = []
    for stage in stages:
        lines = stage.text.splitlines()
        if stage.name == "input":
            found.append(f"== input\n{stage.text}")
        else:
            changes = [x for x in difflib.ndiff(before, lines) if x[:1] in "+-"]
            found.append(f"== {stage.name}\n" + ("\n".join(changes) if changes else "(no change)"))
        before = lines
    return found
