"""Memory that kernels get is full of nonsense here: what they do not write, or read from elsewhere, shows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from linrec.codegen import launch


def _spoilt(x: Tensor) -> Tensor:
    if x.is_complex():
        torch.view_as_real(x).fill_(float("nan"))  # both parts
    elif x.is_floating_point():
        x.fill_(float("nan"))
    elif x.dtype is torch.uint8:
        x.fill_(255)
    return x


class _Spoiling:
    """torch, whose fresh memory is never zero by chance."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def empty(self, *args: Any, **kwargs: Any) -> Tensor:
        return _spoilt(torch.empty(*args, **kwargs))

    def empty_like(self, *args: Any, **kwargs: Any) -> Tensor:
        return _spoilt(torch.empty_like(*args, **kwargs))

    def empty_strided(self, *args: Any, **kwargs: Any) -> Tensor:
        return _spoilt(torch.empty_strided(*args, **kwargs))


@pytest.fixture(autouse=True)
def spoilt_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "torch", _Spoiling())
