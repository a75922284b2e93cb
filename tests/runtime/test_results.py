"""What forward returns: dataclasses that torch does not know, and what is left alone."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import linrec
from linrec.ir.results import leaves_of_result, opened


@dataclass
class States:
    all: Tensor
    last: Tensor | None = None
    calls: int = 1


@dataclass(frozen=True)
class Output:
    """Frozen, with a dataclass and a list inside, made from what it is given."""

    states: States
    extra: list[Any] = field(default_factory=list)
    made: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        object.__setattr__(self, "made", self.made + 1)


@dataclass(slots=True)
class Slotted:
    y: Tensor


class Noted(States):
    """Not a dataclass of its own; but its fields are all it holds."""

    def __init__(self, y: Tensor) -> None:
        super().__init__(y)
        self.note = "more than the fields"


class Leaky(nn.Module):
    def __init__(self, wrap: Any) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.rand(3))
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            out.append(h)
        return self.wrap(torch.stack(out, 1), h)


def nested(y: Tensor, h: Tensor) -> Any:
    return Output(States(y, h), [y * 2, "text"])


def check(wrap: Any) -> Any:
    """The parallel model's result, held against the loop's, with gradients."""
    model = linrec.parallelize(Leaky(wrap))
    model(torch.randn(2, 9, 3))
    assert linrec.report(model).parallel
    x = torch.randn(3, 12, 3, requires_grad=True)
    found, expected = model(x), Leaky.forward(model, x)
    mine, theirs = leaves_of_result(found), leaves_of_result(expected)
    assert [type(a) for a in mine] == [type(b) for b in theirs]
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b) if isinstance(a, Tensor) else None
        assert isinstance(a, Tensor) or a == b
    grads = [torch.autograd.grad(sum(y.sum() for y in ys if isinstance(y, Tensor)), x)[0] for ys in (mine, theirs)]
    torch.testing.assert_close(*grads)
    return found


def test_dataclasses() -> None:
    found = check(nested)
    assert type(found) is Output and type(found.states) is States
    assert found.made == 1 and found.extra[1] == "text" and found.states.calls == 1
    assert type(check(lambda y, h: Slotted(y))) is Slotted
    assert type(check(lambda y, h: {"a": (States(y), h)})["a"][0]) is States


def test_the_class_stays_unknown_to_torch() -> None:
    check(nested)
    output = nested(torch.ones(1), torch.ones(1))
    assert pytree.tree_leaves(output) == [output]


def test_what_holds_more_than_its_fields_is_left_alone() -> None:
    model = linrec.parallelize(Leaky(lambda y, h: Noted(y)))
    found = model(torch.randn(2, 9, 3))
    assert type(found) is Noted and found.note == "more than the fields"
    assert [o.id for o in linrec.report(model).obstructions] == ["LR002"]


def test_what_is_no_dataclass_stays_the_same_object() -> None:
    result = {"a": [torch.ones(1)], "b": None}
    assert opened(result) is result
    assert opened(States) is States


class _Cut(nn.Module):
    """Returns the last of a state that every step cuts off."""

    def __init__(self) -> None:
        super().__init__()
        self.b, self.a = nn.Parameter(torch.randn(4)), nn.Parameter(torch.rand(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h, cut, out = x.new_zeros(x.shape[1], 3), self.b.expand(x.shape[1], -1), []
        for t in range(x.shape[0]):
            h = h * self.a + x[t]
            cut = 0.5 * cut.detach()
            out.append(h)
        return torch.stack(out), cut


def test_a_state_without_derivatives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last value has none either, as in the loop."""
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    model = linrec.parallelize(_Cut().double())
    x = torch.randn(9, 2, 3, dtype=torch.float64, requires_grad=True)
    for _ in range(2):
        out, cut = model(x)
        assert out.requires_grad and not cut.requires_grad
    assert not [o for o in linrec.report(model).obstructions if o.id == "LR010"], str(linrec.report(model))
    assert linrec.report(model).parallel


class _Same(nn.Module):
    """Stacks what is the same in every step, beside a recurrence."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.w, self.drop = nn.Parameter(torch.randn(3)), nn.Dropout(rate)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        still, h, same, out = self.w * 2, torch.zeros_like(x[:, 0]), [], []
        for t in range(x.shape[1]):
            h = 0.9 * h + x[:, t]
            same.append(self.drop(torch.tanh(still)).unsqueeze(0))
            out.append(h)
        return torch.cat(same, 0), torch.stack(out, 1)


def test_what_is_the_same_in_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINREC_SHORTEST", "1")
    loop = _Same(0.0).double()
    fast = linrec.parallelize(copy.deepcopy(loop))
    for length in (12, 7, 20):
        x = torch.randn(2, length, 3, dtype=torch.float64)
        found = []
        for model in (fast, loop):
            same, out = model(x)
            weight = torch.linspace(1, 2, same.numel(), dtype=torch.float64).view_as(same)
            found.append([same, out, *torch.autograd.grad((same * weight).sum() + 0 * out.sum(), model.w)])
        for mine, theirs in zip(*found, strict=True):
            torch.testing.assert_close(mine, theirs)
    assert linrec.report(fast).parallel


def test_what_is_drawn_anew_in_every_step() -> None:
    """A mask for each of them."""
    fast = linrec.parallelize(_Same(0.5).double())
    for _ in range(2):
        same, _ = fast(torch.randn(2, 40, 3, dtype=torch.float64))
        assert len({tuple(row) for row in (same == 0).tolist()}) > 1


RETURNS: dict[str, Any] = {
    "last": lambda o, y: (y, y[:, -1]),
    "last, as a slice": lambda o, y: (y, y[:, -1:]),
    "but the first": lambda o, y: (y, y[:, -2], y[:, 1:]),
}


@pytest.mark.parametrize("name", RETURNS)
def test_results_that_are_views_of_one_another(name: str) -> None:
    """What a caller writes into one shows in the other."""

    def forward(x: Tensor) -> Any:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out.append(h)
        return RETURNS[name](out, torch.stack(out, 1))

    fast = linrec.parallelize(forward)
    for length in (20, 9, 33):
        x = torch.randn(2, length, 4)
        results = fast(x), forward(x)
        for found in results:
            found[0].mul_(10)
            found[1].add_(1)
        torch.testing.assert_close(*results)
    assert linrec.report(fast).parallel


def test_results_can_be_reshaped_as_those_of_the_loop() -> None:
    def forward(x: Tensor) -> Any:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            out.append(h)
        return out[0], out[-1], torch.stack(out, 1), torch.stack(out, 0).transpose(0, 1)

    fast = linrec.parallelize(forward)
    x = torch.randn(2, 20, 4)
    for _ in range(2):
        for a, b in zip(fast(x), forward(x), strict=True):
            assert a.is_contiguous() or not b.is_contiguous()
            if b.is_contiguous():
                torch.testing.assert_close(a.view(-1), b.view(-1))
