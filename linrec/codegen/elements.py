"""How each function of single elements (`functions`) is computed: LLVM instructions for values of some dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from linrec.codegen import vector_math
from linrec.codegen.axes import Unsupported
from linrec.codegen.llvm import FLOATS, Builder, Val

KINDS = {
    torch.float32: "float",
    torch.float64: "double",
    torch.bfloat16: "float",
    torch.float16: "float",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "i8",
    torch.bool: "i1",
}
"""What values of a dtype are computed in: half precision in float32."""

Emit = Callable[[Builder, Sequence[Val], tuple[Any, ...]], Val]
_EMIT: dict[str, Emit] = {}


def emit(
    b: Builder, function: tuple[Any, ...], args: Sequence[Val], dtypes: Sequence[torch.dtype], dtype: torch.dtype
) -> Val:
    """Compute a function of elements.

    Args:
        function: its name and parameters.
        args, dtypes: the arguments.
        dtype: of the result.
    """
    name, *params = function
    if name == "cast":
        return cast(b, args[0], dtypes[0], dtype)
    if name == "round_to":
        return rounded(b, args[0], dtype)
    if name in _COMPARISONS:
        return _compare(b, name, args, dtypes[0])
    if name in _ARITHMETIC:
        kind = args[0].kind
        if kind == "i1":
            raise Unsupported("arithmetic on bools")
        return b.op(_ARITHMETIC[name][kind not in FLOATS], args[0], args[1])
    if name in _EMIT:
        if dtype is torch.uint8 and name in (
            "max",
            "min",
            "clamp_min",
            "clamp_max",
            "remainder",
            "fmod",
            "abs",
            "sign",
        ):
            raise Unsupported("unsigned numbers")
        return _EMIT[name](b, args, tuple(params))
    if name in _LIBRARY and args[0].kind in FLOATS:
        return _each_lane(b, _LIBRARY[name], args)
    raise Unsupported(f"the function '{name}'")


_ARITHMETIC = {
    "add": ("fadd contract", "add"),
    "sub": ("fsub contract", "sub"),
    "mul": ("fmul contract", "mul"),
}
_COMPARISONS = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne"}
_LIBRARY = {
    "exp2": "exp2",
    "sin": "sin",
    "cos": "cos",
    "tan": "tan",
    "sinh": "sinh",
    "cosh": "cosh",
    "asin": "asin",
    "acos": "acos",
    "atan": "atan",
    "asinh": "asinh",
    "acosh": "acosh",
    "atanh": "atanh",
    "atan2": "atan2",
    "erf": "erf",
    "erfc": "erfc",
    "pow": "pow",
    "hypot": "hypot",
    "fmod": "fmod",
    "log2": "log2",
    "log10": "log10",
}
"""Functions of the C library, called lane by lane."""


def _each_lane(b: Builder, name: str, args: Sequence[Val]) -> Val:
    args = b.alike(*args)
    kind = args[0].kind
    name += "f" if kind == "float" else ""
    b.needed[f"declare {kind} @{name}({', '.join([kind] * len(args))})"] = None
    found = []
    for lane in range(b.width if args[0].wide else 1):
        given = ", ".join(f"{kind} {b.extract(a, lane).text}" for a in args)
        found.append(b.set(kind, False, f"call {kind} @{name}({given})"))
    return b.from_lanes(found) if args[0].wide else found[0]


def _compare(b: Builder, name: str, args: Sequence[Val], dtype: torch.dtype) -> Val:
    if args[0].kind in FLOATS:
        return b.compare(f"fcmp {'u' if name == 'ne' else 'o'}{name}", *args)
    if name in ("eq", "ne"):
        return b.compare(f"icmp {name}", *args)
    return b.compare(f"icmp {'u' if dtype in (torch.uint8, torch.bool) else 's'}{name}", *args)


def cast(b: Builder, x: Val, source: torch.dtype, target: torch.dtype) -> Val:
    """The same number in another dtype."""
    kind = KINDS[target]
    if target is torch.bool:
        zero = b.number(0, x.kind)
        return x if source is torch.bool else b.compare("fcmp une" if x.kind in FLOATS else "icmp ne", x, zero)
    if x.kind in FLOATS:
        if kind in FLOATS:
            return x if kind == x.kind else b.convert("fpext" if kind == "double" else "fptrunc", x, kind)
        return b.convert("fptosi", x, kind)
    unsigned = source in (torch.bool, torch.uint8)
    if kind in FLOATS:
        return b.convert("uitofp" if unsigned else "sitofp", x, kind)
    if x.kind == kind:
        return x
    wider = int(kind[1:]) > int(x.kind[1:])
    return b.convert(("zext" if unsigned else "sext") if wider else "trunc", x, kind)


def rounded(b: Builder, x: Val, dtype: torch.dtype) -> Val:
    """The nearest number that a half-precision dtype can hold, still as a float32."""
    if dtype is torch.float16:
        return b.convert("fpext", b.convert("fptrunc", x, "half"), "float")
    high = b.convert("zext", to_bfloat16(b, x), "i32")
    return b.convert("bitcast", b.op("shl", high, b.number(16, "i32")), "float")


def to_bfloat16(b: Builder, x: Val) -> Val:
    """A float32's bits rounded to the 16 of a bfloat16, ties to even."""
    bits = b.convert("bitcast", x, "i32")
    odd = b.op("and", b.op("lshr", bits, b.number(16, "i32")), b.number(1, "i32"))
    nearest = b.op("add", bits, b.op("add", odd, b.number(0x7FFF, "i32")))
    # Rounding may not turn a NaN into something else.
    nan = b.compare("fcmp uno", x, x)
    result = b.select(nan, b.number(0x7FC00000, "i32"), nearest)
    return b.convert("trunc", b.op("lshr", result, b.number(16, "i32")), "i16")


