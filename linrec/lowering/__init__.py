"""From the structure of a recurrence to an algorithm, with costs; the place where other kernels can be registered."""

from linrec.lowering import affine, dense, devices, diagonal, semirings
from linrec.lowering.implementation import implementation
from linrec.lowering.kernel import lowering
from linrec.lowering.registry import LOWERINGS, Lowering, Site, choose, register

__all__ = [
    "LOWERINGS",
    "Lowering",
    "Site",
    "affine",
    "choose",
    "dense",
    "devices",
    "diagonal",
    "implementation",
    "lowering",
    "register",
    "semirings",
]
