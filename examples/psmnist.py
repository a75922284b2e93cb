"""Classify digits read pixel by pixel in a shuffled order, by the LMU of Chilkuri & Eliasmith (ICML 2021, 4.1).

The model is theirs: one memory of order 468 over a window of 784 pixels, 346 hidden units, about 166,000 parameters,
written as a plain loop of which only the last state is read (`PixelClassifier` in models/lmu.py). The data are MNIST
where torchvision is installed and has the files (`--data`; nothing is downloaded), else the 1,797 digits of
scikit-learn, 8 by 8 pixels, enlarged to the same 784 pixels. The program says which. The pixels are permuted once, the
same for all.

    python examples/psmnist.py --small
    python examples/psmnist.py --data ~/datasets
"""

from __future__ import annotations

import argparse
import copy
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: models/ lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import linrec
from examples._shared import conclude, require, train_both
from models.lmu import PixelClassifier

FULL = {"side": 28, "order": 468, "hidden": 346, "batch": 100, "epochs": 10, "loop_steps": 4}
SMALL = {"side": 14, "order": 64, "hidden": 64, "batch": 50, "epochs": 6, "loop_steps": 4}

Digits = tuple[str, Tensor, Tensor]
"""(where they come from, images (N, side, side) in [0, 1], classes (N,))."""


def mnist(folder: Path) -> Digits | None:
    """The 60,000 training images of MNIST, where torchvision is installed and finds them under `folder`."""
    if importlib.util.find_spec("torchvision") is None:
        return None
    datasets = importlib.import_module("torchvision.datasets")
    try:
        found = datasets.MNIST(str(folder), train=True, download=False)
    except RuntimeError:  # its way of saying that the files are not there
        return None
    return f"MNIST, from {folder}", found.data / 255.0, found.targets


def small_digits(side: int) -> Digits:
    """scikit-learn's digits, each pixel enlarged to a square, in a frame of zeros of `side` pixels."""
    require("sklearn")
    found = importlib.import_module("sklearn.datasets").load_digits()
    images = torch.from_numpy(found.images / 16.0).to(torch.get_default_dtype())
    scale = side // 8
    images = images.repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    before = (side - 8 * scale) // 2
    after = side - 8 * scale - before
    images = nn.functional.pad(images, (before, after, before, after))
    return "scikit-learn's digits (no MNIST was found)", images, torch.from_numpy(found.target).long()


def task(args: argparse.Namespace) -> tuple[str, Tensor, Tensor]:
    """(source, pixels (N, T, 1) in one shuffled order, classes (N,)), the examples shuffled as well."""
    found = mnist(args.data)
    if found is None:
        found = small_digits(args.side)
    elif args.side != 28:
        shrunk = nn.functional.interpolate(found[1].unsqueeze(1), (args.side, args.side), mode="area")
        found = (found[0], shrunk.squeeze(1), found[2])
    source, images, classes = found
    generator = torch.Generator().manual_seed(args.seed)
    rows = torch.randperm(len(images), generator=generator)[: args.images]
    order = torch.randperm(args.side**2, generator=generator)
    return source, images[rows].flatten(1)[:, order].unsqueeze(-1), classes[rows]


def accuracy(model: nn.Module, pixels: Tensor, classes: Tensor) -> float:
    """The part of the images that is classified rightly."""
    with torch.no_grad():
        pairs = zip(pixels.split(500), classes.split(500), strict=True)
        right = [(model(x).argmax(-1) == y).sum().item() for x, y in pairs]
    return sum(right) / len(classes)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="fewer pixels and a smaller memory: " + str(SMALL))
    for name, value in FULL.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=f"{value} unless --small")
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="at most so many images (60000)")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder of torchvision's MNIST (data)")
    parser.add_argument("--learning-rate", type=float, default=0.003, metavar="X", help="of Adam, at the start (0.003)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of order, weights and batches (0)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (its own choice)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the results")
    args = parser.parse_args(argv)
    for name, value in (SMALL if args.small else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(getattr(args, name) for name in FULL) < 1 or args.images < 10:
        parser.error("sizes and numbers of steps start at 1, images at 10")
    if args.side < 8:
        parser.error("--side starts at 8, the size of the small digits")
    if args.loop_steps < 2:
        parser.error("the first step is not measured: take at least 2")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads starts at 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    require("rich", "matplotlib")
    source, pixels, classes = task(args)
    cut = len(pixels) * 5 // 6
    length = pixels.shape[1]

    torch.manual_seed(args.seed)
    model = PixelClassifier(args.hidden, args.order, float(length))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = [rows for _ in range(args.epochs) for rows in torch.randperm(cut).split(args.batch)]
    if len(batches) < 2:
        raise SystemExit("the first step is not measured: take more epochs or smaller batches")
    print(f"data             {source}: {cut} to learn from, {len(pixels) - cut} held out")
    print(f"model            order {args.order}, {args.hidden} hidden, {length} pixels: {parameters:,} parameters")

    def loss_at(net: nn.Module, step: int) -> Tensor:
        rows = batches[step]
        return nn.functional.cross_entropy(net(pixels[rows]), classes[rows])

    as_it_is = copy.deepcopy(model)

    linrec.parallelize(model)  # the one added line

    options = {"loop_steps": min(args.loop_steps, len(batches)), "steps": len(batches), "rate": args.learning_rate}
    loop, parallel = train_both(as_it_is, model, loss_at, **options)

    model.eval()  # in eval mode the model runs its own loop, as it came in
    right = accuracy(model, pixels[cut:], classes[cut:])
    conclude(
        loop,
        parallel,
        linrec.report(model),
        title=f"Permuted digits, T = {length}: LMU of order {args.order}, {parameters:,} parameters",
        folder=args.out,
        stem="psmnist",
        facts={"held_out_accuracy": right, "parameters": parameters, "data": source},
    )
    print(f"held-out         {100 * right:.1f} % right of {len(pixels) - cut} images (10 % for a guess)")


if __name__ == "__main__":
    main()
