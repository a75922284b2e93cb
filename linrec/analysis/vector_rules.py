"""One vectorisation rule per operator that is not elementwise: along named dimensions, on trailing dimensions, or of
its own. What is missing here is found by `vectorize.by_vmap`; a rule exists where it gives a plainer graph or a faster
operator."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from linrec.analysis.vectorize import VECTOR_RULES, NotVectorisable, Steps, Vectorizer, nodes_of, steps_in, vector_rule
from linrec.ir import timeaxis
from linrec.ir.nodes import emit, value

aten = torch.ops.aten


def _natural(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Operators that act on trailing dimensions of their first argument, or keep its shape."""
    rest = steps_in((args[1:], kwargs))
    if not isinstance(args[0], Steps) or not args[0].timed or any(s.timed for s in rest):
        raise NotVectorisable(str(node.target))
    return v.emit(node.target, tuple(nodes_of(args)), node, nodes_of(kwargs))


for _target in (
    aten.layer_norm.default,
    aten.native_layer_norm.default,
    aten.rms_norm.default,
    aten.tril.default,
    aten.triu.default,
    aten.view_as_real.default,
    aten.view_as_complex.default,
    aten.real.default,
    aten.imag.default,
    aten.conj.default,
    aten._conj.default,
    aten.resolve_conj.default,
    aten.resolve_neg.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.detach.default,
    aten.clone.default,
    aten.zeros_like.default,
    aten.ones_like.default,
    aten.full_like.default,
    aten.linalg_inv.default,
    aten.mT.default,
    aten.one_hot.default,
):
    VECTOR_RULES[_target] = _natural

FOURIER = (
    "fft_fft",
    "fft_ifft",
    "fft_rfft",
    "fft_irfft",
    "fft_hfft",
    "fft_ihfft",
    "fft_fft2",
    "fft_ifft2",
    "fft_rfft2",
    "fft_irfft2",
    "fft_fftn",
    "fft_ifftn",
    "fft_rfftn",
    "fft_irfftn",
)

_DIMS = {
    aten.sum.dim_IntList: "dim",
    aten.mean.dim: "dim",
    aten.amax.default: "dim",
    aten.amin.default: "dim",
    aten.max.dim: "dim",
    aten.min.dim: "dim",
    aten.argmax.default: "dim",
    aten.argmin.default: "dim",
    aten.prod.dim_int: "dim",
    aten.var.correction: "dim",
    aten.std.correction: "dim",
    aten.var.dim: "dim",
    aten.std.dim: "dim",
    aten.norm.ScalarOpt_dim: "dim",
    aten.linalg_vector_norm.default: "dim",
    aten.logsumexp.default: "dim",
    aten.all.dim: "dim",
    aten.any.dim: "dim",
    aten.softmax.int: "dim",
    aten._softmax.default: "dim",
    aten.log_softmax.int: "dim",
    aten._log_softmax.default: "dim",
    aten.cumsum.default: "dim",
    aten.cumprod.default: "dim",
    aten.logcumsumexp.default: "dim",
    aten.flip.default: "dims",
    aten.roll.default: "dims",
    aten.index_select.default: "dim",
    aten.select.int: "dim",
    aten.slice.Tensor: "dim",
    aten.narrow.default: "dim",
    aten.squeeze.dim: "dim",
    aten.squeeze.dims: "dim",
    aten.unbind.int: "dim",
    aten.split.Tensor: "dim",
    aten.split_with_sizes.default: "dim",
    aten.chunk.default: "dim",
    aten.glu.default: "dim",
    aten.topk.default: "dim",
    aten.sort.default: "dim",
    aten.repeat_interleave.self_int: "dim",
    aten.fft_fftshift.default: "dim",
    aten.fft_ifftshift.default: "dim",
}


