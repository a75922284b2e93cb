"""What an algorithm is expected to take: its work in numbers, and the machine's speeds, which turn it into seconds.

The speeds are measured once for each machine and kept in the user's cache directory; where that cannot be written, or
under ``LINREC_MACHINE=default``, those bundled here are used."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import torch

from linrec.codegen.toolchain import cache_folder


@dataclass(frozen=True)
class Work:
    """The work of one forward pass.

    Attributes:
        products: multiply-adds in matrix products.
        elements: operations on single elements, butterflies of Fourier transforms included.
        steps: such operations where each waits for the one before, in a compiled loop.
        bytes: what is read from memory or written to it, beyond what stays in a cache.
        calls: operators of torch that are called one after the other.
    """

    products: float = 0.0
    elements: float = 0.0
    steps: float = 0.0
    bytes: float = 0.0
    calls: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def operations(self) -> float:
        """Multiply-adds and operations on elements together."""
        return self.products + self.elements + self.steps


@dataclass(frozen=True)
class Machine:
    """Speeds of a device.

    Attributes:
        products: multiply-adds in matrix products, in a second.
        elements: operations on elements in vectors, in a second.
        steps: the same in a compiled loop over time.
        bytes: bytes to or from memory, in a second.
        call: seconds that calling an operator takes.
        name: of the processor.
    """

    products: float
    elements: float
    steps: float
    bytes: float
    call: float
    name: str = "default"

    def seconds(self, work: Work) -> float:
        """How long some work is expected to take."""
        computed = work.products / self.products + work.elements / self.elements + work.steps / self.steps
        return max(computed, work.bytes / self.bytes) + work.calls * self.call


CPU = Machine(products=3e10, elements=1.5e9, steps=4e9, bytes=8e9, call=5e-6)
CUDA = Machine(products=2e13, elements=2e11, steps=2e9, bytes=1.5e12, call=6e-6, name="cuda")


_LOOPED = 1.8
"""What an operator of a loop takes, in calls: the loop's own Python beside it."""
_VIEWED = 2.5
"""The same of a rewritten graph, whose views of the time axis have Python of their own."""
_DISPATCHED = 20.0
"""What choosing a plan takes, in calls."""
_KERNEL = 50.0
"""What calling an algorithm or a compiled loop takes, and its derivative, in calls."""


def pays_from(looped: float, calls: int, kernels: int) -> int:
    """The least number of steps at which a rewritten graph is expected to be faster than the loop as it is written,
    where so few steps hold no work worth counting.

    Args:
        looped: operators that the loop calls in a step.
        calls: operators that the graph calls.
        kernels: algorithms among them.

    ``LINREC_SHORTEST`` in the environment is taken instead where it is set.
    """
    given = os.environ.get("LINREC_SHORTEST")
    if given:
        return int(given)
    fixed = _DISPATCHED + _VIEWED * calls + _KERNEL * kernels
    return min(math.ceil(fixed / (_LOOPED * max(looped, 1.0))), _FEW)


_FEW = 64
"""The number of steps up to which a loop may be left as it is because it is short."""


def machine(device: torch.device) -> Machine:
    """The speeds of a device: those of this CPU, or bundled ones of a GPU."""
    if device.type != "cpu":
        return CUDA
    if os.environ.get("LINREC_MACHINE") == "default":
        return CPU
    return _measured(torch.get_num_threads())


@functools.cache
def _measured(threads: int) -> Machine:
    folder, name = cache_folder(), f"{platform.machine()} {platform.processor()} torch {torch.__version__}"
    if folder is None:
        return CPU
    path = folder / f"machine-{threads}.json"
    with contextlib.suppress(OSError, ValueError, TypeError):
        found = Machine(**json.loads(path.read_text()))
        if found.name == name:
            return found
    found = measure(name)
    with contextlib.suppress(OSError):
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(asdict(found)))
        os.replace(temporary, path)
    return found


def measure(name: str = "") -> Machine:
    """Measure this CPU's speeds, in about a tenth of a second.

    What is out of all proportion to the bundled speeds, as on a machine that does something else at the time, is cut to
    eight times as much or an eighth.
    """
    with torch.no_grad(), torch.inference_mode(False):
        a = torch.ones(384, 384)
        x, y = torch.ones(1 << 16), torch.empty(1 << 16)
        big, other = torch.ones(1 << 22), torch.empty(1 << 22)
        small = torch.ones(8)
        product = _best(lambda: a @ a)
        element = _best(lambda: torch.mul(x, x, out=y))
        memory = _best(lambda: torch.add(big, 1.0, out=other), 4)
        call = _best(lambda: [small + small for _ in range(64)]) / 64
    speeds = {
        "products": 384**3 / product,
        "elements": x.numel() / element,
        "bytes": 2 * 4 * big.numel() / memory,
        # An operator of a training step is called, recorded, and called again for its derivative.
        "call": 3 * call,
    }
    cut = {k: min(max(v, getattr(CPU, k) / 8), getattr(CPU, k) * 8) for k, v in speeds.items()}
    return Machine(**cut, steps=CPU.steps * cut["elements"] / CPU.elements, name=name)


def _best(run: Callable[[], object], times: int = 8) -> float:
    run()
    least = math.inf
    for _ in range(times):
        begin = time.perf_counter()
        run()
        least = min(least, time.perf_counter() - begin)
    return max(least, 1e-9)
