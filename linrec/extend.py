"""Extensions: what a package registers with linrec, by the calls that linrec uses for its own rules, lowerings,
semirings and passes; packages that name an entry point in the group "linrec.extensions" are loaded by themselves."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

from linrec.analysis.polynomial import NoRule, Polynomial
from linrec.analysis.rules import RULES, Algebra, rule
from linrec.analysis.semiring import JOINS
from linrec.analysis.vectorize import VECTOR_RULES, vector_rule
from linrec.ir.extension import REGISTERED, ExtensionError
from linrec.lowering.implementation import implementation
from linrec.lowering.kernel import lowering
from linrec.lowering.registry import LOWERINGS, Lowering, register
from linrec.lowering.semirings import SCANS, semiring
from linrec.ops.dispatch import IMPLEMENTATIONS
from linrec.passes.base import Pass, PassResult
from linrec.passes.place import ADDED, add_pass

__all__ = [
    "Algebra",
    "ExtensionError",
    "Lowering",
    "NoRule",
    "Pass",
    "PassResult",
    "Polynomial",
    "add_pass",
    "implementation",
    "installed",
    "isolated",
    "load_installed",
    "lowering",
    "register",
    "rule",
    "semiring",
    "vector_rule",
]

GROUP = "linrec.extensions"
"""The group of entry points; each names a module, or a function that is called without arguments."""

_lock = threading.Lock()
_loaded: dict[str, str] = {}


def load_installed() -> None:
    """Load the extensions of installed packages, once; one that fails is left out, with a warning that names it."""
    with _lock:
        for point in metadata.entry_points(group=GROUP):
            if point.name in _loaded:
                continue
            try:
                found = point.load()
                if callable(found):
                    found()
                _loaded[point.name] = ""
            except Exception as error:
                _loaded[point.name] = f"{type(error).__name__}: {error}"
                warnings.warn(
                    f"the extension {point.name!r} ({point.value}) is left out: {_loaded[point.name]}", stacklevel=3
                )


def installed() -> list[tuple[str, str, str]]:
    """(name, where it comes from, what is wrong with it or "") of the extensions of installed packages and of those
    that were registered in this process."""
    load_installed()
    found = [(p.name, p.value, _loaded.get(p.name, "")) for p in metadata.entry_points(group=GROUP)]
    return found + [(f"{e.kind} {e.name}", e.origin, "") for e in REGISTERED]


@contextlib.contextmanager
def isolated() -> Iterator[None]:
    """Forget, at the end of the block, all that was registered in it: for tests and for trying things out.

    >>> import torch
    >>> with isolated():
    ...     semiring("fmax-plus", torch.ops.aten.fmax.default, join=torch.fmax)
    >>> "fmax-plus" in SCANS
    False
    """
    tables: tuple[dict[Any, Any], ...] = (RULES, VECTOR_RULES, JOINS, SCANS)
    lists: tuple[list[Any], ...] = (LOWERINGS, ADDED, REGISTERED, IMPLEMENTATIONS)
    kept_tables, kept_lists = [dict(t) for t in tables], [list(x) for x in lists]
    try:
        yield
    finally:
        for table, old in zip(tables, kept_tables, strict=True):
            table.clear()
            table.update(old)
        for entries, before in zip(lists, kept_lists, strict=True):
            entries[:] = before
