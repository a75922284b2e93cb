"""How an operator runs for all steps at once: every value gains a leading time dimension. Elementwise operators share
one rule, others have one of their own (`vector_rules`), and for the rest the batched form that vmap uses is written
out."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo.source import ConstantSource
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic
from torch.utils import _pytree as pytree

from linrec.ir.extension import enter
from linrec.ir.inline import body_of
from linrec.ir.nodes import emit, value
from linrec.ir.scan import is_random

aten = torch.ops.aten
VectorRule = Callable[..., fx.Node]
VECTOR_RULES: dict[Any, VectorRule] = {}


class NotVectorisable(Exception):
    """No rule says how this operator runs for all steps at once."""


@dataclass(frozen=True)
class Steps:
    """A value of the step, in the outer graph: `node` holds it for all steps (leading time dimension) where `timed`,
    or is the same in every step. `step` is the node of the step graph that it stands for."""

    node: fx.Node
    timed: bool
    step: fx.Node

    @property
    def rank(self) -> int:
        """The number of dimensions of one step's value, without time; none of a number."""
        own = value(self.step)
        return own.dim() if isinstance(own, torch.Tensor) else 0


class Vectorizer:
    """Writes nodes of a step graph into the outer graph, for all steps at once.

    Args:
        graph: the outer graph; `before`: the node in front of which to write.
        length: the number of steps (a node, or an int).
    """

    def __init__(self, graph: fx.Graph, before: fx.Node, length: Any) -> None:
        self.graph, self.before, self.length = graph, before, length
        self.env: dict[fx.Node, Steps] = {}

    def bind(self, step_node: fx.Node, node: fx.Node, timed: bool) -> None:
        """Say which outer node holds a value of the step."""
        self.env[step_node] = Steps(node, timed, step_node)

    def emit(
        self, target: Callable[..., Any], args: tuple[Any, ...], like: fx.Node, kwargs: dict[str, Any] | None = None
    ) -> fx.Node:
        """Write one call, named and located like a node of the step."""
        return emit(self.graph, self.before, target, args, like, kwargs)

    def run(self, node: fx.Node) -> Steps:
        """The value of a step node for all steps, written on first use together with what it reads.

        Raises:
            NotVectorisable: where an operator on the way has no rule.
        """
        if node not in self.env:
            if node.op != "call_function":
                raise NotVectorisable(node.name)
            self.env[node] = self._write(node)
        return self.env[node]

    def _write(self, node: fx.Node) -> Steps:
        args = fx.map_arg(node.args, lambda n: _Held(self.run(n)))
        kwargs = fx.map_arg(node.kwargs, lambda n: _Held(self.run(n)))
        args, kwargs = _open(args), _open(kwargs)
        timed = any(s.timed for s in steps_in((args, kwargs)))
        if is_random(node):
            raise NotVectorisable("a random operator")
        if not timed:
            args, kwargs = nodes_of(args), nodes_of(kwargs)
            with self.graph.inserting_before(self.before):
                new = self.graph.call_function(node.target, tuple(args), dict(kwargs))
            new.meta = dict(node.meta)
            return Steps(new, False, node)
        for rule in self._rules(node):
            try:
                new = rule(self, node, *args, **kwargs)
            except Exception:  # a rule that does not fit these arguments
                continue
            expected, found = value(node), value(new)
            if not isinstance(expected, torch.Tensor) or expected.dtype == found.dtype:
                return Steps(new, True, node)
        raise NotVectorisable(str(node.target))

    def _rules(self, node: fx.Node) -> list[VectorRule]:
        own = VECTOR_RULES.get(node.target) or (elementwise if is_pointwise(node.target) else None)
        return [own, by_vmap, by_parts] if own else [by_vmap, by_parts]

    def expand(self, s: Steps) -> fx.Node:
        """A value with the time dimension, added as a broadcast where the value is the same in every step."""
        if s.timed:
            return s.node
        new = self.emit(aten.unsqueeze.default, (s.node, 0), s.step)
        return self.emit(aten.expand.default, (new, [self.length, *([-1] * s.rank)]), s.step)

    def aligned(self, s: Steps, rank: int) -> fx.Node:
        """A timed value with size-1 dimensions put after time, so that its other dimensions align to `rank` of them."""
        node = s.node
        if s.timed:
            for _ in range(rank - s.rank):
                node = self.emit(aten.unsqueeze.default, (node, 1), s.step)
        return node


