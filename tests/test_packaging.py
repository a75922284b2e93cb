"""The wheel, seen from outside: what it holds, and that the README's example runs with nothing but what it declares."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
NOT_SOURCE = shutil.ignore_patterns(".*", "build", "dist", "out", "*.egg-info", "__pycache__")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the tree: a build in place leaves build/, whose stale files reach the next wheel."""
    source = tmp_path_factory.mktemp("source") / "linrec"
    shutil.copytree(ROOT, source, ignore=NOT_SOURCE)
    out = tmp_path_factory.mktemp("dist")
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, source, cwd=out)
    (built,) = out.glob("linrec-*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "linrec").rglob("*.py")}
    assert names == sources | {"linrec/py.typed"}


def test_wheel_carries_the_licence(wheel: Path) -> None:
    assert any(name.endswith("/LICENSE") for name in zipfile.ZipFile(wheel).namelist())


def test_readme_example_runs_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert example, "README.md has no ```python block"
    python, site = _empty_environment(tmp_path / "env")
    _run(sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    _link_dependencies(site)
    script = tmp_path / "example.py"
    script.write_text(example[1], "utf-8")
    _run(python, "-I", "-c", f"import linrec; assert linrec.__file__.startswith({str(site)!r})", cwd=tmp_path)
    _run(python, "-I", script, cwd=tmp_path)


def test_constraints_pin_all_that_make_installs() -> None:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins)
    pinned = {canonicalize_name(pin.name) for pin in pins}
    installed = {canonicalize_name(found.name) for found in _closure("linrec", extras=("dev",))}
    assert installed - pinned == {"linrec"}


def _empty_environment(folder: Path) -> tuple[Path, Path]:
    """Make an environment without any package; returns its interpreter and its site-packages."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    site = _run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip()
    return python, Path(site)


def _link_dependencies(site: Path) -> None:
    """Link what linrec declares, and what that declares in turn, from the running environment.

    torch is too big to install again, and a package that is imported but not declared stays absent.
    """
    for found in _closure("linrec"):
        if found.name == "linrec":
            continue
        for top in {file.parts[0] for file in found.files or () if file.parts[0] not in ("..", "__pycache__")}:
            link = site / top
            if not link.exists():
                link.symlink_to(Path(str(found.locate_file(top))).resolve())


def _closure(name: str, extras: tuple[str, ...] = ()) -> Iterator[Distribution]:
    """Every installed distribution that `name[extras]` needs, itself included, each once."""
    pending, seen, yielded = [(name, extras)], set[tuple[str, tuple[str, ...]]](), set[str]()
    while pending:
        key = pending.pop()
        if key in seen:
            continue
        seen.add(key)
        found = distribution(key[0])
        if found.name not in yielded:
            yielded.add(found.name)
            yield found
        for line in found.requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *key[1])):
                pending.append((canonicalize_name(requirement.name), tuple(sorted(requirement.extras))))


def _run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the repository and return what it printed; a failure shows all of its output."""
    done = subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout
