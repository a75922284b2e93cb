"""The HTML report in a headless Chromium, where there is one: it is drawn, and nothing is asked from outside the file."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import linrec
from models.registry import SAMPLES

CHROMIUM = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


def browse(path: Path, folder: Path, *options: str) -> str:
    common = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    command = [str(CHROMIUM), *common, *options, path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("name", ["mamba", "lmu_coupled"])
def test_the_page_is_drawn_without_a_request(name: str, tmp_path: Path) -> None:
    (sample,) = [s for s in SAMPLES if s.name == name]
    report = linrec.explain(sample.factory(), *sample.inputs(2, 20, torch.get_default_dtype()))
    path = report.to_html(tmp_path / "report.html", f"<{name}>")
    picture, log = tmp_path / "page.png", tmp_path / "net.json"
    document = browse(path, tmp_path, "--dump-dom", "--virtual-time-budget=1000", f"--log-net-log={log}")
    assert f"<h1>&lt;{name}&gt;</h1>" in document
    assert document.count("<math") == len(report.recurrences)
    assert "<svg" in document and "state graph" in document
    browse(path, tmp_path, f"--screenshot={picture}", "--window-size=1200,1600")
    assert picture.stat().st_size > 20_000
    text = log.read_text()
    events = json.loads(text if text.rstrip().endswith("}") else text.rstrip().rstrip(",") + "]}")["events"]
    asked = {str(e["params"]["url"]) for e in events if "url" in e.get("params", {})}
    assert not {url for url in asked if not url.startswith(("file:", "data:", "chrome")) and _is_ours(url)}, asked


def _is_ours(url: str) -> bool:
    """Whether a request can come from the page; Chromium itself asks its maker for updates."""
    return not re.match(r"^https?://([\w-]+\.)*(google|googleapis|gvt1|gstatic)\.com(/|:|$)", url)
