"""Loops made to be miscompiled: at every call of their schedule they must give what the original gives, gradients and
effects included.
"""

from __future__ import annotations

import pytest

from .entry import Entry
from .harness import check
from .hostile import HOSTILE


@pytest.mark.parametrize("entry", HOSTILE, ids=repr)
def test_hostile(entry: Entry) -> None:
    check(entry)
