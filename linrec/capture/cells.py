"""LSTM cells whose last cell state nothing reads. The call that returns both states looks the same in every step but
the last, where one of its results is dead; written out, the steps are alike."""

from __future__ import annotations

import operator

import torch
from torch import fx

from linrec.ir.nodes import emit, shape_of

aten = torch.ops.aten


def write_out_cells(graph: fx.Graph) -> None:
    """Write out the LSTM cells of an unrolled graph, where one of them has a result that nothing reads."""
    cells = [n for n in graph.nodes if n.target is aten.lstm_cell.default]
    if any({u.args[1] for u in n.users if u.users} != {0, 1} for n in cells):
        for node in cells:
            _write_out(graph, node)


def _write_out(graph: fx.Graph, node: fx.Node) -> None:
    x, (h, c), w_ih, w_hh, *biases = node.args
    b_ih, b_hh = (*biases, None, None)[:2]
    of = {user.args[1]: user for user in node.users if user.target is operator.getitem}

    def op(target: object, *args: object) -> fx.Node:
        return emit(graph, node, target, args, node)  # type: ignore[arg-type]

    sums = op(aten.add.Tensor, op(aten.linear.default, x, w_ih, b_ih), op(aten.linear.default, h, w_hh, b_hh))
    size = shape_of(h)[-1]
    i, f, g, o = (op(aten.slice.Tensor, sums, len(shape_of(sums)) - 1, k * size, (k + 1) * size) for k in range(4))
    kept = op(aten.mul.Tensor, op(aten.sigmoid.default, f), c)
    new = op(aten.add.Tensor, kept, op(aten.mul.Tensor, op(aten.sigmoid.default, i), op(aten.tanh.default, g)))
    out = op(aten.mul.Tensor, op(aten.sigmoid.default, o), op(aten.tanh.default, new))
    for index, user in of.items():
        user.replace_all_uses_with(out if index == 0 else new)
        graph.erase_node(user)
    graph.erase_node(node)
