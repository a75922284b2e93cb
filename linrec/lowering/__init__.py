"""From the structure of a recurrence to an algorithm, with costs; the place where other kernels can be registered."""

from linrec.lowering import affine, attention, dense, devices, diagonal, folded, read_scan, semirings
from linrec.lowering.cost import Machine, Work, machine
from linrec.lowering.implementation import implementation
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
    "devices",
    "diagonal",
    "folded",
    "implementation",
    "lowering",
    "machine",
    "read_scan",
    "register",
    "semirings",
]
