"""That Triton's compiler takes the kernels, which its interpreter alone does not show. It needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
def test_the_compiler_reads_the_kernels() -> None:
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "tests.gpu.compile_kernels", "--quick"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    for name in ("kernels.forward", "kernels.summarise", "kernels.backward", "readout_kernels.backward"):
        for dtype in ("float32", "complex64"):
            assert f"triton_{name} torch.{dtype} is a program" in done.stdout
