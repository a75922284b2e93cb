"""What a model returns, taken apart: dataclasses that torch's pytrees do not know are containers, too.

They are opened here and nowhere else: to register a user's class with torch would change what other code sees, and the
user could not register it any more.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from torch.utils import _pytree as pytree

from linrec.ir.fields import attributes


class _Opened:
    """The fields of a dataclass. Put together again, it is an instance of that class."""

    def __init__(self, kind: type, values: dict[str, Any]) -> None:
        self.kind, self.values = kind, values


def _apart(x: _Opened) -> tuple[list[Any], Any]:
    return list(x.values.values()), (x.kind, tuple(x.values))


def _together(values: Any, context: Any) -> Any:
    kind, names = context
    made = object.__new__(kind)
    for name, x in zip(names, values, strict=True):
        object.__setattr__(made, name, x)  # as it was when it was traced: nothing is made of the fields again
    return made


pytree.register_pytree_node(_Opened, _apart, _together)


def opened(result: Any) -> Any:
    """The same, with every dataclass in it as something that pytrees take apart, and put together as that dataclass."""
    if not any(can_be_opened(x) for x in pytree.tree_leaves(result)):
        return result
    return pytree.tree_map(lambda x: _Opened(type(x), _fields(x)) if can_be_opened(x) else x, result)


def leaves_of_result(result: Any) -> list[Any]:
    """The leaves of what a model returns."""
    return pytree.tree_leaves(opened(result))


def _fields(x: Any) -> dict[str, Any]:
    return {f.name: opened(getattr(x, f.name)) for f in dataclasses.fields(x)}


def can_be_opened(x: Any) -> bool:
    """Whether a value is an instance of nothing but dataclasses, and holds its fields and nothing else."""
    kind = type(x)
    if not dataclasses.is_dataclass(kind) or not all(c is object or dataclasses.is_dataclass(c) for c in kind.__mro__):
        return False
    names = {f.name for f in dataclasses.fields(kind)}
    return all(hasattr(x, n) for n in names) and attributes(x).keys() <= names