def from_bfloat16(b: Builder, x: Val) -> Val:
    """The float32 with a bfloat16's bits."""
    return b.convert("bitcast", b.op("shl", b.convert("zext", x, "i32"), b.number(16, "i32")), "float")


def _emits(name: str) -> Callable[[Emit], Emit]:
    def add(function: Emit) -> Emit:
        _EMIT[name] = function
        return function

    return add


def _unary(function: Callable[[Builder, Val], Val]) -> Emit:
    return lambda b, a, _: function(b, a[0])


def _intrinsic(name: str) -> Emit:
    return lambda b, a, _: b.intrinsic(name, a[0])


def _binary(name: str) -> Emit:
    return lambda b, a, _: b.op(name, a[0], a[1])


_EMIT |= {
    "exp": _unary(vector_math.exp),
    "expm1": _unary(vector_math.expm1),
    "tanh": _unary(vector_math.tanh),
    "sigmoid": _unary(vector_math.sigmoid),
    "log": _unary(vector_math.log),
    "log1p": _unary(vector_math.log1p),
    "floor": _intrinsic("floor"),
    "ceil": _intrinsic("ceil"),
    "round": _intrinsic("roundeven"),
    "trunc": _intrinsic("trunc"),
    "sqrt": _intrinsic("sqrt"),
    "norm": _intrinsic("sqrt"),
    "copy": lambda b, a, _: a[0],
    "surrogate": lambda b, a, _: a[0],
    "stop": lambda b, a, _: a[0],
    "div": _binary("fdiv"),
    "and": _binary("and"),
    "or": _binary("or"),
    "xor": _binary("xor"),
    "bitand": _binary("and"),
    "bitor": _binary("or"),
    "bitxor": _binary("xor"),
    "not": lambda b, a, _: b.op("xor", a[0], b.number(1, "i1")),
    "where": lambda b, a, _: b.select(a[0], a[1], a[2]),
    "isnan": lambda b, a, _: b.compare("fcmp uno", a[0], a[0]),
    "isinf": lambda b, a, _: b.compare("fcmp oeq", b.intrinsic("fabs", a[0]), b.number(math.inf, a[0].kind)),
}


@_emits("neg")
def _neg(b: Builder, a: Sequence[Val], _: Any) -> Val:
    return b.fneg(a[0]) if a[0].kind in FLOATS else b.op("sub", b.number(0, a[0].kind), a[0])


@_emits("abs")
def _abs(b: Builder, a: Sequence[Val], _: Any) -> Val:
    x = a[0]
    if x.kind in FLOATS:
        return b.intrinsic("fabs", x)
    return b.select(b.compare("icmp slt", x, b.number(0, x.kind)), b.op("sub", b.number(0, x.kind), x), x)


@_emits("sign")
def _sign(b: Builder, a: Sequence[Val], _: Any) -> Val:
    x, zero = a[0], b.number(0, a[0].kind)
    above, below = ("fcmp ogt", "fcmp olt") if x.kind in FLOATS else ("icmp sgt", "icmp slt")
    one = b.select(b.compare(above, x, zero), b.number(1, x.kind), zero)
    return b.select(b.compare(below, x, zero), b.number(-1, x.kind), one)


