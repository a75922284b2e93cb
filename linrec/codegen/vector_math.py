"""Elementary functions on vectors, where LLVM would call the C library for each lane: exp and log and what is made of
them, within about two units in the last place, with infinities, NaN and subnormal numbers as the C library has them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linrec.codegen.llvm import Builder, Val


@dataclass(frozen=True)
class _Format:
    """What the functions need to know of a floating-point format.

    Attributes:
        bits, mantissa, bias: of its encoding; ``integer`` is the kind of integer of the same size.
        magic: 1.5 * 2**mantissa, whose addition rounds to an integer.
        ln2: log 2 as a short number and the rest of it.
        exp: coefficients of (exp(r) - 1 - r) / r**2 for |r| <= log(2) / 2, interpolated at Chebyshev points.
        range: between these arguments exp is neither 0 nor infinite.
        log: coefficients of (log((1 + s) / (1 - s)) - 2 s) / s in s**2, as in fdlibm.
    """

    integer: str
    mantissa: int
    bias: int
    magic: float
    ln2: tuple[float, float]
    exp: tuple[float, ...]
    range: tuple[float, float]
    log: tuple[float, ...]
    root_half: int
    tiny: tuple[float, float]


_SINGLE = _Format(
    integer="i32",
    mantissa=23,
    bias=127,
    magic=12582912.0,
    ln2=(0.693359375, -0.00021219444005469057),
    exp=(0.5, 0.16666576266288757, 0.041666556149721146, 0.008363178931176662, 0.0013926184037700295),
    range=(-104.0, 89.0),
    log=(0.66666662693023682, 0.40000972151756287, 0.28498786687850952, 0.24279078841209412),
    root_half=0x3F3504F3,
    tiny=(1.1754943508222875e-38, 33554432.0),
)
_DOUBLE = _Format(
    integer="i64",
    mantissa=52,
    bias=1023,
    magic=6755399441055744.0,
    ln2=(0.6931471803691238, 1.9082149292705877e-10),
    exp=(
        0.5000000000000001,
        0.16666666666666669,
        0.04166666666662413,
        0.008333333333330062,
        0.0013888888917213717,
        0.00019841269863053618,
        2.4801521295954376e-05,
        2.7557268459997064e-06,
        2.7620088445409746e-07,
        2.510038549551032e-08,
    ),
    range=(-746.0, 710.0),
    log=(
        6.666666666666735130e-01,
        3.999999999940941908e-01,
        2.857142874366239149e-01,
        2.222219843214978396e-01,
        1.818357216161805012e-01,
        1.531383769920937332e-01,
        1.479819860511658591e-01,
    ),
    root_half=0x3FE6A09E667F3BCD,
    tiny=(2.2250738585072014e-308, 18014398509481984.0),
)
_LOG2_E = 1.4426950408889634


def _format(x: Val) -> _Format:
    return _SINGLE if x.kind == "float" else _DOUBLE


def _polynomial(b: Builder, x: Val, coefficients: Sequence[float]) -> Val:
    found = b.number(coefficients[-1], x.kind)
    for c in reversed(coefficients[:-1]):
        found = b.fma(found, x, b.number(c, x.kind))
    return found


def _clamped(b: Builder, x: Val, low: float, high: float) -> Val:
    """x within bounds; NaN stays."""
    least, most = b.number(low, x.kind), b.number(high, x.kind)
    x = b.select(b.compare("fcmp olt", x, least), least, x)
    return b.select(b.compare("fcmp ogt", x, most), most, x)


def _power_of_two(b: Builder, n: Val, form: _Format, kind: str) -> Val:
    """2**n for an integer n whose power is a normal number."""
    shifted = b.op("shl", b.op("add", n, b.number(form.bias, n.kind)), b.number(form.mantissa, n.kind))
    return b.convert("bitcast", shifted, kind)


def _reduced(b: Builder, x: Val) -> tuple[Val, Val]:
    """The integer n nearest to x / log 2, and exp(x - n log 2) - 1."""
    form, kind = _format(x), x.kind
    magic = b.number(form.magic, kind)
    shifted = b.fma(x, b.number(_LOG2_E, kind), magic)
    n = b.op("fsub", shifted, magic)
    r = b.fma(n, b.number(-form.ln2[0], kind), x)
    r = b.fma(n, b.number(-form.ln2[1], kind), r)
    change = b.fma(b.fmul(r, r), _polynomial(b, r, form.exp), r)
    # The sum with the magic number holds n in its lowest bits.
    bits = b.convert("bitcast", shifted, form.integer)
    offset = b.convert("bitcast", b.widen(magic) if shifted.wide else magic, form.integer)
    return b.op("sub", bits, offset), change


def exp(b: Builder, x: Val) -> Val:
    """e**x."""
    form, kind = _format(x), x.kind
    n, change = _reduced(b, _clamped(b, x, *form.range))
    value = b.fadd(change, b.number(1.0, kind))
    # In two factors, each of them a normal number.
    half = b.op("ashr", n, b.number(1, n.kind))
    scaled = b.fmul(value, _power_of_two(b, half, form, kind))
    return b.fmul(scaled, _power_of_two(b, b.op("sub", n, half), form, kind))


def expm1(b: Builder, x: Val) -> Val:
    """e**x - 1."""
    form, kind = _format(x), x.kind
    one = b.number(1.0, kind)
    limit = 80.0
    n, change = _reduced(b, _clamped(b, x, -limit, limit))
    scale = _power_of_two(b, n, form, kind)
    near = b.fma(scale, change, b.fsub(scale, one))
    large = b.compare("fcmp ogt", x, b.number(limit, kind))
    return b.select(large, exp(b, x), near)


def tanh(b: Builder, x: Val) -> Val:
    """(1 - e**(-2|x|)) / (1 + e**(-2|x|)) with the sign of x."""
    form, kind = _format(x), x.kind
    size = b.intrinsic("fabs", x)
    n, change = _reduced(b, _clamped(b, b.fmul(size, b.number(-2.0, kind)), -60.0, 0.0))
    scale = _power_of_two(b, n, form, kind)
    below = b.fma(scale, change, b.fsub(scale, b.number(1.0, kind)))  # e**(-2|x|) - 1
    ratio = b.fdiv(b.fneg(below), b.fadd(below, b.number(2.0, kind)))
    return b.intrinsic("copysign", ratio, x)


def sigmoid(b: Builder, x: Val) -> Val:
    """1 / (1 + e**-x)."""
    one = b.number(1.0, x.kind)
    return b.fdiv(one, b.fadd(one, exp(b, b.fneg(x))))


def log(b: Builder, x: Val) -> Val:
    """The natural logarithm."""
    form, kind = _format(x), x.kind
    smallest, factor = form.tiny
    subnormal = b.compare("fcmp olt", x, b.number(smallest, kind))
    scaled = b.select(subnormal, b.fmul(x, b.number(factor, kind)), x)
    bits = b.convert("bitcast", scaled, form.integer)
    root = b.number(form.root_half, form.integer)
    # x = 2**e m with m between sqrt(1/2) and sqrt(2).
    e = b.op("ashr", b.op("sub", bits, root), b.number(form.mantissa, form.integer))
    m = b.convert("bitcast", b.op("sub", bits, b.op("shl", e, b.number(form.mantissa, form.integer))), kind)
    shift = {"float": 25, "double": 54}[kind]
    power = b.convert("sitofp", b.select(subnormal, b.op("sub", e, b.number(shift, form.integer)), e), kind)
    f = b.fsub(m, b.number(1.0, kind))
    s = b.fdiv(f, b.fadd(f, b.number(2.0, kind)))
    z = b.fmul(s, s)
    rest = b.fmul(z, _polynomial(b, z, form.log))
    half = b.fmul(b.fmul(f, f), b.number(0.5, kind))
    tail = b.fma(power, b.number(form.ln2[1], kind), b.fmul(s, b.fadd(half, rest)))
    value = b.fma(power, b.number(form.ln2[0], kind), b.fsub(f, b.fsub(half, tail)))
    infinity = b.number(float("inf"), kind)
    value = b.select(b.compare("fcmp oeq", x, infinity), x, value)
    value = b.select(b.compare("fcmp oeq", x, b.number(0.0, kind)), b.number(float("-inf"), kind), value)
    return b.select(b.compare("fcmp ult", x, b.number(0.0, kind)), b.number(float("nan"), kind), value)


def log1p(b: Builder, x: Val) -> Val:
    """log(1 + x): the logarithm of the rounded sum, corrected by what the rounding lost."""
    one = b.number(1.0, x.kind)
    total = b.op("fadd", x, one)
    lost = b.op("fsub", x, b.op("fsub", total, one))
    plain = log(b, total)
    exact = b.fadd(plain, b.fdiv(lost, total))
    edge = b.compare("fcmp oeq", b.intrinsic("fabs", plain), b.number(float("inf"), x.kind))
    # Of a number too small to change 1 it is the number, zeros and subnormal ones included.
    tiny = b.compare("fcmp oeq", total, one)
    return b.select(tiny, x, b.select(edge, plain, exact))
