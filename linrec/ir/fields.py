"""The attributes of an object, those in slots included; the entries of a dict, whatever its class makes of them."""

from __future__ import annotations

import collections
import types
import weakref
from collections.abc import Iterable
from typing import Any

_KNOWN: weakref.WeakKeyDictionary[type, tuple[str, ...]] = weakref.WeakKeyDictionary()


def slot_names(kind: type) -> tuple[str, ...]:
    """The names of a class's slots, those of its bases included."""
    names = _KNOWN.get(kind)
    if names is None:
        found = [n for c in reversed(kind.__mro__) for n, x in vars(c).items() if type(x) is types.MemberDescriptorType]
        names = _KNOWN[kind] = tuple(dict.fromkeys(found))
    return names


def slots(value: Any) -> dict[str, Any]:
    """What the slots of an object hold, those that are set."""
    return {n: getattr(value, n) for n in slot_names(type(value)) if hasattr(value, n)}


def set_slots(value: Any, content: dict[str, Any]) -> None:
    """Make the slots of an object what they were; also where its class lets nobody assign them."""
    for name in slot_names(type(value)):
        if name in content:
            object.__setattr__(value, name, content[name])
        elif hasattr(value, name):
            object.__delattr__(value, name)


def attributes(value: Any) -> dict[str, Any]:
    """All attributes that an object has of its own; where it has no slots, the dict itself that holds them."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    return {**slots(value), **own} if slot_names(type(value)) else own


def entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys and values of a dict, or of a view of one, in its order."""
    if isinstance(value, types.MappingProxyType):
        return value.items()
    kind: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    found: Iterable[tuple[Any, Any]] = kind.items(value)
    return found
