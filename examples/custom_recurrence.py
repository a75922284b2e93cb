"""A recurrence that linrec does not know, made parallel by a rule and a pass of one's own, and trained.

A population h of positive rates decays by gates and is fed by its input. The code is careful with small numbers, as
such code is: it decays in log space, `exp(log a + log h)`, and mixes by a fused operator of its own laboratory,
`lab::blend`. Both hide that the update is affine. The rule says what `blend` is; the pass writes `exp(x + log h)` as
`exp(x) h`, which is the same for positive h. Should either be wrong, the comparison
with the loop would find out, and name it.

    python examples/custom_recurrence.py --small
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script: the repository is the folder above
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import linrec
from examples._shared import conclude, require, train_both
from linrec.ir.scan import scan_nodes, scan_of

aten = torch.ops.aten

FULL = {"length": 1000, "width": 64, "batch": 16, "steps": 200, "loop_steps": 4}
SMALL = {"length": 300, "width": 32, "batch": 8, "steps": 60, "loop_steps": 4}


@torch.library.custom_op("lab::blend", mutates_args=())
def blend(h: Tensor, x: Tensor, rate: float) -> Tensor:
    """(1 - rate) h + rate x, elementwise: stands for a kernel that torch knows nothing about."""
    return (1 - rate) * h + rate * x


@blend.register_fake
def _(h: Tensor, x: Tensor, rate: float) -> Tensor:
    return torch.empty_like(h)


blend.register_autograd(
    lambda ctx, grad: ((1 - ctx.rate) * grad, ctx.rate * grad, None),
    setup_context=lambda ctx, inputs, output: setattr(ctx, "rate", inputs[2]),
)


class Population(nn.Module):
    """x (B, T, inputs) -> log rates (B, T, 1), by a loop whose state is (B, width) and positive."""

    def __init__(self, inputs: int, width: int, rate: float = 0.2) -> None:
        super().__init__()
        self.rate, self.width = rate, width
        self.gate, self.feed = nn.Linear(inputs, width), nn.Linear(inputs, width)
        self.readout = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_ones(x.shape[0], self.width)
        out = []
        for t in range(x.shape[1]):
            decayed = torch.exp(F.logsigmoid(self.gate(x[:, t])) + torch.log(h))
            h = blend(decayed, F.softplus(self.feed(x[:, t])), self.rate)
            out.append(self.readout(h))
        return torch.stack(out, dim=1)


def blend_rule(algebra: Any, node: fx.Node, h: Any, x: Any, rate: float) -> Any:
    """What `blend` makes of polynomials in the state: (1 - rate) h + rate x."""
    space = algebra.space
    return space.add(space.scale(h, 1 - rate), x, rate)


class OutOfLogSpace(linrec.Pass):
    """Write ``exp(x + log(h))`` as ``exp(x) * h`` inside the steps.

    Before::

        l = log(h); s = x + l; y = exp(s)

    After::

        e = exp(x); y = e * h
    """

    name = "out of log space"

    def run(self, graph_module: fx.GraphModule) -> linrec.PassResult:
        """Rewrite every step of a graph."""
        changed = False
        for scan in scan_nodes(graph_module):
            graph = scan_of(graph_module, scan).step.graph
            for node in list(graph.nodes):
                changed |= self._rewrite(graph, node)
            graph.eliminate_dead_code()
        return linrec.PassResult(graph_module, changed)

    @staticmethod
    def _rewrite(graph: fx.Graph, node: fx.Node) -> bool:
        inside = node.args[0] if node.target is aten.exp.default else None
        if not isinstance(inside, fx.Node) or inside.target is not aten.add.Tensor or inside.kwargs:
            return False
        for log, rest in (inside.args, inside.args[::-1]):
            if isinstance(log, fx.Node) and log.target is aten.log.default and isinstance(rest, fx.Node):
                with graph.inserting_before(node):
                    factor = graph.call_function(aten.exp.default, (rest,))
                    product = graph.call_function(aten.mul.Tensor, (factor, log.args[0]))
                factor.meta, product.meta = {**node.meta, "val": rest.meta["val"]}, dict(node.meta)
                node.replace_all_uses_with(product)
                graph.erase_node(node)
                return True
        return False


def register() -> None:
    """Tell linrec; a second time is a first time."""
    linrec.extend.rule(torch.ops.lab.blend.default, replace=True)(blend_rule)
    linrec.add_pass(OutOfLogSpace(), before="simplify", replace=True)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="shorter and narrower: " + str(SMALL))
    for name, value in FULL.items():
        parser.add_argument("--" + name.replace("_", "-"), type=int, metavar="N", help=f"{value} unless --small")
    parser.add_argument("--learning-rate", type=float, default=0.01, metavar="X", help="of Adam, at the start (0.01)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the data and the weights (0)")
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
    require("rich", "matplotlib")
    torch.manual_seed(args.seed)
    teacher, model = Population(3, 4), Population(3, args.width)
    with torch.no_grad():
        inputs = torch.randn(4 * args.batch, args.length, 3)
        targets = teacher(inputs)
        targets = (targets - targets.mean()) / targets.std()
    cut = 3 * args.batch
    rows = [torch.randperm(cut)[: args.batch] for _ in range(args.steps)]

    def loss_at(net: nn.Module, step: int) -> Tensor:
        return F.mse_loss(net(inputs[rows[step]]), targets[rows[step]])

    print("without the rule and the pass:")
    print(linrec.explain(model, inputs[:2, :20]))
    print()
    register()
    as_it_is = copy.deepcopy(model)

    linrec.parallelize(model)

    options = {"loop_steps": min(args.loop_steps, args.steps), "steps": args.steps, "rate": args.learning_rate}
    loop, parallel = train_both(as_it_is, model, loss_at, **options)

    model.eval()  # in eval mode the model runs its own loop, as it came in
    with torch.no_grad():
        error = F.mse_loss(model(inputs[cut:]), targets[cut:]).sqrt().item()
    print("with them:")
    conclude(
        loop,
        parallel,
        linrec.report(model),
        title=f"A recurrence of one's own: {args.width} rates, T = {args.length}, batch {args.batch}",
        folder=args.out,
        stem="custom_recurrence",
        facts={"held_out_error": error},
    )
    print(f"held-out         {error:.3f} of the target's standard deviation")


if __name__ == "__main__":
    main()
