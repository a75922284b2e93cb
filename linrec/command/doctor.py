"""What linrec can use on this machine: versions, kernels, implementations, threads, caches, extensions."""

from __future__ import annotations

import importlib.util
import os
import platform
from importlib import metadata
from typing import Any

import torch
from rich.table import Table

Fact = tuple[str, str, str]
"""(name, value, what to do about it or "")."""


def facts() -> list[Fact]:
    """What is found, each with advice where something is missing."""
    found: list[Fact] = [
        ("linrec", _version("linrec"), ""),
        ("python", f"{platform.python_version()} on {platform.system()} {platform.machine()}", _python_advice()),
        ("torch", torch.__version__, _torch_advice()),
        ("threads", f"{torch.get_num_threads()} of {os.cpu_count()} cores", ""),
        ("accelerator", torch.cuda.get_device_name() if torch.cuda.is_available() else "none", ""),
    ]
    gpu = "" if not torch.cuda.is_available() else "kernels on GPUs: pip install linrec[cuda]"
    for name, module, purpose in (
        ("numba", "numba", "compiled scans on CPU: pip install linrec[cpu]"),
        ("triton", "triton", gpu),
        ("fla-core", "fla", gpu),
        ("transformers", "transformers", "models of transformers: pip install linrec[transformers]"),
        ("matplotlib", "matplotlib", "pictures: pip install linrec[plot]"),
    ):
        version = _version(name) if importlib.util.find_spec(module) else ""
        found.append((name, version or "not installed", "" if version else purpose))
    found.append(_kernels())
    found += _implementations()
    cache = os.environ.get("NUMBA_CACHE_DIR", "next to the source, or in the user's cache folder")
    found.append(("kernel cache", cache, ""))
    found += _extensions()
    return found


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed as a package"


def _python_advice() -> str:
    import sys

    return "" if sys.version_info >= (3, 11) else "from 3.11 on, reports point at the operator within the line"


def _torch_advice() -> str:
    tested = (2, 13)
    own = tuple(int(n) for n in torch.__version__.split("+")[0].split(".")[:2])
    return "" if own == tested else "tested with torch 2.13: other releases may refuse more"


def _kernels() -> Fact:
    """Whether the compiled scan agrees with its reference here, on a small case."""
    from linrec.ops import linear_scan
    from linrec.ops.reference import linear_scan as reference

    a, b, h = torch.rand(5, 3, dtype=torch.float64), torch.rand(5, 3, dtype=torch.float64), torch.rand(3).double()
    try:
        error = float((linear_scan(a, b, h, dim=0) - reference(a, b, h, dim=0)).abs().max())
    except Exception as problem:
        return "self-test", f"fails with {type(problem).__name__}: {problem}", "please report this"
    return (
        "self-test",
        f"the scan agrees with its reference to {error:.0e}",
        "" if error < 1e-12 else "please report this",
    )


def _implementations() -> list[Fact]:
    """What can compute an op of `linrec.ops` in the place of its torch form, which is always there."""
    from linrec.ops import fla, triton_launch
    from linrec.ops.dispatch import IMPLEMENTATIONS

    loaded = {"triton": triton_launch.kernels() is not None, "flash-linear-attention": fla.library() is not None}
    devices = {"cpu"} | ({"cuda"} if torch.cuda.is_available() else set())
    found = []
    for x in IMPLEMENTATIONS:
        missing = "" if loaded.get(x.name, True) else f"{x.name} is not installed"
        missing = missing or ("" if x.device in devices else f"no {x.device} device")
        found.append((x.op, f"{x.name} on {x.device}" + (f" ({missing})" if missing else ""), ""))
    return found


def _extensions() -> list[Fact]:
    from linrec.extend import installed

    return [("extension", f"{name} from {value}", problem) for name, value, problem in installed()]


def table(found: list[Fact]) -> Any:
    """The facts as a table."""
    shown = Table(show_header=False, box=None, padding=(0, 2))
    for name, value, advice in found:
        shown.add_row(f"[bold]{name}[/bold]", value, f"[yellow]{advice}[/yellow]" if advice else "")
    return shown
