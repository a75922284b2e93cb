"""The same arguments in, the same results out: by position or keyword, nested in containers, written into, of any
strides."""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import linrec

from .samples import WIDTH, Gated, agree, assert_parallel, build, counted_exports, same, series, steps_of


class Masked(Gated):
    """Takes everything that calls are made of: x (B, T, 3), h0 (B, 3) or None, mask (B, T), and nested extras."""

    def forward(self, x: Tensor, h0: Tensor | None = None, *, mask: Tensor | None = None, extras: Any = None) -> Any:
        h, out = x.new_zeros(x.shape[0], WIDTH) if h0 is None else h0, []
        for t in range(x.shape[1]):
            h = self.step(x[:, t], h)
            if mask is not None:
                h = h * mask[:, t, None]
            if extras is not None:
                h = h + extras["more"][0][:, t] * extras["factor"]
            out.append(h)
        return torch.stack(out, 1)


@pytest.fixture(scope="module")
def pair() -> tuple[Masked, Masked]:
    return linrec.parallelize(build(Masked)), build(Masked)


def arguments(batch: int, length: int, which: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    x, h0 = series(batch, length), series(batch, 1, seed=1)[:, 0]
    mask = series(batch, length, seed=2)[..., 0] > 0
    extras = {"more": (series(batch, length, seed=3), None), "factor": 0.5, "unused": [1, "two"]}
    return {
        "h0": ((x, h0), {}),
        "all by name": ((), {"mask": mask, "x": x}),
        "everything": ((x, h0), {"mask": mask, "extras": extras}),
    }[which]


@pytest.mark.parametrize("which", ["h0", "all by name", "everything"])
def test_arguments(pair: tuple[Masked, Masked], which: str) -> None:
    with counted_exports() as exports:
        for batch, length in ((2, 12), (3, 17), (1, 3)):
            args, kwargs = arguments(batch, length, which)
            agree(pair[0](*args, **kwargs), pair[1](*args, **kwargs))
            grads = []
            for each in pair:
                leaves, spec = pytree.tree_flatten((args, kwargs))
                leaves = [
                    v.clone().requires_grad_() if isinstance(v, Tensor) and v.is_floating_point() else v for v in leaves
                ]
                a, k = pytree.tree_unflatten(leaves, spec)
                wanted = [v for v in leaves if isinstance(v, Tensor) and v.requires_grad]
                grads.append(torch.autograd.grad(each(*a, **k).pow(2).sum(), [*wanted, *each.parameters()]))
            agree(*grads)
        assert exports[0] <= 2
    assert_parallel(pair[0])
    args, kwargs = arguments(2, 12, which)
    assert steps_of(lambda: pair[0](*args, **kwargs)) == 0


class Pair(NamedTuple):
    states: Tensor
    last: Tensor


@dataclass
class Record:
    states: Tensor
    number: int


class Returning(Gated):
    def __init__(self, what: Callable[[Any, Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(self, x, super().forward(x))


def everything(m: Any, x: Tensor, y: Tensor) -> Any:
    """One tensor twice, an argument, a weight, and views, in containers of each kind beside plain values."""
    views = collections.OrderedDict(z=y[:, 0], a=1.5, b=y.transpose(0, 1))
    return {"pair": Pair(y, y[:, -1]), "list": [y, None, 2, "text"], "rest": (x, m.gate.weight, {"v": views})}


RESULTS: dict[str, tuple[Callable[[Any, Tensor, Tensor], Any], bool]] = {
    "everything": (everything, True),
    "alone in a tuple": (lambda m, x, y: (y,), True),
    "dataclass": (lambda m, x, y: Record(y, 3), False),
    "length": (lambda m, x, y: (y, x.shape[1]), False),
    "one tensor a step": (lambda m, x, y: list(y.unbind(1)), False),
}


@pytest.mark.parametrize("what, parallel", RESULTS.values(), ids=RESULTS.keys())
def test_results(what: Callable[[Any, Tensor, Tensor], Any], parallel: bool) -> None:
    model, oracle = linrec.parallelize(build(lambda: Returning(what))), build(lambda: Returning(what))
    for batch, length in ((2, 12), (3, 15), (2, 1)):
        x = series(batch, length)
        actual, expected = model(x), oracle(x)
        assert type(actual) is type(expected)
        if isinstance(actual, Record):
            actual, expected = vars(actual), vars(expected)
        left, right = (pytree.tree_flatten(each) for each in (actual, expected))
        assert left[1] == right[1]
        for a, b in zip(left[0], right[0]):
            assert type(a) is type(b)
            agree(a, b) if isinstance(a, Tensor) else None
            assert isinstance(a, Tensor) or a == b
        # One tensor returned twice, or an argument returned, is the same object; and views share memory.
        same_objects = [
            [i for i, v in enumerate([*found, x, *model.parameters()]) if v is u] for found in (left[0],) for u in found
        ]
        assert same_objects == [
            [i for i, v in enumerate([*right[0], x, *oracle.parameters()]) if v is u] for u in right[0]
        ]
    if parallel:
        assert_parallel(model)


def test_strides_of_the_result(gated: tuple[Gated, Gated]) -> None:
    """Code behind the model may count on them: `view` works where it worked."""
    for batch, length in ((2, 12), (3, 40), (1, 12)):
        actual, expected = (each(series(batch, length)) for each in gated)
        assert actual.stride() == expected.stride()
        agree(actual.view(batch, -1), expected.view(batch, -1))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "time first in memory": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
    "features first in memory": lambda x: x.permute(2, 0, 1).contiguous().permute(1, 2, 0),
    "every second": lambda x: x[:, ::2],
    "expanded": lambda x: x[:1].expand(3, -1, -1),
    "flipped": lambda x: x.flip(1)[:, :13],
    "offset": lambda x: x.flatten()[1:-2].view(1, -1, 3),
    "parameter": lambda x: nn.Parameter(x),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
def test_strides_of_the_input(gated: tuple[Gated, Gated], layout: Callable[[Tensor], Tensor]) -> None:
    x = layout(series(2, 30))
    for each in gated:
        each(x)
    agree(gated[0](x), gated[1](x))
    same(*gated, x)


@pytest.mark.parametrize("batch", [1, 2])
def test_the_result_is_written_into(gated: tuple[Gated, Gated], batch: int) -> None:
    """As an activation in place does."""
    found = []
    for each in gated:
        x = series(batch).requires_grad_()
        y = each(x)
        y += 1
        y[:, 3].mul_(0)
        found.append([y.detach(), *torch.autograd.grad(y.pow(2).sum(), [x, *each.parameters()])])
    agree(*found)


class Writing(Gated):
    """Writes into its argument before it reads it."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(2)
        return super().forward(x)


def test_the_input_is_written_into() -> None:
    model, oracle = linrec.parallelize(build(Writing)), build(Writing)
    for length in (12, 12, 20):
        found = []
        for each in (model, oracle):
            leaf = series(2, length).requires_grad_()
            x = leaf * 1
            y = each(x)
            found.append([y.detach(), x.detach(), torch.autograd.grad((y * x[:, :1]).sum(), leaf)[0]])
        agree(*found)
        with pytest.raises(RuntimeError, match="leaf"):
            model(series(2, length).requires_grad_())


def test_a_tensor_is_passed_twice() -> None:
    class Two(Gated):
        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            return super().forward(x) * z

    model, oracle = linrec.parallelize(build(Two)), build(Two)
    for first in (True, False, True):
        x = series().requires_grad_()
        z = x if first else series(seed=4).requires_grad_()
        found = [torch.autograd.grad(each(x, z).pow(2).sum(), [x]) for each in (model, oracle)]
        agree(*found)
