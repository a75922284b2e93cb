"""Where the inputs of a traced graph come from, and where what forward assigns goes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from linrec.ir.held import Keys, Place


@dataclass(frozen=True)
class Source:
    """Where a placeholder's value comes from: ``kind`` is "parameter", "buffer" or "attribute" (then `name` is its
    qualified name in the module), "input" (then `index` counts the tensor leaves of the call), "constant" or "number"
    (then `index` counts the series of numbers that Python computes). A constant is `literal` where forward makes it
    anew whenever it runs, of numbers in its code. `keys` lead from an attribute that is a container to what it holds;
    the tensor has the names `others`, too, and is one input for all of them."""

    kind: str
    name: str = ""
    index: int = -1
    value: Any = None
    literal: bool = False
    keys: Keys = ()
    others: tuple[Place, ...] = ()


@dataclass
class Assigned:
    """An attribute that forward assigns, or something that it puts into a container that an attribute holds.

    Attributes:
        path: of the module; name: of the attribute; keys: what leads on from there, the last one to what is assigned.
        spec, leaves: the new value, with a `Slot` for each tensor.
    """

    path: str
    name: str
    keys: Keys
    spec: Any
    leaves: list[Any]

    @property
    def qualified(self) -> str:
        """The attribute's qualified name."""
        return f"{self.path}.{self.name}" if self.path else self.name
