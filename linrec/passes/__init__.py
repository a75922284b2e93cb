"""The passes, one a file: fx graph in, fx graph out. `standard` is the pipeline that `parallelize` runs."""

from __future__ import annotations

from linrec.passes.base import Observer, Pass, PassResult, Pipeline
from linrec.passes.booleans import Booleans
from linrec.passes.decompose import Decompose
from linrec.passes.draw import DrawAhead
from linrec.passes.hoist import Hoist
from linrec.passes.lower import Lower
from linrec.passes.outline import COMPILED, Outline
from linrec.passes.parts import Parts
from linrec.passes.place import add_pass, involved, placed
from linrec.passes.simplify import Simplify
from linrec.passes.sink import Sink
from linrec.passes.split import Split
from linrec.passes.stages import Stage, differences, trace


def standard(module: str = "", observe: Observer | None = None, pin: str = "") -> Pipeline:
    """The passes that turn a graph with scan nodes into its parallel form, those of extensions included.

    Args:
        module: qualified name of the module that owns the loops, for the report.
        observe: called with the name of each pass and the graph after it.
        pin: the lowering to use wherever it applies; "loop" for none, "compiled loop" for generated kernels.
    """
    outline = (Outline(module, pin),) if pin in ("", COMPILED) else ()
    steps = (DrawAhead(), Simplify(), Decompose(), Booleans(), Parts(), Sink(), *outline)
    return Pipeline(placed((*steps, Split(module), Hoist(module), Lower(module, pin))), observe)


__all__ = [
    "Booleans",
    "Decompose",
    "DrawAhead",
    "Hoist",
    "Lower",
    "Outline",
    "Parts",
    "Pass",
    "PassResult",
    "Pipeline",
    "Simplify",
    "Sink",
    "Split",
    "Stage",
    "add_pass",
    "differences",
    "involved",
    "standard",
    "trace",
]
