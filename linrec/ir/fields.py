"""The attributes of an object, those in slots included; the entries of a dict, whatever its class makes of them; what a
plain value is to a computation."""

from __future__ import annotations

import collections
import contextlib
import types
import weakref
from collections.abc import Hashable, Iterable
from typing import Any

_KNOWN: weakref.WeakKeyDictionary[type, dict[str, Any]] = weakref.WeakKeyDictionary()


def slot_names(kind: type) -> Iterable[str]:
    """The names of a class's slots, those of its bases included."""
    return _descriptors(kind).keys()


def _descriptors(kind: type) -> dict[str, Any]:
    """What reads and sets each slot: of its name a class may have made something else since."""
    found = _KNOWN.get(kind)
    if found is None:
        every = [(n, x) for c in reversed(kind.__mro__) for n, x in vars(c).items()]
        found = _KNOWN[kind] = {n: x for n, x in every if type(x) is types.MemberDescriptorType}
    return found


def slots(value: Any) -> dict[str, Any]:
    """What the slots of an object hold, those that are set."""
    found = {}
    for name, descriptor in _descriptors(type(value)).items():
        with contextlib.suppress(AttributeError):  # not set
            found[name] = descriptor.__get__(value)
    return found


def set_slots(value: Any, content: dict[str, Any]) -> None:
    """Make the slots of an object what they were; also where its class lets nobody assign them."""
    now = slots(value)
    for name, descriptor in _descriptors(type(value)).items():
        if name in content:
            if name not in now or now[name] is not content[name]:
                descriptor.__set__(value, content[name])
        elif name in now:
            descriptor.__delete__(value)


def attributes(value: Any) -> dict[str, Any]:
    """All attributes that an object has of its own; where it has no slots, the dict itself that holds them."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    return {**slots(value), **own} if _descriptors(type(value)) else own


def entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """The keys and values of a dict, or of a view of one, in its order."""
    if isinstance(value, types.MappingProxyType):
        return value.items()
    kind: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    found: Iterable[tuple[Any, Any]] = kind.items(value)
    return found


def exact(value: Any) -> Hashable:
    """A plain value as something that compares equal where the same comes of it: minus zero is another number than
    zero, as one is another than true."""
    return (type(value), repr(value) if isinstance(value, (float, complex)) else value)
