"""Small loops, each for something that the passes do, with the text of a graph between passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from linrec.ir.scan import Scan
from tests.analysis.graphs import BATCH as B

X = torch.randn(B, 8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
W = 0.3 * torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Loop:
    """A function of tensors, of which the first grows along dimension 1."""

    name: str
    function: Callable[..., Any]
    rest: tuple[Tensor, ...] = ()
    lengths: tuple[int, int] = (4, 6)

    def __repr__(self) -> str:
        return self.name


LOOPS: list[Loop] = []


def loop(*rest: Tensor, lengths: tuple[int, int] = (4, 6)) -> Callable[[Any], Any]:
    """Register a function; its name is the file name of its golden text."""

    def register(function: Any) -> Any:
        name = function.__name__
        # Only functions of this name keep their stack traces when they are traced.
        function.__code__ = function.__code__.replace(co_name="forward")
        function.__name__ = "forward"
        LOOPS.append(Loop(name, function, rest, lengths))
        return function

    return register


def named(name: str) -> Loop:
    """The loop of this name."""
    return next(x for x in LOOPS if x.name == name)


@loop(W, W + 0.1, W - 0.1)
def memory_feeding_rnn(x: Tensor, a: Tensor, b: Tensor, w: Tensor) -> Tensor:
    m = h = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        u = torch.tanh(x[:, t] @ b)
        m = m @ a + u
        h = torch.tanh(m @ w + h)
        out.append(h)
    return torch.stack(out, 1)


@loop(W[0])
def gated_with_leftovers(x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    h = previous = unused = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        decay = torch.sigmoid(w)
        gate = torch.sigmoid(x[:, t] - previous)
        again = torch.sigmoid(x[:, t] - previous)
        h = decay * gate * h + again
        unused = unused * 0.5 + h
        previous = x[:, t]
        out.append(h * torch.sigmoid(w))
    return torch.stack(out, 1), h


@loop(W, W[0])
def last_of_a_memory(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    m = x.new_zeros(x.shape[0], 3)
    for t in range(x.shape[1]):
        m = m @ a.T + x[:, t, :1] * b
    return m


@loop()
def stabilised(x: Tensor) -> Tensor:
    m = torch.full_like(x[:, 0], -10.0)
    c = n = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        new = torch.maximum(m - 0.1, x[:, t])
        keep, add = torch.exp(m - 0.1 - new), torch.exp(x[:, t] - new)
        c = keep * c + add * x[:, t]
        n = keep * n + add
        m = new
        out.append(c / n)
    return torch.stack(out, 1)


@loop()
def coupled(x: Tensor) -> Tensor:
    re = im = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        re, im = 0.8 * re - 0.6 * im + x[:, t], 0.6 * re + 0.8 * im
        out.append(re)
    return torch.stack(out, 1)


@loop(W[:2])
def without_a_rule(x: Tensor, w: Tensor) -> Tensor:
    h, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        distance = torch.cdist(torch.tanh(x[:, t]), w)
        h = 0.5 * h + distance.sum(-1, keepdim=True)
        out.append(h)
    return torch.stack(out, 1)


def text(graph_module: fx.GraphModule, indent: str = "") -> str:
    """A graph as the names of its operators, in order; a scan as its sizes and its step."""
    lines, names = [], []

    def flush() -> None:
        if names:
            lines.append(indent + " ".join(names))
            names.clear()

    for node in graph_module.graph.nodes:
        name = str(getattr(node.target, "__name__", node.target)).removeprefix("aten.").split(".")[0]
        if node.op == "call_module":
            flush()
            inner = graph_module.get_submodule(str(node.target))
            if isinstance(inner, Scan):
                output = next(n for n in inner.step.graph.nodes if n.op == "output")
                reads = len(output.args[0]) - inner.carries
                lines.append(f"{indent}scan of {inner.carries} carries, {inner.xs} xs, {reads} ys:")
                lines.append(text(inner.step, indent + "    "))
            else:
                lines.append(f"{indent}{type(inner).__name__}")
        elif node.op == "call_function" and name not in ("getitem", "affine", "sym_size"):
            names.append(name)
    flush()
    return "\n".join(lines)