def along(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Operators along named dimensions of one tensor: shift them by one."""
    first = args[0]
    if not isinstance(first, Steps) or any(s.timed for s in steps_in((args[1:], kwargs))):
        raise NotVectorisable(str(node.target))
    if first.rank == 0:
        return _along_nothing(v, node, *args, **kwargs)
    given, named = _shifted(node, *args, **kwargs)
    return v.emit(node.target, given, node, named)


def _shifted(node: fx.Node, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments for all steps of an operator along named dimensions, which move by one."""
    first = args[0]
    name = _DIMS[node.target]
    schema = node.target._schema.arguments
    position = [a.name for a in schema].index(name)
    values = {a.name: a.default_value for a in schema if a.has_default_value()}
    values.update({a.name: x for a, x in zip(schema, args, strict=False)})
    values.update(kwargs)
    dims = values[name]
    if dims is None or dims == []:
        if node.target is aten.repeat_interleave.self_int or node.target is aten.roll.default:
            raise NotVectorisable(f"{node.target} without a dimension")
        # Of a Fourier transform, sizes without dimensions are those of the last ones.
        count = len(values["s"]) if values.get("s") is not None else first.rank
        shifted: Any = list(range(first.rank - count + 1, first.rank + 1))
    elif isinstance(dims, int):
        shifted = dims % first.rank + 1
    else:
        shifted = [d % first.rank + 1 for d in dims]
    if node.target in (aten.argmax.default, aten.argmin.default) and dims is None:
        raise NotVectorisable("argmax over all elements")
    full = [nodes_of(values[a.name]) for a in schema[: max(position + 1, len(args))]]
    full[position] = shifted
    return tuple(full), nodes_of({k: x for k, x in kwargs.items() if k != name})


_KEEP_SCALARS = frozenset(
    (
        aten.softmax.int,
        aten._softmax.default,
        aten.log_softmax.int,
        aten._log_softmax.default,
        aten.cumsum.default,
        aten.cumprod.default,
        aten.logcumsumexp.default,
    )
)


def _along_nothing(v: Vectorizer, node: fx.Node, x: Steps, *args: Any, **kwargs: Any) -> fx.Node:
    """A scalar has one dimension of size 1 to such operators."""
    if not isinstance(value(node), torch.Tensor) or node.target not in _KEEP_SCALARS:
        raise NotVectorisable(str(node.target))
    row = v.emit(aten.unsqueeze.default, (x.node, 1), node)
    out = v.emit(node.target, (row, 1, *args[1:]), node, kwargs)
    return v.emit(aten.squeeze.dim, (out, 1), node)


for _target in _DIMS:
    VECTOR_RULES[_target] = along

_DIMS |= {getattr(aten, name).default: "dim" for name in FOURIER}

_DIMS |= {getattr(aten, name).default: "dim" for name in FOURIER}


@vector_rule(*(getattr(aten, name).default for name in FOURIER))
def _fourier(v: Vectorizer, node: fx.Node, x: Steps, *args: Any, **kwargs: Any) -> fx.Node:
    """The shape of the result is that of a step: torch's own rule for it fails on symbolic sizes."""
    given, named = _shifted(node, x, *args, **kwargs)
    with value(x.node).fake_mode:
        val = value(x.node).new_empty((value(x.node).shape[0], *value(node).shape), dtype=value(node).dtype)
    return emit(v.graph, v.before, node.target, given, node, named, val)


@vector_rule(aten.matrix_exp.default, aten.linalg_matrix_exp.default)
def _matrix_exp(v: Vectorizer, node: fx.Node, x: Steps) -> fx.Node:
    """Of matrices that lie in order: torch's own fails on others where there are several batch dimensions."""
    return v.emit(node.target, (v.emit(aten.contiguous.default, (x.node,), node),), node)


@vector_rule(aten.sum.default, aten.mean.default)
def _over_all(v: Vectorizer, node: fx.Node, x: Steps, **kwargs: Any) -> fx.Node:
    target = aten.sum.dim_IntList if node.target is aten.sum.default else aten.mean.dim
    if x.rank == 0:
        raise NotVectorisable("nothing to add up")
    return v.emit(target, (x.node, list(range(1, x.rank + 1))), node, nodes_of(kwargs))


_OF_ALL = {
    aten.max.default: aten.amax.default,
    aten.min.default: aten.amin.default,
    aten.prod.default: aten.prod.dim_int,
    aten.all.default: aten.all.dim,
    aten.any.default: aten.any.dim,
}


@vector_rule(*_OF_ALL)
def _of_all(v: Vectorizer, node: fx.Node, x: Steps, **kwargs: Any) -> fx.Node:
    """Of all elements: of those of each step, in a row."""
    row = v.emit(aten.reshape.default, (x.node, [v.length, -1]), node)
    return v.emit(_OF_ALL[node.target], (row, 1), node, nodes_of(kwargs))


@vector_rule(operator.getitem)
def _getitem(v: Vectorizer, node: fx.Node, x: Steps, index: int) -> fx.Node:
    return v.emit(operator.getitem, (x.node, index), node)


@vector_rule(aten.lerp.Scalar, aten.lerp.Tensor)
def _lerp(v: Vectorizer, node: fx.Node, start: Steps, end: Steps, weight: Any) -> fx.Node:
    """As a sum: torch's own does not broadcast symbolic sizes."""
    rank = value(node).dim()
    a, b = v.aligned(start, rank), v.aligned(end, rank)
    way = v.emit(aten.sub.Tensor, (b, a), node)
    part = v.emit(aten.mul.Tensor, (way, v.aligned(weight, rank) if isinstance(weight, Steps) else weight), node)
    return v.emit(aten.add.Tensor, (a, part), node)


@vector_rule(aten.masked_fill.Tensor)
def _masked_fill(v: Vectorizer, node: fx.Node, x: Steps, mask: Steps, fill: Steps) -> fx.Node:
    """As a choice: masked_fill takes but one value for all steps."""
    rank, dtype = value(node).dim(), value(node).dtype
    new = v.emit(aten._to_copy.default, (v.aligned(fill, rank),), node, {"dtype": dtype})
    return v.emit(aten.where.self, (v.aligned(mask, rank), new, v.aligned(x, rank)), node)


@vector_rule(aten.unsqueeze.default)
def _unsqueeze(v: Vectorizer, node: fx.Node, x: Steps, dim: int) -> fx.Node:
    return v.emit(aten.unsqueeze.default, (x.node, dim % (x.rank + 1) + 1), node)


@vector_rule(aten.squeeze.default)
def _squeeze(v: Vectorizer, node: fx.Node, x: Steps) -> fx.Node:
    ones = [d + 1 for d, s in enumerate(value(x.step).shape) if isinstance(s, int) and s == 1]
    return v.emit(aten.squeeze.dims, (x.node, ones), node)


@vector_rule(aten.transpose.int)
def _transpose(v: Vectorizer, node: fx.Node, x: Steps, i: int, j: int) -> fx.Node:
    return v.emit(aten.transpose.int, (x.node, i % x.rank + 1, j % x.rank + 1), node)


@vector_rule(aten.t.default, aten.numpy_T.default)
def _t(v: Vectorizer, node: fx.Node, x: Steps) -> fx.Node:
    if x.rank < 2:
        return x.node
    return v.emit(aten.permute.default, (x.node, [0, *range(x.rank, 0, -1)]), node)


@vector_rule(aten.permute.default)
def _permute(v: Vectorizer, node: fx.Node, x: Steps, dims: list[int]) -> fx.Node:
    return v.emit(aten.permute.default, (x.node, [0, *(d % x.rank + 1 for d in dims)]), node)


@vector_rule(aten.movedim.int, aten.movedim.intlist)
def _movedim(v: Vectorizer, node: fx.Node, x: Steps, source: Any, destination: Any) -> fx.Node:
    def shift(d: Any) -> Any:
        return d % x.rank + 1 if isinstance(d, int) else [e % x.rank + 1 for e in d]

    return v.emit(node.target, (x.node, shift(source), shift(destination)), node)


@vector_rule(aten.reshape.default, aten.view.default, aten._unsafe_view.default)
def _reshape(v: Vectorizer, node: fx.Node, x: Steps, shape: list[Any]) -> fx.Node:
    return v.emit(aten.reshape.default, (x.node, [v.length, *nodes_of(list(shape))]), node)


@vector_rule(aten.flatten.using_ints)
def _flatten(v: Vectorizer, node: fx.Node, x: Steps, start: int = 0, end: int = -1) -> fx.Node:
    if x.rank == 0:
        return v.emit(aten.unsqueeze.default, (x.node, 1), node)
    return v.emit(aten.flatten.using_ints, (x.node, start % x.rank + 1, end % x.rank + 1), node)


@vector_rule(aten.unflatten.int)
def _unflatten(v: Vectorizer, node: fx.Node, x: Steps, dim: int, sizes: Any) -> fx.Node:
    return v.emit(aten.unflatten.int, (x.node, dim % x.rank + 1, nodes_of(list(sizes))), node)


@vector_rule(aten.expand.default, aten.broadcast_to.default)
def _expand(v: Vectorizer, node: fx.Node, x: Steps, shape: list[Any], **_: Any) -> fx.Node:
    return v.emit(aten.expand.default, (v.aligned(x, len(shape)), [-1, *nodes_of(list(shape))]), node)


@vector_rule(aten.repeat.default)
def _repeat(v: Vectorizer, node: fx.Node, x: Steps, repeats: list[Any]) -> fx.Node:
    return v.emit(aten.repeat.default, (v.aligned(x, len(repeats)), [1, *nodes_of(list(repeats))]), node)


@vector_rule(aten.cat.default, aten.stack.default)
def _cat(v: Vectorizer, node: fx.Node, tensors: list[Steps], dim: int = 0) -> fx.Node:
    rank = tensors[0].rank + (node.target is aten.stack.default)
    if any(s.rank != tensors[0].rank for s in tensors):
        raise NotVectorisable("cat of tensors of different rank")
    return v.emit(node.target, ([v.expand(s) for s in tensors], dim % rank + 1), node)


@vector_rule(aten.slice_scatter.default, aten.select_scatter.default)
def _scatter(v: Vectorizer, node: fx.Node, x: Steps, part: Steps, dim: int = 0, *place: Any) -> fx.Node:
    dim = dim % x.rank + 1
    return v.emit(node.target, (v.expand(x), v.expand(part), dim, *nodes_of(place)), node)


@vector_rule(aten.new_zeros.default, aten.new_ones.default, aten.new_full.default, aten.new_empty.default)
def _new(v: Vectorizer, node: fx.Node, x: Steps, shape: list[Any], *args: Any, **kwargs: Any) -> fx.Node:
    new = v.emit(node.target, (x.node, nodes_of(list(shape)), *nodes_of(args)), node, nodes_of(kwargs))
    return v.expand(Steps(new, False, node))


@vector_rule(aten.linear.default)
def _linear(v: Vectorizer, node: fx.Node, x: Steps, weight: Steps, bias: Steps | None = None) -> fx.Node:
    if weight.timed or (bias is not None and bias.timed):
        raise NotVectorisable("linear with weights that change over time")
    target = timeaxis.linear if x.timed else aten.linear.default
    return v.emit(target, (x.node, weight.node, *([bias.node] if bias else [])), node)


def _matmul_of(v: Vectorizer, node: fx.Node, a: Steps, b: Steps) -> fx.Node:
    row, column = a.rank == 1, b.rank == 1

    def matrix(s: Steps, vector_dim: int, rank: int) -> fx.Node:
        new = s.node
        lead = 1 if s.timed else 0
        if s.rank == 1:
            new = v.emit(aten.unsqueeze.default, (new, lead if vector_dim == 0 else lead + 1), s.step)
        if s.timed:
            for _ in range(rank - max(s.rank, 2)):
                new = v.emit(aten.unsqueeze.default, (new, 1), s.step)
        return new

    rank = max(a.rank, b.rank, 2)
    if column and not b.timed:
        out = v.emit(aten.matmul.default, (matrix(a, 0, rank), b.node), node)
        return v.emit(aten.squeeze.dim, (out, -1), node) if row else out
    out = v.emit(aten.matmul.default, (matrix(a, 0, rank), matrix(b, 1, rank)), node)
    if column:
        out = v.emit(aten.squeeze.dim, (out, -1), node)
    if row:
        out = v.emit(aten.squeeze.dim, (out, -1 if column else -2), node)
    return out


@vector_rule(aten.matmul.default, aten.mm.default, aten.bmm.default, aten.mv.default, aten.dot.default)
def _matmul(v: Vectorizer, node: fx.Node, a: Steps, b: Steps) -> fx.Node:
    return _matmul_of(v, node, a, b)


@vector_rule(aten.addmm.default, aten.baddbmm.default, aten.addmv.default)
def _addmm(v: Vectorizer, node: fx.Node, c: Steps, a: Steps, b: Steps, beta: Any = 1, alpha: Any = 1) -> fx.Node:
    if a.timed or b.timed:
        product = _matmul_of(v, node, a, b)
    else:
        product = v.expand(Steps(v.emit(aten.matmul.default, (a.node, b.node), node), False, node))
    if alpha != 1:
        product = v.emit(aten.mul.Tensor, (product, alpha), node)
    bias = v.aligned(c, value(node).dim())
    if beta != 1:
        bias = v.emit(aten.mul.Tensor, (bias, beta), node)
    return v.emit(aten.add.Tensor, (product, bias), node)


@vector_rule(aten.outer.default)
def _outer(v: Vectorizer, node: fx.Node, a: Steps, b: Steps) -> fx.Node:
    left = v.emit(aten.unsqueeze.default, (a.node, -1), node)
    right = v.emit(aten.unsqueeze.default, (b.node, -2), node)
    return v.emit(aten.mul.Tensor, (left, right), node)


@vector_rule(aten.einsum.default)
def _einsum(v: Vectorizer, node: fx.Node, equation: str, operands: list[Steps], path: Any = None) -> fx.Node:
    equation = equation.replace(" ", "")
    left, arrow, right = equation.partition("->")
    if "." in equation:
        raise NotVectorisable("an einsum with an ellipsis")
    if not arrow:
        letters = [c for c in left if c != ","]
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    time = next(c for c in "tTzZyYxXwWvVuU" if c not in equation)
    inputs = [(time if s.timed else "") + labels for s, labels in zip(operands, left.split(","), strict=True)]
    return v.emit(aten.einsum.default, (",".join(inputs) + "->" + time + right, [s.node for s in operands]), node)


@vector_rule(aten.constant_pad_nd.default, aten.pad.default)
def _pad(v: Vectorizer, node: fx.Node, x: Steps, padding: list[int], *args: Any, **kwargs: Any) -> fx.Node:
    mode = args[0] if args and isinstance(args[0], str) else kwargs.get("mode", "constant")
    if mode == "constant":
        return v.emit(node.target, (x.node, padding, *args), node, kwargs)
    if x.rank != len(padding) // 2 + 2:
        raise NotVectorisable(f"{mode} padding without a batch dimension")
    return _batched(v, node, x, padding, *args, **kwargs)


@vector_rule(aten.embedding.default)
def _embedding(v: Vectorizer, node: fx.Node, weight: Steps, indices: Steps, *args: Any, **kwargs: Any) -> fx.Node:
    if weight.timed:
        raise NotVectorisable("an embedding table that changes over time")
    return v.emit(aten.embedding.default, (weight.node, indices.node, *args), node, kwargs)


@vector_rule(
    aten.linalg_solve.default,
    aten.linalg_solve_triangular.default,
    aten.cholesky_solve.default,
    aten.linalg_cholesky.default,
    aten.linalg_pinv.default,
    aten.linalg_det.default,
)
def _matrices(v: Vectorizer, node: fx.Node, *args: Any, **kwargs: Any) -> fx.Node:
    """Operators on batches of matrices; a right-hand side that is a batch of vectors becomes one of columns."""
    tensors = steps_in(args)
    columns = node.target is aten.linalg_solve.default and _is_batch_of_vectors(*tensors)
    rank = max(s.rank + (columns and s is tensors[1]) for s in tensors)

    def place(s: Any) -> Any:
        if not isinstance(s, Steps):
            return s
        full, own = v.expand(s), s.rank
        if columns and s is tensors[1]:
            full, own = v.emit(aten.unsqueeze.default, (full, -1), node), own + 1
        for _ in range(rank - own):
            full = v.emit(aten.unsqueeze.default, (full, 1), node)
        return full

    result = v.emit(node.target, tuple(place(a) for a in args), node, nodes_of(kwargs))
    return v.emit(aten.squeeze.dim, (result, -1), node) if columns else result


def _is_batch_of_vectors(matrix: Steps, right: Steps) -> bool:
    """How `torch.linalg.solve` reads its second argument."""
    rows, own = value(matrix.step).shape[:-1], value(right.step).shape
    return right.rank == 1 or (right.rank == matrix.rank - 1 and own == rows)


@vector_rule(aten.gather.default, aten.scatter.src)
def _gather(v: Vectorizer, node: fx.Node, x: Steps, dim: int, index: Steps, *rest: Any) -> fx.Node:
    others = [v.expand(s) if isinstance(s, Steps) else s for s in rest]
    return v.emit(node.target, (v.expand(x), dim % x.rank + 1, v.expand(index), *others), node)


@vector_rule(
    aten.group_norm.default,
    aten.native_group_norm.default,
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
    aten.convolution.default,
    aten.instance_norm.default,
    aten.max_pool1d.default,
    aten.avg_pool1d.default,
    aten.avg_pool2d.default,
)
def _batched(v: Vectorizer, node: fx.Node, x: Steps, *args: Any, **kwargs: Any) -> fx.Node:
    """Operators with a batch dimension in front: time is one more batch dimension."""
    unbatched = node.target in _SPATIAL and x.rank == _SPATIAL[node.target] + 1
    if not x.timed or any(s.timed for s in steps_in((args, kwargs))) or not isinstance(value(node), torch.Tensor):
        raise NotVectorisable(str(node.target))
    if unbatched:
        return v.emit(node.target, (x.node, *nodes_of(args)), node, nodes_of(kwargs))
    flat = v.emit(aten.flatten.using_ints, (x.node, 0, 1), node)
    out = v.emit(node.target, (flat, *nodes_of(args)), node, nodes_of(kwargs))
    return v.emit(aten.unflatten.int, (out, 0, [v.length, -1]), node)


_SPATIAL = {
    aten.conv1d.default: 1,
    aten.conv1d.padding: 1,
    aten.conv_transpose1d.default: 1,
    aten.conv2d.default: 2,
    aten.conv2d.padding: 2,
    aten.conv_transpose2d.input: 2,
    aten.conv3d.default: 3,
}
