"""Operators that are made of others, or that take complex numbers apart, in the update of a state: the recurrence is found
to be affine, and the rewritten graph has the loop's values and gradients.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx

import linrec
from linrec.analysis.stategraph import components
from linrec.analysis.structure import recurrence_of
from linrec.ir.recurrence import LinearRecurrence
from linrec.ir.scan import is_random, scan_nodes
from linrec.passes import Decompose, Parts, Simplify, standard
from linrec.passes.rewrite import ScanView
from tests.capture.rolled import roll, sized

B, T, D = 2, 9, 4
X = torch.randn(B, T, D, dtype=torch.float64)
W = torch.randn(D, D, dtype=torch.float64) / 2
Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def c(w: Tensor) -> Tensor:
    """Complex coefficients (D)."""
    return torch.complex(w[0], w[1])


COMPOSED: dict[str, Step] = {
    "tensordot": lambda h, u, w: torch.tensordot(h, w, dims=1) * 0.5 + u,
    "inner": lambda h, u, w: torch.inner(h, w) * 0.5 + u,
    "kron": lambda h, u, w: torch.kron(h[:, :2].contiguous(), w[:1, :2]) + u,
    "multi_dot": lambda h, u, w: torch.linalg.multi_dot([h, w, w.T]) * 0.5 + u,
    "vecdot": lambda h, u, w: h * 0.5 + torch.linalg.vecdot(h, u)[:, None] * w[0],
    "cross": lambda h, u, w: torch.cat([torch.linalg.cross(h[:, :3], u[:, :3]), h[:, 3:]], 1) * 0.5 + u,
    "torch.cross": lambda h, u, w: torch.cat([torch.cross(h[:, :3], u[:, :3], dim=1), h[:, 3:]], 1) * 0.5 + u,
    "one in another": lambda h, u, w: torch.inner(torch.hstack([h[:, 2:], h[:, :2]]).tile(1, 1), w) * 0.5 + u,
    "parts of several": lambda h, u, w: torch.hsplit(torch.hsplit(h, 2)[1].tile(1, 2), 2)[0].tile(1, 2) * 0.5 + u,
    "tile": lambda h, u, w: h[:, :2].tile(1, 2) * 0.5 + u,
    "ravel": lambda h, u, w: (h.ravel() * 0.5).view_as(u) + u,
    "hstack": lambda h, u, w: torch.hstack([h[:, 1:], h[:, :1]]) * 0.5 + u,
    "hsplit": lambda h, u, w: torch.cat(torch.hsplit(h, 2)[::-1], 1) * 0.5 + u,
    "diff": lambda h, u, w: torch.diff(h, dim=-1, prepend=u[:, :1]) * 0.5 + u,
    "rot90": lambda h, u, w: torch.rot90(h.view(-1, 2, 2), 1, [1, 2]).reshape(-1, 4) * 0.5 + u,
    "pixel_shuffle": lambda h, u, w: F.pixel_shuffle(h.view(-1, 4, 1, 1), 2).flatten(1) * 0.5 + u,
    "take_along_dim": lambda h, u, w: torch.take_along_dim(h, u.argsort(-1), 1) * 0.5 + u,
    "unfold": lambda h, u, w: h.unfold(1, 2, 2).sum(-1).repeat(1, 2) * 0.3 + u,
    "cumsum": lambda h, u, w: h.flip(-1).cumsum(-1).flip(-1) * 0.3 + u,
    "tril": lambda h, u, w: (h[:, :, None] * w).tril().sum(1) + u,
    "diagonal": lambda h, u, w: torch.diagonal(h[:, :, None] * w, dim1=1, dim2=2) + u,
    "diag_embed": lambda h, u, w: torch.diag_embed(h).sum(1) * 0.5 + u,
    "avg_pool1d": lambda h, u, w: F.avg_pool1d(h[:, None], 3, 1, 1)[:, 0] * 0.5 + u,
    "conv_transpose1d": lambda h, u, w: F.conv_transpose1d(h[:, None], w[:1, None, :3], padding=1)[:, 0] + u,
    "nothing is kept": lambda h, u, w: h @ h.new_zeros(4, 4) + u,
    "solve": lambda h, u, w: (
        torch.linalg.solve(w @ w.T + 2 * torch.diag_embed(w[0].exp()), h.unsqueeze(-1)).squeeze(-1) * 0.5 + u
    ),
    "dropout of nothing": lambda h, u, w: F.dropout(h, 0.5, False) * 0.5 + F.dropout(u, 0.0, True),
    "circular convolution": lambda h, u, w: torch.fft.irfft(torch.fft.rfft(h) * c(w)[:3], n=4) + u,
    "by a Fourier transform": lambda h, u, w: (
        torch.fft.ifft(torch.fft.fft(h, norm="ortho") * c(w), norm="ortho").real + u
    ),
    "of two dimensions": lambda h, u, w: (
        torch.fft.irfft2(torch.fft.rfft2(h.view(-1, 2, 2)) * c(w)[:2], s=(2, 2)).flatten(1) + u
    ),
    "as complex numbers": lambda h, u, w: (
        torch.view_as_real(torch.view_as_complex(h.view(-1, 2, 2)) * c(w)[:2]).flatten(1) + u
    ),
}

IN_PARTS: dict[str, Step] = {
    "conj": lambda h, u, w: c(w) * h.conj() + u,
    "parts": lambda h, u, w: torch.complex(h.real * w[0] - h.imag * w[1] + u, h.imag * w[0] + h.real * w[1]),
    "view_as_real": lambda h, u, w: torch.view_as_complex(torch.view_as_real(h * c(w)) * u.sigmoid()[..., None]) + u,
    "real part": lambda h, u, w: h * c(w) + (h * u).real * 0.2 + 1j * u,
    "parts that do not meet": lambda h, u, w: 0.5 * h.conj() + torch.complex(u, u.tanh()),
    "a part that stays": lambda h, u, w: torch.complex(h.real, 0.5 * h.imag + u),
    "half a spectrum": lambda h, u, w: torch.fft.rfft(torch.fft.irfft(h, n=6) * 0.5, dim=-1) + u,
}

NOT_AFFINE: dict[str, Step] = {
    "abs": lambda h, u, w: c(w) * h + h.abs() * 0.1 + u,
    "square of a part": lambda h, u, w: c(w) * h + h.real * h.imag * 0.1 + u,
    "normalised": lambda h, u, w: c(w) * h / (1 + h.real.square()) + u,
    "sgn": lambda h, u, w: torch.sgn(h) * 0.5 + u,
}


def loop(step: Step, dtype: torch.dtype) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, w: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0], dtype=dtype), []
        for t in range(x.shape[1]):
            h = step(h, x[:, t], w)
            out.append(torch.view_as_real(h) if h.is_complex() else h)
        return torch.stack(out, 1)

    return run


def verdicts(graph_module: fx.GraphModule) -> list[bool]:
    """For each recurrence of a graph's loops, whether it is affine."""
    for step in (Simplify(), Decompose(), Parts()):
        step.run(graph_module)
    found = []
    for node in scan_nodes(graph_module):
        view = ScanView.of(graph_module, node)
        for component in components(view.scan.step, view.scan.carries):
            if component.recurrent:
                found.append(isinstance(recurrence_of(view.scan.step, component, view.xs), LinearRecurrence))
    return found


