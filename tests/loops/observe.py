"""Everything about one call that a program could notice: outputs, exceptions, gradients, assigned attributes,
buffers, mutated arguments.

`observe` runs a model and records it, `differences` compares two records. Both sides of a comparison go through the
same code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .entry import Call


@dataclasses.dataclass
class Observed:
    """One call. `values` maps a path such as `output[0]['y']` or `self.cell.h` to a tensor or a plain value."""

    values: dict[str, Any] = dataclasses.field(default_factory=dict)
    gradients: dict[str, Tensor | None] = dataclasses.field(default_factory=dict)
    error: BaseException | None = None
    during: str = ""


def leaves(value: Any, path: str, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Tensors and plain values inside nested containers, with the containers' types in the path."""
    if isinstance(value, Tensor) or value is None or isinstance(value, (bool, int, float, complex, str)):
        yield path, value
    elif isinstance(value, dict):
        for key in value:
            yield from leaves(value[key], f"{path}:{type(value).__name__}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple)) or type(value).__name__ == "deque":
        yield f"len({path}:{type(value).__name__})", len(value)
        for index, item in enumerate(value):
            yield from leaves(item, f"{path}[{index}]", depth + 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for each in dataclasses.fields(value):
            yield from leaves(getattr(value, each.name), f"{path}:{type(value).__name__}.{each.name}", depth + 1)


def attributes(model: Any) -> Iterator[tuple[str, Any]]:
    """What the modules hold besides parameters: plain attributes (assigned by forward or not) and buffers."""
    if not isinstance(model, nn.Module):
        return
    for prefix, module in model.named_modules():
        for key, value in vars(module).items():
            if not key.startswith("_") and key != "forward" and not callable(value):
                yield from leaves(value, ".".join(filter(None, ("self", prefix, key))))
    for key, buffer in model.named_buffers():
        yield f"self.{key} (buffer)", buffer


def copied(call: Call, grad: bool, mutates: bool) -> tuple[Call, list[Tensor]]:
    """The call with fresh tensors, and the leaves that gradients are taken of. Equal tensors stay one tensor."""
    fresh: dict[int, Tensor] = {}
    roots: list[Tensor] = []

    def copy(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if id(value) not in fresh:
            leaf = value.detach().clone()
            if grad and (leaf.is_floating_point() or leaf.is_complex()):
                roots.append(leaf.requires_grad_())
                leaf = leaf.clone() if mutates else leaf
            fresh[id(value)] = leaf
        return fresh[id(value)]

    return Call(tree_map(copy, call.args), tree_map(copy, call.kwargs)), roots


def loss_of(values: dict[str, Any]) -> Tensor | None:
    """A fixed random projection of every differentiable value, so that no two gradients can compensate each other."""
    generator = torch.Generator().manual_seed(7)
    total: Tensor | None = None
    for value in values.values():
        if isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
            real = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
            weight = torch.randn(real.shape, generator=generator, dtype=torch.float64).to(real.dtype)
            total = (real * weight).sum().double() + (0 if total is None else total)
    return total


def observe(model: Any, call: Call, *, grad: bool = True, mutates: bool = False, seed: int = 0) -> Observed:
    """Call the model and take gradients of every input, parameter and captured tensor (`model.captured`, a list)."""
    seen = Observed()
    call, roots = copied(call, grad, mutates)
    watched = {f"input {index}": root for index, root in enumerate(roots)}
    if isinstance(model, nn.Module):
        watched |= {f"parameter {name}": each for name, each in model.named_parameters() if each.requires_grad}
        watched |= {f"captured {index}": each for index, each in enumerate(getattr(model, "captured", ()))}
    for each in watched.values():
        each.grad = None
    torch.manual_seed(seed)
    try:
        seen.during = "forward"
        output = model(*call.args, **call.kwargs)
        seen.values = dict(leaves(output, "output"))
        differentiable = seen.values | dict(attributes(model))
        seen.values = {path: value for path, value in differentiable.items() if "(buffer)" not in path}
        loss = loss_of(seen.values) if torch.is_grad_enabled() else None
        seen.values = differentiable | dict(leaves(list(call.args), "argument")) | dict(leaves(call.kwargs, "argument"))
        seen.values |= {"draws": torch.rand(1).item()}
        seen.during = "backward"
        if loss is not None:
            loss.backward()
    except Exception as error:  # the exception is part of what is observed
        seen.error = error
    seen.gradients = {name: None if each.grad is None else each.grad.clone() for name, each in watched.items()}
    for each in watched.values():
        each.grad = None
    seen.values = {path: _record(value) for path, value in seen.values.items()}
    return seen


def _record(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    copy = value.detach().clone()
    copy.requires_grad_(value.requires_grad and (copy.is_floating_point() or copy.is_complex()))
    return copy


def differences(expected: Observed, actual: Observed, rtol: float) -> list[str]:
    """Where the two calls differ, one line each; empty when they agree."""
    if (expected.error is None) != (actual.error is None) or type(expected.error) is not type(actual.error):
        return [f"{actual.during}: raised {actual.error!r} where the loop gave {expected.error!r}"]
    if expected.error is not None:
        return [] if expected.during == actual.during else [f"raised in {actual.during}, not {expected.during}"]
    if expected.values.keys() != actual.values.keys():
        return [f"structure: only in one of the two: {sorted(expected.values.keys() ^ actual.values.keys())}"]
    found = [
        f"{path}: {problem}"
        for path, value in expected.values.items()
        if (problem := _difference(value, actual.values[path], rtol))
    ]
    for name, gradient in expected.gradients.items():
        other = actual.gradients[name]
        if gradient is None and other is None:
            continue
        zeros = torch.zeros_like(gradient if gradient is not None else other)
        problem = _difference(zeros if gradient is None else gradient, zeros if other is None else other, rtol)
        if problem:
            found.append(f"gradient of {name}: {problem}")
    return found


def _difference(expected: Any, actual: Any, rtol: float) -> str | None:
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        if type(expected) is not type(actual):
            return f"{type(actual).__name__} instead of {type(expected).__name__}"
        same = expected == actual or (isinstance(expected, float) and abs(expected - actual) <= rtol * abs(expected))
        return None if same or (expected != expected and actual != actual) else f"{actual!r} instead of {expected!r}"
    for what in ("shape", "dtype", "device", "requires_grad"):
        if getattr(expected, what) != getattr(actual, what):
            return f"{what} {getattr(actual, what)} instead of {getattr(expected, what)}"
    expected, actual = expected.detach(), actual.detach()
    if not (expected.is_floating_point() or expected.is_complex()):
        return None if torch.equal(expected, actual) else f"{(expected != actual).sum()} of {expected.numel()} differ"
    for name, test in (("nan", torch.isnan), ("inf", torch.isinf)):
        if not torch.equal(test(expected), test(actual)):
            return (
                f"{name} at {int((test(expected) != test(actual)).sum())} of {expected.numel()} places unlike the loop"
            )
    finite = torch.isfinite(expected)
    error = (expected - actual)[finite].abs()
    scale = expected[finite].abs()
    if error.numel() and float(error.max()) > rtol * max(float(scale.max()), 1e-3):
        return f"relative error {float(error.max()) / max(float(scale.max()), 1e-300):.1e} of {float(scale.max()):.1e}"
    return None


def snapshot(model: nn.Module) -> dict[str, Any]:
    """What `revert` must give back: classes, instance dictionaries by identity, hooks, parameters by identity, the
    state dict's keys."""
    kept: dict[str, Any] = {}
    for prefix, module in model.named_modules():
        kept[f"class of {prefix!r}"] = type(module)
        for key, value in vars(module).items():
            if isinstance(value, dict):
                kept[f"{prefix}.{key}"] = {inner: id(item) for inner, item in value.items() if key != "_buffers"}
            elif key.startswith("_") or isinstance(value, (bool, Callable)):
                kept[f"{prefix}.{key}"] = value if isinstance(value, bool) else id(value)
            else:
                kept[f"{prefix}.{key}"] = None
    kept["state dict"] = list(model.state_dict())
    return kept
