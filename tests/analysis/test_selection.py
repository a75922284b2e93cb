"""Elements moved to other positions: what is cut from a joined state is the part that was joined, cuts that do not meet
vanish, and a shift by halves mixes one index of two values only.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Polynomial
from linrec.analysis.rules import Algebra

from .graphs import BATCH, traced
from .numeric import Numbers, run_all

X, Y = torch.randn(BATCH, 6, dtype=torch.float64), torch.randn(BATCH, 6, dtype=torch.float64)
W = torch.randn(BATCH, 4, 6, dtype=torch.float64)


def polynomial(function: Callable[..., Tensor], *tensors: Tensor) -> tuple[Polynomial, Algebra, fx.GraphModule]:
    """Of a function whose first tensor is the state."""
    graph_module = traced(function, *tensors, symbolic=False)
    state = next(n for n in graph_module.graph.nodes if n.op == "placeholder")
    core: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if any(n is state or n in core for n in node.all_input_nodes):
            core.add(node)
    output = next(n for n in graph_module.graph.nodes if n.op == "output")
    algebra = Algebra({state}, core)
    return algebra.of(output.args[0][0]), algebra, graph_module


MEMBERS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "chunk": lambda h, x: torch.cat([p * q for p, q in zip(h.chunk(3, 1), x.chunk(3, 1), strict=True)], 1),
    "split": lambda h, x: h.split(2, 1)[1] * x.split([1, 2, 3], 1)[1],
    "uneven split": lambda h, x: h.split([1, 2, 3], -1)[2] + x[:, :3],
    "unbind": lambda h, x: h.unbind(1)[4] * x.unbind(-1)[0],
    "negative member": lambda h, x: h.split(4, 1)[-1] * 2,
}


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_several(name: str) -> None:
    p, algebra, graph_module = polynomial(MEMBERS[name], X, Y)
    assert not any(m.of_kind("opaque") for m in p.terms)
    values = run_all(graph_module, [X, Y])
    found = Numbers(algebra.space, values, BATCH).tensor(p, torch.float64)
    torch.testing.assert_close(found, MEMBERS[name](X, Y), rtol=1e-12, atol=1e-12)


def test_what_is_cut_is_what_was_joined() -> None:
    p, _, _ = polynomial(lambda h, x: torch.cat([x[:, :3], h], 1)[:, 3:] * 2, X, Y)
    assert [[f.atom.kind for f in m.factors] for m in p.terms] == [["state"]]


def test_cuts_that_do_not_meet_vanish() -> None:
    p, _, _ = polynomial(lambda h, x: torch.cat([h[:, :2] * h[:, 2:4], x], 1)[:, 2:] + x, X, Y)
    assert not any(m.of_kind("state") for m in p.terms)


def test_joined_again_it_cancels() -> None:
    p, _, _ = polynomial(lambda h, x: torch.cat([h[:, :3], h[:, 3:]], 1).roll(2, 1).roll(-2, 1) + x - x, X, Y)
    assert all(len(m.of_kind("state")) == 1 for m in p.terms)


def test_halves_are_two_values_of_one_index() -> None:
    p, _, _ = polynomial(lambda h, x: torch.cat([-h[:, 3:], h[:, :3]], 1), X, Y)
    sizes = {len(f.atom.rows) for m in p.terms for f in m.of_kind("selection")}
    assert sizes == {2}
