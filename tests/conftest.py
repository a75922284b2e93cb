"""What every test runs under: one thread a worker, no downloads, hypothesis without deadlines and repeatable in CI."""

from __future__ import annotations

import os

# Before anything imports transformers, which reads it once: models are built from configurations, never fetched.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Which algorithm is the fastest must not depend on what else the machine does while the tests run.
os.environ.setdefault("LINREC_MACHINE", "default")
os.environ.setdefault("LINREC_SHORTEST", "1")

import hypothesis
import pytest
import torch

# Without a GPU, Triton's kernels are run by its interpreter. It is asked once, when Triton is imported.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")

# OMP_NUM_THREADS may be unset when pytest -n is called by hand; workers that each use every core slow one another down.
if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)

FULL = bool(os.environ.get("LINREC_LOOPS_FULL"))
SLOW = (
    *(f"tests/{x}/" for x in ("docs", "examples", "fuzz", "benchmarks")),
    "tests/gpu/test_choices.py",
    "tests/gpu/test_compile.py",
    "tests/gpu/test_triton_readout.py",
    "tests/transformers/test_hybrid_models.py",
    "tests/transformers/test_trainer.py",
)
"""What `make test` leaves to `make test-all`, so that it stays within minutes on two cores."""

ONE_IN = {
    "tests/models/test_parallel.py": 10,
    "tests/lowering/test_lowerings.py": 6,
    "tests/analysis/test_vectorize.py": 2,
    "tests/codegen/test_last_call.py": 2,
    "tests/lowering/test_random.py": 4,
    "tests/loops/": 48,
    "tests/codegen/test_steps.py": 3,
    "tests/ops/test_table.py": 3,
    "tests/gpu/test_triton_scan.py": 3,
    "tests/passes/test_decompose_and_parts.py": 2,
    "tests/report/test_report.py": 2,
    "tests/report/test_equations.py": 2,
    "tests/runtime/test_autocast.py": 2,
    "tests/runtime/test_batch_norm.py": 2,
    "tests/runtime/test_periods.py": 3,
    "tests/runtime/test_turns_taken.py": 5,
    "tests/runtime/test_buffers.py": 3,
    "tests/runtime/test_changes.py": 2,
    "tests/runtime/test_holders.py": 3,
    "tests/runtime/test_identity.py": 2,
    "tests/runtime/test_initial.py": 2,
    "tests/runtime/test_lengths.py": 3,
    "tests/runtime/test_losses.py": 3,
    "tests/runtime/test_memos.py": 3,
    "tests/runtime/test_numbers.py": 3,
    "tests/runtime/test_operators.py": 3,
    "tests/runtime/test_padded.py": 3,
    "tests/runtime/test_placed.py": 3,
    "tests/runtime/test_scalars.py": 3,
    "tests/runtime/test_shortcut.py": 2,
    "tests/runtime/test_surrogates.py": 2,
    "tests/runtime/test_torch_compile.py": 3,
    "tests/runtime/test_windows.py": 3,
    "tests/transformers/test_functions.py": 2,
    "tests/transformers/test_language_models.py": 3,
}
"""Of these files and folders it runs one test in so many; always the same ones."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless everything is asked for or something by name."""
    usual = {str(config.rootpath / path) for path in config.getini("testpaths")}
    named = [a for a in config.args if os.path.abspath(a) not in usual]
    if FULL or named or config.getoption("keyword"):
        return
    slow = [i for i in items if i.nodeid.startswith(SLOW)]
    for path, count in ONE_IN.items():
        own = [i for i in items if i.nodeid.startswith(path)]
        slow += [i for k, i in enumerate(own) if k % count]
    if slow:
        config.hook.pytest_deselected(items=slow)
        items[:] = [i for i in items if i not in set(slow)]
