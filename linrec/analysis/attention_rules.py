"""Attention within a step, over heads, slots or a memory: the steps are more elements of the batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.vectorize import NotVectorisable, Steps, Vectorizer, nodes_of, vector_rule

aten = torch.ops.aten


@vector_rule(aten.scaled_dot_product_attention.default)
def _attention(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """One call for all steps; of four dimensions in each, those are what torch has a kernel for."""
    q, k, value, mask, *rest = (*args, None, None, None)[: max(4, len(args))]
    mask = kwargs.pop("attn_mask", mask)
    rank = q.rank
    if {k.rank, value.rank} != {rank} or (isinstance(mask, Steps) and (mask.timed or mask.rank >= rank > 3)):
        raise NotVectorisable(f"{node.target} of such tensors")
    given = [v.expand(s) for s in (q, k, value)]
    if rank > 3:
        given = [v.emit(aten.flatten.using_ints, (n, 0, 1), node) for n in given]
    out = v.emit(node.target, (*given, *nodes_of([mask, *rest])), node, nodes_of(kwargs))
    return v.emit(aten.unflatten.int, (out, 0, [v.length, -1]), node) if rank > 3 else out
