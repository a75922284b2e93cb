"""Functions under `functools.lru_cache` that forward calls: trial runs leave nothing in them, and find nothing."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec
from linrec.capture.cached import set_aside


def positions(length: int) -> Tensor:
    return torch.sin(torch.arange(length, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.1, 0.01]))


@functools.lru_cache(None)
def unbounded(length: int) -> Tensor:
    return positions(length)


@functools.lru_cache(maxsize=3)
def bounded(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    return positions(length).to(device, dtype)


def within(length: int) -> Tensor:
    return unbounded(length)


class Table:
    @functools.lru_cache  # noqa: B019
    def of(self, length: int) -> Tensor:
        return positions(length)

    @staticmethod
    @functools.cache
    def static(length: int) -> Tensor:
        return positions(length)


TABLE = Table()
WAYS: dict[str, Callable[[int], Tensor]] = {
    "unbounded": lambda n: unbounded(n),
    "bounded": lambda n: bounded(n, torch.float64, torch.device("cpu")),
    "within": within,
    "method": lambda n: TABLE.of(n),
    "static": lambda n: Table.static(n),
}


class Positioned(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = WAYS[way]
        self.w = nn.Parameter(torch.rand(3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.way(x.shape[1])
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.w.sigmoid() * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [False, True])
def test_tensors_of_trial_runs_do_not_stay(way: str, first: bool) -> None:
    loop = Positioned(way)
    for f in (unbounded, bounded, Table.of, Table.static):
        f.cache_clear()
    if first:
        WAYS[way](8), WAYS[way](30)
    ours = linrec.parallelize(copy.deepcopy(loop))
    ours(torch.randn(2, 30, 3, dtype=torch.float64))
    for length in range(1, 30):
        found = WAYS[way](length)
        assert type(found) is Tensor and found.dtype is torch.float64 and torch.equal(found, positions(length))
    for length in (20, 8, 9, 11, 30, 64, 5):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        torch.testing.assert_close(ours(x), loop(x))
    assert linrec.report(ours).parallel, str(linrec.report(ours))


@pytest.mark.parametrize("size", [None, 4])
def test_the_only_instance_of_something_stays(size: int | None) -> None:
    @functools.lru_cache(size)
    def registry() -> dict[str, int]:
        return {}

    registry()["a"] = 1
    (put_back,) = set_aside([registry])
    assert registry() == {"a": 1}
    put_back()
    assert registry() == {"a": 1}


def test_results_are_put_back() -> None:
    made: list[Hashable] = []

    @functools.lru_cache(None)
    def tensor(n: Any) -> Tensor:
        made.append(n)
        return torch.ones(n)

    first = tensor(2)
    (put_back,) = set_aside([tensor])
    assert tensor(2) is not first
    tensor(3)
    put_back()
    assert tensor(2) is first and made == [2, 2, 3]
    tensor(3)
    assert made == [2, 2, 3, 3]


def test_numbers_of_trial_runs_do_not_stay() -> None:
    class Length(int):
        pass

    @functools.lru_cache(maxsize=4)
    def same(n: int) -> int:
        return n

    same(1)
    (put_back,) = set_aside([same])
    same(Length(7))
    put_back()
    assert type(same(7)) is int
