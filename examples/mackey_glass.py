"""Predict the chaotic Mackey-Glass series 15 steps ahead with a Legendre Memory Unit written as a plain loop over time.

The task is that of Voelker, Kajić & Eliasmith, "Legendre Memory Units" (NeurIPS 2019), taken over by Chilkuri &
Eliasmith, "Parallelizing Legendre Memory Unit Training" (ICML 2021): delay 17, series of 5000 steps, squashed by
tanh(x - 1) and centred; networks of about 18,000 parameters, here 4 layers with memories of order 4 and window 4. The
coupled LMU of 2019 has that many with 49 units a layer. The layer of 2021 (models/lmu.py) has other weights: with w
memories and w outputs in each layer and a linear readout they are 22 w^2 + 11 w + 1, nearest at w = 28: 17,557.

One copy of the model is trained as it is for a few steps; the other, after one added line, for all epochs.
`python examples/mackey_glass.py --small` takes a minute or two on two cores. In the full size one step of the
loop takes minutes there: `x[:, t]` costs O(T) in the backward pass, so the loop is O(T^2).
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path

if not __package__:  # run as a script: models/ lies beside this folder
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn

import linrec
from examples._shared import conclude, require, train_both
from models.lmu import VectorLMU

DELAY, HORIZON, WASHOUT = 17, 15, 100
LAYERS, ORDER, WINDOW = 4, 4, 4.0

FULL = {"length": 5000, "series": 64, "held_out": 64, "batch": 8, "epochs": 50, "loop_steps": 3}
SMALL = {"length": 600, "series": 16, "held_out": 16, "batch": 8, "epochs": 60, "loop_steps": 4}


def mackey_glass(series: int, length: int, seed: int, substeps: int = 10) -> Tensor:
    """Integrate dx/dt = 0.2 x(t-17) / (1 + x(t-17)^10) - 0.1 x(t) (Mackey & Glass 1977) by Runge-Kutta 4.

    Returns (series, length) in float64, one value per unit of time. Each series starts from a history of its own,
    uniform in [1.1, 1.3]. Half-way between two stored values the delayed one is their mean.
    """
    dt, lag = 1 / substeps, DELAY * substeps
    generator = torch.Generator().manual_seed(seed)
    x = torch.empty(lag + 1 + length * substeps, series, dtype=torch.float64)
    x[: lag + 1] = 1.1 + 0.2 * torch.rand(lag + 1, series, dtype=torch.float64, generator=generator)
    # The delayed values of the next `lag` steps are known already: their production term is computed for all at once.
    for start in range(lag, len(x) - 1, lag):
        stop = min(start + lag, len(x) - 1)
        old = x[start - lag : stop - lag + 1]
        middle = (old[1:] + old[:-1]) / 2
        production, half = (0.2 * past / (1 + past**10) for past in (old, middle))
        for k in range(start, stop):
            first, between, last = production[k - start], half[k - start], production[k - start + 1]
            k1 = first - 0.1 * x[k]
            k2 = between - 0.1 * (x[k] + dt / 2 * k1)
            k3 = between - 0.1 * (x[k] + dt / 2 * k2)
            k4 = last - 0.1 * (x[k] + dt * k3)
            x[k + 1] = x[k] + dt / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x[lag + substeps :: substeps].T


def prediction_task(train_series: int, held_out: int, length: int, seed: int) -> tuple[tuple[Tensor, Tensor], ...]:
    """(inputs, targets), each (series, length, 1), for training and held out; a target is the input 15 steps on."""
    x = mackey_glass(train_series + held_out, WASHOUT + length + HORIZON, seed)[:, WASHOUT:]
    x = torch.tanh(x - 1)
    x = (x - x[:train_series].mean()).to(torch.get_default_dtype()).unsqueeze(-1)
    inputs, targets = x[:, :-HORIZON], x[:, HORIZON:]
    return (inputs[:train_series], targets[:train_series]), (inputs[train_series:], targets[train_series:])


class Predictor(nn.Module):
    """A stack of LMU layers and a linear readout: (B, T, 1) -> (B, T, 1)."""

    def __init__(self, width: int = 28) -> None:
        super().__init__()
        sizes = [1] + [width] * LAYERS
        self.layers = nn.ModuleList(VectorLMU(size, width, width, ORDER, WINDOW) for size in sizes[:-1])
        self.readout = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x, _ = layer(x)
        return self.readout(x)


def nrmse(prediction: Tensor, target: Tensor) -> float:
    """Root mean squared error divided by the standard deviation of the target."""
    return ((prediction - target).square().mean().sqrt() / target.std()).item()


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="shorter and fewer series: " + str(SMALL))
    for name, value in FULL.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=f"{value} unless --small")
    parser.add_argument("--width", type=int, default=28, metavar="N", help="memories and outputs of a layer (28)")
    parser.add_argument("--learning-rate", type=float, default=0.01, metavar="X", help="of Adam, at the start (0.01)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the data, the weights and the batches (0)")
    parser.add_argument("--threads", type=int, metavar="N", help="of torch (its own choice)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out", help="folder for the results")
    args = parser.parse_args(argv)
    for name, value in (SMALL if args.small else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if min(getattr(args, name) for name in FULL) < 1:
        parser.error("sizes and numbers of steps start at 1")
    if args.loop_steps < 2 or args.epochs * -(-args.series // args.batch) < 2:
        parser.error("the first step is not measured: take at least 2")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads starts at 1")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    args = arguments(argv)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    require("rich", "matplotlib")
    (inputs, targets), (held_inputs, held_targets) = prediction_task(args.series, args.held_out, args.length, args.seed)

    torch.manual_seed(args.seed)
    model = Predictor(args.width)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    batches = [part for _ in range(args.epochs) for part in torch.randperm(args.series).split(args.batch)]
    print(f"{parameters:,} parameters; {args.series} series of {args.length} steps, {len(batches)} training steps")

    def loss_at(net: nn.Module, step: int) -> Tensor:
        rows = batches[step]
        return nn.functional.mse_loss(net(inputs[rows]), targets[rows])

    steps = len(batches)
    as_it_is = copy.deepcopy(model)

    linrec.parallelize(model)  # the one added line

    options = {"loop_steps": min(args.loop_steps, steps), "steps": steps, "rate": args.learning_rate}
    loop, parallel = train_both(as_it_is, model, loss_at, **options)

    model.eval()  # in eval mode the model runs its own loop, as it came in
    with torch.no_grad():
        error, baseline = nrmse(model(held_inputs), held_targets), nrmse(held_inputs, held_targets)
    conclude(
        loop,
        parallel,
        linrec.report(model),
        title=f"Mackey-Glass, {HORIZON} steps ahead: {LAYERS}-layer LMU, {parameters:,} parameters, T = {args.length}",
        folder=args.out,
        stem="mackey_glass",
        facts={"held_out_nrmse": error, "last_value_nrmse": baseline, "parameters": parameters},
    )
    print(f"NRMSE            {error:.4f} on {args.held_out} held-out series ({baseline:.2f} for the last value seen)")


if __name__ == "__main__":
    main()
