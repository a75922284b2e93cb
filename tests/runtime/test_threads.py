"""What other threads do while one compiles: they must not notice. A model that is compiled calls back into the test
at each run of its forward in the compiling thread; there a second thread works."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import linrec

from .samples import Gated, agree, assert_parallel, build, compiled, gradients, series, steps_of


class Square(torch.autograd.Function):
    """x^2, with 7 for its derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return 7 * grads[0]


class Book:
    """What `Watched` notes, where nobody looks: a model that changes what it reads is left alone."""

    __module__ = "torch"  # inside what belongs to torch nobody looks

    def __init__(self) -> None:
        self.beside: Callable[[], None] | None = None
        self.joined = True
        self.threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []
        self.runs = 0


BOOK = Book()


class Watched(Gated):
    """Runs a function beside itself, in another thread, whenever its forward runs in the main thread."""

    def forward(self, x: Tensor) -> Tensor:
        if BOOK.beside is not None and threading.current_thread() is threading.main_thread():
            BOOK.runs += 1
            thread = threading.Thread(target=self._guarded)
            thread.start()
            if BOOK.joined:
                thread.join()
            BOOK.threads.append(thread)
        return super().forward(x)

    @staticmethod
    def _guarded() -> None:
        try:
            assert BOOK.beside is not None
            BOOK.beside()
        except BaseException as error:
            BOOK.failures.append(error)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    BOOK.__init__()  # type: ignore[misc]
    yield
    BOOK.beside = None


def while_compiling(beside: Callable[[], None], model: Any | None = None) -> Any:
    """Compile a model and let `beside` run in another thread meanwhile; it may not fail."""
    model = linrec.parallelize(build(Watched)) if model is None else model
    BOOK.beside = beside
    actual = model(series())
    for thread in BOOK.threads:
        thread.join()
    BOOK.beside = None
    if BOOK.failures:
        raise AssertionError(f"{len(BOOK.failures)} of {BOOK.runs} runs failed") from BOOK.failures[0]
    assert BOOK.runs > 3
    agree(actual, build(Watched)(series()))
    return model


def hand_written_derivative() -> None:
    x = torch.ones(3, requires_grad=True)
    agree(torch.autograd.grad(Square.apply(x).sum(), x)[0], torch.full((3,), 7.0))


def another_model() -> None:
    layers = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    assert layers(torch.zeros(2, 3)).dtype == torch.float32
    assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(2).dtype == torch.float32
    assert torch.is_grad_enabled()


def test_unrelated_work() -> None:
    """Other modules, other functions with derivatives of their own, the default dtype."""

    def beside() -> None:
        hand_written_derivative()
        another_model()

    assert_parallel(while_compiling(beside))


def test_the_model_itself() -> None:
    """A thread that calls a model which another one compiles gets the original's result, with its gradients."""
    BOOK.joined = False
    model, oracle = linrec.parallelize(build(Watched)), build(Watched)
    expected = {length: gradients(oracle, series(2, length)) for length in (5, 14)}

    def beside() -> None:
        for length, each in expected.items():
            agree(gradients(model, series(2, length)), each)

    assert_parallel(while_compiling(beside, model))
    model(series())  # checked now, if another thread was at it before
    assert steps_of(lambda: model(series())) == 0


def test_another_compiled_model() -> None:
    """Its plans are used as ever."""
    other, oracle = compiled(Gated), build(Gated)
    expected = gradients(oracle, series())
    while_compiling(lambda: agree(gradients(other, series()), expected))
    assert steps_of(lambda: other(series())) == 0


def test_many_threads_at_once() -> None:
    """Four threads, one model, from the first call on; afterwards it is parallel."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    expected = {length: gradients(oracle, series(2, length)) for length in (12, 13, 30)}
    failures: list[BaseException] = []
    start = threading.Barrier(4)

    def work() -> None:
        try:
            start.wait()
            for length, each in expected.items():
                agree(gradients(model, series(2, length)), each)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    model(series())
    assert_parallel(model)