@_emits("zero_if")
def _zero_if(b: Builder, a: Sequence[Val], _: Any) -> Val:
    return b.select(a[1], b.number(0, a[0].kind), a[0])


@_emits("reciprocal")
def _reciprocal(b: Builder, a: Sequence[Val], _: Any) -> Val:
    return b.fdiv(b.number(1, a[0].kind), a[0])


@_emits("rsqrt")
def _rsqrt(b: Builder, a: Sequence[Val], _: Any) -> Val:
    return b.fdiv(b.number(1, a[0].kind), b.intrinsic("sqrt", a[0]))


@_emits("logsigmoid")
def _logsigmoid(b: Builder, a: Sequence[Val], _: Any) -> Val:
    x, zero = a[0], b.number(0, a[0].kind)
    least = b.select(b.compare("fcmp ogt", x, zero), zero, x)
    return b.fsub(least, vector_math.log1p(b, vector_math.exp(b, b.fneg(b.intrinsic("fabs", x)))))


@_emits("relu")
def _relu(b: Builder, a: Sequence[Val], _: Any) -> Val:
    return b.select(
        b.compare("fcmp ole" if a[0].kind in FLOATS else "icmp sle", a[0], b.number(0, a[0].kind)),
        b.number(0, a[0].kind),
        a[0],
    )


def _extremum(better: str) -> Emit:
    def apply(b: Builder, a: Sequence[Val], _: Any) -> Val:
        x, y = a
        if x.kind not in FLOATS:
            return b.select(b.compare(f"icmp s{better}", x, y), x, y)
        # A comparison with NaN fails: y is right where it is NaN, x has to be asked for.
        larger = b.select(b.compare(f"fcmp o{better}", x, y), x, y)
        return b.select(b.compare("fcmp uno", x, x), x, larger)

    return apply


_EMIT["max"] = _EMIT["clamp_min"] = _extremum("gt")
_EMIT["min"] = _EMIT["clamp_max"] = _extremum("lt")


@_emits("remainder")
def _remainder(b: Builder, a: Sequence[Val], _: Any) -> Val:
    x, y = a
    if x.kind in FLOATS:
        rest = _each_lane(b, "fmod", a)
        zero = b.number(0, x.kind)
        other = b.op("xor", b.compare("fcmp olt", rest, zero), b.compare("fcmp olt", y, zero))
        moved = b.op("and", other, b.compare("fcmp une", rest, zero))
        return b.select(moved, b.fadd(rest, y), rest)
    rest, zero = b.op("srem", x, y), b.number(0, x.kind)
    other = b.op("xor", b.compare("icmp slt", rest, zero), b.compare("icmp slt", y, zero))
    moved = b.op("and", other, b.compare("icmp ne", rest, zero))
    return b.select(moved, b.op("add", rest, y), rest)


@_emits("logaddexp")
def _logaddexp(b: Builder, a: Sequence[Val], _: Any) -> Val:
    x, y = a
    top = b.select(b.compare("fcmp ogt", x, y), x, y)
    gap = b.fneg(b.intrinsic("fabs", b.fsub(x, y)))
    value = b.fadd(top, vector_math.log1p(b, vector_math.exp(b, gap)))
    infinite = b.compare("fcmp oeq", b.intrinsic("fabs", x), b.number(float("inf"), x.kind))
    return b.select(b.op("and", infinite, b.compare("fcmp oeq", x, y)), x, value)


@_emits("softplus")
def _softplus(b: Builder, a: Sequence[Val], params: tuple[Any, ...]) -> Val:
    (x,), (beta, threshold) = a, params
    scaled = x if beta == 1 else b.fmul(x, b.number(beta, x.kind))
    curve = vector_math.log1p(b, vector_math.exp(b, scaled))
    curve = curve if beta == 1 else b.fdiv(curve, b.number(beta, x.kind))
    return b.select(b.compare("fcmp ogt", scaled, b.number(threshold, x.kind)), x, curve)


@_emits("elu")
def _elu(b: Builder, a: Sequence[Val], params: tuple[Any, ...]) -> Val:
    (x,), (alpha, scale, inner) = a, params
    low = b.fmul(vector_math.expm1(b, b.fmul(x, b.number(inner, x.kind))), b.number(alpha * scale, x.kind))
    return b.select(b.compare("fcmp ole", x, b.number(0, x.kind)), low, b.fmul(x, b.number(scale, x.kind)))
