"""The harness itself: each way in which a compiler could be wrong, done on purpose, is noticed."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from . import harness
from .entry import Entry, Table, btd

ENTRIES = Table()


@ENTRIES.add(btd(3), carries_over=True, obstruction="torch.tanh")
class Sample(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Parameter(torch.rand(3)), nn.Parameter(torch.rand(3))
        self.register_buffer("count", torch.zeros(()))
        self.last = None

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        self.count += 1
        h, ys = torch.zeros_like(x[:, :1].sum(1)), []
        for t in range(x.shape[1]):
            h = self.a * h + torch.tanh(x[:, t]) * self.w
            ys.append(h)
        self.last = h
        return torch.stack(ys, 1), {"last": h}


def line_of(text: str) -> str:
    with open(__file__) as file:
        return f"{__file__}:{next(i for i, line in enumerate(file, 1) if text in line)}"


class Compiler:
    """Stands in for linrec: replaces `forward` of the instance by `wrong(original, x)`, and gives it back."""

    def __init__(self, wrong: Callable[..., Any] | None = None, parallel: bool = True, forgets: bool = False) -> None:
        self.wrong, self.parallel, self.forgets = wrong, parallel, forgets

    def parallelize(self, model: nn.Module) -> nn.Module:
        original = model.forward
        if self.wrong:
            model.forward = lambda x: self.wrong(model, original, x) if model.training else original(x)
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        if not self.forgets:
            vars(model).pop("forward", None)
        return model

    def report(self, model: nn.Module) -> Any:
        why = types.SimpleNamespace(id="LR", location=line_of("h = self.a * h + torch.tanh"), explanation="")
        found = types.SimpleNamespace(parallel=self.parallel, obstructions=[why], location="")
        return types.SimpleNamespace(recurrences=[found])


def scaled(model: nn.Module, original: Any, x: Tensor) -> Any:
    y, rest = original(x)
    return y * (1 + 1e-7), rest


def detached(model: nn.Module, original: Any, x: Tensor) -> Any:
    y, rest = original(x)
    return y, {"last": rest["last"].detach()}


def half_gradient(model: nn.Module, original: Any, x: Tensor) -> Any:
    y, rest = original(x)
    return (y + y.detach()) / 2, rest


def other_type(model: nn.Module, original: Any, x: Tensor) -> Any:
    return list(original(x))


def stale_attribute(model: nn.Module, original: Any, x: Tensor) -> Any:
    result, model.last = original(x), None
    return result


def counts_twice(model: nn.Module, original: Any, x: Tensor) -> Any:
    model.count += 1
    return original(x)


def draws(model: nn.Module, original: Any, x: Tensor) -> Any:
    torch.rand(1)
    return original(x)


def writes_input(model: nn.Module, original: Any, x: Tensor) -> Any:
    result = original(x)
    x.data[:, :1] += 1
    return result


def raises_when_short(model: nn.Module, original: Any, x: Tensor) -> Any:
    if x.shape[1] == 3:
        raise ValueError(x.shape)
    return original(x)


def swallows_error(model: nn.Module, original: Any, x: Tensor) -> Any:
    return original(x) if x.shape[1] else (x, {"last": x[:, :0]})


def test_right_is_accepted() -> None:
    run(Compiler(lambda model, original, x: original(x)))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (scaled, "relative error"),
        (detached, "requires_grad"),
        (half_gradient, "gradient of parameter a"),
        (other_type, "structure"),
        (stale_attribute, "self.last"),
        (counts_twice, "self.count"),
        (draws, "draws"),
        (writes_input, "argument"),
        (raises_when_short, "raised ValueError"),
        (swallows_error, "call 5 .* raised in"),
    ],
)
def test_wrong_is_noticed(wrong: Callable[..., Any], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        run(Compiler(wrong))


def test_verdict_and_revert_are_noticed() -> None:
    with pytest.raises(AssertionError, match="verdict: expected parallel"):
        run(Compiler(parallel=False))
    with pytest.raises(AssertionError, match="after revert"):
        run(Compiler(lambda model, original, x: original(x), forgets=True))


def test_missing_obstruction_is_noticed() -> None:
    with pytest.raises(AssertionError, match="no obstruction at"):
        run(Compiler(), Entry(**{**vars(ENTRIES[0]), "obstruction": "torch.sigmoid"}))


def run(compiler: Compiler, entry: Entry = ENTRIES[0]) -> None:
    """`check` with another compiler."""
    real, harness.linrec = harness.linrec, compiler
    try:
        harness.check(entry)
    finally:
        harness.linrec = real
