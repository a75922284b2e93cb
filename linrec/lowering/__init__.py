"""From the structure of a recurrence to an algorithm, with costs; the place where other kernels can be registered."""

from linrec.lowering import affine, attention, dense, diagonal, folded, semirings
from linrec.lowering.cost import Machine, Work, machine
from linrec.lowering.kernel import lowering
from linrec.lowering.registry import LOWERINGS, Lowering, Site, register

__all__ = [
    "LOWERINGS",
    "Lowering",
    "Machine",
    "Site",
    "Work",
    "affine",
    "attention",
    "dense",
    "diagonal",
    "folded",
    "lowering",
    "machine",
    "register",
    "semirings",
]
