"""One of two processes that train a parallelised model together, and the original after it: run by `test_ecosystem`.

python -m tests.runtime.two_processes RANK PORT ddp|fsdp
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

import linrec
from tests.runtime.samples import Nested, agree, build, series


def train(ours: bool, kind: str, rank: int) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of two steps on this process' part of the batch, and the weights afterwards."""
    model: Any = build(Nested)
    if ours:
        linrec.parallelize(model)
    if kind == "ddp":
        wrapped: Any = nn.parallel.DistributedDataParallel(model)
    else:
        from torch.distributed.fsdp import fully_shard

        for layer in model.layers:
            fully_shard(layer)
        wrapped = fully_shard(model)
    optimiser = torch.optim.SGD(wrapped.parameters(), lr=0.1)
    losses = []
    for length in (12, 15):
        optimiser.zero_grad()
        loss = wrapped(series(2, length, seed=rank)).pow(2).mean()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    if ours:
        print(linrec.report(model))
        assert linrec.report(model).parallel
    values = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in wrapped.parameters()]
    return losses, [p.detach().clone() for p in values]


def main(rank: int, port: int, kind: str) -> None:
    """Compare the two."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        agree(train(True, kind, rank), train(False, kind, rank))
    finally:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
