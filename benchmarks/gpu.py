"""The benchmark for GPUs: ``python -m benchmarks.gpu [case...]``. In one run: unchanged loops, linrec's forms, those of
flash-linear-attention and accelerated-scan, at lengths from 2^9 to 2^17, in bfloat16 and float32, beside the time
that the memory alone would take. Without a CUDA device it says so and exits with 2."""

from __future__ import annotations

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.gpu_cases import CASES, Call, GpuCase
from benchmarks.measure import difference
from benchmarks.variant import Unavailable

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
ALLOWED = {torch.bfloat16: 3e-2, torch.float32: 5e-3}
"""Relative error, in the Euclidean norm, of value and gradients at a short length. That of float32 leaves room for
TF32, in which flash-linear-attention computes."""

SHORT = 64
"""Steps at which every form is compared with the loop in double precision."""

Timer = Callable[[Callable[[], Any]], float]
"""Seconds that a call takes."""


@dataclass
class Row:
    """One form at one length and dtype: median seconds of a training step, or a note that says why there are none.

    Attributes:
        over_roofline: how many times longer than moving the bytes that have to be moved.
        memory: greatest number of bytes held during the step, beyond what was held before.
        error: greatest relative error of value and gradients over `SHORT` steps.
    """

    case: str
    dtype: str
    length: int
    form: str
    seconds: float | None = None
    over_roofline: float | None = None
    memory: int | None = None
    error: float | None = None
    note: str = ""


def on_gpu(call: Callable[[], Any]) -> float:
    """Seconds between two CUDA events around a call."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def on_clock(call: Callable[[], Any]) -> float:
    """Seconds of the clock: where there is no GPU, for tests."""
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def bandwidth(device: str, timer: Timer, megabytes: int) -> float:
    """Bytes a second that a copy reads and writes."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [timer(lambda: target.copy_(source)) for _ in range(10)]
    return 2 * source.numel() / statistics.median(seconds[3:])


