"""The modules, parameters and buffers of a model, read off torch's own tables: classes override `parameters` to return
groups for an optimizer, or dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


class InFront:
    """What stands in front of a module's forward, in its place: to the code of the module it changes nothing.

    Attributes:
        own: the forward that the module has of its own; None where it has that of its class.
    """

    own: Any


def own_forward(module: nn.Module) -> Any:
    """The forward that a module has of its own, whatever stands in front of it; None where it has that of its class."""
    found = module.__dict__.get("forward")
    return found.own if isinstance(found, InFront) else found


def named_modules(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module once, parents first, with its qualified name."""
    found: dict[int, tuple[str, nn.Module]] = {}
    pending = [("", root)]
    while pending:
        path, module = pending.pop()
        if id(module) not in found:
            found[id(module)] = (path, module)
            children = [(f"{path}.{n}" if path else n, m) for n, m in module._modules.items() if m is not None]
            pending += reversed(children)
    return list(found.values())


def modules(root: nn.Module) -> list[nn.Module]:
    """Every module once, parents first."""
    return [module for _, module in named_modules(root)]


def parameters(root: nn.Module) -> list[nn.Parameter]:
    """Every parameter once."""
    every = (p for module in modules(root) for p in module._parameters.values() if p is not None)
    return list({id(p): p for p in every}.values())


def buffers(root: nn.Module) -> list[Tensor]:
    """Every buffer once."""
    every = (b for module in modules(root) for b in module._buffers.values() if b is not None)
    return list({id(b): b for b in every}.values())


def named_state(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter, then every buffer, once, with its qualified name."""
    seen: set[int] = set()
    for table in ("_parameters", "_buffers"):
        for path, module in named_modules(root):
            for name, tensor in module.__dict__[table].items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}" if path else name, tensor
