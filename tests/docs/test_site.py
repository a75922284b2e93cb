"""The site builds without a warning, asks for nothing from elsewhere, and links that stand outside of it lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from docs.scripts.pages import ROOT
from linrec.ir.obstruction import CATALOGUE

MISSING = [m for m in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(m) is None]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if MISSING:
        pytest.skip(f"not installed: {', '.join(MISSING)}")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_public_name_has_an_entry(site: Path) -> None:
    import linrec
    from linrec import ops

    api = (site / "reference/api.html").read_text(encoding="utf-8")
    for name in linrec.__all__:
        if name != "passes":
            assert re.search(rf'<h3 id="linrec\.([\w.]+\.)?{name}"', api), name
    # A module has the name of a function: the entry is the function's.
    assert "has done to a model so far" in api
    algorithms = (site / "reference/ops.html").read_text(encoding="utf-8")
    for name in ops.__all__:
        assert re.search(rf'id="linrec\.ops[\w.]*\.{name}"', algorithms), name


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="(https?:[^"]+)"', text)
        loaded += re.findall(r'<link[^>]*rel="stylesheet"[^>]*href="(https?:[^"]+)"', text)
        assert loaded == [], page.name


def test_an_obstruction_can_be_linked_to(site: Path) -> None:
    text = (site / "obstructions.html").read_text(encoding="utf-8")
    for id, (name, _, _) in CATALOGUE.items():
        assert f'id="{id.lower()}-{name}"' in text


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_to_files(page: str) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8")):
        assert target.startswith("https://") or (ROOT / target).exists(), target
