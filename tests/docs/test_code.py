"""All code in the documentation runs, as a reader would copy it, and prints what the page says that it prints.

The Python of a page is one file, its blocks one after another; the blocks of `extending.md` are files of their own, each
in an empty process. `python -m docs.scripts.update` writes the printed blocks anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from docs.scripts.pages import DATA, DOCS, ROOT, RUN, Block, blocks, clean, pages, printed, run_python

SEPARATE = "extending.md"
PAGES = pages()
EXTENSIONS = [k for k, block in enumerate(blocks(DOCS / SEPARATE)) if block.language == "python"]
SKIPPED = [(page, block) for page in PAGES for block in blocks(page) if block.skip]


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("number", EXTENSIONS)
def test_an_example_works_in_an_empty_file(number: int, tmp_path: Path) -> None:
    code = blocks(DOCS / SEPARATE)[number].code
    assert len(code.strip().splitlines()) <= 40, "an example has at most 40 lines"
    done = run_python(code, tmp_path, "copied")
    assert done.returncode == 0, done.stderr
    assert "1 of 1 recurrences parallel" in done.stdout


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != SEPARATE], ids=name)
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    if not any(block.language in RUN and not block.skip for block in blocks(page)):
        pytest.skip("no code to run")
    for block, output in printed(page, tmp_path):
        assert block.code == output, "python -m docs.scripts.update writes the output anew"


@pytest.mark.parametrize(("page", "block"), SKIPPED, ids=[f"{name(p)}:{k}" for k, (p, _) in enumerate(SKIPPED)])
def test_a_block_that_does_not_run_says_why(page: Path, block: Block) -> None:
    assert len(block.skip) > 10
    pytest.skip(block.skip)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_block_is_code_or_data(page: Path) -> None:
    """A block in another language would be run by nobody; an excerpt from elsewhere is `py`, with its file named."""
    own = blocks(page)
    assert {block.language for block in own} <= {*RUN, *DATA, "py"}
    assert page.read_text(encoding="utf-8").count("\n```") == 2 * len(own), "a fence is not closed"


def test_the_collector_sees_what_is_there(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\nprint(x, '  ')\n```\n\n<!-- printed -->\n```text\nold\n```\n\n"
        "<!-- not run: it would never end -->\n```python\nwhile True: pass\n```\n```bash\npython -c 'print(2)'\n```\n"
        "<!-- printed -->\n```text\n```\n```python\nprint(x + 2)\n```\n<!-- printed -->\n```text\n```\n",
        encoding="utf-8",
    )
    assert [b.skip for b in blocks(page) if b.skip] == ["it would never end"]
    assert [output for _, output in printed(page, tmp_path)] == ["1\n", "2\n", "3\n"]
    assert clean("\n a \n\n") == " a\n"
    page.write_text("```python\n1 / 0\n```\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="ZeroDivisionError"):
        printed(page, tmp_path)
