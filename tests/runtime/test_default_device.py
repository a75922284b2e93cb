"""`torch.set_default_device` and ``with torch.device(...)``: a mode that hands a device to what forward makes. The meta
device stands for another one than the model's: what linrec made there without a device would hold no numbers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import linrec


class Gated(nn.Module):
    """Makes its state without saying where."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(3, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], x.shape[2], dtype=x.dtype), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.gate(x[:, t])) * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


class Elsewhere(Gated):
    """Says where."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros(x.shape[0], x.shape[2], dtype=x.dtype, device=x.device), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(self.gate(x[:, t])) * h + x[:, t]
            out.append(torch.tanh(h))
        return torch.stack(out, 1)


@pytest.fixture
def on_cpu() -> Iterator[None]:
    torch.set_default_device("cpu")
    yield
    torch.set_default_device(None)


def outcome(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = model(x)
    return [y, *torch.autograd.grad(y.square().sum(), [x, *model.parameters()])]


def test_a_model_is_parallel_under_a_default_device(on_cpu: None) -> None:
    model, oracle = Gated(), Gated()
    oracle.load_state_dict(model.state_dict())
    linrec.parallelize(model)
    for batch, length in ((2, 9), (3, 20), (2, 4)):
        x = torch.randn(batch, length, 3, dtype=torch.float64)
        torch.testing.assert_close(outcome(model, x), outcome(oracle, x))
    assert all(r.parallel for r in linrec.report(model).recurrences)
    assert torch.get_default_device() == torch.device("cpu") and torch._C._len_torch_function_stack() == 1


def test_nothing_of_linrec_lands_on_the_default_device() -> None:
    model, oracle = Elsewhere(), Elsewhere()
    oracle.load_state_dict(model.state_dict())
    linrec.parallelize(model)
    for batch, length in ((2, 9), (3, 300), (2, 4)):
        x = torch.randn(batch, length, 3, dtype=torch.float64)
        with torch.device("meta"):
            actual = outcome(model, x)
        torch.testing.assert_close(actual, outcome(oracle, x))
    assert all(r.parallel for r in linrec.report(model).recurrences)


def test_what_forward_makes_lands_on_it() -> None:
    model = linrec.parallelize(Gated())
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    model(x)
    with torch.device("meta"), pytest.raises(RuntimeError, match="device"):
        model(x).sum().backward()  # the state and the input are on two devices, as they are without linrec
    torch.testing.assert_close(outcome(model, x), outcome(linrec.revert(model), x))


def test_devices_within_devices() -> None:
    model = linrec.parallelize(Gated())
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    with torch.device("meta"):
        with torch.device("cpu"):
            y = model(x)
            assert torch.zeros(1).device.type == "cpu"
        assert torch.zeros(1).device.type == "meta"
    assert torch.zeros(1).device.type == "cpu" and torch._C._len_torch_function_stack() == 0
    torch.testing.assert_close(y, linrec.revert(model)(x))


def test_another_mode_keeps_the_original() -> None:
    class Counting(torch.overrides.TorchFunctionMode):
        calls = 0

        def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            Counting.calls += 1
            return function(*args, **(kwargs or {}))

    model = linrec.parallelize(Gated())
    x = torch.randn(2, 9, 3, dtype=torch.float64)
    with torch.device("cpu"), Counting():
        model(x)
    assert Counting.calls > 9 and not linrec.report(model).recurrences
