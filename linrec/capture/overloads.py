"""Overloads of one operator: the one that takes a tensor where another takes a number."""

from __future__ import annotations

import functools
from typing import Any

import torch

aten = torch.ops.aten

_SAME = {"__and__": "bitwise_and", "__or__": "bitwise_or", "__xor__": "bitwise_xor"}
"""Operators that are others by another name, which the rules know."""
_TENSOR = {"number": "Tensor", "Optional[number]": "Optional[Tensor]"}


@functools.cache
def tensor_overload(target: Any) -> Any:
    """The overload that computes the same with tensors in the place of numbers; the target where there is none."""
    schema = getattr(target, "_schema", None)
    if schema is None or not any(str(a.type) in _TENSOR for a in schema.arguments):
        return target
    name = schema.name.partition("::")[2]
    packet = getattr(aten, _SAME[name]) if name in _SAME else target.overloadpacket
    for other in (getattr(packet, overload) for overload in packet.overloads()):
        if other is not target and _is_with_tensors(schema, other._schema):
            return other
    return target


def _is_with_tensors(schema: Any, other: Any) -> bool:
    """Whether another schema is the same but for tensors in the place of all numbers that it can have them for."""
    if [a.name for a in schema.arguments] != [a.name for a in other.arguments] or other.is_mutable != schema.is_mutable:
        return False
    pairs = [(str(a.type), str(b.type)) for a, b in zip(schema.arguments, other.arguments, strict=True)]
    return all(b in (a, _TENSOR.get(a)) for a, b in pairs) and any(a != b for a, b in pairs)
