"""The functions of single elements, by name, and their derivatives as PyTorch's own formulas state them: where a branch
is masked out its factor is the number 0, which infinities and NaN turn into NaN just as in the loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from linrec.codegen.program import Access, Graph, Node

Number = float | int | bool


@dataclass(frozen=True)
class Expr:
    """An element in some domain, with operators that write maps over that domain."""

    graph: Graph
    access: Access
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """Of the elements."""
        return self.access.node.dtype

    def of(
        self, name: str, *others: Expr | Number, dtype: torch.dtype | None = None, params: tuple[Any, ...] = ()
    ) -> Expr:
        """A function of this and other elements, by name."""
        args = [self, *(o if isinstance(o, Expr) else self.number(o) for o in others)]
        result = self.dtype if dtype is None else dtype
        node = self.graph.map((name, *params), result, self.shape, [a.access for a in args])
        return Expr(self.graph, node.whole, self.shape)

    def number(self, value: Number) -> Expr:
        """A number of this dtype."""
        return Expr(self.graph, self.graph.literal(value, self.dtype).whole, self.shape)

    def where(self, condition: Expr, other: Expr | Number) -> Expr:
        """This where a condition holds, otherwise `other`."""
        rest = other if isinstance(other, Expr) else self.number(other)
        return condition.of("where", self, rest, dtype=self.dtype)

    def compare(self, name: str, other: Expr | Number) -> Expr:
        """A comparison: "lt", "le", "gt", "ge", "eq", "ne"."""
        return self.of(name, other, dtype=torch.bool)

    def __add__(self, other: Expr | Number) -> Expr:
        return self.of("add", other)

    def __sub__(self, other: Expr | Number) -> Expr:
        return self.of("sub", other)

    def __rsub__(self, other: Number) -> Expr:
        return self.number(other) - self

    def __mul__(self, other: Expr | Number) -> Expr:
        return self.of("mul", other)

    def __truediv__(self, other: Expr | Number) -> Expr:
        return self.of("div", other)

    def __neg__(self) -> Expr:
        return self.of("neg")


Derivative = Callable[[Expr, Sequence[Expr], Expr, tuple[Any, ...]], Sequence["Expr | None"]]
"""From the derivative of the result, the arguments, the result and the function's parameters to those of the
arguments; None where there is none."""

DERIVATIVES: dict[str, Derivative] = {}
"""By name of the function. One without an entry, and not in `CONSTANT`, has no known derivative."""

CONSTANT = frozenset(
    [
        "stop",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "lt",
        "le",
        "gt",
        "ge",
        "eq",
        "ne",
        "and",
        "or",
        "xor",
        "not",
        "isnan",
        "isinf",
        "bitand",
        "bitor",
        "bitxor",
        "iota",
    ]
)
"""Functions that nothing is differentiated through."""


def derivative(name: str) -> Callable[[Derivative], Derivative]:
    """Register the derivative of a function."""

    def add(function: Derivative) -> Derivative:
        DERIVATIVES[name] = function
        return function

    return add


def _unary(name: str, rule: Callable[[Expr, Expr, Expr], Expr]) -> None:
    DERIVATIVES[name] = lambda g, a, out, _: (rule(g, a[0], out),)


_LN2, _LN10 = math.log(2), math.log(10)

_unary("copy", lambda g, a, out: g)
_unary("neg", lambda g, a, out: -g)
_unary("exp", lambda g, a, out: g * out)
_unary("expm1", lambda g, a, out: g * (out + 1))
_unary("exp2", lambda g, a, out: g * out * _LN2)
_unary("log", lambda g, a, out: g / a)
_unary("log2", lambda g, a, out: g / (a * _LN2))
_unary("log10", lambda g, a, out: g / (a * _LN10))
_unary("log1p", lambda g, a, out: g / (a + 1))
_unary("sqrt", lambda g, a, out: g / (out * 2))
_unary("norm", lambda g, a, out: (g / (out * 2)).of("zero_if", out.compare("eq", 0)))
_unary("rsqrt", lambda g, a, out: g * -0.5 * (out * out * out))
_unary("reciprocal", lambda g, a, out: -g * (out * out))
_unary("tanh", lambda g, a, out: g * (1 - out * out))
_unary("sigmoid", lambda g, a, out: g * (1 - out) * out)
_unary("logsigmoid", lambda g, a, out: g * (-a).of("sigmoid"))
_unary("sin", lambda g, a, out: g * a.of("cos"))
_unary("cos", lambda g, a, out: -g * a.of("sin"))
_unary("tan", lambda g, a, out: g * (out * out + 1))
_unary("sinh", lambda g, a, out: g * a.of("cosh"))
_unary("cosh", lambda g, a, out: g * a.of("sinh"))
_unary("atan", lambda g, a, out: g / (a * a + 1))
_unary("asin", lambda g, a, out: g * (1 - a * a).of("rsqrt"))
_unary("acos", lambda g, a, out: -g * (1 - a * a).of("rsqrt"))
_unary("asinh", lambda g, a, out: g * (a * a + 1).of("rsqrt"))
_unary("acosh", lambda g, a, out: g * (a * a - 1).of("rsqrt"))
_unary("atanh", lambda g, a, out: g / (1 - a * a))
_unary("erf", lambda g, a, out: g * (-(a * a)).of("exp") * (2 / math.sqrt(math.pi)))
_unary("erfc", lambda g, a, out: g * (-(a * a)).of("exp") * (-2 / math.sqrt(math.pi)))
_HALVES = (torch.bfloat16, torch.float16)
_unary("abs", lambda g, a, out: g * a.of("sign"))
_unary("relu", lambda g, a, out: g.of("zero_if", out.compare("le", 0)))
_unary("cast", lambda g, a, out: _cast_back(g, a, out))
_unary("round_to", lambda g, a, out: g)


def _cast_back(g: Expr, a: Expr, out: Expr) -> Expr:
    """Autograd's derivative by what was cast up from half precision is of that precision too: it is rounded."""
    back = g.of("cast", dtype=a.dtype)
    return back.of("round_to", dtype=a.dtype) if a.dtype in _HALVES and out.dtype not in _HALVES else back


