"""Extensions: what they are called, where they come from, and how an error of theirs names them. linrec's own rules,
lowerings, semirings and passes register by the same calls; theirs is the origin "linrec"."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import _StopRecomputationError

from linrec.ir.obstruction import LinrecError

F = TypeVar("F", bound=Callable[..., Any])


class ExtensionError(LinrecError):
    """An extension is wrong: registered twice, at odds with its reference, or failing. The message names it."""


@dataclass(frozen=True)
class Extension:
    """Something registered from outside linrec.

    Attributes:
        kind: "rule", "vector rule", "lowering", "semiring" or "pass".
        name: what it is for.
        origin: the module that it is written in.
    """

    kind: str
    name: str
    origin: str

    def __str__(self) -> str:
        return f"the {self.kind} {self.name!r} from {self.origin}"


PASSING = (torch.OutOfMemoryError, _StopRecomputationError)
"""Exceptions that are no fault of the function they pass through, and that somebody waits for by their type."""

REGISTERED: list[Extension] = []
"""All extensions registered so far, in order."""


def origin(thing: Any) -> str:
    """The module that a function, class or object is written in."""
    return str(getattr(thing, "__module__", None) or type(thing).__module__)


def is_own(thing: Any) -> bool:
    """Whether something is linrec's own."""
    return origin(thing).split(".")[0] == "linrec"


def enter(kind: str, name: str, thing: Any, known: Any = None, replace: bool = False) -> None:
    """Note a registration.

    Args:
        kind, name: see `Extension`.
        thing: what is registered; known: what is registered under this name already, if anything.
        replace: whether it may take another one's place. The same function, defined anew, always may.

    Raises:
        ExtensionError: where another one is registered already.
    """
    if known is not None and not replace and _identity(known) != _identity(thing):
        raise ExtensionError(
            f"there is a {kind} {name!r} already, from {origin(known)}; to take its place, register with replace=True"
        )
    if not is_own(thing):
        new = Extension(kind, name, origin(thing))
        if new not in REGISTERED:
            REGISTERED.append(new)


def _identity(thing: Any) -> tuple[str, str]:
    thing = getattr(thing, "__wrapped__", thing)
    return origin(thing), str(getattr(thing, "__qualname__", type(thing).__qualname__))


def guarded(kind: str, name: str, function: F, passing: tuple[type[Exception], ...] = ()) -> F:
    """A function of an extension whose exceptions, but for those of `passing`, become an `ExtensionError` that names
    it; linrec's own functions come back as they are."""
    if is_own(function):
        return function

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except ExtensionError:
            raise
        except Exception as error:
            if isinstance(error, passing + PASSING):
                raise
            who = Extension(kind, name, origin(function))
            raise ExtensionError(f"{who} failed with {type(error).__name__}: {error}") from error

    return call  # type: ignore[return-value]
