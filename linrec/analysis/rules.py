"""What each operator does to a polynomial. A rule receives the polynomials (or constants) of the operator's arguments
and returns the polynomial of its result; an operator without a rule, or a rule that gives up, makes an opaque atom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Atom, Factor, Monomial, NoRule, Polynomial, Space
from linrec.capture.autocast import is_licence
from linrec.ir.extension import enter, guarded
from linrec.ir.nodes import shape_of, value

aten = torch.ops.aten
Rule = Callable[..., Polynomial]
RULES: dict[Any, Rule] = {}
MOVES: set[Any] = set()
"""Operators that move elements, or take one or the other: their rules hold over every semiring."""


def rule(*targets: Any, replace: bool = False, moves: bool = False) -> Callable[[Rule], Rule]:
    """Register a rule: ``f(algebra, node, *args, **kwargs) -> Polynomial``, where `args` are the operator's arguments
    with every tensor replaced by its `Polynomial`. Raise `NoRule` where the operator is not polynomial.

    Args:
        targets: operators (``torch.ops.aten.mul.Tensor``); a packet (``torch.ops.aten.mul``) stands for all of them.
        replace: whether it may take the place of another rule.
        moves: whether the operators only move elements, or choose among them: such a rule holds over other semirings
            than the ordinary one, too (maxima, log-sum-exp).

    Raises:
        ExtensionError: where an operator has another rule.
    """

    def register(f: Rule) -> Rule:
        for target in overloads(targets):
            enter("rule", str(target), f, RULES.get(target), replace)
            RULES[target] = guarded("rule", str(target), f, (NoRule,))
            (MOVES.add if moves else MOVES.discard)(target)
        return f

    return register


def overloads(targets: tuple[Any, ...]) -> list[Any]:
    """The operators that targets stand for."""
    found = []
    for target in targets:
        names = target.overloads() if isinstance(target, torch._ops.OpOverloadPacket) else None
        found += [target] if names is None else [getattr(target, name) for name in names]
    return found


class Algebra:
    """Evaluates the nodes of a step graph as polynomials in the given states.

    Args:
        states: the carry placeholders that count as states.
        core: the nodes that depend on a state; all others are state-free.
        expand: also look into state-free nodes (needed where products of them cancel).
    """

    rules: Mapping[Any, Rule] = RULES

    def __init__(self, states: set[fx.Node], core: set[fx.Node], expand: bool = False) -> None:
        self.space = Space()
        self.states = states
        self.core = core
        self.expand = expand
        self._known: dict[fx.Node, Polynomial] = {}

    def of(self, node: Any) -> Any:
        """The polynomial of a node; anything else is passed through."""
        if not isinstance(node, fx.Node) or not isinstance(value(node), torch.Tensor):
            return node
        if node not in self._known:
            self._known[node] = self._evaluate(node)
        return self._known[node]

    def _evaluate(self, node: fx.Node) -> Polynomial:
        if node in self.states:
            return self.space.atom("state", node, shape_of(node))
        stateful, dtype = node in self.core, value(node).dtype
        if stateful and dtype is torch.bool:
            return self.space.atom("opaque", node, shape_of(node))
        found = self.rules.get(node.target)
        expand = self.expand and dtype not in _WRAPPING
        if found is not None and (stateful or expand or node.target in _CONSTANTS):
            try:
                args = fx.map_arg(node.args, lambda n: _Box(self.of(n)))
                kwargs = fx.map_arg(node.kwargs, lambda n: _Box(self.of(n)))
                result = found(self, node, *_unbox(args), **_unbox(kwargs))
                shape = shape_of(node)
                if self._shape(result) != shape:
                    result = self.space.align(self._zeros(node), result)[1]
                if self._shape(result) == shape:
                    return result
            except (NoRule, TypeError, IndexError, ZeroDivisionError):
                pass
        return self.space.atom("opaque" if stateful else "value", node, shape_of(node))

    def _shape(self, p: Polynomial) -> tuple[Any, ...]:
        return tuple(self.space.size(axis) for axis in p.axes)

    def _zeros(self, node: fx.Node) -> Polynomial:
        return Polynomial(tuple(self.space.fresh(s) for s in shape_of(node)), ())

    def is_free(self, node: Any) -> bool:
        """Whether a node reads no state."""
        return not isinstance(node, fx.Node) or (node not in self.core and node not in self.states)

    def leaf(self, kind: str, node: fx.Node) -> Polynomial:
        """A node as one atom of a kind, with an axis for each of its dimensions."""
        return self.space.atom(kind, node, shape_of(node))

    def lift(self, x: Any) -> Polynomial:
        """A polynomial from a polynomial or a number."""
        if isinstance(x, Polynomial):
            return x
        if isinstance(x, (int, float, complex)) and not isinstance(x, bool):
            return self.space.constant(x)
        raise NoRule(f"{type(x).__name__} is no number")


class _Box:
    """Keeps fx from looking into a polynomial."""

    def __init__(self, content: Any) -> None:
        self.content = content


def _unbox(arg: Any) -> Any:
    if isinstance(arg, _Box):
        return arg.content
    if isinstance(arg, (list, tuple)):
        return [_unbox(a) for a in arg] if isinstance(arg, list) else tuple(_unbox(a) for a in arg)
    if isinstance(arg, dict):
        return {k: _unbox(v) for k, v in arg.items()}
    return arg


@rule(aten.add.Tensor, aten.add.Scalar)
def _add(algebra: Algebra, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Polynomial:
    return algebra.space.add(algebra.lift(a), algebra.lift(b), alpha)


@rule(aten.sub.Tensor, aten.sub.Scalar)
def _sub(algebra: Algebra, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Polynomial:
    return algebra.space.add(algebra.lift(a), algebra.lift(b), -alpha)


@rule(aten.rsub.Scalar, aten.rsub.Tensor)
def _rsub(algebra: Algebra, node: fx.Node, a: Any, b: Any, alpha: Any = 1) -> Polynomial:
    return algebra.space.add(algebra.lift(b), algebra.lift(a), -alpha)


@rule(aten.neg.default)
def _neg(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return algebra.space.scale(a, -1)


@rule(aten.mul.Tensor, aten.mul.Scalar)
def _mul(algebra: Algebra, node: fx.Node, a: Any, b: Any) -> Polynomial:
    return algebra.space.multiply(algebra.lift(a), algebra.lift(b))


@rule(aten.div.Tensor, aten.div.Scalar)
def _div(algebra: Algebra, node: fx.Node, a: Any, b: Any) -> Polynomial:
    if not _inexact(node):
        raise NoRule("a division of integers")
    return algebra.space.multiply(algebra.lift(a), _reciprocal(algebra, node.args[1]))


def _reciprocal(algebra: Algebra, divisor: Any) -> Polynomial:
    if isinstance(divisor, fx.Node):
        if not isinstance(value(divisor), torch.Tensor):
            raise NoRule("division by a symbolic size")
        if not algebra.is_free(divisor):
            raise NoRule("division by the state")
        return algebra.leaf("reciprocal", divisor)
    if divisor == 0:
        raise NoRule("division by zero")
    return algebra.space.constant(1 / divisor)


def _inexact(node: fx.Node) -> bool:
    dtype = value(node).dtype
    return bool(dtype.is_floating_point or dtype.is_complex)


def widens(node: fx.Node, argument: int = 0) -> bool:
    """Whether a result can hold whatever an argument holds: it is not rounded, nor cut to integers."""
    before, after = value(node.args[argument]).dtype, value(node).dtype
    return bool(torch.promote_types(before, after) == after)


def _held(node: fx.Node, number: Any) -> Any:
    """What a tensor holds that is filled with a number: integers cut it."""
    return int(number) if isinstance(number, float) and not _inexact(node) else number


@rule(aten.addcmul.default)
def _addcmul(algebra: Algebra, node: fx.Node, a: Any, b: Any, c: Any, value: Any = 1) -> Polynomial:
    if not _inexact(node) and isinstance(value, float):
        raise NoRule("integers times a number that is cut to an integer")
    return algebra.space.add(a, algebra.space.multiply(b, c), value)


@rule(aten.addcdiv.default)
def _addcdiv(algebra: Algebra, node: fx.Node, a: Any, b: Any, c: Any, value: Any = 1) -> Polynomial:
    return algebra.space.add(a, algebra.space.multiply(b, _reciprocal(algebra, node.args[2])), value)


@rule(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(algebra: Algebra, node: fx.Node, a: Any, b: Any, weight: Any) -> Polynomial:
    space = algebra.space
    return space.add(a, space.multiply(algebra.lift(weight), space.add(b, a, -1)))


@rule(aten.square.default)
def _square(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    return algebra.space.multiply(a, a)


@rule(aten.pow.Tensor_Scalar)
def _pow(algebra: Algebra, node: fx.Node, a: Any, exponent: Any) -> Polynomial:
    if exponent not in (1, 2, 3):
        raise NoRule("a power that is not expanded")
    result = a
    for _ in range(int(exponent) - 1):
        result = algebra.space.multiply(result, a)
    return result  # type: ignore[no-any-return]


@rule(aten.where.self, aten.where.ScalarOther, aten.where.ScalarSelf, aten.where.Scalar, moves=True)
def _where(algebra: Algebra, node: fx.Node, mask: Any, a: Any, b: Any) -> Polynomial:
    condition = node.args[0]
    if not algebra.is_free(condition):
        raise NoRule("the condition reads the state")
    space = algebra.space
    kept = algebra.leaf("mask", condition)
    dropped = _as_unmask(kept)
    return space.add(space.multiply(kept, algebra.lift(a)), space.multiply(dropped, algebra.lift(b)))


def _as_unmask(p: Polynomial) -> Polynomial:
    terms = tuple(
        Monomial(m.coefficient, tuple(Factor(Atom("unmask", f.atom.node), f.axes) for f in m.factors)) for m in p.terms
    )
    return Polynomial(p.axes, terms)


@rule(aten.masked_fill.Scalar, aten.masked_fill.Tensor, moves=True)
def _masked_fill(algebra: Algebra, node: fx.Node, a: Any, mask: Any, fill: Any) -> Polynomial:
    condition = node.args[1]
    if not algebra.is_free(condition):
        raise NoRule("the mask reads the state")
    if isinstance(fill, Polynomial) and not widens(node, 2):
        raise NoRule("what is filled in is rounded")
    space = algebra.space
    kept = algebra.leaf("mask", condition)
    filled = algebra.lift(_held(node, fill))
    return space.add(space.multiply(kept, filled), space.multiply(_as_unmask(kept), a))


def _unsqueeze_at(p: Polynomial, position: int) -> Polynomial:
    axes = list(p.axes)
    axes.insert(position % (p.rank + 1), ())
    return Polynomial(tuple(axes), p.terms)


def matmul(algebra: Algebra, a: Polynomial, b: Polynomial) -> Polynomial:
    """The product of two tensors as `torch.matmul` has it: vectors, matrices, or batches of matrices that broadcast."""
    space = algebra.space
    row, column = a.rank == 1, b.rank == 1
    a = _unsqueeze_at(a, 0) if row else a
    b = _unsqueeze_at(b, 1) if column else b
    product = space.multiply(_unsqueeze_at(a, -1), _unsqueeze_at(b, -3))
    result = space.contract(product, [-2])
    axes = list(result.axes)
    if column:
        del axes[-1]
    if row:
        del axes[-1 if column else -2]
    return Polynomial(tuple(axes), result.terms)


@rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def _mm(algebra: Algebra, node: fx.Node, a: Any, b: Any) -> Polynomial:
    return matmul(algebra, a, b)


@rule(aten.outer.default)
def _outer(algebra: Algebra, node: fx.Node, a: Any, b: Any) -> Polynomial:
    return algebra.space.multiply(_unsqueeze_at(a, 1), _unsqueeze_at(b, 0))


@rule(aten.linear.default)
def _linear(algebra: Algebra, node: fx.Node, x: Any, weight: Any, bias: Any = None) -> Polynomial:
    result = matmul(algebra, x, algebra.space.permute(weight, range(weight.rank)[::-1]))
    return result if bias is None else algebra.space.add(result, bias)


@rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default, aten.addbmm.default)
def _addmm(algebra: Algebra, node: fx.Node, c: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Polynomial:
    if not _inexact(node) and (isinstance(beta, float) or isinstance(alpha, float)):
        raise NoRule("integers times a number that is cut to an integer")
    space = algebra.space
    product = matmul(algebra, a, b)
    if node.target is aten.addbmm.default:
        product = space.contract(product, [0])
    return space.add(space.scale(product, alpha), c, beta)


@rule(aten.einsum.default)
def _einsum(algebra: Algebra, node: fx.Node, equation: str, operands: Any, path: Any = None) -> Polynomial:
    equation = equation.replace(" ", "")
    if "." in equation:
        raise NoRule("an einsum with an ellipsis")
    left, arrow, right = equation.partition("->")
    inputs = left.split(",")
    if not arrow:
        letters = [c for c in left if c != ","]
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    if any(len(set(labels)) != len(labels) for labels in [*inputs, right]):
        raise NoRule("an einsum over a diagonal")
    order = right + "".join(sorted(set("".join(inputs)) - set(right)))
    space = algebra.space
    result: Polynomial | None = None
    for labels, operand in zip(inputs, operands, strict=True):
        axes = tuple(operand.axes[labels.index(c)] if c in labels else () for c in order)
        spread = Polynomial(axes, operand.terms)
        result = spread if result is None else space.multiply(result, spread)
    assert result is not None
    summed = list(range(len(right), len(order)))
    return space.contract(result, summed) if summed else result


@rule(aten.sum.dim_IntList, aten.mean.dim)
def _sum(algebra: Algebra, node: fx.Node, a: Any, dims: Any, keepdim: bool = False, dtype: Any = None) -> Polynomial:
    if not widens(node):
        raise NoRule("a sum of what was rounded")
    if not a.rank:
        return a  # type: ignore[no-any-return]
    dims = list(range(a.rank)) if not dims else [dims] if isinstance(dims, int) else list(dims)
    result = algebra.space.contract(a, dims, keepdim)
    if node.target is aten.mean.dim:
        count = algebra.space.size(tuple(i for d in dims for i in a.axes[d]))
        if not isinstance(count, int):
            raise NoRule("a mean over a symbolic size")
        return algebra.space.scale(result, 1 / count)
    return result


@rule(aten.sum.default)
def _sum_all(algebra: Algebra, node: fx.Node, a: Any, dtype: Any = None) -> Polynomial:
    if not widens(node):
        raise NoRule("a sum of what was rounded")
    return algebra.space.contract(a, list(range(a.rank))) if a.rank else a


@rule(aten.mean.default)
def _mean_all(algebra: Algebra, node: fx.Node, a: Any, dtype: Any = None) -> Polynomial:
    count = algebra.space.size(tuple(i for axis in a.axes for i in axis))
    if not isinstance(count, int):
        raise NoRule("a mean over a symbolic size")
    return algebra.space.scale(_sum_all(algebra, node, a), 1 / count)


@rule(
    aten.reshape.default,
    aten.view.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.unsqueeze.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    moves=True,
)
def _reshape(algebra: Algebra, node: fx.Node, a: Any, *_: Any, **__: Any) -> Polynomial:
    return algebra.space.reshape(a, shape_of(node))


@rule(aten.permute.default, moves=True)
def _permute(algebra: Algebra, node: fx.Node, a: Any, dims: Any) -> Polynomial:
    return algebra.space.permute(a, [d % a.rank for d in dims])


@rule(aten.transpose.int, aten.swapaxes.default, moves=True)
def _transpose(algebra: Algebra, node: fx.Node, a: Any, i: int, j: int) -> Polynomial:
    order = list(range(a.rank))
    order[i], order[j] = order[j], order[i]
    return algebra.space.permute(a, order)


@rule(aten.t.default, aten.numpy_T.default, aten.mT.default, moves=True)
def _t(algebra: Algebra, node: fx.Node, a: Any) -> Polynomial:
    if a.rank < 2:
        return a  # type: ignore[no-any-return]
    order = [*range(a.rank - 2), a.rank - 1, a.rank - 2]
    if node.target is aten.numpy_T.default:
        order = list(range(a.rank))[::-1]
    return algebra.space.permute(a, order)


@rule(aten.movedim.int, aten.movedim.intlist, moves=True)
def _movedim(algebra: Algebra, node: fx.Node, a: Any, source: Any, destination: Any) -> Polynomial:
    # The sizes of a probe tensor tell the order, with negative dimensions and lists resolved as torch does.
    probe = torch.empty(tuple(range(2, 2 + a.rank)), device="meta").movedim(source, destination)
    return algebra.space.permute(a, [s - 2 for s in probe.shape])


@rule(aten.expand.default, aten.broadcast_to.default, aten.expand_as.default, moves=True)
def _expand(algebra: Algebra, node: fx.Node, a: Any, *_: Any, **__: Any) -> Polynomial:
    return algebra.space.align(a, algebra._zeros(node))[0]


@rule(aten.clone.default, aten.contiguous.default, aten.alias.default, moves=True)
def _identity(algebra: Algebra, node: fx.Node, a: Any, **_: Any) -> Polynomial:
    return a  # type: ignore[no-any-return]


@rule(aten._to_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.type_as.default, moves=True)
def _cast(algebra: Algebra, node: fx.Node, a: Any, *_: Any, **__: Any) -> Polynomial:
    if not (is_licence(node) or widens(node)) or value(node.args[0]).device != value(node).device:
        raise NoRule("a cast that rounds")
    return a  # type: ignore[no-any-return]


@rule(aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default)
def _zeros(algebra: Algebra, node: fx.Node, *_: Any, **__: Any) -> Polynomial:
    return algebra._zeros(node)


@rule(aten.ones_like.default, aten.new_ones.default, aten.full_like.default, aten.new_full.default)
def _filled(algebra: Algebra, node: fx.Node, *args: Any, **__: Any) -> Polynomial:
    """Of a state only its dtype and device are read."""
    number: Any = 1
    if node.target in (aten.full_like.default, aten.new_full.default):
        number = _held(node, args[1 + (node.target is aten.new_full.default)])
    space = algebra.space
    return space.add(algebra._zeros(node), space.constant(number) if number else algebra._zeros(node))


_WRAPPING = frozenset((torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32))
"""Dtypes whose sums are not those of numbers: of truth values it is one of them again, and small integers wrap."""

_CONSTANTS = {aten.zeros.default, aten.zeros_like.default, aten.new_zeros.default}
