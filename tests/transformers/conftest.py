"""Every test of this folder needs `transformers`, and none its warnings about kernels that are missing on a CPU."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def quiet_library() -> None:
    pytest.importorskip("transformers").logging.set_verbosity_error()
