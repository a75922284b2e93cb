"""Parallelised, a model keeps its class, its state and its hooks; copies stand alone; `revert` undoes all."""

from __future__ import annotations

import copy
import gc
import inspect
import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import linrec

from .samples import KINDS, Gated, Nested, agree, assert_parallel, build, compiled, same, series, steps_of


@pytest.fixture(scope="module", params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> tuple[nn.Module, nn.Module, dict[str, Any]]:
    """A parallelised model, its oracle, and what the model was like before."""
    model = build(KINDS[request.param])
    before = {
        "parameters": {name: id(p) for name, p in model.named_parameters()},
        "buffers": {name: id(b) for name, b in model.named_buffers()},
        "modules": {name: (id(m), type(m)) for name, m in model.named_modules()},
        "text": repr(model),
        "signature": inspect.signature(model.forward),
        "doc": model.forward.__doc__,
    }
    assert linrec.parallelize(model) is model
    model(series())
    assert_parallel(model)
    return model, build(KINDS[request.param]), before


def test_it_is_still_the_same_model(kind: tuple[nn.Module, nn.Module, dict[str, Any]]) -> None:
    model, oracle, before = kind
    assert {name: id(p) for name, p in model.named_parameters()} == before["parameters"]
    assert {name: id(b) for name, b in model.named_buffers()} == before["buffers"]
    assert {name: (id(m), type(m)) for name, m in model.named_modules()} == before["modules"]
    assert list(model.state_dict()) == list(oracle.state_dict())
    assert repr(model) == before["text"]
    assert inspect.signature(model.forward) == before["signature"]
    assert model.forward.__doc__ == before["doc"]


@pytest.mark.parametrize("batch, length", [(2, 12), (3, 23), (1, 9), (2, 3)])
def test_it_computes_the_same(kind: tuple[nn.Module, nn.Module, dict[str, Any]], batch: int, length: int) -> None:
    same(kind[0], kind[1], series(batch, length))


def test_hooks_of_the_owner(kind: tuple[nn.Module, nn.Module, dict[str, Any]]) -> None:
    """Registered after compilation on the modules that own a loop, they are called once a call, and may replace."""
    results = []
    for model in kind[:2]:
        calls: list[str] = []
        owner = getattr(model, "layers", [model])[0]
        handles = [
            owner.register_forward_pre_hook(lambda m, args, calls=calls: calls.append("before") or (args[0] * 2,)),
            owner.register_forward_hook(
                lambda m, args, kwargs, y, calls=calls: calls.append("after") or y + 1, with_kwargs=True
            ),
            owner.register_full_backward_hook(lambda m, inputs, outputs, calls=calls: calls.append("back")),
        ]
        x = series().requires_grad_()
        y = model(x)
        y.pow(2).sum().backward()
        results.append((calls, y.detach(), x.grad, *(p.grad for p in model.parameters())))
        for handle in handles:
            handle.remove()
        model.zero_grad()
    assert results[0][0] == results[1][0] == ["before", "after", "back"]
    agree(results[0][1:], results[1][1:])


def test_deepcopy_of_a_compiled_model(kind: tuple[nn.Module, nn.Module, dict[str, Any]]) -> None:
    model, oracle = kind[:2]
    twin = copy.deepcopy(model)
    changed = copy.deepcopy(oracle)
    with torch.no_grad():
        for each in (twin, changed):
            for p in each.parameters():
                p.mul_(1.5)
    same(twin, changed, series(3, 14))
    same(model, oracle, series(3, 14))
    assert_parallel(twin)
    assert_parallel(model)


def test_revert_gives_back_what_came_in() -> None:
    model = build(Nested)
    model.layers[1].forward = model.layers[1].forward  # an instance attribute of the user's own
    before = {name: (dict(m.__dict__), list(m.__dict__)) for name, m in model.named_modules()}
    linrec.parallelize(model)
    model(series())
    assert_parallel(model)
    assert linrec.revert(model) is model
    assert {name: (m.__dict__, list(m.__dict__)) for name, m in model.named_modules()} == before
    assert steps_of(lambda: model(series())) == 24
    assert linrec.revert(model) is model


def saved_and_loaded(model: nn.Module) -> Any:
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


COPIES: dict[str, Callable[[nn.Module], Any]] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "save": saved_and_loaded,
}


@pytest.mark.parametrize(
    "way, when", [("pickle", "after"), ("save", "after"), ("deepcopy", "before"), ("pickle", "before")]
)
def test_copies(gated: tuple[Gated, Gated], way: str, when: str) -> None:
    """Changing the copy's weights changes the copy alone, and both are parallel."""
    model = gated[0] if when == "after" else linrec.parallelize(build(Gated))
    twin, changed = COPIES[way](model), build(Gated)
    with torch.no_grad():
        for each in (twin, changed):
            each.gate.weight.mul_(-1)
    same(twin, changed, series())
    assert_parallel(twin)
    assert steps_of(lambda: twin(series())) == 0
    same(model, build(Gated), series())
    assert_parallel(model)
    assert "forward" not in linrec.revert(twin).__dict__
    assert "forward" in model.__dict__


def test_shallow_copy(gated: tuple[Gated, Gated]) -> None:
    """It shares parameters with the original, but not attributes."""
    twin, changed = copy.copy(gated[0]), build(Gated)
    twin.scale = changed.scale = 2.0
    same(twin, changed, series())
    same(*gated, series())


def test_state_dict_of_another(gated: tuple[Gated, Gated]) -> None:
    torch.manual_seed(3)
    other = Gated().double()
    model, oracle = compiled(Gated), build(Gated)
    for each in (model, oracle):
        assert str(each.load_state_dict(other.state_dict())) == "<All keys matched successfully>"
    same(model, oracle, series())
    assert steps_of(lambda: model(series())) == 0
    fresh = Gated().double()
    fresh.load_state_dict(gated[0].state_dict())
    same(fresh, build(Gated), series())


def test_a_parallelised_model_can_be_collected() -> None:
    model = linrec.parallelize(build(Gated))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None
