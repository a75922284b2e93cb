"""One table-driven test over all case studies: they run, are causal where they say so, and every gradient arrives."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

import models
from models.registry import SAMPLES, Sample, shape_of

BATCH = 3
BY_NAME = {sample.name: sample for sample in SAMPLES}
each_sample = pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)


def run(sample: Sample, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    return tree_leaves(sample.factory()(*inputs))


@each_sample
@pytest.mark.parametrize("length", [1, 2, 7])
def test_shapes_values_and_gradients(sample: Sample, length: int) -> None:
    module = sample.factory()
    inputs = sample.inputs(BATCH, length, torch.float64)
    for tensor in inputs:
        tensor.requires_grad_(tensor.is_floating_point())
    outputs = tree_leaves(module(*inputs))
    expected = [shape_of(text, BATCH, length) for text in sample.outputs.split(";")]
    assert [tuple(output.shape) for output in outputs] == expected
    assert all(output.isfinite().all() for output in outputs)

    # Random weights: a plain sum would hide the gradient of normalised outputs.
    generator = torch.Generator().manual_seed(2)
    loss = sum((o * torch.randn(o.shape, generator=generator)).sum() for o in outputs if o.is_floating_point())
    differentiable = {f"input {i}": tensor for i, tensor in enumerate(inputs) if tensor.requires_grad}
    differentiable.update(module.named_parameters())
    gradients = torch.autograd.grad(loss, list(differentiable.values()), allow_unused=length < 7)
    for name, gradient in zip(differentiable, gradients, strict=True):
        assert gradient is None or gradient.isfinite().all(), name
        assert length < 7 or gradient.any(), f"no gradient reaches {name}"


@each_sample
def test_rows_of_a_batch_do_not_mix(sample: Sample) -> None:
    inputs = sample.inputs(BATCH, 5, torch.float64)
    first = [x[:, :1] if sample.time_dims[i] == 0 else x[:1] for i, x in enumerate(inputs)]
    shapes = sample.outputs.split(";")
    for text, full, alone in zip(shapes, run(sample, inputs), run(sample, tuple(first)), strict=True):
        torch.testing.assert_close(full.narrow(text.split().index("B"), 0, 1), alone)


@each_sample
def test_causal(sample: Sample) -> None:
    if not sample.causal:
        pytest.skip("reads later inputs by design")
    length, seen = 7, 4
    inputs = sample.inputs(BATCH, length, torch.float64)
    changed = tuple(
        x if dim is None or not x.is_floating_point() else perturb_after(x, dim, seen)
        for x, dim in zip(inputs, sample.time_dims, strict=True)
    )
    for text, before, after in zip(sample.outputs.split(";"), run(sample, inputs), run(sample, changed), strict=True):
        if "T" in text.split():
            time = text.split().index("T")
            torch.testing.assert_close(before.narrow(time, 0, seen), after.narrow(time, 0, seen), rtol=0, atol=0)
            assert not torch.equal(before, after)


def perturb_after(x: Tensor, dim: int, seen: int) -> Tensor:
    x = x.clone()
    x.narrow(dim, seen, x.shape[dim] - seen).add_(0.5)
    return x


@each_sample
def test_stays_bounded(sample: Sample) -> None:
    for output in run(sample, sample.inputs(2, 64, torch.float64)):
        assert output.isfinite().all()
        assert output.abs().max() < 1e3


def continued(name: str, x: Tensor) -> tuple[Tensor, Any]:
    """Output and last state of `name` on x, in two calls: the second starts from the state that the first returned."""
    model = BY_NAME[name].factory()
    outputs, state = [], None
    for part in (x[:, :3], x[:, 3:]):
        y, state = model(part, None, state) if name == "rglru" else model(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize(
    "name", ["lmu_vector", "lmu_coupled", "rglru", "sru", "sru_first", "lstm", "hgrn2", "momentum_delta"]
)
def test_a_returned_state_continues_the_sequence(name: str) -> None:
    sample = BY_NAME[name]
    x = sample.inputs(BATCH, 7, torch.float64)[0]
    whole = tree_leaves(sample.factory()(x))
    for one, two in zip(whole, tree_leaves(continued(name, x)), strict=True):
        torch.testing.assert_close(one, two)


@each_sample
def test_every_build_is_the_same(sample: Sample) -> None:
    one, two = sample.factory().state_dict(), sample.factory().state_dict()
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    pairs = zip(sample.inputs(2, 3, torch.float64), sample.inputs(2, 3, torch.float64), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_the_table_is_consistent() -> None:
    names = [sample.name for sample in SAMPLES]
    assert len(set(names)) == len(names)
    for sample in SAMPLES:
        assert sample.paper and sample.equation
        assert sample.expect in ("parallel", "partial", "sequential")
        assert sample.affine or sample.expect != "parallel"
        assert len(sample.time_dims) == len(sample.inputs(2, 3, torch.float64))


def test_models_know_nothing_of_the_compiler() -> None:
    for path in Path(models.__file__).parent.rglob("*.py"):
        if path.name == "__main__.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not any(name.split(".")[0] == "linrec" for name in names), path
