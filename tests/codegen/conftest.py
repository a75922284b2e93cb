"""Memory that kernels get is full of nonsense here: what they do not write, or read from elsewhere, shows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from linrec.codegen import call
from linrec.codegen.strides import Room


def spoilt(x: Tensor) -> Tensor:
    """The same memory, full of NaN or of ones."""
    if x.is_complex():
        torch.view_as_real(x).fill_(float("nan"))  # both parts
    elif x.is_floating_point():
        x.fill_(float("nan"))
    elif x.dtype is torch.uint8:
        x.fill_(255)
    return x


@pytest.fixture(autouse=True)
def spoilt_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    make, workspace = Room.make, call._workspace
    monkeypatch.setattr(Room, "make", lambda self: spoilt(make(self)))
    monkeypatch.setattr(call, "_workspace", lambda size: spoilt(workspace(size)))
