"""What a pass is: a frozen dataclass with a name, whose `run` takes a graph module and returns it rewritten. A pipeline
runs passes in order and lints the graph after each; a user's pass looks the same as ours."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import fx

from linrec.ir.extension import guarded
from linrec.ir.obstruction import LinrecError
from linrec.ir.readable import readable
from linrec.ir.recurrence import LoopView, Recurrence
from linrec.ir.scan import scan_nodes, scan_of
from linrec.passes.entry import loop_view
from linrec.passes.naming import name_values


@dataclass
class PassResult:
    """What a pass returns.

    Attributes:
        graph_module: the rewritten graph (the same object, where it was rewritten in place).
        modified: whether anything changed.
        recurrences: what the pass found out about components of loops, for the report.
        changed_by: of a pipeline, the names of the passes that changed something.
    """

    graph_module: fx.GraphModule
    modified: bool
    recurrences: list[Recurrence] = field(default_factory=list)
    changed_by: list[str] = field(default_factory=list)


class Pass(ABC):
    """A rewriting of graphs with scan nodes."""

    name: str

    @abstractmethod
    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Rewrite a graph module."""


Observer = Callable[[str, fx.GraphModule], None]


@dataclass(frozen=True)
class Pipeline:
    """Passes in order.

    Args:
        passes: the passes.
        observe: called with the name of each pass and the graph after it (``"input"`` first).
    """

    passes: Sequence[Pass]
    observe: Observer | None = None

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Run every pass, linting after each.

        Raises:
            LinrecError: where a pass leaves a malformed graph, naming the pass.
        """
        modified = False
        recurrences: list[Recurrence] = []
        changed_by: list[str] = []
        if self.observe:
            self.observe("input", graph_module)
        view, loops = _view(graph_module), len(scan_nodes(graph_module))
        for step in self.passes:
            result = guarded("pass", step.name, _runner(step), (LinrecError,))(graph_module)
            graph_module = result.graph_module
            modified |= result.modified
            changed_by += [step.name] if result.modified else []
            recurrences += result.recurrences
            lint(graph_module, step.name)
            if not recurrences and len(scan_nodes(graph_module)) == loops:
                # The states that a report shows are those that are left before the loops are taken apart.
                view = _view(graph_module, view)
            if self.observe:
                self.observe(step.name, graph_module)
        with contextlib.suppress(Exception):  # as in _view
            name_values(graph_module)
            view = replace(view, after=readable(graph_module)) if view else None
        return PassResult(graph_module, modified, [replace(r, view=view) for r in recurrences], changed_by)


def _view(graph_module: fx.GraphModule, first: LoopView | None = None) -> LoopView | None:
    """How the loop looks in a report. What goes wrong in describing it must not decide whether it is rewritten."""
    try:
        view = loop_view(graph_module)
        return replace(view, before=first.before) if first else view
    except Exception:
        return first


def _runner(step: Pass) -> Callable[[fx.GraphModule], PassResult]:
    """A pass as a function that is known to come from where the pass does."""

    def run(graph_module: fx.GraphModule) -> PassResult:
        result = step.run(graph_module)
        if not isinstance(result, PassResult):
            raise TypeError(f"run returned {type(result).__name__} in place of a PassResult")
        return result

    run.__module__ = type(step).__module__
    return run


def lint(graph_module: fx.GraphModule, name: str) -> None:
    """Check a graph and the step graphs of its scans, then recompile them."""
    try:
        for node in scan_nodes(graph_module):
            step = scan_of(graph_module, node).step
            step.graph.lint()
            step.recompile()
        graph_module.graph.lint()
    except RuntimeError as error:
        raise LinrecError(f"the pass '{name}' left a malformed graph: {error}") from error
    graph_module.recompile()
