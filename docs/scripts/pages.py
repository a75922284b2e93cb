"""The code on the pages: found, run as a reader would run it, and its printed output compared or written anew.

All Python blocks of a page make up one file, `<page>.py`, in their order. A block after `<!-- printed -->` is what the
block of code before it prints; one after `<!-- not run: why -->` is left out. Blocks of `bash` run in the same folder.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
RUN = ("python", "bash")
DATA = ("text", "toml", "json", "yaml", "mermaid")
MARK = "\x1e"
"""What separates the outputs of two blocks; a blank line of the file is where it is printed."""

_FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n+)?```(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `skip` is why it does not run, `printed` whether it is the output of the block before it."""

    language: str
    code: str
    skip: str
    printed: bool
    span: tuple[int, int]


def blocks(path: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found = []
    for match in _FENCE.finditer(path.read_text(encoding="utf-8")):
        note = match["note"] or ""
        skip = note.removeprefix("not run: ") if note.startswith("not run: ") else ""
        found.append(Block(match["language"], match["code"], skip, note == "printed", match.span("code")))
    return found


def pages() -> list[Path]:
    """Every page with a block, the README included."""
    return [p for p in [*sorted(DOCS.rglob("*.md")), ROOT / "README.md"] if blocks(p)]


def source(path: Path) -> str:
    """The Python of a page as one file."""
    return f'print("{MARK}")\n'.join(b.code for b in blocks(path) if b.language == "python" and not b.skip)


def environment() -> dict[str, str]:
    """One thread, plain output of 100 columns, and the repository's own folders on the path."""
    kept = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "PYTHONWARNINGS")}
    kept["LINREC_MACHINE"] = "default"  # estimates on the pages are those of the bundled speeds
    own = {"COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return kept | own | {"PYTHONIOENCODING": "utf-8"}


def _start(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, encoding="utf-8", timeout=300
    )


def run_python(code: str, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Run code from a file of this name in a folder."""
    path = folder / f"{name}.py"
    path.write_text(code, encoding="utf-8")
    return _start([sys.executable, path.name], folder)


def run_bash(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run commands in a folder, where `linrec` and `python` are those of this interpreter."""
    python = f'"{sys.executable}"'
    head = f'set -e\npython() {{ {python} "$@"; }}\nlinrec() {{ {python} -m linrec.cli "$@"; }}\n'
    return _start([shutil.which("bash") or "bash", "-c", head + code], folder)


def printed(path: Path, folder: Path) -> list[tuple[Block, str]]:
    """The blocks of output on a page, each with what is printed now.

    Raises:
        RuntimeError: where code of the page fails.
    """
    own = blocks(path)
    done = run_python(source(path), folder, path.stem)
    if done.returncode:
        raise RuntimeError(f"{path.name}: {done.stderr}")
    outputs = iter(done.stdout.split(MARK + "\n"))
    found, last = [], ""
    for block in own:
        if block.language == "python" and not block.skip:
            last = next(outputs)
        elif block.language == "bash" and not block.skip:
            shell = run_bash(block.code, folder)
            if shell.returncode:
                raise RuntimeError(f"{path.name}: {block.code}{shell.stdout}{shell.stderr}")
            last = shell.stdout
        elif block.printed:
            found.append((block, clean(last)))
    return found


def clean(text: str) -> str:
    """Output without blanks at the ends of lines, and without blank lines around it."""
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines()) + "\n"


def with_output(path: Path, folder: Path) -> str:
    """The page with its blocks of output as they would be now."""
    text = path.read_text(encoding="utf-8")
    for block, new in reversed(printed(path, folder)):
        text = text[: block.span[0]] + new + text[block.span[1] :]
    return text
