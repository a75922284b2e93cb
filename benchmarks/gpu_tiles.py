"""How large the tiles of the Triton scans should be: ``python -m benchmarks.gpu_tiles``. Times the kernels of both ops
for tiles of (steps, lanes), warps and programs, beside a copy. Compiles in other processes before it times."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.gpu import bandwidth, on_gpu
from linrec.ops import triton_launch as launch
from linrec.ops.triton_readout import scan_readout
from linrec.ops.triton_scan import linear_scan

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "complex64": torch.complex64}


def use(tile: launch.Tile, programs: int, shortest: int) -> None:
    """Launch with a tile, for both ops, and so many programs for a multiprocessor, in chunks of no fewer steps."""
    launch.SCAN = launch.READ = tile
    launch.PROGRAMS, launch.SHORTEST = programs, shortest
    launch.programs_wanted.cache_clear()


TILES = [
    launch.Tile(steps, lanes, warps)
    for steps, lanes, warps in (
        *((4, 64, 1), (4, 128, 1)),
        *((8, 32, 1), (8, 64, 1), (8, 64, 2), (8, 128, 4)),
        *((16, 32, 1), (16, 64, 1), (16, 64, 2)),
    )
]
"""With one, two or four lanes in a thread. Programs of 32 steps take ten seconds to compile."""


def scan(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Callable[..., Tensor], int, int]:
    """Operands, op, and the bytes that the forward and the backward pass have to move."""
    a = (0.5 + 0.5 * torch.rand(shape, device="cuda")).to(dtype).requires_grad_()
    b = torch.randn(shape, device="cuda").to(dtype).requires_grad_()
    size = b.numel() * b.element_size()
    return [a, b], linear_scan, 3 * size, 5 * size


def readout(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[list[Tensor], Callable[..., Tensor], int, int]:
    """The same for the scan with a readout, its vectors the same for all rows."""
    (a, b), *_ = scan(shape, dtype)
    c = torch.randn(shape[0], shape[1], 1, shape[3], device="cuda").to(dtype).requires_grad_()
    size = b.numel() * b.element_size()
    return [a, b, c], lambda *x: scan_readout(*x)[0], 2 * size, 4 * size


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "gate 1x4096x1024": (scan, (1, 4096, 1024)),
    "gate 1x65536x1024": (scan, (1, 65536, 1024)),
    "gate 16x2048x1024": (scan, (16, 2048, 1024)),
    "mamba 1x8192x256x16": (readout, (1, 8192, 256, 16)),
    "mamba 8x1024x1536x16": (readout, (8, 1024, 1536, 16)),
}


def timed(case: str, dtype: torch.dtype, rounds: int) -> tuple[float, float]:
    """Median seconds of the forward and of the backward pass, by bytes that they have to move. They are recorded and
    replayed, so that the time of the host is not counted."""
    make, shape = CASES[case]
    leaves, op, there, back = make(shape, dtype)
    grad = torch.randn_like(op(*leaves))

    def forward() -> None:
        op(*leaves)

    def both() -> None:
        torch.autograd.grad(op(*leaves), leaves, grad)

    found = []
    for work in (forward, both):
        work()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        found.append(statistics.median([on_gpu(graph.replay) for _ in range(rounds + 2)][2:]))
    return found[0] / there, (found[1] - found[0]) / back


def compiled(part: int, parts: int, dtypes: list[str]) -> None:
    """Compile a part of all kernels, at small sizes that have the factors that Triton compiles for."""
    shapes = (scan, (1, 4096, 1024)), (scan, (64, 256, 1024)), (readout, (1, 512, 256, 16)), (readout, (64, 64, 64, 16))
    work = sorted(itertools.product(TILES, dtypes, shapes), key=lambda x: -x[0].steps * x[0].lanes / x[0].warps)
    for tile, dtype, (make, shape) in work[part::parts]:
        use(tile, 4, 64)
        leaves, op, *_ = make(shape, DTYPES[dtype])
        op(*leaves).sum().abs().backward()


def main(
    cases: Annotated[list[str] | None, typer.Argument(help="Which cases; all if none is named.")] = None,
    dtypes: str = "float32,bfloat16",
    cuts: str = "4:512,8:128,16:128,16:64",
    rounds: int = 7,
    processes: int = 12,
    out: Path = Path("out"),
) -> None:
    """Time all tiles and print, for each case, the best ones."""
    if not torch.cuda.is_available():
        typer.echo("benchmarks.gpu_tiles: there is no CUDA device here", err=True)
        raise typer.Exit(2)
    names = dtypes.split(",")
    ways = [tuple(int(n) for n in x.split(":")) for x in cuts.split(",")]
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=compiled, args=(k, processes, names)) for k in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    speed = bandwidth("cuda", on_gpu, 1024)
    lines: list[dict[str, Any]] = []
    for case in cases or CASES:
        for dtype in names:
            for tile, (count, shortest) in itertools.product(TILES, ways):
                use(tile, count, shortest)
                try:
                    there, back = (x * speed for x in timed(case, DTYPES[dtype], rounds))
                except Exception as problem:
                    typer.echo(f"{case} {dtype} {tile}: {type(problem).__name__}: {str(problem)[:200]}")
                    continue
                found = {"case": case, "dtype": dtype, **vars(tile), "programs": count, "shortest": shortest}
                lines.append(found | {"forward": there, "backward": back})
            own = [x for x in lines if x["case"] == case and x["dtype"] == dtype]
            for what in ("forward", "backward"):
                best = sorted(own, key=lambda x: x[what])[:6]
                shown = "; ".join(
                    f"{x[what]:.2f} ({x['steps']}x{x['lanes']}, {x['warps']} warps, {x['programs']}:{x['shortest']})"
                    for x in best
                )  # fmt: skip
                typer.echo(f"{case} {dtype} {what}: {shown}")
            sys.stdout.flush()
            out.mkdir(parents=True, exist_ok=True)
            (out / "gpu_tiles.json").write_text(json.dumps({"bytes per second": speed, "tiles": lines}) + "\n")


if __name__ == "__main__":
    typer.run(main)
