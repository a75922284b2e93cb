"""linrec: the compiler that runs linear recurrences in parallel over time, from unchanged PyTorch loops."""

from importlib import metadata

from linrec import passes
from linrec.api import explain, graph, parallelize, report, revert
from linrec.extend import (
    ExtensionError,
    Lowering,
    NoRule,
    Pass,
    PassResult,
    add_pass,
    implementation,
    lowering,
    rule,
    semiring,
    vector_rule,
)
from linrec.ir.obstruction import LinrecError, NotParallelizable, Obstruction
from linrec.report import Report

__all__ = [
    "ExtensionError",
    "LinrecError",
    "Lowering",
    "NoRule",
    "NotParallelizable",
    "Obstruction",
    "Pass",
    "PassResult",
    "Report",
    "add_pass",
    "explain",
    "graph",
    "implementation",
    "lowering",
    "parallelize",
    "passes",
    "report",
    "revert",
    "rule",
    "semiring",
    "vector_rule",
]

try:
    __version__ = metadata.version("linrec")
except metadata.PackageNotFoundError:  # running from a source tree that is not installed
    __version__ = "0+unknown"