@derivative("add")
def _add(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g, g


@derivative("sub")
def _sub(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g, -g


@derivative("surrogate")
def _surrogate(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return None, g * a[2], None


@derivative("mul")
def _mul(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g * a[1], g * a[0]


@derivative("div")
def _div(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g / a[1], -g * (out / a[1])


@derivative("where")
def _where(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return None, g.where(a[0], 0), g.of("zero_if", a[0])


@derivative("zero_if")
def _zero_if(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g.of("zero_if", a[1]), None


def _extremum(lost: str) -> Derivative:
    # Equal arguments share the derivative.
    def rule(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
        half = (g * 0.5).where(a[0].compare("eq", a[1]), g)
        return half.of("zero_if", a[0].compare(lost, a[1])), half.of("zero_if", a[1].compare(lost, a[0]))

    return rule


DERIVATIVES["max"] = _extremum("lt")
DERIVATIVES["min"] = _extremum("gt")


@derivative("fmod")
def _fmod(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g, -g * (a[0] / a[1]).of("trunc")


@derivative("remainder")
def _remainder(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g, -g * (a[0] / a[1]).of("floor")


@derivative("clamp_min")
def _clamp_min(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    kept = a[0].compare("ge", a[1])
    return g.where(kept, 0), g.where(a[0].compare("lt", a[1]), 0)


@derivative("clamp_max")
def _clamp_max(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    kept = a[0].compare("le", a[1])
    return g.where(kept, 0), g.where(a[0].compare("gt", a[1]), 0)


@derivative("pow")
def _pow(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    base, exponent = a
    by_base = (g * (exponent * base.of("pow", exponent - 1))).of("zero_if", exponent.compare("eq", 0))
    vanishes = base.compare("eq", 0).of("and", exponent.compare("ge", 0))
    return by_base, (g * (out * base.of("log"))).of("zero_if", vanishes)


@derivative("hypot")
def _hypot(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    at_zero = out.compare("eq", 0)
    return tuple((g * (x / out)).of("zero_if", at_zero) for x in a)


@derivative("atan2")
def _atan2(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    square = a[0] * a[0] + a[1] * a[1]
    return g * (a[1] / square), g * (-a[0] / square)


@derivative("logaddexp")
def _logaddexp(g: Expr, a: Sequence[Expr], out: Expr, _: Any) -> Sequence[Expr | None]:
    return g / ((a[1] - a[0]).of("exp") + 1), g / ((a[0] - a[1]).of("exp") + 1)


@derivative("softplus")
def _softplus(g: Expr, a: Sequence[Expr], out: Expr, params: tuple[Any, ...]) -> Sequence[Expr | None]:
    beta, threshold = params
    z = (a[0] * beta).of("exp")
    return (g.where((a[0] * beta).compare("gt", threshold), g * z / (z + 1)),)


@derivative("elu")
def _elu(g: Expr, a: Sequence[Expr], out: Expr, params: tuple[Any, ...]) -> Sequence[Expr | None]:
    alpha, scale, inner = params
    grown = g * (scale * inner * alpha) * (a[0] * inner).of("exp")
    return (grown.where(a[0].compare("le", 0), g * scale),)


def literal_of(node: Node) -> Any:
    """A literal's number; None for any other node."""
    return node.attr if node.op == "literal" else None
