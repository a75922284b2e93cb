"""From the structure of a recurrence to an algorithm, with costs; the place where other kernels can be registered."""

from linrec.lowering import affine, dense, diagonal, semirings
from linrec.lowering.kernel import lowering
from linrec.lowering.registry import LOWERINGS, Lowering, Site, choose, register

__all__ = [
    "LOWERINGS",
    "Lowering",
    "Site",
    "affine",
    "choose",
    "dense",
    "diagonal",
    "lowering",
    "register",
    "semirings",
]
