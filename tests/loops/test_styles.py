"""Each way of writing a loop: values and gradients as the loop's at lengths that were not traced, and the verdict
known by construction.
"""

from __future__ import annotations

import pytest

from .entry import Entry
from .harness import check
from .styles import STYLES


@pytest.mark.parametrize("entry", STYLES, ids=repr)
def test_style(entry: Entry) -> None:
    check(entry)
