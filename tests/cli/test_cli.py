"""The command line: what it prints, what it writes, and that each mistake is one line with an exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from linrec.cli import Exit, app
from linrec.command.load import CannotLoad, tensor

MODEL = """
import torch

class Leaky(torch.nn.Module):
    def __init__(self, rate=0.1):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = (1 - self.rate) * h + self.rate * x[:, t]
            out.append(h)
        return torch.stack(out, 1)

class Elman(Leaky):
    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = torch.tanh(self.rate * h + x[:, t])
        return h

def doubled(x):
    return 2 * x

def broken():
    raise ZeroDivisionError("no model today")

made = Leaky()
number = 3
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "leaky_model.py"
    path.write_text(MODEL)
    return str(path)


def call(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def test_explain(model: str) -> None:
    code, out, err = call("explain", f"{model}:Leaky", "--input", "2x20x3")
    assert (code, err) == (Exit.OK, "")
    assert "1 of 1 recurrences parallel" in out and "h[t] = 0.9 h[t-1]" in out


@pytest.mark.parametrize("name", ["Leaky", "made"])
def test_what_can_be_explained(model: str, name: str) -> None:
    code, out, _ = call("explain", f"{model}:{name}", "--input", "2x20x3", "--json")
    assert code == Exit.OK and json.loads(out)["parallel"] is True


def test_configuration(model: str) -> None:
    _, out, _ = call("explain", f"{model}:Leaky", "--input", "2x20x3", "--config", '{"rate": 0.25}', "--json")
    report = json.loads(out)
    assert report["schema"] == 1
    assert "0.75 h[t-1]" in report["recurrences"][0]["equation"]


def test_strict(model: str) -> None:
    assert call("explain", f"{model}:Leaky", "--input", "2x20x3", "--strict")[0] == Exit.OK
    code, out, _ = call("explain", f"{model}:Elman", "--input", "2x20x3", "--strict")
    assert code == Exit.STAYS and "LR003" in out and "^^^" in out
    assert call("explain", f"{model}:Elman", "--input", "2x20x3")[0] == Exit.OK
    assert call("explain", f"{model}:doubled", "--input", "2x20x3", "--strict")[0] == Exit.STAYS


def test_html(model: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    code, _, _ = call("explain", f"{model}:Leaky", "--input", "2x20x3", "--html", str(path))
    assert code == Exit.OK and path.read_text(encoding="utf-8").startswith("<!doctype html>")
    code, _, err = call("explain", f"{model}:Leaky", "--input", "2x20x3", "--html", str(tmp_path / "no" / "where.html"))
    assert code == Exit.MODEL and err.count("\n") == 1


def test_passes(model: str) -> None:
    code, out, _ = call("explain", f"{model}:Leaky", "--input", "2x20x3", "--passes")
    assert code == Exit.OK
    places = [out.index(f"== {name}\n") for name in ("input", "simplify", "split", "hoist", "lower")]
    assert places == sorted(places)
    assert re.search(r"^\+ .*compiled_scan\(", out, re.M) and re.search(r"^- +h_2 = add\(", out, re.M)


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["explain", "nothing", "--input", "2x3"], Exit.USAGE, "package.module:name"),
        (["explain", "no.such.module:X", "--input", "2x3"], Exit.USAGE, "no module 'no'"),
        (["explain", "no_such_file.py:X", "--input", "2x3"], Exit.USAGE, "no file"),
        (["explain", "{}:Lea", "--input", "2x3"], Exit.USAGE, "it has Leaky"),
        (["explain", "{}:number", "--input", "2x3"], Exit.USAGE, "neither a module nor a function"),
        (["explain", "{}:Leaky"], Exit.USAGE, "--input 2x64x8"),
        (["explain", "{}:Leaky", "--input", "2,3"], Exit.USAGE, "'2,3' is no shape"),
        (["explain", "{}:Leaky", "--input", "2x3:int65"], Exit.USAGE, "is no shape"),
        (["explain", "{}:Leaky", "--input", "2x3", "--config", "{{rate"], Exit.USAGE, "not JSON"),
        (["explain", "{}:Leaky", "--input", "2x3", "--config", "[1]"], Exit.USAGE, "JSON object"),
        (["explain", "{}:Leaky", "--input", "2x3", "--config", '{{"speed": 1}}'], Exit.USAGE, "speed"),
        (["explain", "{}:broken", "--input", "2x3"], Exit.MODEL, "no model today"),
        (["explain", "{}:Leaky", "--input", "3"], Exit.MODEL, "IndexError"),
        (["bench", "{}:Leaky", "--input", "2x20x3", "--lengths", "many"], Exit.USAGE, "--lengths"),
        (["bench", "{}:Leaky", "--input", "2x20x3", "--lengths", "2"], Exit.USAGE, "at least 4"),
    ],
)
def test_a_mistake_is_one_line(model: str, arguments: list[str], code: int, says: str) -> None:
    found, out, err = call(*(a.replace("{}", model).replace("{{", "{").replace("}}", "}") for a in arguments))
    assert found == code, err
    assert err.startswith("linrec: ") and err.count("\n") == 1 and says in err
    assert out == ""


def test_bench(model: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture = tmp_path / "times.png"
    common = ("bench", f"{model}:Leaky", "--input", "2x20x3", "--lengths", "8,16", "--repeat", "1")
    code, out, err = call(*common, "--plot", str(picture))
    assert code == Exit.OK, err
    assert "speed-up" in out and picture.read_bytes().startswith(b"\x89PNG")
    code, out, _ = call(*common, "--json")
    assert [row["length"] for row in json.loads(out)] == [8, 16]
    assert all(row["before_s"] > 0 and row["after_s"] > 0 and row["parallel"] for row in json.loads(out))


def test_doctor() -> None:
    code, out, _ = call("doctor")
    assert code == Exit.OK
    for part in (
        "linrec",
        "torch",
        "threads",
        "numba",
        "triton",
        "fla-core",
        "scan_readout",
        "agrees with its reference",
    ):
        assert part in out
    assert json.loads(call("doctor", "--json")[1])["linrec"]


def test_help_has_examples_and_exit_codes() -> None:
    for command in ("explain", "bench"):
        _, out, _ = call(command, "--help")
        text = " ".join(out.split())
        assert "Exit codes: 0 done" in text and f"linrec {command} " in text


def test_the_command_is_installed() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "linrec.cli", "--help"], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0 and "explain" in done.stdout


def test_tensors() -> None:
    assert tensor("2x3").shape == (2, 3) and tensor("4:complex64").is_complex()
    assert set(tensor("50:bool").tolist()) <= {True, False} and tensor("9:int64").max() <= 1
    with pytest.raises(CannotLoad):
        tensor("x2")
