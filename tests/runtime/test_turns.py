"""Who may be where in one model: any number of threads that run it, or one that compiles it."""

from __future__ import annotations

import threading

from linrec.runtime.turns import Turns


def test_who_enters_waits_for_who_compiles() -> None:
    turns, order = Turns(), []
    inside, done = threading.Event(), threading.Event()

    def compile_() -> None:
        with turns.alone() as free:
            assert free
            inside.set()
            done.wait(0.2)
            order.append("compiled")

    def run() -> None:
        inside.wait()
        with turns.running(), turns.running():
            order.append("ran")

    threads = [threading.Thread(target=f) for f in (compile_, run)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order == ["compiled", "ran"]
    with turns.running(), turns.alone() as free:
        assert free
    found = []

    def other() -> None:
        with turns.alone() as free:
            found.append(free)

    with turns.running():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert found == [False]
    with turns.alone() as free:
        assert free