def step(call: Call, leaves: Sequence[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
    """Value and gradients."""
    y = call(*leaves)
    return y, *torch.autograd.grad(y, list(leaves), grad)


def inputs_of(case: GpuCase, sizes: dict[str, int], length: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """The same inputs in every run, rounded to the dtype."""
    torch.manual_seed(0)
    return [x.to(device, dtype).requires_grad_() for x in case.inputs(sizes, length)]


def error_of(case: GpuCase, sizes: dict[str, int], call: Call, dtype: torch.dtype, device: str) -> float:
    """A form's relative error against the loop in double precision, on the same rounded inputs."""
    leaves = inputs_of(case, sizes, SHORT, dtype, device)
    wide = [x.detach().double().requires_grad_() for x in leaves]
    grad = torch.randn_like(case.exact(*leaves).detach())
    return difference(step(call, leaves, grad), step(case.exact, wide, grad.double()))


def measure(
    case: GpuCase,
    sizes: dict[str, int],
    dtype: torch.dtype,
    lengths: Sequence[int],
    device: str,
    rounds: int,
    loop_up_to: int,
    timer: Timer,
    speed: float,
    say: Callable[[str], None] = lambda what: None,
) -> list[Row]:
    """Check every form of a case, then time them in turns at each length."""
    name = str(dtype).removeprefix("torch.")
    rows: list[Row] = []
    forms: dict[str, tuple[Call, float]] = {}
    for form, make in case.variants.items():
        try:
            call = make(device)
            error = error_of(case, sizes, call, dtype, device)
        except Unavailable as why:
            rows.append(Row(case.name, name, 0, form, note=str(why)))
            continue
        except Exception as problem:  # another library's kernel must not end the run
            rows.append(Row(case.name, name, 0, form, note=f"fails: {type(problem).__name__}: {problem}"[:200]))
            continue
        if error <= ALLOWED[dtype]:
            forms[form] = call, error
        else:
            rows.append(Row(case.name, name, 0, form, error=error, note="disagrees with the loop"))
    for length in lengths:
        say(f"{case.name}, {name}, T = {length}")
        leaves = inputs_of(case, sizes, length, dtype, device)
        found: dict[str, Row] = {}
        working: list[str] = []
        with torch.no_grad():
            result = next(iter(forms.values()))[0](*(x[:, :2] for x in leaves)) if forms else leaves[0]
        shape = (result.shape[0], length, *result.shape[2:])
        grad = torch.randn(shape, device=device).to(result.dtype)
        roofline = case.moved(leaves, grad) * dtype.itemsize / speed
        for form, (call, error) in forms.items():
            if form in case.loops and length > loop_up_to:
                continue
            found[form] = Row(case.name, name, length, form, error=error)
            try:
                step(call, leaves, grad)  # compiles
                found[form].memory = held(call, leaves, grad, device)
                working.append(form)
            except torch.OutOfMemoryError:
                found[form].note = "out of memory"
            except Exception as problem:
                found[form].note = f"fails: {type(problem).__name__}: {problem}"[:200]
        steps = {form: functools.partial(step, forms[form][0], leaves, grad) for form in working}
        for form, median in take_turns(steps, rounds, case.loops, timer).items():
            found[form].seconds, found[form].over_roofline = median, median / roofline
        rows += found.values()
        rows.append(Row(case.name, name, length, "memory roofline", seconds=roofline, over_roofline=1.0))
    return rows


def take_turns(
    steps: dict[str, Callable[[], Any]], rounds: int, slow: frozenset[str], timer: Timer
) -> dict[str, float]:  # fmt: skip
    """Median seconds of each; who begins changes from round to round. The slow ones take part in three rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    names = list(steps)
    for k in range(rounds if names else 0):
        first = k % len(names)
        for name in names[first:] + names[:first]:
            if k < 3 or name not in slow:
                seconds[name].append(timer(steps[name]))
    return {name: statistics.median(times) for name, times in seconds.items()}


def held(call: Call, leaves: Sequence[Tensor], grad: Tensor, device: str) -> int | None:
    """The greatest number of bytes held during a step, beyond what was held before."""
    if device != "cuda":
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(call, leaves, grad)
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated()) - before


def machine(device: str, speed: float) -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for package in ("torch", "triton", "fla-core", "accelerated-scan"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    name = torch.cuda.get_device_name() if device == "cuda" else "no GPU"
    tf32 = torch.get_float32_matmul_precision()
    today = datetime.now(timezone.utc).date().isoformat()
    return {"device": name, "bytes per second": speed, "float32 products": tf32, "versions": versions, "date": today}


def markdown(rows: Sequence[Row], about: dict[str, Any]) -> str:
    """The figures as a table."""
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    lines = [
        f"{about['device']}, a copy moves {about['bytes per second'] / 1e9:.0f} GB/s, float32 products "
        f"{about['float32 products']}; {versions}; {about['date']}. Training step, forward and backward; medians.",
        "",
        "| case | dtype | T | form | ms | over roofline | MiB | error |",
        "|---|---|---:|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        ms = row.note if row.seconds is None else f"{1000 * row.seconds:.3g}"
        over = "" if row.over_roofline is None else f"{row.over_roofline:.1f}"
        memory = "" if row.memory is None else f"{row.memory / 2**20:.4g}"
        error = "" if row.error is None else f"{row.error:.0e}"
        title = f"{CASES[row.case].title} ({', '.join(f'{k} = {v}' for k, v in CASES[row.case].sizes.items())})"
        cells = [title, row.dtype, str(row.length or ""), row.form, ms, over, memory, error]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


Names = Annotated[list[str] | None, typer.Argument(help=f"Which: {', '.join(CASES)}. All, if none is named.")]
Powers = Annotated[str, typer.Option(help="The least and the greatest number of steps, as powers of two.")]
Dtypes = Annotated[str, typer.Option(help="With commas: bfloat16, float32.")]
Out = Annotated[Path, typer.Option(help="Folder for gpu.md and gpu.json.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    names: Names = None,
    powers: Powers = "9-17",
    stride: Annotated[int, typer.Option(min=1, help="Which powers: every one, every second one...")] = 1,
    dtypes: Dtypes = "bfloat16,float32",
    rounds: Annotated[int, typer.Option(min=1, help="How often each form is timed; the medians count.")] = 11,
    loop_up_to: Annotated[int, typer.Option(help="The greatest number of steps at which the loop is timed.")] = 2048,
    tf32: Annotated[bool, typer.Option(help="Let float32 products be TF32, as flash-linear-attention needs.")] = True,
    out: Out = Path("out"),
) -> None:
    """Time training steps on a CUDA device and write out/gpu.md and out/gpu.json."""
    if not torch.cuda.is_available():
        typer.echo("benchmarks.gpu: there is no CUDA device here; `python -m benchmarks` is for CPUs", err=True)
        raise typer.Exit(2)
    unknown = [n for n in names or () if n not in CASES]
    if unknown or any(d not in DTYPES for d in dtypes.split(",")):
        raise typer.BadParameter(f"cases are {', '.join(CASES)}; dtypes {', '.join(DTYPES)}")
    first, _, last = powers.partition("-")
    lengths = [2**k for k in range(int(first), int(last or first) + 1, stride)]
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    speed = bandwidth("cuda", on_gpu, 1024)
    about = machine("cuda", speed)
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    for name in names or CASES:
        case = CASES[name]
        for dtype in dtypes.split(","):
            rows += measure(
                case, case.sizes, DTYPES[dtype], lengths, "cuda", rounds, loop_up_to, on_gpu, speed, _say
            )  # fmt: skip
            # After each part, so that a run that is stopped leaves what it has found.
            found = {"machine": about, "rows": [asdict(r) for r in rows]}
            (out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            (out / "gpu.md").write_text(markdown(rows, about), encoding="utf-8")
            torch.cuda.empty_cache()
    sys.stdout.write(markdown(rows, about))


def _say(what: str) -> None:
    typer.echo(what, err=True)


if __name__ == "__main__":
    app(prog_name="python -m benchmarks.gpu")
