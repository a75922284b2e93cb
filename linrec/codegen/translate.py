"""From a step graph to drafts: walks the operators, each by its rule, and then tells lanes from inner dimensions. The
rules (`pointwise`, `arrangement`, `contraction`) are written with the few primitives of `Translator`."""

from __future__ import annotations

import operator
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx

from linrec.codegen.axes import Axes, Axis, AxisIndex, Draft, Resplit, Unsupported, View, whole
from linrec.ops.surrogate import surrogate

Value = Any
"""What a node of the step holds: a View, a Complex, a number, or a list or tuple of values."""


@dataclass(frozen=True)
class Complex:
    """A complex tensor as two real ones."""

    re: View
    im: View


Rule = Callable[["Translator", Any], Value]
_OPERATORS: dict[Any, Any] = {surrogate: torch.ops.linrec.surrogate.default}
"""What functions in graphs that run stand for."""

RULES: dict[str, Rule] = {}
"""By name of the operator, without overload. A rule gets its arguments by the names of the operator's schema, and the
result's fake tensor as ``out``."""


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators of these names."""

    def add(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return add


def has_rule(target: Any) -> bool:
    """Whether an operator can be translated, as far as its name says."""
    return target is operator.getitem or _name(target) in RULES


def _name(target: Any) -> str:
    schema = _schema(target)
    return str(schema.name.removeprefix("aten::")) if schema is not None else str(target)


def _schema(target: Any) -> Any:
    return getattr(_OPERATORS.get(target, target), "_schema", None)


@dataclass
class Drafts:
    """A translated step: its inputs and outputs as views, with axes in classes.

    Attributes:
        inputs: what the step takes: views, complex values, or numbers (sizes).
        outputs: what it returns.
    """

    inputs: list[Value]
    outputs: list[Value]


def translate(step: fx.GraphModule, values: dict[fx.Node, Any], carries: int) -> Drafts:
    """Translate a step graph, given the concrete value (a fake tensor or a number) of each of its nodes.

    Raises:
        Unsupported: where it holds an operator without a rule, or one used in a way that its rule does not know.
    """
    splits: dict[Hashable, tuple[int, ...]] = {}
    while True:
        try:
            return Translator(splits).run(step, values, carries)
        except Resplit:
            continue


class Translator:
    """One attempt at a translation. Its methods are the primitives that rules are written with."""

    def __init__(self, splits: dict[Hashable, tuple[int, ...]]) -> None:
        self.axes = Axes(splits)
        self._origin: Hashable = ()
        self._made = 0

    def run(self, step: fx.GraphModule, values: dict[fx.Node, Any], carries: int) -> Drafts:
        """Walk the graph."""
        env: dict[fx.Node, Value] = {}
        inputs: list[Value] = []
        outputs: list[Value] = []
        for node in step.graph.nodes:
            self._origin, self._made = node.name, 0
            if node.op == "placeholder":
                env[node] = self._input(len(inputs), values[node])
                inputs.append(env[node])
            elif node.op == "output":
                outputs = [env[n] for n in node.args[0]]
            elif node.op == "call_function":
                env[node] = self._call(node, env, values)
            else:
                raise Unsupported(f"the step holds a node of kind {node.op}")
        for old, new in zip(inputs[:carries], outputs[:carries], strict=True):
            self._same(old, new)
        return Drafts(inputs, outputs)

    def _input(self, key: int, value: Any) -> Value:
        if not isinstance(value, Tensor):
            return value
        dims = [self.axes.make(int(s), (key, d)) for d, s in enumerate(value.shape)]
        leaves = tuple(a for d in dims for a in d)
        if value.dtype.is_complex:
            real = value.dtype.to_real()
            parts = [whole(Draft("input", (key, part), real, leaves), dims) for part in ("re", "im")]
            return Complex(*parts)
        if value.dtype not in _KNOWN:
            raise Unsupported(f"{value.dtype} values")
        return whole(Draft("input", (key, ""), value.dtype, leaves), dims)

    def _same(self, old: Value, new: Value) -> None:
        """A carry and its update have the same shape and dtype."""
        if isinstance(old, Complex) and isinstance(new, Complex):
            self._same(old.re, new.re)
            self._same(old.im, new.im)
            return
        if not isinstance(old, View) or not isinstance(new, View):
            raise Unsupported("a state that is no tensor, or changes its dtype")
        if old.dtype != new.dtype or old.shape != new.shape:
            raise Unsupported("a state that changes its shape or dtype in the first step")
        for a, b in zip(old.dims, new.dims, strict=True):
            self.axes.unify(a, b)

    def _call(self, node: fx.Node, env: dict[fx.Node, Value], values: dict[fx.Node, Any]) -> Value:
        args, kwargs = fx.map_arg((node.args, node.kwargs), env.__getitem__)
        if node.target is operator.getitem:
            return args[0][args[1]]
        if not isinstance(values[node], Tensor) and isinstance(values[node], (int, float, bool)):
            return values[node]
        schema = _schema(node.target)
        if schema is None or not has_rule(node.target):
            raise Unsupported(f"the operator '{_name(node.target)}' has no rule")
        name = _name(node.target)
        bound = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
        bound |= dict(zip((a.name for a in schema.arguments), args, strict=False))
        bound |= kwargs
        out = values[node]
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.numel() == 0:
                raise Unsupported("a tensor without elements")
        try:
            value = RULES[name](self, SimpleNamespace(**bound, out=out, name=name, overload=schema.overload_name))
            return self._whole(value, out)
        except Unsupported as error:
            raise Unsupported(f"the operator '{name}': {error}") from None

    def _whole(self, value: Value, out: Any) -> Value:
        """A value in the shape that it has to have: one part of a complex one may be a mere number."""
        if isinstance(value, (list, tuple)) and isinstance(out, (list, tuple)):
            return [self._whole(v, o) for v, o in zip(value, out, strict=True)]
        if not isinstance(out, Tensor):
            return value
        if isinstance(value, Complex):
            re, im = self._whole(value.re, out), self._whole(value.im, out)
            if re is not value.re or im is not value.im:
                for a, b in zip(re.dims, im.dims, strict=True):
                    self.axes.unify(a, b)
            return Complex(re, im)
        shape = tuple(int(s) for s in out.shape)
        return self.expand(value, shape) if isinstance(value, View) and value.shape != shape else value

    def new_axis(self, size: int) -> tuple[Axis, ...]:
        """Axes for a dimension that no argument has."""
        self._made += 1
        return self.axes.make(size, (self._origin, self._made))

    def literal(self, number: Any, dtype: torch.dtype) -> View:
        """A number as a tensor without dimensions."""
        return View(Draft("literal", number, dtype), (), ())

    def iota(self, size: int) -> View:
        """0, 1, ..., size - 1 as integers."""
        axes = () if size == 1 else (Axis(size),)
        for axis in axes:
            axis.mix()
        return whole(Draft("iota", None, torch.int64, axes), (axes,)) if axes else self.expand(self.number_zero(), (1,))

    def number_zero(self) -> View:
        """The integer 0."""
        return self.literal(0, torch.int64)

    def map(self, function: str, *args: View, dtype: torch.dtype, params: tuple[Any, ...] = ()) -> View:
        """A function of single elements of tensors that broadcast."""
        ndim = max(len(a.dims) for a in args)
        padded = [((),) * (ndim - len(a.dims)) + a.dims for a in args]
        unified = [self.axes.unify(*dims) for dims in zip(*padded, strict=True)]
        dims = [tuple(Axis(a.size) for a in dim) for dim in unified]
        read = []
        for arg, own in zip(args, padded, strict=True):
            place = {}
            for target, dim in zip(dims, own, strict=True):
                for new, old in zip(target, dim, strict=False):
                    new.unify(old)
                    place[old] = AxisIndex(((new, 1),))
            read.append((arg.draft, tuple(i.put(place) for i in arg.index)))
        draft = Draft("map", (function, *params), dtype, tuple(a for d in dims for a in d), tuple(read))
        return whole(draft, dims)

    def cast(self, x: View, dtype: torch.dtype) -> View:
        """The same numbers in another dtype."""
        return x if x.dtype == dtype else self.map("cast", x, dtype=dtype)

    def reduce(self, kind: str, x: View, over: Sequence[int], keepdim: bool = False) -> View:
        """Reduce dimensions: "sum", "prod", "max" or "min"."""
        dims = [tuple(Axis(a.size) for a in dim) for dim in x.dims]
        place = {}
        for new_dim, old_dim in zip(dims, x.dims, strict=True):
            for new, old in zip(new_dim, old_dim, strict=True):
                new.unify(old)
                place[old] = AxisIndex(((new, 1),))
        red = tuple(a for d in over for a in dims[d])
        kept = [d for i, d in enumerate(dims) if i not in over]
        for axis in red:
            axis.mix()
        left = [() if i in over else d for i, d in enumerate(dims)] if keepdim else kept
        axes = tuple(a for d in kept for a in d)
        read = (x.draft, tuple(i.put(place) for i in x.index))
        if not red:
            return whole(Draft("map", ("copy",), x.dtype, axes, (read,)), left)
        return whole(Draft("reduce", kind, x.dtype, axes, (read,), red), left)

    def einsum(self, equation: str, *args: View, dtype: torch.dtype) -> View:
        """Sum of products; letters name dimensions, those missing from the result are summed."""
        inputs, result = equation.split("->")
        letters: dict[str, tuple[Axis, ...]] = {}
        for names, arg in zip(inputs.split(","), args, strict=True):
            if len(set(names)) != len(names):
                raise Unsupported("a diagonal of an operand")
            for name, dim in zip(names, arg.dims, strict=True):
                letters[name] = self.axes.unify(letters.get(name, ()), dim)
        # The product over all letters: every operand with its dimensions in one order, broadcast over the rest.
        order = result + "".join(n for n in letters if n not in result)
        product: View | None = None
        for names, arg in zip(inputs.split(","), args, strict=True):
            arg = self.cast(arg, dtype)
            spread = arg.moved([arg.dims[names.index(n)] if n in names else () for n in order])
            product = spread if product is None else self.map("mul", product, spread, dtype=dtype)
        assert product is not None
        return self.reduce("sum", product, range(len(result), len(order)))

    def expand(self, x: View, shape: Sequence[int]) -> View:
        """Broadcast to a shape: -1 keeps a size."""
        lead = len(shape) - len(x.dims)
        dims = []
        for d, size in enumerate(shape):
            own = x.dims[d - lead] if d >= lead else ()
            dims.append(own if own or size in (-1, 1) else self.new_axis(int(size)))
        return x.moved(dims)

    def reshape(self, x: View, shape: Sequence[int]) -> View:
        """The same elements, row by row, in another shape (without -1)."""
        return x.moved(self.axes.regroup([a for d in x.dims for a in d], [int(s) for s in shape]))

    def select(self, x: View, dim: int, at: int) -> View:
        """One position of a dimension, which goes."""
        place, rest = {}, at
        for axis in reversed(x.dims[dim]):
            axis.mix()
            place[axis] = AxisIndex((), rest % axis.size)
            rest //= axis.size
        return x.moved([d for i, d in enumerate(x.dims) if i != dim], place)

    def slice(self, x: View, dim: int, start: int, size: int, step: int = 1) -> View:
        """Every `step`-th position from `start` on; `step` may be negative."""
        if size == x.shape[dim] and step == 1:
            return x
        if size == 1:
            return self.unsqueeze(self.select(x, dim, start), dim)
        axes = x.dims[dim]
        inner = 1
        for axis in axes[1:]:
            inner *= axis.size
        if len(axes) > 1 and (step != 1 or start % inner or size % inner):
            raise Unsupported("a slice of a dimension that is elsewhere reshaped")
        first = axes[0]
        first.mix()
        count = size // inner
        if count == 1:
            return x.moved(
                [(*axes[1:],) if i == dim else d for i, d in enumerate(x.dims)], {first: AxisIndex((), start // inner)}
            )
        new = Axis(count)
        new.mix()
        dims = [(new, *axes[1:]) if i == dim else d for i, d in enumerate(x.dims)]
        return x.moved(dims, {first: AxisIndex(((new, step),), start // inner)})

    def unsqueeze(self, x: View, dim: int) -> View:
        """A new dimension of size 1."""
        return x.moved([*x.dims[:dim], (), *x.dims[dim:]])

    def join(self, pieces: Sequence[View], dim: int, size: int, starts: Sequence[int], dtype: torch.dtype) -> View:
        """Put pieces into zeros of one size along a dimension, each at its start; all else they share."""
        rank = len(pieces[0].dims)
        joined = () if size == 1 else (Axis(size),)
        for axis in joined:
            axis.mix()
        dims: list[tuple[Axis, ...]] = []
        for d in range(rank):
            shared = joined if d == dim else self.axes.unify(*(p.dims[d] for p in pieces))
            dims.append(joined if d == dim else tuple(Axis(a.size) for a in shared))
        args, places = [], []
        for piece, start in zip(pieces, starts, strict=True):
            own: list[Axis] = []
            where: list[AxisIndex] = []
            put: dict[Axis, AxisIndex] = {}
            for d in range(rank):
                mine = tuple(Axis(a.size) for a in piece.dims[d])
                for new, old in zip(mine, piece.dims[d], strict=True):
                    new.unify(old)
                    put[old] = AxisIndex(((new, 1),))
                own += mine
                if d == dim:
                    for axis in mine:
                        axis.mix()
                    scale, terms = 1, []
                    for axis in reversed(mine):
                        terms.append((axis, scale))
                        scale *= axis.size
                    where += [AxisIndex(tuple(terms), start)] * len(joined)
                elif not mine and dims[d]:
                    raise Unsupported("pieces of different sizes are joined")
                else:
                    for new, target in zip(mine, dims[d], strict=True):
                        new.unify(target)
                        where.append(AxisIndex(((new, 1),)))
            args.append((piece.draft, tuple(i.put(put) for i in piece.index)))
            places.append((tuple(own), tuple(where)))
        axes = tuple(a for d in dims for a in d)
        return whole(Draft("assemble", None, dtype, axes, tuple(args), (), tuple(places)), dims)


_KNOWN = {
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
}
