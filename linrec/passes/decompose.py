"""Operators that are composed of others are written out where they read a state and only their parts have rules:
tensordot, tile, kron, diff, conv_transpose1d, ..."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree

from linrec.analysis.rules import RULES
from linrec.analysis.stategraph import dependencies
from linrec.codegen.translate import RULES as COMPILED
from linrec.ir.inline import Unknown, body_of, put_before
from linrec.ir.nodes import emit, size_expr, value
from linrec.ir.scan import is_random, scan_nodes, scan_of
from linrec.passes.base import Pass, PassResult
from linrec.passes.simplify import Simplify

aten = torch.ops.aten
_MOVES = {
    aten.pixel_shuffle.default,
    aten.pixel_unshuffle.default,
    aten.channel_shuffle.default,
    aten.rot90.default,
    aten.linalg_cross.default,
    aten.upsample_nearest1d.default,
    aten.upsample_nearest2d.default,
    aten.upsample_nearest1d.vec,
    aten.upsample_nearest2d.vec,
} & set(decomposition_table)
"""Operators with a kernel of their own whose decomposition has their gradient, as not all of torch's have: that of
detach lets it through."""


def _solve_triangular(
    a: torch.Tensor, b: torch.Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> torch.Tensor:
    """The matrix is what the triangle says."""
    kept = torch.triu(a, int(unitriangular)) if upper else torch.tril(a, -int(unitriangular))
    if unitriangular:
        kept = kept + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    inverse = torch.linalg.inv(kept)
    return _times(inverse, b) if left else b @ inverse


def _cholesky_solve(b: torch.Tensor, a: torch.Tensor, upper: bool = False) -> torch.Tensor:
    # Values are of the triangle, and so is a factor; its gradient is not, which what made it sees to.
    factor = a + ((torch.triu(a) if upper else torch.tril(a)) - a).detach()
    return _times(torch.linalg.inv(factor.mH @ factor if upper else factor @ factor.mH), b)


def _times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The product, by one matrix for a batch as a product with that matrix on the right."""
    return (b.mT @ a.mT).mT if a.dim() == 2 else a @ b


def _batch_norm(
    x: torch.Tensor,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    training: bool,
    momentum: float,
    eps: float,
) -> tuple[torch.Tensor, ...]:
    """Normalisation by a batch, and what it makes of the averages over the batches before."""
    if not training or len({y.dtype for y in (x, running_mean, running_var)}) > 1:
        raise Unknown("averages that are used, or kept in another precision")
    dims, channels = [d for d in range(x.dim()) if d != 1], (-1, *(1,) * (x.dim() - 2))
    mean = x.mean(dims)
    centred = x - mean.view(channels)
    scale = (centred.square().mean(dims) + eps).rsqrt()
    y = centred * scale.view(channels)
    y = y if weight is None else y * weight.view(channels)
    y = y if bias is None else y + bias.view(channels)
    seen = x.detach()
    averages = [(running_mean, seen.mean(dims)), (running_var, seen.var(dims, correction=1))]
    return y, mean, scale, *((1 - momentum) * old + momentum * new for old, new in averages)


_PARTS: dict[Any, Any] = {
    aten.linalg_solve_triangular.default: _solve_triangular,
    aten.cholesky_solve.default: _cholesky_solve,
    aten._native_batch_norm_legit_functional.default: _batch_norm,
}
"""Operators that are written out as these functions compute them: solutions of systems whose matrix is given in another
way, and what keeps averages of its own."""

_ALWAYS = frozenset((aten._native_batch_norm_legit_functional.default,))
"""Of these, what holds a state back that only some of its parts read."""


