"""What a thread turns off for a while."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator


class Switch(threading.local):
    """On in every thread, but within its own `off` blocks."""

    is_off = False

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Off in the block, for this thread."""
        before, self.is_off = self.is_off, True
        try:
            yield
        finally:
            self.is_off = before
