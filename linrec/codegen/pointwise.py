"""Rules of the operators that work element by element. A complex number is its two parts."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from linrec.codegen.axes import Unsupported, View
from linrec.codegen.translate import Complex, Translator, Value, rule


def real(t: Translator, x: Value, dtype: torch.dtype) -> View:
    """A real tensor or number as a tensor of a dtype."""
    if isinstance(x, View):
        return t.cast(x, dtype)
    if isinstance(x, (bool, int, float)):
        if dtype.is_floating_point:
            return t.literal(float(x), dtype)
        return t.literal(bool(x) if dtype is torch.bool else int(x), dtype)
    raise Unsupported("an argument that is not a real tensor or number")


def pair(t: Translator, x: Value, dtype: torch.dtype) -> Complex:
    """A tensor or number as a complex one, whose parts have a dtype."""
    if isinstance(x, Complex):
        return Complex(t.cast(x.re, dtype), t.cast(x.im, dtype))
    if isinstance(x, complex):
        return Complex(t.literal(x.real, dtype), t.literal(x.imag, dtype))
    return Complex(real(t, x, dtype), t.literal(0.0, dtype))


class Field:
    """Arithmetic on views or complex values of one dtype."""

    def __init__(self, t: Translator, dtype: torch.dtype) -> None:
        self.t = t
        self.complex = dtype.is_complex
        self.dtype = dtype.to_real() if dtype.is_complex else dtype
        if dtype is torch.bool:
            raise Unsupported("arithmetic on bools")

    def value(self, x: Value) -> Value:
        """A tensor or number in this field."""
        return pair(self.t, x, self.dtype) if self.complex else real(self.t, x, self.dtype)

    def f(self, name: str, *args: View, params: tuple[Any, ...] = ()) -> View:
        """A function of real elements."""
        return self.t.map(name, *args, dtype=self.dtype, params=params)

    def add(self, x: Value, y: Value) -> Value:
        """x + y."""
        return self._both("add", x, y)

    def sub(self, x: Value, y: Value) -> Value:
        """x - y."""
        return self._both("sub", x, y)

    def _both(self, name: str, x: Value, y: Value) -> Value:
        x, y = self.value(x), self.value(y)
        if self.complex:
            return Complex(self.f(name, x.re, y.re), self.f(name, x.im, y.im))
        return self.f(name, x, y)

    def mul(self, x: Value, y: Value) -> Value:
        """x y, with a real factor kept real."""
        f = self.f
        if not self.complex:
            return f("mul", self.value(x), self.value(y))
        for a, b in ((x, y), (y, x)):
            if not isinstance(a, (Complex, complex)):
                scale, z = real(self.t, a, self.dtype), self.value(b)
                return Complex(f("mul", scale, z.re), f("mul", scale, z.im))
        x, y = self.value(x), self.value(y)
        re = f("sub", f("mul", x.re, y.re), f("mul", x.im, y.im))
        return Complex(re, f("add", f("mul", x.re, y.im), f("mul", x.im, y.re)))

    def div(self, x: Value, y: Value) -> Value:
        """x / y."""
        f = self.f
        if not self.complex:
            return f("div", self.value(x), self.value(y))
        x = self.value(x)
        if not isinstance(y, (Complex, complex)):
            scale = real(self.t, y, self.dtype)
            return Complex(f("div", x.re, scale), f("div", x.im, scale))
        y = self.value(y)
        size = f("add", f("mul", y.re, y.re), f("mul", y.im, y.im))
        z = self.mul(x, Complex(y.re, f("neg", y.im)))
        return Complex(f("div", z.re, size), f("div", z.im, size))

    def neg(self, x: Value) -> Value:
        """-x."""
        x = self.value(x)
        return Complex(self.f("neg", x.re), self.f("neg", x.im)) if self.complex else self.f("neg", x)


def _scaled(t: Translator, field: Field, x: Value, alpha: Any) -> Value:
    return x if alpha == 1 else field.mul(x, alpha)


@rule("add")
def _add(t: Translator, a: Any) -> Value:
    if a.out.dtype is torch.bool:
        return t.map("or", real(t, a.self, torch.bool), real(t, a.other, torch.bool), dtype=torch.bool)
    field = Field(t, a.out.dtype)
    return field.add(a.self, _scaled(t, field, a.other, a.alpha))


@rule("sub")
def _sub(t: Translator, a: Any) -> Value:
    field = Field(t, a.out.dtype)
    return field.sub(a.self, _scaled(t, field, a.other, a.alpha))


@rule("rsub")
def _rsub(t: Translator, a: Any) -> Value:
    field = Field(t, a.out.dtype)
    return field.sub(a.other, _scaled(t, field, a.self, a.alpha))


@rule("mul")
def _mul(t: Translator, a: Any) -> Value:
    if a.out.dtype is torch.bool:
        return t.map("and", real(t, a.self, torch.bool), real(t, a.other, torch.bool), dtype=torch.bool)
    return Field(t, a.out.dtype).mul(a.self, a.other)


@rule("div")
def _div(t: Translator, a: Any) -> Value:
    if getattr(a, "rounding_mode", None) is not None:
        raise Unsupported("a rounding mode")
    return Field(t, a.out.dtype).div(a.self, a.other)


@rule("neg")
def _neg(t: Translator, a: Any) -> Value:
    return Field(t, a.out.dtype).neg(a.self)


@rule("addcmul")
def _addcmul(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    return f.add(a.self, f.mul(_scaled(t, f, a.tensor1, a.value), a.tensor2))


@rule("addcdiv")
def _addcdiv(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    return f.add(a.self, f.div(_scaled(t, f, a.tensor1, a.value), a.tensor2))


@rule("lerp")
def _lerp(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    if f.complex:
        raise Unsupported("complex interpolation")
    start, end, weight = f.value(a.self), f.value(a.end), f.value(a.weight)
    change = f.f("sub", end, start)
    low = f.f("add", start, f.f("mul", weight, change))
    if isinstance(a.weight, (int, float)):
        if abs(a.weight) < 0.5:
            return low
        return f.f("sub", end, f.f("mul", change, f.value(1 - a.weight)))
    high = f.f("sub", end, f.f("mul", change, f.f("sub", f.value(1), weight)))
    small = t.map("lt", f.f("abs", weight), f.value(0.5), dtype=torch.bool)
    return f.f("where", small, low, high)


_UNARY = (
    "expm1 exp2 log2 log10 log1p rsqrt sigmoid sin cos tan sinh cosh atan asin acos asinh acosh atanh erf erfc "
    "reciprocal floor ceil round trunc"
)
_RENAMED = {"arctan": "atan", "arcsin": "asin", "arccos": "acos", "arctanh": "atanh", "sign": "sign", "sgn": "sign"}


def _unary(function: str) -> Callable[[Translator, Any], Value]:
    def apply(t: Translator, a: Any) -> Value:
        if a.out.dtype.is_complex or isinstance(a.self, Complex):
            raise Unsupported("complex arguments")
        if not a.out.dtype.is_floating_point and function in ("floor", "ceil", "round", "trunc"):
            return a.self
        return t.map(function, real(t, a.self, a.out.dtype), dtype=a.out.dtype)

    return apply


for _name in _UNARY.split():
    rule(_name)(_unary(_name))
for _name, _function in _RENAMED.items():
    rule(_name)(_unary(_function))


@rule("exp")
def _exp(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    z = f.value(a.self)
    if not f.complex:
        return f.f("exp", z)
    size = f.f("exp", z.re)
    return Complex(f.f("mul", size, f.f("cos", z.im)), f.f("mul", size, f.f("sin", z.im)))


@rule("log")
def _log(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    z = f.value(a.self)
    if not f.complex:
        return f.f("log", z)
    return Complex(f.f("log", f.f("hypot", z.re, z.im)), f.f("atan2", z.im, z.re))


@rule("sqrt")
def _sqrt(t: Translator, a: Any) -> Value:
    return _unary("sqrt")(t, a)


@rule("tanh")
def _tanh(t: Translator, a: Any) -> Value:
    return _unary("tanh")(t, a)


@rule("abs")
def _abs(t: Translator, a: Any) -> Value:
    if isinstance(a.self, Complex):
        return t.map("hypot", a.self.re, a.self.im, dtype=a.out.dtype)
    return t.map("abs", a.self, dtype=a.out.dtype)


@rule("angle")
def _angle(t: Translator, a: Any) -> Value:
    if not isinstance(a.self, Complex):
        raise Unsupported("real arguments")
    return t.map("atan2", a.self.im, a.self.re, dtype=a.out.dtype)


@rule("conj", "_conj", "conj_physical", "resolve_conj", "_conj_physical", "resolve_neg")
def _conj(t: Translator, a: Any) -> Value:
    if not isinstance(a.self, Complex):
        return a.self
    if "resolve" in a.name:
        return a.self
    return Complex(a.self.re, t.map("neg", a.self.im, dtype=a.self.im.dtype))


@rule("real")
def _real(t: Translator, a: Any) -> Value:
    return a.self.re if isinstance(a.self, Complex) else a.self


@rule("imag")
def _imag(t: Translator, a: Any) -> Value:
    return a.self.im


@rule("complex")
def _complex(t: Translator, a: Any) -> Value:
    dtype = a.out.dtype.to_real()
    return Complex(real(t, a.real, dtype), real(t, a.imag, dtype))


@rule("polar")
def _polar(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype.to_real())
    size, angle = f.value(a.abs), f.value(a.angle)
    return Complex(f.f("mul", size, f.f("cos", angle)), f.f("mul", size, f.f("sin", angle)))


def _like_complex(t: Translator, x: Value, apply: Callable[[View], View]) -> Value:
    return Complex(apply(x.re), apply(x.im)) if isinstance(x, Complex) else apply(x)


_COMPARISONS = {"lt": "lt", "le": "le", "gt": "gt", "ge": "ge", "eq": "eq", "ne": "ne"}
_COMPARISONS |= {"less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "not_equal": "ne"}


def _comparison(function: str) -> Callable[[Translator, Any], Value]:
    def apply(t: Translator, a: Any) -> Value:
        dtype = common_dtype(a.self, a.other)
        return t.map(function, real(t, a.self, dtype), real(t, a.other, dtype), dtype=torch.bool)

    return apply


for _name, _function in _COMPARISONS.items():
    rule(_name)(_comparison(_function))


def common_dtype(*values: Value) -> torch.dtype:
    """The dtype that real tensors and numbers are promoted to."""
    fakes = []
    for value in values:
        if isinstance(value, Complex):
            raise Unsupported("complex numbers are compared")
        if isinstance(value, View):
            fakes.append(torch.empty((1,) * len(value.dims), dtype=value.dtype, device="meta"))
        else:
            fakes.append(value)
    return torch.result_type(*fakes)


@rule("logical_and", "logical_or", "logical_xor")
def _logical(t: Translator, a: Any) -> Value:
    name = a.name.removeprefix("logical_")
    return t.map(name, real(t, a.self, torch.bool), real(t, a.other, torch.bool), dtype=torch.bool)


@rule("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
def _bitwise(t: Translator, a: Any) -> Value:
    name = a.name.removeprefix("bitwise_").strip("_")
    if a.out.dtype is not torch.bool:
        name = f"bit{name}"
    return t.map(name, real(t, a.self, a.out.dtype), real(t, a.other, a.out.dtype), dtype=a.out.dtype)


@rule("logical_not", "bitwise_not")
def _not(t: Translator, a: Any) -> Value:
    if a.out.dtype is not torch.bool:
        raise Unsupported("integer arguments")
    return t.map("not", real(t, a.self, torch.bool), dtype=torch.bool)


@rule("isnan", "isinf")
def _is(t: Translator, a: Any) -> Value:
    if not a.self.dtype.is_floating_point:
        raise Unsupported("integer arguments")
    return t.map(a.name, a.self, dtype=torch.bool)


@rule("where")
def _where(t: Translator, a: Any) -> Value:
    mask = real(t, a.condition, torch.bool)
    dtype = a.out.dtype.to_real() if a.out.dtype.is_complex else a.out.dtype
    if not a.out.dtype.is_complex:
        return t.map("where", mask, real(t, a.self, dtype), real(t, a.other, dtype), dtype=dtype)
    x, y = pair(t, a.self, dtype), pair(t, a.other, dtype)
    return Complex(t.map("where", mask, x.re, y.re, dtype=dtype), t.map("where", mask, x.im, y.im, dtype=dtype))


@rule("linrec::surrogate")
def _surrogate(t: Translator, a: Any) -> Value:
    dtype = a.out.dtype
    return t.map("surrogate", real(t, a.value, dtype), real(t, a.x, dtype), real(t, a.slope, dtype), dtype=dtype)


@rule("masked_fill")
def _masked_fill(t: Translator, a: Any) -> Value:
    a.condition, a.self, a.other = a.mask, a.value, a.self
    return _where(t, a)


@rule("maximum", "minimum", "fmod", "remainder")
def _binary(t: Translator, a: Any) -> Value:
    flags = a.out.dtype is torch.bool
    names = {"maximum": "or", "minimum": "and"} if flags else {"maximum": "max", "minimum": "min"}
    name = names.get(a.name, a.name)
    divides = not a.out.dtype.is_floating_point and name in ("fmod", "remainder")
    if divides and (not isinstance(a.other, int) or a.other == 0):
        raise Unsupported("integers divided by a tensor")
    return t.map(name, real(t, a.self, a.out.dtype), real(t, a.other, a.out.dtype), dtype=a.out.dtype)


@rule("atan2", "arctan2", "hypot", "logaddexp")
def _floating(t: Translator, a: Any) -> Value:
    name = "atan2" if a.name == "arctan2" else a.name
    return t.map(name, real(t, a.self, a.out.dtype), real(t, a.other, a.out.dtype), dtype=a.out.dtype)


@rule("clamp", "clip", "clamp_min", "clamp_max")
def _clamp(t: Translator, a: Any) -> Value:
    x = real(t, a.self, a.out.dtype)
    if getattr(a, "min", None) is not None:
        x = t.map("clamp_min", x, real(t, a.min, a.out.dtype), dtype=a.out.dtype)
    if getattr(a, "max", None) is not None:
        x = t.map("clamp_max", x, real(t, a.max, a.out.dtype), dtype=a.out.dtype)
    return x


@rule("pow")
def _pow(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    exponent = a.exponent
    if isinstance(exponent, (int, float)) and exponent in (0.5, 1, 2, 3, -1, -0.5, -2):
        x = f.value(a.self)
        if exponent in (2, 3, 1):
            power = x
            for _ in range(int(exponent) - 1):
                power = f.mul(power, x)
            return power
        if not f.complex and f.dtype.is_floating_point:
            if exponent in (0.5, -0.5):
                return f.f("sqrt" if exponent > 0 else "rsqrt", x)
            return f.f("reciprocal", x if exponent == -1 else f.f("mul", x, x))
    if f.complex or not f.dtype.is_floating_point:
        raise Unsupported("a power of integers or complex numbers")
    return f.f("pow", f.value(a.self), f.value(exponent))


@rule("square")
def _square(t: Translator, a: Any) -> Value:
    return Field(t, a.out.dtype).mul(a.self, a.self)


@rule("relu")
def _relu(t: Translator, a: Any) -> Value:
    return t.map("relu", a.self, dtype=a.out.dtype)


@rule("silu")
def _silu(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    return f.f("mul", f.value(a.self), f.f("sigmoid", f.value(a.self)))


@rule("gelu")
def _gelu(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    if a.approximate == "tanh":
        cubic = f.add(x, f.mul(f.mul(f.mul(x, x), x), 0.044715))
        inner = f.f("tanh", f.mul(cubic, math.sqrt(2 / math.pi)))
    else:
        inner = f.f("erf", f.mul(x, math.sqrt(0.5)))
    return f.mul(f.mul(x, 0.5), f.add(inner, 1.0))


@rule("log_sigmoid", "log_sigmoid_forward")
def _log_sigmoid(t: Translator, a: Any) -> Value:
    if a.name != "log_sigmoid":
        raise Unsupported("its second result")
    return t.map("logsigmoid", a.self, dtype=a.out.dtype)


@rule("softplus")
def _softplus(t: Translator, a: Any) -> Value:
    return t.map("softplus", a.self, dtype=a.out.dtype, params=(float(a.beta), float(a.threshold)))


@rule("elu", "celu", "selu")
def _elu(t: Translator, a: Any) -> Value:
    params = {
        "elu": lambda: (float(a.alpha), float(a.scale), float(a.input_scale)),
        "celu": lambda: (float(a.alpha), 1.0, 1.0 / float(a.alpha)),
        "selu": lambda: (1.6732632423543772848170429916717, 1.0507009873554804934193349852946, 1.0),
    }[a.name]()
    return t.map("elu", a.self, dtype=a.out.dtype, params=params)


@rule("leaky_relu")
def _leaky_relu(t: Translator, a: Any) -> Value:
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    return f.f("where", t.map("gt", x, f.value(0), dtype=torch.bool), x, f.mul(x, a.negative_slope))


@rule("hardtanh", "relu6", "hardsigmoid")
def _hard(t: Translator, a: Any) -> Value:
    # The derivative at the corners is 0, unlike clamp's.
    f = Field(t, a.out.dtype)
    x = f.value(a.self)
    low, high = {"relu6": (0.0, 6.0), "hardsigmoid": (-3.0, 3.0)}.get(a.name) or (a.min_val, a.max_val)
    inside = t.map(
        "and",
        t.map("gt", x, f.value(low), dtype=torch.bool),
        t.map("lt", x, f.value(high), dtype=torch.bool),
        dtype=torch.bool,
    )
    clamped = t.map("stop", f.f("clamp_max", f.f("clamp_min", x, f.value(low)), f.value(high)), dtype=f.dtype)
    if a.name == "hardsigmoid":
        return f.f("where", inside, f.div(f.add(x, 3.0), 6.0), f.div(f.add(clamped, 3.0), 6.0))
    return f.f("where", inside, x, clamped)


@rule("_to_copy", "to", "type_as", "float", "double", "_cast_Float", "_cast_Double", "half", "bfloat16", "long", "int")
def _cast(t: Translator, a: Any) -> Value:
    if a.out.dtype.is_complex:
        return pair(t, a.self, a.out.dtype.to_real())
    if isinstance(a.self, Complex):
        raise Unsupported("a complex number made real")
    x = real(t, a.self, a.out.dtype)
    if a.out.dtype in (torch.bfloat16, torch.float16) and isinstance(a.self, View) and a.self.dtype != a.out.dtype:
        return t.map("round_to", x, dtype=a.out.dtype)
    return x


@rule("clone", "contiguous", "alias", "lift_fresh_copy", "lift_fresh", "positive", "view_of")
def _same(t: Translator, a: Any) -> Value:
    return a.self


@rule("detach", "detach_")
def _detach(t: Translator, a: Any) -> Value:
    return _like_complex(t, a.self, lambda x: t.map("stop", x, dtype=x.dtype))