_POINTWISE = {
    getattr(getattr(aten, name), overload)
    for name, overload in (
        ("log_sigmoid", "default"),
        ("selu", "default"),
        ("celu", "default"),
        ("relu6", "default"),
        ("softsign", "default"),
        ("arctan2", "default"),
        ("clip", "default"),
        ("float_power", "Tensor_Scalar"),
        ("fix", "default"),
        ("where", "ScalarOther"),
        ("where", "ScalarSelf"),
        ("where", "Scalar"),
        ("masked_fill", "Tensor"),
        ("complex", "default"),
        ("polar", "default"),
    )
    if hasattr(aten, name)
}
"""Elementwise operators that torch does not tag as such, because they are composed of others."""


def is_pointwise(target: Any) -> bool:
    """Whether an operator acts elementwise (with broadcasting)."""
    return torch.Tag.pointwise in getattr(target, "tags", ()) or target in _POINTWISE


class _Held:
    def __init__(self, steps: Steps) -> None:
        self.steps = steps


def _open(arg: Any) -> Any:
    if isinstance(arg, _Held):
        return arg.steps
    if isinstance(arg, (list, tuple)):
        items = [_open(a) for a in arg]
        return items if isinstance(arg, list) else tuple(items)
    if isinstance(arg, dict):
        return {k: _open(v) for k, v in arg.items()}
    return arg


def steps_in(arg: Any) -> list[Steps]:
    """All values of the step in nested arguments."""
    if isinstance(arg, Steps):
        return [arg]
    if isinstance(arg, dict):
        arg = list(arg.values())
    return [s for a in arg for s in steps_in(a)] if isinstance(arg, (list, tuple)) else []


def nodes_of(arg: Any) -> Any:
    """Nested arguments with the outer node of each value of the step."""
    if isinstance(arg, Steps):
        return arg.node
    if isinstance(arg, (list, tuple)):
        items = [nodes_of(a) for a in arg]
        return items if isinstance(arg, list) else tuple(items)
    if isinstance(arg, dict):
        return {k: nodes_of(v) for k, v in arg.items()}
    return arg


def vector_rule(*targets: Any, replace: bool = False) -> Callable[[VectorRule], VectorRule]:
    """Register how operators run for all steps: ``f(vectorizer, node, *args, **kwargs) -> fx.Node``; tensor arguments
    arrive as `Steps`, and the result has the time dimension in front.

    Args:
        targets: operators (``torch.ops.aten.mul.Tensor``).
        replace: whether it may take the place of another rule.

    Raises:
        ExtensionError: where an operator has another rule.
    """

    def register(f: VectorRule) -> VectorRule:
        for target in targets:
            enter("vector rule", str(target), f, VECTOR_RULES.get(target), replace)
            VECTOR_RULES[target] = f
        return f

    return register


