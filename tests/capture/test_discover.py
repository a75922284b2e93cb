"""Discovery: which dimension of a call is time, and which modules own a loop over it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.discover import TimeAxis, candidates, find_time


def found(module: nn.Module, *args: Any, **kwargs: Any) -> list[TimeAxis]:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return list(find_time(module, module.forward, spec, leaves))


def owners(axis: TimeAxis, module: nn.Module) -> list[str]:
    names = {m: n for n, m in module.named_modules()}
    return [names[m] for m in axis.owners]


class Ema(nn.Module):
    """A loop over dimension `dim`."""

    def __init__(self, dim: int = 1) -> None:
        super().__init__()
        self.dim = dim
        self.gate = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x.select(self.dim, 0)), []
        for xt in x.unbind(self.dim):
            h = torch.sigmoid(self.gate(xt)) * h + xt
            out.append(h)
        return torch.stack(out, self.dim)


def test_batch_first_and_time_first() -> None:
    for dim in (0, 1):
        module = Ema(dim)
        axis = found(module, torch.randn(6, 7, 3))[0]
        assert (axis.leaf, axis.dim, axis.dims) == (0, dim, {0: {dim: 0}})
        assert owners(axis, module) == [""]


def test_the_owner_is_the_module_that_loops_not_what_it_calls() -> None:
    model = nn.Sequential(nn.Linear(3, 3), Ema(), nn.ReLU(), Ema())
    axis = found(model, torch.randn(2, 7, 3))[0]
    assert owners(axis, model) == ["1", "3"]


def test_a_loop_that_calls_a_cell() -> None:
    class Runner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = x.new_zeros(x.shape[0], 3)
            for t in range(x.shape[1]):
                h = self.cell(x[:, t], h)
            return h

    model = Runner()
    assert owners(found(model, torch.randn(2, 7, 3))[0], model) == [""]


def test_no_loop() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    assert found(model, torch.randn(2, 7, 3)) == []
    assert found(nn.GRU(3, 3, batch_first=True), torch.randn(2, 7, 3)) == []
    assert found(model, torch.randn(3)) == []


def test_a_loop_over_a_constant_is_no_loop_over_time() -> None:
    class Layers(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            for _ in range(10):
                x = torch.tanh(x)
            return x

    assert found(Layers(), torch.randn(2, 7, 3)) == []


def test_two_inputs_grow_together() -> None:
    class Gated(nn.Module):
        def forward(self, x: Tensor, gate: Tensor, h: Tensor) -> Tensor:
            for t in range(x.shape[1]):
                h = gate[:, t] * h + x[:, t]
            return h

    axis = found(Gated(), torch.randn(2, 7, 3), torch.randn(2, 7, 3), torch.zeros(2, 3))[0]
    assert axis.dims == {0: {1: 0}, 1: {1: 0}}
    assert axis.tensor_leaves == (0, 1, 2)


def test_the_time_of_a_mask_and_of_a_matrix() -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor, mask: Tensor, pairs: Tensor | None = None) -> Tensor:
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = torch.where(mask[:, t, None], h + x[:, t], h)
            return h if pairs is None else h + pairs.sum()

    mask = torch.ones(2, 7, dtype=torch.bool)
    assert found(Masked(), torch.randn(2, 7, 3), mask)[0].dims == {0: {1: 0}, 1: {1: 0}}
    with_pairs = found(Masked(), torch.randn(2, 7, 3), mask, pairs=torch.randn(7, 7))[0]
    assert with_pairs.dims == {0: {1: 0}, 1: {1: 0}, 2: {0: 0, 1: 0}}


def test_a_batch_of_the_same_size_as_the_time() -> None:
    module = Ema()
    axes = found(module, torch.randn(7, 7, 3))
    assert any((a.leaf, a.dim, a.dims) == (0, 1, {0: {1: 0}}) for a in axes)


def test_no_trial_takes_as_long_as_the_call(tmp_path: Path) -> None:
    class Graded(Ema):
        """A loss of inputs and targets, which are tried with fewer steps each, and all together."""

        def forward(self, x: Tensor, target: Tensor) -> Tensor:  # type: ignore[override]
            with (tmp_path / "steps").open("a") as file:  # a list would be as it was before
                print(x.shape[1], file=file)
            return (super().forward(x) - target).square().mean()

    axis = found(Graded(), torch.randn(2, 300, 3), torch.randn(2, 300, 3))[0]
    assert axis.dims == {0: {1: 0}, 1: {1: 0}}
    assert max(map(int, (tmp_path / "steps").read_text().split())) < 20


def test_an_input_without_batch() -> None:
    axis = found(Ema(0), torch.randn(7, 3))[0]
    assert (axis.dim, axis.dims) == (0, {0: {0: 0}})


def test_keyword_arguments_and_nested_ones() -> None:
    class Nested(nn.Module):
        def forward(self, *, batch: dict[str, Tensor], scale: float) -> Tensor:
            x, h = batch["x"], 0.0
            for t in range(x.shape[1]):
                h = 0.9 * h + scale * x[:, t]
            return h

    axis = found(Nested(), batch={"x": torch.randn(2, 7, 3), "weight": torch.randn(3)}, scale=2.0)[0]
    assert axis.dims == {0: {1: 0}}
    assert axis.tensor_leaves == (0, 1)


def test_a_model_that_fails_at_other_sizes_has_no_time_there() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mix = nn.Linear(7, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.mix(x)

    assert found(Fixed(), torch.randn(2, 7)) == []


def test_discovery_leaves_no_trace() -> None:
    class Counting(Ema):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.last: Any = None

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.last = x
            return super().forward(x) + torch.rand(())

    module = Counting()
    rng = torch.get_rng_state()
    assert found(module, torch.randn(2, 7, 3, generator=torch.Generator().manual_seed(0)))
    assert module.calls.item() == 0
    assert module.last is None
    assert torch.get_rng_state().equal(rng)


def test_sizes_below_the_shortest_are_not_time() -> None:
    assert [c[:2] for c in candidates([torch.randn(2, 3, 3)])] == []
    assert {c[:2] for c in candidates([torch.randn(2, 9, 3), torch.randn(4)])} == {(0, 1), (1, 0)}
    assert list(candidates([1, "a", None, torch.tensor(3.0)])) == []


def test_a_loop_that_needs_longer_inputs() -> None:
    class Late(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x[:, 7]
            for t in range(8, x.shape[1]):
                h = 0.9 * h + x[:, t]
            return h

    axis = found(Late(), torch.randn(2, 30, 3))[0]
    assert axis.dim == 1


class Deep(nn.Module):
    """Many modules; where they loop, and where this one does, is for the test to say."""

    def __init__(self, loops: bool, inner: bool = True) -> None:
        super().__init__()
        self.loops = loops
        self.layers = nn.Sequential(*[nn.Linear(3, 3) for _ in range(20)], Ema() if inner else nn.Identity())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out = self.layers(x) + self.layers(y)[:, -1:]
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1] if self.loops else 0):
            h = 0.9 * h + x[:, t]
        return out + h[:, None]


def test_of_a_large_model_operators_are_counted_first() -> None:
    x, y = torch.randn(2, 20, 3), torch.randn(2, 20, 3)
    module = Deep(loops=False)
    (axis,) = found(module, x, y)
    assert owners(axis, module) == ["layers.20"] and axis.runs is None and axis.dims == {0: {1: 0}, 1: {1: 0}}
    both = Deep(loops=True)
    first, *rest = found(both, x, y)
    assert set(owners(first, both)) == {"", "layers.20"} and rest
    assert first.runs is not None and first.runs.shorter.calls and first.ran
    alone = Deep(loops=True, inner=False)
    assert owners(found(alone, x, y)[0], alone) == [""]


def test_parts_of_what_was_found_are_not_tried_for_the_loops_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    module, lengths = Deep(loops=False), set()
    original = Deep.forward

    def noted(self: Deep, x: Tensor, y: Tensor) -> Tensor:
        lengths.add((x.shape[1], y.shape[1]))
        return original(self, x, y)

    monkeypatch.setattr(Deep, "forward", noted)
    found(module, torch.randn(2, 20, 3), torch.randn(2, 20, 3))
    assert lengths == {(4, 4), (6, 6)}
    module.loops = True
    found(module, torch.randn(2, 20, 3), torch.randn(2, 20, 3))
    assert len(lengths) > 2


def test_a_large_model_that_takes_no_arguments_with_gradient() -> None:
    class Copying(Deep):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(copy.deepcopy(x), y)

    module = Copying(loops=True)
    x = torch.randn(2, 20, 3, requires_grad=True)
    axis = found(module, x, torch.randn(2, 20, 3))[0]
    assert "" in owners(axis, module) and axis.runs is None
