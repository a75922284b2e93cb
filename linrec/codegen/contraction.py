"""Rules of the operators that combine elements along a dimension: products of matrices, sums and other reductions, and
what is made of them (softmax, norms, cells)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from linrec.codegen.arrangement import each_part, positive, rank
from linrec.codegen.axes import Unsupported, View
from linrec.codegen.pointwise import Field, pair, real
from linrec.codegen.translate import Complex, Translator, Value, rule

_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def einsum(t: Translator, equation: str, args: Sequence[Value], dtype: torch.dtype) -> Value:
    """A sum of products of real or complex tensors (at most two complex ones)."""
    if not dtype.is_complex:
        return t.einsum(equation, *(real(t, x, dtype) for x in args), dtype=dtype)
    part = dtype.to_real()
    both = [i for i, x in enumerate(args) if isinstance(x, Complex)]
    if not 1 <= len(both) <= 2:
        raise Unsupported("a product of three complex tensors")

    def term(*which: str) -> View:
        chosen = list(args)
        for i, name in zip(both, which, strict=True):
            chosen[i] = getattr(args[i], name)
        return t.einsum(equation, *(real(t, x, part) for x in chosen), dtype=part)

    if len(both) == 1:
        return Complex(term("re"), term("im"))
    field = Field(t, part)
    re = field.f("sub", term("re", "re"), term("im", "im"))
    return Complex(re, field.f("add", term("re", "im"), term("im", "re")))


def product(t: Translator, x: Value, y: Value, dtype: torch.dtype) -> Value:
    """The matrix product, with the broadcasting of ``matmul``."""
    m, n = rank(x), rank(y)
    lead = _LETTERS[: max(m, n, 2) - 2]
    left = "i"[: m - 1] + "k" if m < 3 else lead[len(lead) - (m - 2) :] + "ik"
    right = ("k" if n == 1 else "kj") if n < 3 else lead[len(lead) - (n - 2) :] + "kj"
    out = lead + ("i" if m > 1 else "") + ("j" if n > 1 else "")
    # The letters i, j and k are not among the first ones of any rank that tensors have.
    return einsum(t, f"{left},{right}->{out}", (x, y), dtype)


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "inner")
def _matmul(t: Translator, a: Any) -> Value:
    if a.name in ("vdot", "inner"):
        raise Unsupported("it has no rule")
    other = next(v for k, v in vars(a).items() if k in ("other", "mat2", "vec", "tensor"))
    return product(t, a.self, other, a.out.dtype)


@rule("linear")
def _linear(t: Translator, a: Any) -> Value:
    return affine(t, a.input, a.weight, a.bias, a.out.dtype)


def affine(t: Translator, x: Value, weight: Value, bias: Value | None, dtype: torch.dtype) -> Value:
    """x W^T + b, as in ``torch.nn.functional.linear``."""
    lead = _LETTERS[: rank(x) - 1]
    out = einsum(t, f"{lead}y,zy->{lead}z", (x, weight), dtype)
    return out if bias is None else Field(t, dtype).add(out, bias)


@rule("addmm", "baddbmm", "addmv", "addbmm")
def _added(t: Translator, a: Any) -> Value:
    first, second = {
        "addmm": lambda: (a.mat1, a.mat2),
        "baddbmm": lambda: (a.batch1, a.batch2),
        "addmv": lambda: (a.mat, a.vec),
    }.get(a.name, lambda: (None, None))()
    if first is None:
        raise Unsupported("it has no rule")
    f = Field(t, a.out.dtype)
    out = product(t, first, second, a.out.dtype)
    out = out if a.alpha == 1 else f.mul(out, a.alpha)
    return out if a.beta == 0 else f.add(out, a.self if a.beta == 1 else f.mul(a.self, a.beta))


@rule("outer", "ger")
def _outer(t: Translator, a: Any) -> Value:
    return einsum(t, "i,j->ij", (a.self, a.vec2), a.out.dtype)


@rule("einsum")
def _einsum(t: Translator, a: Any) -> Value:
    text = a.equation.replace(" ", "")
    inputs, arrow, result = text.partition("->")
    terms = inputs.split(",")
    ranks = [rank(x) for x in a.tensors]
    hidden = max((r - len(s.replace("...", "")) for s, r in zip(terms, ranks, strict=True) if "..." in s), default=0)
    # A letter of its own for each dimension behind the dots; unicode, for all Latin ones may be taken.
    dots = "".join(chr(0x3B1 + i) for i in range(hidden))
    filled = []
    for s, r in zip(terms, ranks, strict=True):
        own = r - len(s.replace("...", ""))
        filled.append(s.replace("...", dots[hidden - own :]))
    if not arrow:
        used = [c for s in terms for c in s if c != "."]
        result = ("..." if hidden else "") + "".join(sorted(c for c in set(used) if used.count(c) == 1))
    return einsum(t, f"{','.join(filled)}->{result.replace('...', dots)}", a.tensors, a.out.dtype)


def _over(a: Any) -> tuple[list[int], bool]:
    ndim = rank(a.self)
    dim = getattr(a, "dim", None)
    dims = list(range(ndim)) if dim is None or dim == [] else [dim] if isinstance(dim, int) else list(dim)
    return [positive(d, ndim) for d in dims], bool(getattr(a, "keepdim", False))


def total(t: Translator, x: Value, over: Sequence[int], keepdim: bool, dtype: torch.dtype) -> Value:
    """The sum over dimensions."""
    if dtype.is_complex:
        x = pair(t, x, dtype.to_real())
        return each_part(x, lambda v: t.reduce("sum", v, over, keepdim))
    return t.reduce("sum", real(t, x, dtype), over, keepdim)


def _count(x: Value, over: Sequence[int]) -> int:
    return math.prod((x.re if isinstance(x, Complex) else x).shape[d] for d in over)


@rule("sum")
def _sum(t: Translator, a: Any) -> Value:
    return total(t, a.self, *_over(a), a.out.dtype)


@rule("mean")
def _mean(t: Translator, a: Any) -> Value:
    over, keepdim = _over(a)
    return Field(t, a.out.dtype).div(total(t, a.self, over, keepdim, a.out.dtype), _count(a.self, over))


@rule("prod")
def _prod(t: Translator, a: Any) -> Value:
    over, keepdim = _over(a)
    out = None
    if a.out.dtype.is_complex or _count(a.self, over) > 64:
        raise Unsupported("a product of complex or very many numbers")
    x = real(t, a.self, a.out.dtype)
    # As a chain of products, whose derivative is right where factors are zero.
    for d in sorted(over, reverse=True):
        parts = [t.select(x, d, i) for i in range(x.shape[d])]
        out = parts[0]
        for part in parts[1:]:
            out = t.map("mul", out, part, dtype=x.dtype)
        x = t.unsqueeze(out, d) if keepdim else out
    return x


@rule("amax", "amin", "max", "min")
def _extremum(t: Translator, a: Any) -> Value:
    name = a.name.removeprefix("a")
    if a.overload == "other":
        return t.map(name, real(t, a.self, a.out.dtype), real(t, a.other, a.out.dtype), dtype=a.out.dtype)
    if a.overload == "dim":
        raise Unsupported("the position of an extremum")
    return t.reduce(name, real(t, a.self, a.out.dtype), *_over(a))


@rule("softmax", "_softmax", "log_softmax", "_log_softmax")
def _softmax(t: Translator, a: Any) -> Value:
    x = real(t, a.self, a.out.dtype)
    dim = [positive(a.dim, rank(x))]
    f = Field(t, a.out.dtype)
    top = t.map("stop", t.reduce("max", x, dim, True), dtype=x.dtype)
    shifted = f.f("sub", x, top)
    powers = f.f("exp", shifted)
    sums = t.reduce("sum", powers, dim, True)
    return f.f("sub", shifted, f.f("log", sums)) if "log" in a.name else f.f("div", powers, sums)


@rule("logsumexp")
def _logsumexp(t: Translator, a: Any) -> Value:
    over, keepdim = _over(a)
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    top = t.map("stop", t.reduce("max", x, over, True), dtype=x.dtype)
    top = f.f("where", t.map("isinf", top, dtype=torch.bool), f.value(0), top)
    sums = t.reduce("sum", f.f("exp", f.f("sub", x, top)), over, True)
    out = t.map("stop", f.f("add", f.f("log", sums), top), dtype=x.dtype)
    # torch's derivative is exp(x - out), which is another number where the logarithm is lost beside a large maximum.
    out = t.map("surrogate", out, sums, f.f("exp", f.f("sub", top, out)), dtype=x.dtype)
    return out if keepdim else out.moved([d for i, d in enumerate(out.dims) if i not in over])


@rule("linalg_vector_norm", "norm")
def _norm(t: Translator, a: Any) -> Value:
    order = getattr(a, "ord", getattr(a, "p", 2))
    if order not in (2, 2.0, None) or a.out.dtype.is_complex or isinstance(a.self, Complex):
        raise Unsupported("an order other than 2")
    over, keepdim = _over(a)
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    return f.f("norm", t.reduce("sum", f.f("mul", x, x), over, keepdim))


@rule("var", "std")
def _var(t: Translator, a: Any) -> Value:
    if isinstance(a.self, Complex):
        raise Unsupported("complex numbers")
    over, keepdim = _over(a)
    correction = getattr(a, "correction", None)
    freedom = _count(a.self, over) - (1 if correction is None else correction)
    if getattr(a, "unbiased", True) is False:
        freedom = _count(a.self, over)
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    middle = f.div(t.reduce("sum", x, over, True), _count(x, over))
    off = f.f("sub", x, middle)
    spread = f.div(t.reduce("sum", f.f("mul", off, off), over, keepdim), freedom)
    return f.f("sqrt", spread) if a.name == "std" else spread


@rule("layer_norm", "rms_norm")
def _layer_norm(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    x = f.value(getattr(a, "input", None) if hasattr(a, "input") else a.self)
    over = list(range(rank(x) - len(a.normalized_shape), rank(x)))
    count = _count(x, over)
    if a.name == "layer_norm":
        x = f.f("sub", x, f.div(t.reduce("sum", x, over, True), count))
    eps = a.eps if a.eps is not None else torch.finfo(a.out.dtype).eps
    size = f.add(f.div(t.reduce("sum", f.f("mul", x, x), over, True), count), eps)
    out = f.f("mul", x, f.f("rsqrt", size))
    out = out if a.weight is None else f.mul(out, a.weight)
    return f.add(out, a.bias) if getattr(a, "bias", None) is not None else out


def _cut(t: Translator, x: View, count: int) -> list[View]:
    size = x.shape[-1] // count
    return [t.slice(x, rank(x) - 1, i * size, size) for i in range(count)]


@rule("lstm_cell")
def _lstm_cell(t: Translator, a: Any) -> Value:
    h, c = a.hx
    dtype = a.out[0].dtype
    f = Field(t, dtype)
    sums = f.add(affine(t, a.input, a.w_ih, a.b_ih, dtype), affine(t, h, a.w_hh, a.b_hh, dtype))
    i, forget, g, o = _cut(t, sums, 4)
    kept = f.f("mul", f.f("sigmoid", forget), c)
    c = f.f("add", kept, f.f("mul", f.f("sigmoid", i), f.f("tanh", g)))
    return [f.f("mul", f.f("sigmoid", o), f.f("tanh", c)), c]


@rule("gru_cell")
def _gru_cell(t: Translator, a: Any) -> Value:
    dtype = a.out.dtype
    f = Field(t, dtype)
    r_x, z_x, n_x = _cut(t, affine(t, a.input, a.w_ih, a.b_ih, dtype), 3)
    r_h, z_h, n_h = _cut(t, affine(t, a.hx, a.w_hh, a.b_hh, dtype), 3)
    r, z = f.f("sigmoid", f.f("add", r_x, r_h)), f.f("sigmoid", f.f("add", z_x, z_h))
    n = f.f("tanh", f.f("add", n_x, f.f("mul", r, n_h)))
    return f.f("add", n, f.f("mul", z, f.f("sub", real(t, a.hx, dtype), n)))


@rule("rnn_tanh_cell", "rnn_relu_cell")
def _rnn_cell(t: Translator, a: Any) -> Value:
    dtype = a.out.dtype
    f = Field(t, dtype)
    sums = f.add(affine(t, a.input, a.w_ih, a.b_ih, dtype), affine(t, a.hx, a.w_hh, a.b_hh, dtype))
    return f.f("tanh" if "tanh" in a.name else "relu", sums)
