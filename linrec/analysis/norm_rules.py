"""Normalisation by the batch for all steps: by averages that are given, steps are more elements of the batch; by the
batch itself, each step has its own."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.vectorize import NotVectorisable, Steps, Vectorizer, nodes_of, steps_in, vector_rule

aten = torch.ops.aten


@vector_rule(aten.batch_norm.default)
def _batch_norm(
    v: Vectorizer,
    node: fx.Node,
    x: Steps,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> fx.Node:
    given = (weight, bias, running_mean, running_var)
    if not x.timed or any(s.timed for s in steps_in(given)):
        raise NotVectorisable(f"{node.target} by weights of each step")
    if not training:
        flat = v.emit(aten.flatten.using_ints, (x.node, 0, 1), node)
        y = v.emit(node.target, (flat, *nodes_of(given), training, momentum, eps, cudnn_enabled), node)
        return v.emit(aten.unflatten.int, (y, 0, [v.length, -1]), node)
    if running_mean is not None or running_var is not None:
        raise NotVectorisable(f"{node.target} that keeps averages")
    dims = [1, *range(3, x.rank + 1)]
    centred = v.emit(aten.sub.Tensor, (x.node, v.emit(aten.mean.dim, (x.node, dims, True), node)), node)
    squares = v.emit(aten.mean.dim, (v.emit(aten.square.default, (centred,), node), dims, True), node)
    scale = v.emit(aten.rsqrt.default, (v.emit(aten.add.Tensor, (squares, eps), node),), node)
    y = v.emit(aten.mul.Tensor, (centred, scale), node)
    for target, parameter in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if parameter is not None:
            own = parameter.node
            for _ in range(x.rank - 2):
                own = v.emit(aten.unsqueeze.default, (own, -1), node)
            y = v.emit(target, (y, own), node)
    return y
