"""Recurrences of many fields (papers.py) agree with their loops; one in four of them, or all with LINREC_LOOPS_FULL=1."""

from __future__ import annotations

import pytest

from .entry import Entry
from .harness import FULL, check
from .papers import ENTRIES


@pytest.mark.parametrize("entry", ENTRIES if FULL else ENTRIES[::4], ids=repr)
def test_paper(entry: Entry) -> None:
    check(entry)
