"""The user's code that runs in a trial run."""

from __future__ import annotations

import contextlib
import gc
import sys
import types
from collections.abc import Iterator
from typing import Any

from linrec.capture.beside import is_foreign

Ran = dict[types.CodeType, tuple[dict[str, Any], set[type]]]
"""Code that ran, with its globals and the classes of its first arguments."""


@contextlib.contextmanager
def code_that_runs() -> Iterator[Ran | None]:
    """Note the code of the user's that runs in the block; None where other tools watch this thread already."""
    found: Ran = {}
    foreign: set[tuple[types.CodeType, int]] = set()
    callbacks = {getattr(f, "__code__", None) for f in gc.callbacks}  # which run whenever it is time

    def note(frame: types.FrameType, event: str, arg: Any) -> None:
        if event == "call":
            code = frame.f_code
            if code not in found:
                if (code, id(frame.f_globals)) in foreign:
                    return
                if is_foreign(str(frame.f_globals.get("__name__", ""))):
                    foreign.add((code, id(frame.f_globals)))
                    return
                if _comes_of(frame, callbacks):
                    return
                found[code] = (frame.f_globals, set())
            if code.co_argcount:
                first = frame.f_locals.get(code.co_varnames[0])
                found[code][1].add(first if isinstance(first, type) else type(first))

    ways = ((sys.getprofile, sys.setprofile), (sys.gettrace, sys.settrace))
    watch: Any = next((put for get, put in ways if get() is None), None)
    if watch is None:
        yield None
        return
    watch(note)
    try:
        yield found
    finally:
        watch(None)


def _comes_of(frame: types.FrameType | None, codes: set[Any]) -> bool:
    while frame is not None:
        if frame.f_code in codes:
            return True
        frame = frame.f_back
    return False
