"""The command line: `linrec explain`, `linrec bench` and `linrec doctor`."""

from __future__ import annotations

import enum
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from linrec.command import bench as benchmark
from linrec.command import doctor as diagnosis
from linrec.command.load import CannotLoad, example, load

app = typer.Typer(
    help="Find the linear recurrences in a PyTorch model's time loops and run them in parallel over time.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


class Exit(enum.IntEnum):
    """Exit codes of the command."""

    OK = 0
    STAYS = 1
    USAGE = 2
    MODEL = 3


_CODES = (
    "Exit codes: 0 done; 1 a time loop stays (with --strict); 2 wrong arguments; 3 the model cannot be built or run."
)
_EXPLAIN = f"""Examples:

linrec explain models.mingru:MinGRU --config '{{"input_size": 3, "hidden_size": 5}}' --input 2x64x3

linrec explain transformers:MambaForCausalLM --config '{{"hidden_size": 64}}' --input-ids 2x64 --html mamba.html

{_CODES}"""
_BENCH = f"""Example:

linrec bench models.mingru:MinGRU --config '{{"input_size": 64, "hidden_size": 64}}' --input 4x256x64 --plot mingru.png

{_CODES}"""

Target = Annotated[
    str,
    typer.Argument(
        help="What to look at: [bold]package.module:factory[/bold] (a class, a function that makes a module, a module, "
        "a function of tensors), [bold]file.py:factory[/bold], or [bold]transformers:ClassName[/bold].",
        metavar="TARGET",
    ),
]
Inputs = Annotated[
    list[str] | None,
    typer.Option(
        "--input", help="Shape of one input, as 2x64x8, or with a dtype, as 2x64:int64; once for each argument."
    ),
]
Ids = Annotated[str | None, typer.Option("--input-ids", help="Shape of token ids, as 2x64; passed as input_ids.")]
Config = Annotated[
    str | None,
    typer.Option(help="Keyword arguments of the factory (or of the transformers configuration) as a JSON object."),
]
Threads = Annotated[int | None, typer.Option(min=1, help="Threads of torch.")]


def _fail(error: Exception | str, code: Exit) -> typer.Exit:
    text = " ".join(str(error).split()) or type(error).__name__
    typer.echo(f"linrec: {text}", err=True)
    return typer.Exit(int(code))


def _prepared(
    target: str, inputs: list[str] | None, ids: str | None, config: str | None, threads: int | None
) -> tuple[Any, tuple[Any, ...], dict[str, Any]]:
    import torch

    if threads:
        torch.set_num_threads(threads)
    try:
        options = json.loads(config) if config else {}
        if not isinstance(options, dict):
            raise CannotLoad("--config takes a JSON object, as '{\"hidden_size\": 64}'")
        model = load(target, options)
        args, kwargs = example(inputs or [], ids)
    except json.JSONDecodeError as error:
        raise _fail(f"--config is not JSON: {error}", Exit.USAGE) from None
    except CannotLoad as error:
        raise _fail(error, Exit.USAGE if error.usage else Exit.MODEL) from None
    return model, args, kwargs


@app.command(epilog=_EXPLAIN)
def explain(
    target: Target,
    input: Inputs = None,
    input_ids: Ids = None,
    config: Config = None,
    html: Annotated[Path | None, typer.Option(help="Write the report to this HTML file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    passes: Annotated[bool, typer.Option("--passes", help="Show what each pass changes in the graph.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="Exit with 1 where a time loop stays.")] = False,
    threads: Threads = None,
) -> None:
    """Say what `linrec.parallelize` would do to a model, and why not more."""
    import linrec

    model, args, kwargs = _prepared(target, input, input_ids, config, threads)
    try:
        report = linrec.explain(model, *args, **kwargs)
        stages = linrec.passes.trace(model, *args, **kwargs) if passes else []
        if html is not None:
            report.to_html(html, f"linrec report: {target}")
    except Exception as error:
        raise _fail(f"{type(error).__name__}: {error}", Exit.MODEL) from None
    console = Console(highlight=False)
    if as_json:
        sys.stdout.write(report.to_json() + "\n")
    else:
        console.print(report)
        if html is not None:
            console.print(f"report written to {html}")
    for text in linrec.passes.differences(stages):
        typer.echo(text)
    if strict and not report.parallel:
        raise typer.Exit(int(Exit.STAYS))


@app.command(epilog=_BENCH)
def bench(
    target: Target,
    input: Inputs = None,
    input_ids: Ids = None,
    config: Config = None,
    lengths: Annotated[str, typer.Option(help="Numbers of steps, as 64,256,1024.")] = "64,256,1024",
    repeat: Annotated[int, typer.Option(min=1, help="Training steps timed for each (the median counts).")] = 5,
    plot: Annotated[Path | None, typer.Option(help="Draw the times to this picture (needs matplotlib).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the times as JSON.")] = False,
    threads: Threads = None,
) -> None:
    """Time a training step, forward and backward, before and after `linrec.parallelize`, over the number of steps."""
    model, args, kwargs = _prepared(target, input, input_ids, config, threads)
    try:
        numbers = [int(n) for n in lengths.split(",")]
        if min(numbers) < 4:
            raise ValueError
    except ValueError:
        raise _fail("--lengths takes numbers of at least 4, as 64,256,1024", Exit.USAGE) from None
    try:
        rows = benchmark.measure(model, args, kwargs, numbers, repeat, quiet=as_json)
        if plot is not None:
            benchmark.draw(rows, plot, target)
    except Exception as error:
        raise _fail(f"{type(error).__name__}: {error}", Exit.MODEL) from None
    if as_json:
        sys.stdout.write(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
        return
    Console(highlight=False).print(benchmark.table(rows))
    if plot is not None:
        typer.echo(f"picture written to {plot}")


@app.command(epilog=_CODES)
def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False) -> None:
    """Show versions, the kernels that can be used here, threads and caches."""
    facts = diagnosis.facts()
    if as_json:
        sys.stdout.write(json.dumps({name: str(value) for name, value, _ in facts}, indent=2) + "\n")
        return
    Console(highlight=False).print(diagnosis.table(facts))


def main() -> None:
    """The entry point of the command `linrec`."""
    app()


if __name__ == "__main__":
    main()
