"""Train a small `transformers` Mamba on characters with the library's own `Trainer`, before and after one added line.

Neither the model nor the Trainer is touched: `linrec.parallelize(model)` goes between them. The text is that of
`examples/hf_mamba.py`; the weights are random and nothing is downloaded. One copy of the model is trained as it is for
a few steps, the other for all of them, on the same batches.

    python examples/trainer.py --small
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import linrec
from examples._shared import Run, conclude, require
from examples.hf_mamba import VOCABULARY, build, training_text

FULL = {"hidden": 64, "layers": 4, "length": 256, "batch": 8, "steps": 300, "loop_steps": 4}
SMALL = {"hidden": 32, "layers": 2, "length": 128, "batch": 4, "steps": 60, "loop_steps": 4}


def windows(text: Tensor, length: int) -> list[dict[str, Tensor]]:
    """Consecutive pieces of a text as the Trainer takes them."""
    pieces = text[: len(text) // length * length].view(-1, length)
    return [{"input_ids": piece, "labels": piece} for piece in pieces]


def train(name: str, model: nn.Module, data: Any, steps: int, args: argparse.Namespace) -> Run:
    """Train a model with the Trainer; the losses, and the seconds of each forward and backward pass."""
    import transformers

    run = Run(name)

    class Clocked(transformers.Trainer):
        """The Trainer, with a clock around its step."""

        def training_step(self, *inputs: Any, **options: Any) -> Tensor:
            begin = time.perf_counter()
            loss = super().training_step(*inputs, **options)
            run.losses.append(loss.item())
            run.seconds.append(time.perf_counter() - begin)
            return loss

    options = transformers.TrainingArguments(
        output_dir=str(args.out / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=args.batch,
        learning_rate=args.learning_rate,
        lr_scheduler_type="constant",  # the two runs differ in length, and shall not in their steps
        seed=args.seed,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=False,  # the bar would go with the warnings that `build` turns off
    )
    print(f"{name}, {steps} steps")
    Clocked(model=model, args=options, train_dataset=data).train()
    return run


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a smaller model and shorter windows: " + str(SMALL))
    for name, value in FULL.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=f"{value} unless --small")
    parser.add_argument("--learning-rate", type=float, default=0.003, metavar="X", help="of AdamW (0.003)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the weights and the batches (0)")
    parser.add_argument("--text", type=Path, help="a file to learn from")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (its own choice)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the results")
    args = parser.parse_args(argv)
    for name, value in (SMALL if args.small else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(getattr(args, name) for name in FULL) < 1:
        parser.error("sizes and numbers of steps start at 1")
    if args.loop_steps < 2 or args.steps < 2:
        parser.error("the first step is not measured: take at least 2")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads starts at 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    require("rich", "matplotlib", "transformers", "accelerate")
    text = training_text(args.text, shortest=20 * args.length)
    cut = len(text) * 9 // 10
    learned, held_out = windows(text[:cut], args.length), windows(text[cut:], args.length)

    torch.manual_seed(args.seed)
    model = build("mamba", args.hidden, args.layers)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    as_it_is = copy.deepcopy(model)

    loop = train("loop", as_it_is, learned, min(args.loop_steps, args.steps), args)

    linrec.parallelize(model)  # the one added line

    parallel = train("parallel", model, learned, args.steps, args)

    model.eval()  # in eval mode the model runs its own code, as it came in
    with torch.no_grad():
        ids = torch.stack([window["input_ids"] for window in held_out[:16]])
        bits = model(input_ids=ids, labels=ids).loss.item() / math.log(2)
    conclude(
        loop,
        parallel,
        linrec.report(model),
        title=f"Mamba under the Trainer: {parameters:,} parameters, T = {args.length}, batch {args.batch}",
        folder=args.out,
        stem="trainer",
        facts={"held_out_bits_per_byte": bits, "parameters": parameters},
    )
    print(f"held-out         {bits:.3f} bits a character ({math.log2(VOCABULARY):.0f} for a guess)")


if __name__ == "__main__":
    main()
