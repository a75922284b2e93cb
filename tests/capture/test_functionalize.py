"""In-place operators exchanged for functions: random programs of views and writes, and what is left to torch."""

from __future__ import annotations

import random
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim

from linrec.capture.functionalize import functionalize

_VIEWS = [
    "{v}[:, {i}]",
    "{v}[:, 1:3]",
    "{v}[:, ::2]",
    "{v}[..., {i}]",
    "{v}.transpose(0, 1)",
    "{v}.unsqueeze(1)",
    "{v}.unsqueeze(-1)",
    "{v}.view(-1)",
    "{v}.reshape(-1)",
    "{v}.contiguous()",
    "{v}.flatten()",
    "{v}.unbind(-1)[{i}]",
    "{v}.split(2, -1)[0]",
    "{v}.chunk(2, -1)[1]",
    "{v}.narrow(-1, 1, 2)",
    "{v}.movedim(0, -1)",
    "{v}.permute(*reversed(range({v}.dim())))",
    "{v}.squeeze()",
    "{v}.clone()",
    "{v} * 2.0",
]
_WRITES = [
    "{v}.mul_({s})",
    "{v}.add_(c)",
    "{v}.add_({v})",
    "{v}.sub_(c, alpha=2)",
    "{v} *= c.sin()",
    "{v}.sigmoid_()",
    "{v}.zero_()",
    "{v}.fill_({s})",
    "{v}.fill_(c)",
    "{v}.copy_({w})",
    "{v}.copy_(c)",
    "{v}[..., {i}] = c",
    "{v}[..., 1:] += {s}",
    "{v}[..., [0, 1]] = c",
    "{v}.masked_fill_({v}.detach() > 0.5, {s})",
    "{v}.clamp_(max=1.5)",
    "{v}.addcmul_(c, c, value=0.3)",
    "{v}.index_add_(-1, torch.tensor([0, 1]), {v}[..., 1:3] * c)",
]


def _program(rng: random.Random) -> str:
    """A function of x: (B, 3, 4) and c: () with views of fresh tensors, writes into them and reads."""
    lines = ["a = x * c", "b = torch.zeros_like(x)", "d = torch.ones(x.shape[0], 3, 4, dtype=x.dtype)"]
    names = ["a", "b", "d"]
    for k in range(rng.randint(3, 10)):
        v, w = rng.choice(names), rng.choice(names)
        if rng.random() < 0.5:
            lines.append(f"v{k} = {rng.choice(_VIEWS).format(v=v, i=rng.randint(0, 1))}")
            names.append(f"v{k}")
        else:
            s = round(rng.uniform(-2, 2), 2)
            lines.append(rng.choice(_WRITES).format(v=v, w=w, i=rng.randint(0, 1), s=s))
    lines.append(f"return [{', '.join(names)}]")
    return "def f(x, c):\n" + textwrap.indent("\n".join(lines), "    ")


class _Module(nn.Module):
    def __init__(self, f: Callable[..., Any]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor, c: Tensor) -> Any:
        return self.f(x, c)


