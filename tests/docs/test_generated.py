"""What the documentation takes from the code is up to date, and its examples meet what they are there to show."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

import linrec
from docs.scripts import models, obstructions, pictures
from docs.scripts.obstruction_examples import EXAMPLES
from docs.scripts.pages import DOCS
from linrec.ir.obstruction import CATALOGUE
from models.registry import SAMPLES

FULL = bool(os.environ.get("LINREC_LOOPS_FULL"))
UPDATE = "python -m docs.scripts.update"


def report_of(code: str, folder: Path) -> linrec.Report:
    """The report that an example leaves; from a file, so that its places in the source are found."""
    path = folder / "example.py"
    path.write_text("import torch\nimport linrec\n" + code, encoding="utf-8")
    names: dict[str, Any] = {}
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), names)
    report = names["report"]
    assert isinstance(report, linrec.Report)
    return report


def ids(report: linrec.Report) -> set[str]:
    inside = [o for r in report.recurrences for o in r.obstructions]
    return {o.id for o in [*report.obstructions, *inside]}


@pytest.mark.parametrize("id", EXAMPLES)
@pytest.mark.filterwarnings("ignore")
def test_an_example_meets_its_obstruction(id: str, tmp_path: Path) -> None:
    example = EXAMPLES[id]
    report = report_of(example.code, tmp_path)
    if example.met:
        assert id in ids(report), str(report)
        assert not report.parallel
    else:
        assert ids(report) == set() and report.recurrences == []
    if example.remedy:
        assert report_of(example.remedy, tmp_path).parallel


def test_the_catalogue_is_whole_and_up_to_date() -> None:
    assert list(EXAMPLES) == list(CATALOGUE)
    page = (DOCS / "obstructions.md").read_text(encoding="utf-8")
    assert page == obstructions.page(), UPDATE
    for id, (name, meaning, hint) in CATALOGUE.items():
        assert all(part in page for part in (f"## {id} {name}\n", meaning, hint))


def table() -> dict[str, list[str]]:
    lines = (DOCS / "models.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| `")]
    return {row.split("`")[1]: row.strip("| ").split(" | ") for row in rows}


def test_the_table_of_models_has_every_sample() -> None:
    found = table()
    assert set(found) == {sample.name for sample in SAMPLES}, f"{UPDATE} --models"
    assert {len(cells) for cells in found.values()} == {6}
    for sample in SAMPLES:
        assert sample.paper in found[sample.name][1] and sample.equation in found[sample.name][1]
        stays = found[sample.name][5] != "–"
        assert stays == (sample.expect != "parallel"), sample.name


@pytest.mark.parametrize(
    "sample", [s for s in SAMPLES if FULL or s.name in ("lmu", "mamba", "elman")], ids=lambda s: s.name
)
def test_the_table_says_what_the_compiler_finds(sample: models.Sample) -> None:
    """Structures and what stays; the algorithm is a matter of costs, and compared only with all models."""
    cells, row = table()[sample.name], models.row(sample)
    assert cells[2:4] == [part.strip() for part in row[:2]]
    assert cells[5] == row[3]
    if FULL:
        assert cells[4] == row[2], f"{UPDATE} --models"


def test_the_drawings_are_those_of_the_script() -> None:
    for name, text in (("lmu", pictures.LMU), ("mamba", pictures.MAMBA)):
        assert (DOCS / "pictures" / f"{name}.svg").read_text(encoding="utf-8") == text