@dataclass(frozen=True)
class Decompose(Pass):
    """The parts of composed operators that read a state.

    Before::

        loop(h; x; w): return tile(h, [2]) * w + x

    After::

        loop(h; x; w): return repeat(h, [2]) * w + x
    """

    name: str = "decompose"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Write out composed operators in the step of every scan."""
        modified = False
        for node in scan_nodes(graph_module):
            scan = scan_of(graph_module, node)
            modified |= _sizes_as_tensors(scan.step.graph)
            for inner in [n for n in scan.step.graph.nodes if n.op == "call_function" and _is_composed(n)]:
                reads = dependencies(scan.step, scan.carries)  # anew: what one reads may just have been written out
                if reads[inner]:
                    modified |= _write_out(scan.step.graph, inner, {n for n in inner.all_input_nodes if reads[n]})
        # Parts that no step changes are constants, which what they are parts of was not.
        return Simplify().run(graph_module) if modified else PassResult(graph_module, modified)


def _is_composed(node: fx.Node) -> bool:
    target = node.target
    if target in RULES or not isinstance(target, torch._ops.OpOverload) or is_random(node):
        return False
    return _has_own(target) or target._can_decompose()


def _has_own(target: Any) -> bool:
    return target in _MOVES or target in _PARTS


def _write_out(graph: fx.Graph, node: fx.Node, stateful: set[fx.Node]) -> bool:
    try:
        body = _traced(graph, node)
        if node.target not in _ALWAYS and not _helps(node, body, stateful):
            return False
        if isinstance(value(node), (tuple, list)) and any(user.target is not operator.getitem for user in node.users):
            return False
        results = [value(n) for n in pytree.tree_leaves(body.graph.output_node().args[0])]
        if [_like(x) for x in pytree.tree_leaves(value(node))] != [_like(x) for x in results]:
            return False  # another shape or dtype
        result = put_before(graph, node, body, _tensors(node))
    except Exception:  # whatever torch's tracing has against it: the operator stays as it is
        return False
    if isinstance(result, fx.Node):
        node.replace_all_uses_with(result)
    else:
        for user in list(node.users):
            user.replace_all_uses_with(result[user.args[1]])
            graph.erase_node(user)
    graph.erase_node(node)
    return True


def _helps(node: fx.Node, body: fx.GraphModule, stateful: set[fx.Node]) -> bool:
    """Whether every part that reads a state has a rule, and nothing that could be compiled is lost."""
    inputs = [n for n in body.graph.nodes if n.op == "placeholder"]
    reads = {new for new, old in zip(inputs, _tensors(node), strict=True) if old in stateful}
    parts = [n for n in body.graph.nodes if n.op == "call_function"]
    for n in parts:
        if reads.intersection(n.all_input_nodes):
            reads.add(n)
            if n.target not in RULES:
                return False
    return _name(node.target) not in COMPILED or all(_name(n.target) in COMPILED for n in parts)


_WITH_NUMBER = {
    getattr(getattr(aten, name), overload): getattr(aten, name).Tensor
    for name in ("add", "sub", "rsub", "mul", "div")
    for overload in ("Tensor", "Scalar")
}


def _sizes_as_tensors(graph: fx.Graph) -> bool:
    """Let arithmetic with a symbolic size, as a mean over the batch has it, take a tensor of that number."""
    modified = False
    for node in list(graph.nodes):
        target = _WITH_NUMBER.get(node.target)
        result = value(node) if target is not None else None
        if not isinstance(result, torch.Tensor):
            continue
        sizes = [x for x in node.args[:2] if isinstance(x, fx.Node) and not isinstance(value(x), torch.Tensor)]
        wide = result.dtype in (torch.float64, torch.complex128)
        whole = not (result.dtype.is_floating_point or result.is_complex())
        dtype = torch.int64 if whole else torch.float64 if wide else torch.float32
        for size in sizes:
            kind = {"dtype": dtype, "device": result.device}
            made = emit(graph, node, aten.scalar_tensor.default, (size,), node, kind)
            node.args = tuple(made if x is size else x for x in node.args)
            node.target = target
            modified = True
    return modified


def _tensors(node: fx.Node) -> list[fx.Node]:
    """An operator's tensors, in order, as often as it takes them."""
    return [n for n in pytree.tree_leaves((node.args, node.kwargs)) if isinstance(n, fx.Node)]


def _name(target: Any) -> str:
    schema = getattr(target, "_schema", None)
    return schema.name.removeprefix("aten::") if schema is not None else str(target)


def _traced(graph: fx.Graph, node: fx.Node) -> fx.GraphModule:
    """The operator's decomposition, as a graph of its tensors alone."""
    leaves, spec = pytree.tree_flatten((node.args, node.kwargs))
    tensors = _tensors(node)
    if not all(isinstance(value(n), torch.Tensor) for n in tensors):
        raise Unknown("a size of its own")

    def run(*values: torch.Tensor) -> Any:
        given = iter(values)
        args, kwargs = pytree.tree_unflatten([next(given) if isinstance(x, fx.Node) else x for x in leaves], spec)
        return node.target(*args, **kwargs)

    own = {node.target: _PARTS.get(node.target) or decomposition_table[node.target]} if _has_own(node.target) else {}
    return body_of(run, graph, [value(n) for n in tensors], own)


def _like(x: torch.Tensor) -> Any:
    return tuple(size_expr(s) for s in x.shape), x.dtype
