"""A kernel's call: its table of addresses and strides, prepared but for the addresses."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from linrec.codegen.frame import Kernel, padded
from linrec.codegen.memory import HEADER
from linrec.codegen.strides import LINE, Room, Strides
from linrec.ops import cpu_threads

_KEPT = 1 << 23
"""Bytes up to which a thread keeps its workspace."""
_WORKSPACE, _CHECKPOINTS = HEADER.index("workspace"), HEADER.index("checkpoints")


_local = threading.local()


def _workspace(size: int) -> Tensor:
    """Memory of this thread's that its calls use one after the other."""
    found: Tensor | None = getattr(_local, "memory", None)
    if found is None or found.numel() < size:
        found = Room((size,), torch.uint8).make()
        if size <= _KEPT:
            _local.memory = found
    return found


class Call:
    """A kernel and its table, but for the addresses.

    Args:
        layout: strides; tensors: by name, which need not have memory.
        where: the number of each tensor among the addresses of a call, and bytes from there.
    """

    def __init__(
        self,
        kernel: Kernel,
        address: int,
        layout: Strides,
        length: int,
        chunks: int,
        segment: int,
        workers: int,
        tensors: Mapping[Any, Tensor],
        where: Mapping[Any, tuple[int, int]],
    ) -> None:
        self.address, self.workers = address, workers
        self.streams = any(slot.along == "streamed" for slot in kernel.slots)
        need = padded(kernel.fixed + chunks * (kernel.per_chunk + (segment + 1) * kernel.per_step))
        self._memory = workers * need + LINE
        head = {
            "workers": workers,
            "blocks": layout.blocks(chunks),
            "chunks": chunks,
            "lanes": layout.size,
            "lane_blocks": -(-layout.size // (kernel.form.width * chunks)),
            "steps": length,
            "segment": segment,
            "segments": -(-length // segment),
            "workspace_bytes": need,
        }
        table = [head.get(name, 0) for name in HEADER] + layout.sizes
        self._places = []
        for slot in kernel.slots:
            tensor, lanes, inner = tensors[slot.name], layout.lanes[slot.name], layout.inner[slot.name]
            self._places.append((len(table), *where[slot.name]))
            table.append(0)
            if slot.partial:
                table.append(tensor.stride(0))
            if slot.timed:
                table.append(tensor.stride(1 if slot.partial else 0))
            table += [lanes[lane] for lane in slot.lanes] + inner
        self._table = array("q", table)

    def run(self, addresses: Sequence[int], checkpoints: Tensor | None) -> None:
        """Run the kernel.

        Args:
            addresses: of the tensors.
            checkpoints: memory for the states that are kept, or where they are.
        """
        memory, table = _workspace(self._memory), self._table[:]
        for at, number, offset in self._places:
            table[at] = addresses[number] + offset
        table[_WORKSPACE] = -(-memory.data_ptr() // LINE) * LINE
        table[_CHECKPOINTS] = 0 if checkpoints is None else checkpoints.data_ptr()
        cpu_threads.run(self.address, table.buffer_info()[0], self.workers)