def _run(f: Callable[..., Any], batch: int) -> tuple[list[Tensor], list[Any]]:
    torch.manual_seed(batch)
    x = torch.randn(batch, 3, 4, dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    out = f(x, c)
    total = sum(((i + 1) * y).cos().sum() for i, y in enumerate(out))
    grads = torch.autograd.grad(total + 0.0 * (x.sum() + c), [x, c])  # a gradient of zero is as good as none
    return [y.detach() for y in out], list(grads)


def _exported(f: Callable[..., Any]) -> Any:
    x = torch.randn(5, 3, 4, dtype=torch.float64, requires_grad=True)
    c = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    return torch.export.export(_Module(f), (x, c), dynamic_shapes=({0: Dim.AUTO}, None), strict=False)


def _defined(source: str) -> Callable[..., Any]:
    scope: dict[str, Any] = {"torch": torch}
    exec(source, scope)
    return scope["f"]  # type: ignore[no-any-return]


def _writes(graph: Any) -> list[Any]:
    schemas = [getattr(n.target, "_schema", None) for n in graph.nodes if n.op == "call_function"]
    return [s for s in schemas if s is not None and s.is_mutable]


def _copied(into: Tensor, value: Tensor) -> Tensor:
    return value.to(into.dtype).expand_as(into)


def _runnable(program: Any) -> Any:
    """The program as a function; autograd knows no derivative of `copy`, which the compiler replaces."""
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.copy.default:
            node.target = _copied
    program.graph_module.recompile()
    return program.module()


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 10**9))
def test_random_programs_keep_values_and_gradients(seed: int) -> None:
    f = _defined(_program(random.Random(seed)))
    try:
        expected = [_run(f, batch) for batch in (5, 7)]
        program = _exported(f)
    except Exception:  # shapes that do not fit, or what autograd refuses: not a program
        return
    if not functionalize(program.graph_module):
        return
    program.graph_module.graph.lint()
    changed = _runnable(program)
    for batch, (values, grads) in zip((5, 7), expected, strict=True):
        try:
            found = _run(changed, batch)
        except AssertionError as guard:  # the trace holds for some batch sizes only
            assert batch != 5 and "Guard failed" in str(guard)
            continue
        torch.testing.assert_close(found[0], values)
        torch.testing.assert_close(found[1], grads)


HANDLED = [
    "a = x * c\na.add_(torch.ones(4))\nreturn [a]",
    "a = x * c\nv = a.view(-1)\na.add_(1.0)\nreturn [v]",
    "a = x * c\nv = a[:, 1]\nv.mul_(2.0)\nw = a.transpose(0, 1)\nw[0].add_(v)\nreturn [a, v, w]",
    "a = torch.zeros_like(x)\np, q, r, s = a.unbind(-1)\na.add_(1.0)\na[..., 1] = p + r\nreturn [a, p, q * c, r]",
    "a = torch.ones_like(x)\np, q = a.split([1, 3], -1)\na[..., :2].mul_(p + 1.0)\nreturn [a, p, q * c]",
    "a = x * c\na.add_(a)\nreturn [a]",
    "a = x * c\na[:, [0, 2]] = c\nreturn [a]",
    "a = torch.zeros_like(x)\nfor t in range(3):\n    a[:, t] = x[:, t] * c\n    a[:, t, 0] += a[:, t, 1]\nreturn [a]",
]

LEFT = {
    "an input": "with torch.no_grad():\n    x.add_(1.0)\nreturn [x * c]",
    "through detach": "a = x * c\na.detach().add_(1.0)\nreturn [a]",
    "another dtype": "a = (x * c).float()\na.add_(x)\nreturn [a]",
    "another shape": "a = x * c\na.unsqueeze_(1)\nreturn [a]",
    "a comparison": "a = x * c\na.gt_(0.5)\nreturn [a]",
    "a comparison by another name": "a = x * c\na.greater_equal_(0.5)\nreturn [a]",
    "a logical operator": "a = x * c\na.logical_and_(x)\nreturn [a]",
    "a random operator": "a = x * c\na.bernoulli_(0.5)\nreturn [a]",
    "an output argument": "a = x * c\nwith torch.no_grad():\n    torch.add(x, x, out=a)\nreturn [a]",
}


@pytest.mark.parametrize("body", HANDLED)
def test_what_is_understood(body: str) -> None:
    f = _defined("def f(x, c):\n" + textwrap.indent(body, "    "))
    program = _exported(f)
    assert functionalize(program.graph_module)
    assert not _writes(program.graph_module.graph)
    changed = _runnable(program)
    for batch in (5, 2):
        values, grads = _run(f, batch)
        found = _run(changed, batch)
        torch.testing.assert_close(found[0], values)
        torch.testing.assert_close(found[1], grads)


@pytest.mark.parametrize("body", LEFT.values(), ids=LEFT.keys())
def test_what_is_left_to_torch_stays_as_it_was(body: str) -> None:
    program = _exported(_defined("def f(x, c):\n" + textwrap.indent(body, "    ")))
    before = str(program.graph_module.graph)
    assert not functionalize(program.graph_module)
    assert str(program.graph_module.graph) == before
