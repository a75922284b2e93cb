"""Training steps of unchanged loops, of what linrec makes of them, and of the forms that experts write by hand, timed
side by side: ``python -m benchmarks --help``."""

from __future__ import annotations

import os

# The profiler, which measures memory, says on stderr when it starts and stops.
os.environ.setdefault("KINETO_LOG_LEVEL", "5")