def elementwise(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Elementwise operators: align the dimensions behind time; keep the type promotion of the step."""
    rank = value(node).dim()
    tensors = steps_in((args, kwargs))
    dimensioned = [s for s in tensors if s.rank > 0]

    def place(arg: Any) -> Any:
        if isinstance(arg, Steps):
            new = v.aligned(arg, rank)
            if arg.timed and arg.rank == 0 and dimensioned:
                new = _demoted(v, arg, new, dimensioned)
            return new
        return [place(a) for a in arg] if isinstance(arg, list) else arg

    return v.emit(node.target, tuple(place(a) for a in args), node, {k: place(a) for k, a in kwargs.items()})


def _demoted(v: Vectorizer, s: Steps, node: fx.Node, dimensioned: list[Steps]) -> fx.Node:
    """A scalar per step does not take part in type promotion within its category; with a time dimension it would."""
    own = value(s.step).dtype
    others = value(dimensioned[0].step).dtype
    for other in dimensioned[1:]:
        others = torch.promote_types(others, value(other.step).dtype)
    wanted = torch.result_type(torch.empty((), dtype=own), torch.empty((1,), dtype=others))
    if torch.promote_types(own, others) == wanted:
        return node
    return v.emit(aten._to_copy.default, (node,), s.step, {"dtype": wanted})


def by_vmap(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operator that `torch.func.vmap` knows: its batched form is traced and written out; no vmap is left."""
    held = steps_in((args, kwargs))

    def run(*values: Any) -> Any:
        given = iter(values)

        def place(arg: Any) -> Any:
            if isinstance(arg, Steps):
                return next(given)
            if isinstance(arg, (list, tuple)):
                return type(arg)([place(a) for a in arg])
            return arg

        return node.target(*(place(a) for a in args), **{k: place(a) for k, a in kwargs.items()})

    batched = torch.func.vmap(run, in_dims=tuple(0 if s.timed else None for s in held))
    mode = next(value(s.node).fake_mode for s in held if s.timed)
    if mode.shape_env is None:
        raise NotVectorisable(str(node.target))
    length = _any_length(mode.shape_env)
    symbol = length.node.expr
    with _no_loop_over_time(), mode:
        values = [value(s.node) for s in held]
        values = [x.new_empty((length, *x.shape[1:])) if s.timed else x for s, x in zip(held, values, strict=True)]
        traced = make_fx(batched, tracing_mode="symbolic", _allow_non_fake_inputs=True)(*values)
    if length.node.expr != symbol:
        raise NotVectorisable(f"{node.target} (for one length only)")
    known: dict[fx.Node, Any] = {}
    inner = iter(held)
    for own in traced.graph.nodes:
        if own.op == "placeholder":
            known[own] = next(inner).node
        elif own.op == "output":
            (result,) = fx.map_arg(own.args, known.__getitem__)
        elif own.op == "call_function":
            placed = fx.map_arg(_with_length((own.args, own.kwargs), symbol, v.length), known.__getitem__)
            known[own] = v.emit(own.target, placed[0], node, placed[1])
        else:  # a constant that the trace made
            raise NotVectorisable(str(node.target))
    if isinstance(result, fx.Node):
        return result
    return v.emit(together, tuple(result), node)


def by_parts(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Any operator that torch composes of others, part by part."""
    leaves, spec = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Steps))
    held = [x for x in leaves if isinstance(x, Steps)]
    values = [value(s.step) for s in held]
    if not all(isinstance(x, torch.Tensor) for x in values):
        raise NotVectorisable(str(node.target))

    def run(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        own_args, own_kwargs = pytree.tree_unflatten([next(given) if isinstance(x, Steps) else x for x in leaves], spec)
        return node.target(*own_args, **own_kwargs)

    body = body_of(run, node.graph, values).graph
    parts = [n for n in body.nodes if n.op == "call_function"]
    if len(parts) < 2 or any(n.target is node.target for n in parts):
        raise NotVectorisable(str(node.target))
    inner = Vectorizer(v.graph, v.before, v.length)
    for placeholder, s in zip([n for n in body.nodes if n.op == "placeholder"], held, strict=True):
        inner.bind(placeholder, s.node, s.timed)
    result = inner.run(body.output_node().args[0])  # of several, an error: the rule does not fit
    return inner.expand(result)


def _with_length(args: Any, symbol: Any, length: Any) -> Any:
    """The true number of steps where the trace holds its symbol as a constant."""
    leaves, spec = pytree.tree_flatten(args)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, torch.SymInt) and symbol in leaf.node.expr.free_symbols:
            if leaf.node.expr != symbol:
                raise NotVectorisable("a size computed from the length")
            leaves[i] = length
    return pytree.tree_unflatten(leaves, spec)


def _any_length(shape_env: Any) -> Any:
    """A symbolic number of steps."""
    source = ConstantSource(f"__linrec_steps_{len(shape_env.backed_var_to_val)}")
    symbol = shape_env.create_symbol(11, source, DimDynamic.DYNAMIC, None)
    return shape_env.create_symintnode(symbol, hint=11, source=source)


def together(*values: Any) -> tuple[Any, ...]:
    """Several values as one."""
    return values


@contextlib.contextmanager
def _no_loop_over_time() -> Iterator[None]:
    """Without vmap's way out for operators that it does not know, which is a loop over the batch."""
    functorch: Any = torch._C._functorch
    before = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        yield
    finally:
        functorch._set_vmap_fallback_enabled(before)
