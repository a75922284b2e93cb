"""Where in the user's code a graph node comes from: the frames of its stack that are not a library's, innermost first,
with the exact extent of the expression that ran where Python records it (3.11 and later)."""

from __future__ import annotations

import functools
import linecache
import os
import re
import sysconfig
from collections.abc import Iterator
from types import CodeType, FrameType
from typing import NamedTuple

import torch
from torch import fx

USER_FRAME = "linrec_user_frame"
"""Key of a node's custom metadata: what `note` returns."""

PLACES = "linrec_places"
"""Key of a node's metadata: its places, once its graph is finished."""

MAX_FRAMES = 6
"""How many frames of user code are noted for each node: a cell, a step method, the loop, and what calls them."""

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)(?:\n\s+(.*))?')
_TORCH = os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__)))
_STDLIB = sysconfig.get_paths()["stdlib"]
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_TYPED = ("<ipython-input-", "<doctest ")
"""Beginnings of the file names under which code that was typed in is kept with its source."""


class Place(NamedTuple):
    """An expression in user code. `line` is where its statement reports itself; the extent (1-based lines, columns in
    UTF-8 bytes as in `ast`) is zero where it is not known."""

    path: str
    line: int
    start: tuple[int, int] = (0, 0)
    end: tuple[int, int] = (0, 0)


def is_library(path: str) -> bool:
    """Whether a file belongs to torch, the standard library or linrec itself, and is not the user's."""
    if path.startswith(_TYPED):
        return False
    inside_torch = path.startswith((os.path.join(_TORCH, "torch"), "torch/"))
    stdlib = path.startswith(_STDLIB) and "site-packages" not in path
    return inside_torch or stdlib or path.startswith((_OWN, "<"))


@functools.lru_cache(maxsize=512)
def _positions(code: CodeType) -> list[tuple[int | None, int | None, int | None, int | None]]:
    return list(code.co_positions()) if hasattr(code, "co_positions") else []


def note(frame: FrameType) -> str:
    """The user's frames from this one outwards, up to the first of linrec, as text for a node's metadata."""
    found: list[str] = []
    current: FrameType | None = frame
    while current is not None and len(found) < MAX_FRAMES:
        path = current.f_code.co_filename
        if path.startswith(_OWN):
            break
        if not is_library(path):
            table = _positions(current.f_code)
            index = current.f_lasti // 2
            line, last, column, end = table[index] if 0 <= index < len(table) else (None, None, None, None)
            extent = (line or 0, column or 0, last or 0, end or 0)
            found.append("\0".join(map(str, (path, current.f_lineno, *extent))))
        current = current.f_back
    return "\1".join(found)


def places(node: fx.Node) -> list[Place]:
    """The places in user code that led to a node, innermost first."""
    if PLACES in node.meta:
        return list(node.meta[PLACES])
    noted = (node.meta.get("custom") or {}).get(USER_FRAME)
    if noted:
        found = []
        for text in noted.split("\1"):
            path, *numbers = text.split("\0")
            line, first, column, last, end = (int(n) for n in numbers)
            found.append(Place(path, line, (first, column), (last, end)))
        return found
    return [Place(path, line) for path, line, _, _ in reversed(list(frames(node))) if not is_library(path)]


def locate_like(node: fx.Node, source: fx.Node) -> None:
    """Let a new node, of the compiler's own, come from the lines where another one comes from. It is the value of no
    expression there, so the extents stay behind."""
    lines = [f'  File "{place.path}", line {place.line}, in {source.name}' for place in reversed(places(source))]
    node.meta["stack_trace"] = "\n".join(lines)


def frames(node: fx.Node) -> Iterator[tuple[str, int, str, str]]:
    """Yield (path, line, function, source line) of a node's stack trace, outermost first."""
    for match in _FRAME.finditer(node.meta.get("stack_trace") or ""):
        yield match.group(1), int(match.group(2)), match.group(3), (match.group(4) or "").strip()


def user_frame(node: fx.Node) -> tuple[str, int, str] | None:
    """(path, line, source line) of the innermost user frame of a node, or None where none is recorded."""
    found = places(node)
    if not found:
        return None
    return found[0].path, found[0].line, linecache.getline(found[0].path, found[0].line).strip()


def location(node: fx.Node) -> str:
    """``"file.py:12"`` for the line of user code that a node comes from, ``""`` where that is not known."""
    found = places(node)
    return f"{os.path.basename(found[0].path)}:{found[0].line}" if found else ""
