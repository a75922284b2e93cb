"""Who may be where in one model: threads that run it, and one that compiles it."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import Any

from linrec.capture.probe import unpacked
from linrec.ops.precision import uncached_autocast

MAX_WAIT = 60.0
"""How long a thread waits for another one to have compiled the model that it calls, in seconds."""

_compiling = threading.Lock()
_process = object()
"""Another one in a forked process."""


class _Inside(threading.local):
    """How many compilations this thread is inside of."""

    depth = 0


inside = _Inside()


def _forked() -> None:
    global _compiling, _process
    _compiling, _process = threading.Lock(), object()


os.register_at_fork(after_in_child=_forked)


class Turns:
    """Who may be where in one model: any number of threads run it, or one compiles it. Tracing puts other tensors in
    the place of the parameters for a while, which no other thread may see."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._condition = threading.Condition()
        self._inside: dict[int, int] = {}
        self._compiling: int | None = None
        self._process = _process

    def _look_around(self) -> None:
        """In a forked process the threads that were inside are gone, and will never leave."""
        if self._process is not _process:
            self._begin()

    def __reduce__(self) -> Any:
        return (Turns, ())

    def enter(self) -> None:
        """Say that this thread runs the model from here on. Waits while another one compiles it."""
        self._look_around()
        me = threading.get_ident()
        # Each thread has a number of its own here, so no lock is needed: who compiles says so first and looks then,
        # who enters says so first and looks then.
        self._inside[me] = self._inside.get(me, 0) + 1
        if self._compiling is not None:
            with self._condition:
                if self._compiling not in (None, me):
                    self._left(me)
                    # The limit is for a forward that itself waits for a thread that calls the model.
                    self._condition.wait_for(lambda: self._compiling in (None, me), MAX_WAIT)
                    self._inside[me] = self._inside.get(me, 0) + 1

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """While this thread runs the model."""
        self.enter()
        try:
            yield
        finally:
            self.leave()

    def leave(self) -> None:
        """Say that this thread has done what it entered for."""
        self._left(threading.get_ident())

    def _left(self, me: int) -> None:
        if self._inside[me] == 1:
            del self._inside[me]
        else:
            self._inside[me] -= 1

    @contextlib.contextmanager
    def alone(self) -> Iterator[bool]:
        """Whether this thread may compile. While it does, nested dispatchers run their originals, and a caller that
        packs saved tensors (activation checkpointing) sees nothing of it."""
        self._look_around()
        me = threading.get_ident()
        if not _compiling.acquire(blocking=False):
            yield False
            return
        with self._condition:
            self._compiling = me
            free = all(thread == me for thread in list(self._inside))
            if not free:
                self._compiling = None
                self._condition.notify_all()
        inside.depth += 1
        try:
            with unpacked(), uncached_autocast():
                yield free
        finally:
            inside.depth -= 1
            with self._condition:
                self._compiling = None
                self._condition.notify_all()
            _compiling.release()
