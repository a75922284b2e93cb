"""Losses that a program adds up step by step: the loss of every element of all steps at once, then each step's own mean
or sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.vectorize import NotVectorisable, Steps, Vectorizer, nodes_of, vector_rule
from linrec.ir.nodes import value

aten = torch.ops.aten
_NONE, _MEAN, _SUM = 0, 1, 2
"""What torch calls the reductions of losses."""


@vector_rule(
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.huber_loss.default,
    aten.soft_margin_loss.default,
    aten.binary_cross_entropy.default,
)
def _elementwise(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Losses of pairs of elements."""
    named = _named(node, args, kwargs)
    tensors = [s for s in named.values() if isinstance(s, Steps)]
    rank = max(s.rank for s in tensors)
    reduction = named.pop("reduction", _MEAN)
    given = {k: _spread(v, s, rank) if isinstance(s, Steps) else s for k, s in named.items()}
    x, y = given.pop("self"), given.pop("target")
    each = v.emit(node.target, (x, y), node, {**given, "reduction": _NONE})
    return _reduced(v, node, each, rank, reduction)


def _spread(v: Vectorizer, s: Steps, rank: int) -> fx.Node:
    """A value of all steps: not every loss spreads its operands itself."""
    return v.expand(s) if s.rank == rank else v.aligned(s, rank)


@vector_rule(aten.cross_entropy_loss.default, aten.nll_loss_nd.default, aten.nll_loss.default, aten.nll_loss2d.default)
def _of_classes(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Losses by the number of a class: steps are more elements of the batch. The mean is that of the elements that
    count, by the weights of their classes."""
    named = _named(node, args, kwargs)
    x, y, weight = named.pop("self"), named.pop("target"), named.get("weight")
    if value(y.step).dtype.is_floating_point or (isinstance(weight, Steps) and weight.timed):
        raise NotVectorisable(f"{node.target} of such targets")
    reduction, ignored = named.pop("reduction", _MEAN), named.get("ignore_index", -100)
    scores, classes = v.expand(x), v.expand(y)
    given = nodes_of(named)
    if x.rank > 1:
        flat = [v.emit(aten.flatten.using_ints, (n, 0, 1), node) for n in (scores, classes)]
        each = v.emit(node.target, tuple(flat), node, {**given, "reduction": _NONE})
        each = v.emit(aten.unflatten.int, (each, 0, [v.length, -1]), node)
    else:
        each = v.emit(node.target, (scores, classes), node, {**given, "reduction": _NONE})
    if reduction != _MEAN:
        return _reduced(v, node, each, y.rank, reduction)
    counts = v.emit(aten.ne.Scalar, (classes, ignored), node)
    share = v.emit(aten._to_copy.default, (counts,), node, {"dtype": value(each).dtype})
    if weight is not None:
        known = v.emit(aten.where.ScalarOther, (counts, classes, 0), node)
        share = v.emit(aten.mul.Tensor, (share, v.emit(aten.index.Tensor, (given["weight"], [known]), node)), node)
    totals = [_reduced(v, node, n, y.rank, _SUM) for n in (each, share)]
    return v.emit(aten.div.Tensor, tuple(totals), node)


def _named(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments by name, those left out that have their defaults."""
    names = [a.name for a in node.target._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _reduced(v: Vectorizer, node: fx.Node, each: fx.Node, rank: int, reduction: int) -> fx.Node:
    """One number for each step, where the program has one."""
    if reduction == _NONE or rank == 0:
        return each
    target = aten.mean.dim if reduction == _MEAN else aten.sum.dim_IntList
    return v.emit(target, (each, list(range(1, rank + 1))), node)
