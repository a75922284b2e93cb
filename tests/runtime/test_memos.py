"""What forward finds out once and keeps outside its tensors: by which class of tensor it is called, that it has warned.
A plan does without; whatever else it keeps is a reason to leave it alone."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import agree, same, series

BACKENDS: dict[Any, Any] = {}
STATISTICS: dict[str, Any] = {}
SAID: set[str] = set()
LINES: list[str] = []
READY = False


class Backend:
    """Knows how to add, as libraries do that serve several kinds of arrays."""

    name = "torch"

    def add(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


def backend_of(x: Tensor) -> Backend:
    if type(x) not in BACKENDS:
        BACKENDS[type(x)] = Backend()
    found: Backend = BACKENDS[type(x)]
    return found


class Leaky(nn.Module):
    def __init__(self, before: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.before = before
        self.decay = nn.Parameter(torch.tensor(0.9, dtype=torch.float64))
        self.own: dict[Any, Any] = {}

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(self, x)
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def by_class(m: Any, x: Tensor) -> Tensor:
    return backend_of(x).add(x, x)


def by_own_class(m: Any, x: Tensor) -> Tensor:
    m.own.setdefault(type(x), Backend())
    return x + x


def warned(m: Any, x: Tensor) -> Tensor:
    SAID.add("slow")
    return x * 2


def initialised(m: Any, x: Tensor) -> Tensor:
    global READY
    if not READY:
        READY = True
    return x * 2


def counted(m: Any, x: Tensor) -> Tensor:
    STATISTICS["calls"] = STATISTICS.get("calls", 0) + 1
    return x * 2


def listed(m: Any, x: Tensor) -> Tensor:
    LINES.append("called")
    return x * 2


def first_mean(m: Any, x: Tensor) -> Tensor:
    if "mean" not in STATISTICS:
        STATISTICS["mean"] = x.mean().detach()
    return x - STATISTICS["mean"]


def first_length(m: Any, x: Tensor) -> Tensor:
    return x / STATISTICS.setdefault("length", x.shape[1])


def first_call(m: Any, x: Tensor) -> Tensor:
    """Does something else in a first call."""
    if "called" in SAID:
        return x
    SAID.add("called")
    return x * 2


def first_of_both(m: Any, x: Tensor) -> Tensor:
    return x / STATISTICS.setdefault("length", (str(x.dtype), [x.shape[1]]))[1][0]


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    global READY
    for held in (BACKENDS, STATISTICS, SAID, LINES):
        held.clear()  # type: ignore[attr-defined]
    READY = False
    yield


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("before", [by_class, by_own_class, warned, initialised])
def test_memos(before: Callable[[Any, Tensor], Tensor], warm: bool) -> None:
    oracle = Leaky(before)
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    if warm:
        oracle(series())
    for length in (17, 40, 9):
        same(model, oracle, series(2, length))
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
    assert set(BACKENDS) <= {Tensor, nn.Parameter}


@pytest.mark.parametrize("before", [counted, listed, first_mean, first_length, first_of_both, first_call])
def test_what_depends_on_calls_or_data(before: Callable[[Any, Tensor], Tensor]) -> None:
    """The model runs as it came, and keeps what it keeps."""
    results = []
    for wrap in (lambda m: m, functools.partial(linrec.parallelize, when="always")):
        for held in (STATISTICS, LINES, SAID):
            held.clear()  # type: ignore[attr-defined]
        model: Any = wrap(Leaky(before))
        outputs = [model(series(2, length, seed=length)) for length in (17, 40, 9)]
        results.append((outputs, dict(STATISTICS), list(LINES)))
    (loop, kept, lines), (ours, own, own_lines) = results
    for actual, expected in zip(ours, loop, strict=True):
        agree(actual, expected)
    assert lines == own_lines and kept.keys() == own.keys()
    assert all(torch.equal(torch.as_tensor(own[k]), torch.as_tensor(kept[k])) for k in kept if k != "length")
    assert own.get("length") == kept.get("length")


def test_einops() -> None:
    einops = pytest.importorskip("einops")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv = nn.Linear(6, 18, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = einops.rearrange(self.qkv(x), "b t (three h d) -> three b h t d", three=3, h=2)
            state, out = torch.zeros_like(einops.einsum(k[:, :, 0], v[:, :, 0], "b h i, b h j -> b h i j")), []
            for t in range(x.shape[1]):
                state = 0.9 * state + einops.einsum(k[:, :, t], v[:, :, t], "b h i, b h j -> b h i j")
                out.append(einops.einsum(q[:, :, t], state, "b h i, b h i j -> b h j"))
            return einops.rearrange(torch.stack(out, 2), "b h t d -> b t (h d)")

    oracle = Attention()
    model = linrec.parallelize(copy.deepcopy(oracle), when="always")
    for batch, length in ((2, 17), (3, 40), (1, 9)):
        x = torch.randn(batch, length, 6, dtype=torch.float64)
        same(model, oracle, x)
    report = linrec.report(model)
    assert report.recurrences and all(r.parallel for r in report.recurrences), report
