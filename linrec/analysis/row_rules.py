"""Vectorisation of reads by an index that each step has of its own: rows of a table, as the seasons of a series."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from linrec.analysis.vector_rules import along
from linrec.analysis.vectorize import VECTOR_RULES, NotVectorisable, Steps, Vectorizer
from linrec.ir.nodes import value

aten = torch.ops.aten


def _index_select(v: Vectorizer, node: fx.Node, x: Steps, dim: int, index: Any) -> fx.Node:
    if not isinstance(index, Steps) or not index.timed:  # one index for all steps
        return along(v, node, x, dim, index)
    if x.timed or index.rank != 1:
        raise NotVectorisable("a table that changes over time")
    dim, count = dim % x.rank, value(index.step).shape[0]
    every = v.emit(aten.reshape.default, (index.node, [-1]), node)
    rows = v.emit(aten.index_select.default, (x.node, dim, every), node)
    apart = v.emit(aten.unflatten.int, (rows, dim, [v.length, count]), node)
    return v.emit(aten.movedim.int, (apart, dim, 0), node)


VECTOR_RULES[aten.index_select.default] = _index_select
