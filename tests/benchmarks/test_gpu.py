"""The GPU benchmark without a GPU: it says so; and its parts at tiny sizes on the CPU."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from benchmarks import gpu
from benchmarks.gpu_cases import CASES

TINY = {"gate": {"B": 1, "D": 2}, "mamba": {"B": 1, "D": 2, "N": 2}}
ATTENTION = {"B": 1, "H": 2, "K": 4}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = CliRunner().invoke(gpu.app, ["gate"])
    assert done.exit_code == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "no CUDA device" in done.stderr


@pytest.mark.parametrize(("name", "dtype"), [("gate", "bfloat16"), *((name, "float32") for name in CASES)])
def test_forms_agree_and_are_timed(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINREC_CODEGEN", "off")  # no kernel is compiled on a GPU
    case, sizes = CASES[name], TINY.get(name, ATTENTION)
    rows = gpu.measure(case, sizes, gpu.DTYPES[dtype], [8], "cpu", 2, 8, gpu.on_clock, 1e9)
    timed = {r.form for r in rows if r.seconds is not None and r.length == 8}
    missing = {r.form: r.note for r in rows if r.seconds is None}
    assert {"loop", "linrec.parallelize", "memory roofline"} <= timed and any("torch form" in x for x in timed)
    assert all("installed" in why or "GPU" in why for why in missing.values()), missing
    assert all(r.error is not None and r.error <= gpu.ALLOWED[gpu.DTYPES[dtype]] for r in rows if r.length and r.error)


def test_a_form_that_disagrees_is_not_timed() -> None:
    case = CASES["gate"]
    wrong = case.variants | {"wrong": lambda device: lambda a, x: x * 1.5 + 0 * a}
    changed = gpu.GpuCase(case.name, case.title, case.sizes, case.inputs, case.exact, wrong, case.moved)
    rows = gpu.measure(changed, TINY["gate"], torch.float32, [8], "cpu", 1, 4, gpu.on_clock, 1e9)
    assert [r.note for r in rows if r.form == "wrong"] == ["disagrees with the loop"]
    assert not any(r.form == "loop" for r in rows)  # it is timed up to 4 steps
    about = gpu.machine("cpu", gpu.bandwidth("cpu", gpu.on_clock, 1))
    text = gpu.markdown(rows, about)
    assert "disagrees with the loop" in text and "| memory roofline |" in text
