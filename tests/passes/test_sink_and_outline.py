"""What goes into a loop and what stays outside of it: producers that only feed it go in, products with weights and costly
small functions stay out, readouts of the state go in; and the torch form beside the kernel is the same function.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from linrec.codegen import CompiledScan
from linrec.passes import standard
from tests.capture.rolled import roll, sized

B, T, D, N = 2, 9, 3, 16
X = torch.randn(B, T, D, dtype=torch.float64)
A = -torch.rand(D, N, dtype=torch.float64)
W = torch.randn(D, D, dtype=torch.float64)


def rewritten(function: Callable[..., Tensor], *rest: Tensor) -> tuple[fx.GraphModule, list[CompiledScan]]:
    rolled = roll(function, X, *rest)
    graph_module = standard().run(rolled.graph_module).graph_module
    for length in (5, 17):
        inputs = sized([X, *rest], [1, *[None] * len(rest)], length)
        expected = pytree.tree_leaves(function(*inputs))
        for a, b in zip(expected, graph_module(*inputs), strict=True):
            torch.testing.assert_close(b, a, rtol=1e-10, atol=1e-10)
    return graph_module, [m for m in graph_module.modules() if isinstance(m, CompiledScan)]


def names(graph: fx.Graph) -> list[str]:
    return [str(n.target).split(".")[1] for n in graph.nodes if str(n.target).startswith("aten.")]


def selective(x: Tensor, a: Tensor) -> Tensor:
    """As Mamba's reference: what the loop reads is computed for all steps before it."""
    decay = torch.exp(a[None, :, None, :] * x.transpose(1, 2)[:, :, :, None])
    drive = x.transpose(1, 2).unsqueeze(-1) * x.sum(-1)[:, None, :, None].expand(-1, -1, -1, a.shape[1])
    h, out = x.new_zeros(x.shape[0], *a.shape), []
    for t in range(x.shape[1]):
        h = decay[:, :, t, :] * h + drive[:, :, t]
        out.append(torch.matmul(h, a.sum(0)))
    return torch.stack(out, 1)


def test_producers_go_in_and_readouts_too() -> None:
    graph_module, (loop,) = rewritten(selective, A)
    assert "exp" not in names(graph_module.graph)
    assert "exp" in names(loop.step.graph)
    values = [n.meta.get("val") for n in graph_module.graph.nodes if n.op == "call_function"]
    shapes = [tuple(v.shape) for v in values if isinstance(v, Tensor) and v.numel() >= B * D * N * (T - 1)]
    assert not shapes, "a tensor with a state dimension is held for all steps"


def test_what_somebody_else_reads_stays() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        gate, h, out = torch.sigmoid(x), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = gate[:, t] * h + x[:, t]
            out.append(h)
        return torch.stack(out, 1) + gate @ w

    graph_module, _ = rewritten(loop, W)
    assert names(graph_module.graph).count("sigmoid") == 1


def test_read_backwards_and_forwards_it_stays() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        gate, h, k, out = torch.sigmoid(x), torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = gate[:, t] * h + x[:, t]
            k = gate[:, x.shape[1] - 1 - t] * k + x[:, t]
            out.append(h + k)
        return torch.stack(out, 1)

    graph_module, _ = rewritten(loop, W)
    assert names(graph_module.graph).count("sigmoid") == 1


def test_products_with_weights_stay_out() -> None:
    def loop(x: Tensor, w: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.sigmoid(x[:, t] @ w) * h + x[:, t]
            out.append(torch.relu(h @ w))
        return torch.stack(out, 1)

    graph_module, (compiled,) = rewritten(loop, W)
    assert len([n for n in names(graph_module.graph) if n in ("matmul", "mm")]) == 2
    assert not {"matmul", "mm", "relu"} & set(names(compiled.step.graph))
    assert "sigmoid" in names(compiled.step.graph)


@pytest.mark.parametrize("heavy_between", [False, True])
def test_two_recurrences(heavy_between: bool) -> None:
    """In one kernel, or in two where a product that is worth running for all steps at once lies between them."""

    def loop(x: Tensor, w: Tensor) -> Tensor:
        h, k, out = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
            k = torch.sigmoid(h @ w if heavy_between else h) * k + x[:, t]
            out.append(k)
        return torch.stack(out, 1)

    _, compiled = rewritten(loop, W)
    assert [c.carries for c in compiled] == ([1, 1] if heavy_between else [2])


def test_the_torch_form_is_the_same_function(monkeypatch: pytest.MonkeyPatch) -> None:
    graph_module, _ = rewritten(selective, A)
    inputs = [x.clone().requires_grad_() for x in sized([X, A], [1, None], 13)]
    found = []
    for mode in ("wait", "off"):
        monkeypatch.setenv("LINREC_CODEGEN", mode)
        (y,) = graph_module(*inputs)
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), inputs)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_the_number_of_a_step_has_the_precision_of_the_state() -> None:
    def loop(x: Tensor) -> Tensor:
        h, out = x[:, 0], []
        for t in range(x.shape[1]):
            h = 0.7 * h * t * 0.02 + x[:, t] / (t + 2)
            out.append(h)
        return torch.stack(out, 1)

    rolled = roll(loop, X)
    graph_module = standard(pin="diagonal scan").run(rolled.graph_module).graph_module
    x = torch.randn(2, 40, D, dtype=torch.float64)
    (found,) = pytree.tree_leaves(graph_module(x))
    torch.testing.assert_close(found, loop(x), rtol=1e-14, atol=1e-14)


def test_a_state_taken_from_several_results() -> None:
    def viterbi(x: Tensor, w: Tensor) -> Tensor:
        best, out = x[:, 0], []
        for t in range(1, x.shape[1]):
            score, _ = (best.unsqueeze(2) + w).max(1)
            best = score + x[:, t]
            out.append(best)
        return torch.stack(out, 1)

    rewritten(viterbi, W)
