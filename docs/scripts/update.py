"""`python -m docs.scripts.update`: write anew what the documentation takes from the code.

Without arguments, the catalogue of obstructions and the output printed on the pages; with `--models`, the table of
models as well, for which every model is compiled (some minutes).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from docs.scripts import models, obstructions
from docs.scripts.pages import DOCS, pages, with_output


def write(path: Path, text: str) -> None:
    """Write a page, and say so where it changes."""
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")
        print(f"written: {path.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", action="store_true", help="compile every model for the table of models")
    parser.add_argument("--only", nargs="*", help="names of pages whose output is written anew, as tour")
    args = parser.parse_args()
    write(DOCS / "obstructions.md", obstructions.page())
    if args.models:
        write(DOCS / "models.md", models.page(models.look()))
    for path in pages():
        if path.name != "extending.md" and (args.only is None or path.stem in args.only):
            with tempfile.TemporaryDirectory() as folder:
                write(path, with_output(path, Path(folder)))


if __name__ == "__main__":
    main()
