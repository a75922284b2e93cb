"""What pytest leaves out where an optional package is missing: the Triton kernels cannot be imported without Triton."""

from __future__ import annotations

import importlib.util

collect_ignore_glob = [] if importlib.util.find_spec("triton") else ["linrec/ops/triton*_kernels.py"]