def agrees(function: Callable[..., Tensor]) -> None:
    rewritten = standard().run(roll(function, X, W).graph_module).graph_module
    for length in (5, 17):
        results = []
        for f in (function, rewritten):
            x, w = (y.clone().requires_grad_() for y in sized([X, W], [1, None], length))
            (y,) = out if isinstance(out := f(x, w), tuple) else (out,)
            weights = torch.linspace(0.5, 1.5, y.numel(), dtype=y.dtype).view_as(y)
            found = torch.autograd.grad((y * weights).sum(), (x, w), allow_unused=True)
            results.append([y, *(torch.zeros(()) if g is None else g for g in found)])
        for a, b in zip(*results, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", COMPOSED)
def test_composed_operators(name: str) -> None:
    function = loop(COMPOSED[name], torch.float64)
    assert all(verdicts(roll(function, X, W).graph_module))
    agrees(function)


@pytest.mark.parametrize("cut", [torch.detach, lambda h: h.detach().tile(1, 1), lambda h: h.data.tile(1, 1)])
def test_a_blocked_gradient_stays_blocked(cut: Callable[[Tensor], Tensor]) -> None:
    function = loop(lambda h, u, w: cut(h) * 0.5 + h * 0.3 + u, torch.float64)
    assert not any(verdicts(roll(function, X, W).graph_module))
    agrees(function)


@pytest.mark.parametrize("cut", [torch.detach, lambda h: h.detach().tile(1, 1), lambda h: h.data.tile(1, 1)])
def test_states_without_their_gradient_are_computed_apart(cut: Callable[[Tensor], Tensor]) -> None:
    function = loop(lambda h, u, w: cut(h) * 0.5 + u, torch.float64)
    assert verdicts(roll(function, X, W).graph_module) == [True]
    agrees(function)


def test_draws_are_not_made_twice() -> None:
    def drawn() -> int:
        graphs = [g.graph for g in graph_module.modules() if isinstance(g, fx.GraphModule)]
        return sum(map(is_random, (n for graph in graphs for n in graph.nodes)))

    function = loop(lambda h, u, w: h.detach() * 0.5 + torch.dropout(u, 0.5, True), torch.float64)
    graph_module = roll(function, X, W).graph_module
    before = drawn()
    Simplify().run(graph_module)
    assert before and drawn() == before


@pytest.mark.parametrize("name", IN_PARTS)
def test_complex_states_that_are_taken_apart(name: str) -> None:
    function = loop(IN_PARTS[name], torch.complex128)
    assert all(verdicts(roll(function, X, W).graph_module))
    agrees(function)


@pytest.mark.parametrize("name", NOT_AFFINE)
def test_what_is_not_linear_in_the_parts_either(name: str) -> None:
    function = loop(NOT_AFFINE[name], torch.complex128)
    graph_module = roll(function, X, W).graph_module
    assert not all(verdicts(graph_module))
    (node,) = scan_nodes(graph_module)
    assert ScanView.of(graph_module, node).scan.carries == 1, "the state is left whole"
    agrees(function)


def test_a_part_that_no_step_changes_is_a_constant() -> None:
    """Its value is not zero, and what reads it leaves the loop."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = torch.nn.Parameter(torch.randn(3, dtype=torch.complex128))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h, total = self.start.expand(x.shape[0], -1), torch.zeros_like(x[:, 0], dtype=torch.complex128)
            for t in range(x.shape[1]):
                total = total + h * x[:, t]
                h = torch.complex(h.real, 0.5 * h.imag)
            return total, h

    model, oracle = Model(), Model()
    oracle.load_state_dict(model.state_dict())
    linrec.parallelize(model)
    for batch, length in ((2, 9), (3, 20)):
        x = torch.randn(batch, length, 3, dtype=torch.float64)
        results = []
        for m in (model, oracle):
            y = m(x)
            loss = sum(torch.view_as_real(z).square().sum() for z in y)
            results.append([*y, *torch.autograd.grad(loss, m.start)])
        torch.testing.assert_close(*results)
    assert all(r.parallel for r in linrec.report(model).recurrences)
