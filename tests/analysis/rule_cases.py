"""One operator each with tensors of states and of state-free values, for the test of the rules: see `test_rules`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .graphs import BATCH

aten = torch.ops.aten
B = BATCH


@dataclass(frozen=True)
class Arg:
    """A tensor argument: of a state, of a state-free value, a boolean mask, or integers within bounds."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64

    bounds: tuple[int, int] = (0, 1)

    def draw(self) -> Tensor:
        if self.kind == "mask":
            return torch.rand(self.shape) < 0.5
        if self.kind == "index":
            return torch.randint(*self.bounds, self.shape)
        values = torch.randn(self.shape, dtype=torch.complex128 if self.dtype.is_complex else torch.float64)
        return (values + 0.3 * values.sgn()).to(self.dtype)


def S(*shape: int, dtype: torch.dtype = torch.float64) -> Arg:
    return Arg("state", shape, dtype)


def F(*shape: int, dtype: torch.dtype = torch.float64) -> Arg:
    return Arg("free", shape, dtype)


def J(*shape: int) -> Arg:
    """A state-free complex tensor times a real state."""
    return Arg("joined", shape, torch.complex128)


def M(*shape: int) -> Arg:
    return Arg("mask", shape)


def P(*shape: int, to: int, start: int = 0) -> Arg:
    """Positions from `start` to `to`, that one excluded."""
    return Arg("index", shape, torch.int64, (start, to))


class _Batch:
    """Where an operator takes sizes: the batch size."""


N = _Batch()


@dataclass(frozen=True)
class Case:
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __repr__(self) -> str:
        def text(x: Any) -> str:
            if isinstance(x, Arg):
                return x.kind[0] + "x".join(map(str, x.shape))
            if isinstance(x, (list, tuple)):
                return "[" + " ".join(map(text, x)) + "]"
            return "B" if x is N else str(x).replace("torch.", "")

        named = [f"{k}={text(v)}" for k, v in self.kwargs.items()]
        return f"{str(self.target).removeprefix('aten.')}({' '.join([*map(text, self.args), *named])})"


CASES: list[Case] = []


def case(target: Any, *args: Any, **kwargs: Any) -> None:
    CASES.append(Case(target, args, kwargs))


def both(target: Any, a: tuple[int, ...], b: tuple[int, ...], **kwargs: Any) -> None:
    """A binary operator with the state on the left, on the right, and on both sides."""
    for left, right in ((S, F), (F, S), (S, S)):
        case(target, left(*a), right(*b), **kwargs)


_PAIRS = [
    ((B, 3), (B, 3)),
    ((B, 3), (3,)),
    ((3,), (B, 3)),
    ((B, 3), ()),
    ((), (B, 3)),
    ((B, 1, 3), (4, 1)),
    ((1, 1), (B, 1)),
]
for shapes in _PAIRS:
    for op in (aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor):
        both(op, *shapes)
    both(aten.rsub.Tensor, *shapes)
    case(aten.div.Tensor, S(*shapes[0]), F(*shapes[1]))
both(aten.add.Tensor, (B, 3), (B, 3), alpha=-2)
both(aten.sub.Tensor, (B, 3), (3,), alpha=0.5)
both(aten.rsub.Tensor, (B, 3), (3,), alpha=3)
for op in (aten.add.Tensor, aten.mul.Tensor):
    case(op, S(B, 3, dtype=torch.complex128), F(3, dtype=torch.complex128))
    case(op, S(B, 3, dtype=torch.complex128), F(B, 3))
    case(op, S(B, 3), 2)
    case(op, S(B, 3), -0.5)
    case(op, S(B, 3, dtype=torch.complex128), 2j)
case(aten.mul.Tensor, S(B, 3), M(B, 1))
case(aten.mul.Tensor, M(3), S(B, 3))
case(aten.sub.Tensor, S(B, 3), 2)
case(aten.add.Scalar, S(B, 3), 2)
case(aten.add.Scalar, S(B, 3), 2, 3)
case(aten.sub.Scalar, S(B, 3), 2)
case(aten.sub.Scalar, S(B, 3), 2, 3)
case(aten.rsub.Scalar, S(B, 3), 1)
case(aten.rsub.Scalar, S(B, 3), 1, 2)
case(aten.mul.Scalar, S(B, 3), 0.25)
case(aten.mul.Scalar, S(B, 3), 0)
case(aten.div.Scalar, S(B, 3), 3)
case(aten.div.Tensor, S(B, 3), 4)
case(aten.div.Tensor, S(B, 3), 1)
case(aten.div.Tensor, S(B, 3, dtype=torch.complex128), F(3, dtype=torch.complex128))
case(aten.neg.default, S(B, 1))
case(aten.square.default, S(B, 3))
for exponent in (1, 2, 3, 2.0):
    case(aten.pow.Tensor_Scalar, S(B, 3), exponent)
case(aten.addcmul.default, S(B, 3), F(B, 3), F(3))
case(aten.addcmul.default, F(B, 3), S(B, 1), F(3), value=-2)
case(aten.addcmul.default, F(3), F(B, 1), S(B, 3), value=0.5)
case(aten.addcdiv.default, S(B, 3), F(B, 3), F(3))
case(aten.addcdiv.default, F(B, 3), S(B, 1), F(3), value=-2)
case(aten.lerp.Scalar, S(B, 3), F(B, 3), 0.25)
case(aten.lerp.Scalar, F(B, 3), S(B, 3), 0.25)
for first, second in ((S, F), (F, S), (S, S)):
    case(aten.lerp.Tensor, first(B, 3), second(B, 3), F(3))
    case(aten.lerp.Tensor, first(B, 3), second(3), F(B, 1))
case(aten.lerp.Tensor, F(B, 3), F(B, 3), S(B, 3))

for first, second in ((S, F), (F, S), (S, S)):
    case(aten.where.self, M(B, 3), first(B, 3), second(B, 3))
    case(aten.where.self, M(B, 1), first(B, 3), second(3))
    case(aten.where.self, M(3), first(B, 1), second())
case(aten.where.ScalarOther, M(B, 1), S(B, 3), 2.5)
case(aten.where.ScalarSelf, M(4, 1, 3), 2.5, S(B, 3))
case(aten.where.Scalar, M(B, 3), 2.5, -1.0)
case(aten.masked_fill.Scalar, S(B, 3), M(B, 1), 0)
case(aten.masked_fill.Scalar, S(B, 3), M(3), 1.5)
case(aten.masked_fill.Tensor, S(B, 3), M(B, 3), F())
case(aten.masked_fill.Tensor, F(B, 3), M(B, 3), S())

_MATRIX_SHAPES = [
    ((B, 3), (3, 4)),
    ((B, 3), (3,)),
    ((3,), (3, 4)),
    ((3,), (3,)),
    ((B, 1), (1, 3)),
    ((B, 3), (3, 1)),
    ((B, 2, 3), (3, 4)),
    ((B, 2, 3), (B, 3, 4)),
    ((B, 2, 3), (1, 3, 4)),
    ((2, 3), (B, 3, 4)),
    ((3,), (B, 3, 4)),
    ((B, 2, 3), (3,)),
    ((B, 1, 2, 3), (6, 3, 4)),
]
for shapes in _MATRIX_SHAPES:
    both(aten.matmul.default, *shapes)
for shapes in (((B, 3), (3, 4)), ((B, 1), (1, 3))):
    both(aten.mm.default, *shapes)
for shapes in (((B, 2, 3), (B, 3, 4)), ((B, 1, 3), (B, 3, 1))):
    both(aten.bmm.default, *shapes)
both(aten.mv.default, (4, 3), (3,))
both(aten.dot.default, (3,), (3,))
both(aten.outer.default, (B,), (3,))
both(aten.outer.default, (1,), (3,))
case(aten.linear.default, S(B, 3), F(4, 3))
case(aten.linear.default, S(B, 2, 3), F(4, 3), F(4))
case(aten.linear.default, S(3), F(4, 3), F(4))
case(aten.linear.default, S(B, 1), F(4, 1), None)
case(aten.linear.default, F(B, 3), S(4, 3), F(4))
case(aten.linear.default, F(B, 3), F(4, 3), S(4))
for position in range(3):

    def at(k: int, position: int = position) -> Callable[..., Arg]:
        return S if k == position else F

    case(aten.addmm.default, at(0)(B, 4), at(1)(B, 3), at(2)(3, 4))
    case(aten.addmm.default, at(0)(4), at(1)(B, 3), at(2)(3, 4), beta=0.5, alpha=-2)
    case(aten.baddbmm.default, at(0)(B, 2, 4), at(1)(B, 2, 3), at(2)(B, 3, 4))
    case(aten.baddbmm.default, at(0)(2, 1), at(1)(B, 2, 3), at(2)(B, 3, 4), beta=2, alpha=3)
    case(aten.addmv.default, at(0)(4), at(1)(4, 3), at(2)(3))
    case(aten.addmv.default, at(0)(4), at(1)(4, 3), at(2)(3), beta=-1, alpha=0.5)
    case(aten.addbmm.default, at(0)(2, 4), at(1)(6, 2, 3), at(2)(6, 3, 4))
    case(aten.addbmm.default, at(0)(2, 4), at(1)(6, 2, 3), at(2)(6, 3, 4), beta=2, alpha=-1)

_EINSUMS: list[tuple[str, list[tuple[int, ...]]]] = [
    ("bi,ij->bj", [(B, 3), (3, 4)]),
    ("bi,bj->bij", [(B, 3), (B, 4)]),
    ("bij,bj->bi", [(B, 3, 4), (B, 4)]),
    ("bi,bi->b", [(B, 3), (B, 3)]),
    ("bi,bi", [(B, 3), (B, 3)]),
    ("ij,jk", [(B, 3), (3, 4)]),
    ("ji,jk", [(3, B), (3, 4)]),
    ("bi,bj,bij->b", [(B, 3), (B, 4), (B, 3, 4)]),
    ("bij->bji", [(B, 3, 4)]),
    ("bij->b", [(B, 3, 4)]),
    ("bij->", [(B, 3, 4)]),
    ("i,j->ij", [(B,), (1,)]),
    ("bi,bi->bi", [(B, 1), (B, 3)]),
    ("b i, i j -> b j", [(B, 3), (3, 4)]),
]
for equation, operand_shapes in _EINSUMS:
    for position in range(len(operand_shapes)):
        operands = [S(*s) if k == position else F(*s) for k, s in enumerate(operand_shapes)]
        case(aten.einsum.default, equation, operands)

for op in (aten.sum.dim_IntList, aten.mean.dim):
    for dims in ([1], [-1], [2, 1], [-1, 1]):
        case(op, S(B, 3, 4), dims)
        case(op, S(B, 3, 4), dims, True)
    case(op, S(B, 1, 3), [1])
    case(op, S(B, 1, 3), [1], True)
    case(op, S(4, 3), None)
    case(op, S(4, 3), [])
case(aten.sum.dim_IntList, S(B, 3), [0])
case(aten.sum.dim_IntList, S(B, 3), [0], True)
case(aten.sum.default, S(B, 3))
case(aten.sum.default, S())
case(aten.sum.default, S(1, 1))

for op in (aten.reshape.default, aten.view.default, aten._unsafe_view.default):
    case(op, S(B, 12), [N, 3, 4])
    case(op, S(B, 3, 4), [N, 12])
    case(op, S(B, 3, 4), [N, 6, 2])
    case(op, S(B, 6, 4), [N, 2, 12])
    case(op, S(B, 12), [N, 1, 12, 1])
    case(op, S(B, 1, 12), [N, 12])
    case(op, S(B, 3, 4), [-1, 4])
    case(op, S(1), [])
    case(op, S(), [1, 1])
case(aten.flatten.using_ints, S(B, 3, 4), 1)
case(aten.flatten.using_ints, S(B, 3, 4))
case(aten.flatten.using_ints, S(B, 3, 4), -2, -1)
case(aten.flatten.using_ints, S())
case(aten.unflatten.int, S(B, 12), 1, [3, 4])
case(aten.unflatten.int, S(12, B), -2, [3, -1])
for dim in (0, 1, 2, -1, -2, -3):
    case(aten.unsqueeze.default, S(B, 3), dim)
case(aten.squeeze.default, S(B, 1, 3, 1))
case(aten.squeeze.dim, S(B, 1, 3), 1)
case(aten.squeeze.dim, S(B, 1, 3), -1)
case(aten.squeeze.dim, S(B, 1, 3), -2)
case(aten.squeeze.dims, S(B, 1, 3, 1), [1, -1])
case(aten.squeeze.dims, S(B, 1, 3, 1), [-1, -2])
case(aten.permute.default, S(B, 3, 4), [2, 0, 1])
case(aten.permute.default, S(B, 3, 4), [-1, -3, -2])
for op in (aten.transpose.int, aten.swapaxes.default):
    case(op, S(B, 3, 4), 1, 2)
    case(op, S(B, 3, 4), 0, -1)
    case(op, S(B, 3, 4), -2, -2)
case(aten.t.default, S(B, 3))
case(aten.t.default, S(3))
case(aten.numpy_T.default, S(B, 3, 4))
case(aten.numpy_T.default, S(3))
case(aten.mT.default, S(B, 3, 4))
case(aten.movedim.int, S(B, 3, 4), 0, 2)
case(aten.movedim.int, S(B, 3, 4), -1, 0)
case(aten.movedim.intlist, S(B, 3, 4), [0, 1], [-1, 0])
for op in (aten.expand.default, aten.broadcast_to.default):
    case(op, S(B, 1), [N, 3])
    case(op, S(3), [N, 3])
    case(op, S(1), [4, N, 3])
    case(op, S(), [N, 3])
case(aten.expand.default, S(B, 1), [-1, 3])
case(aten.expand_as.default, S(B, 1), F(4, B, 3))
case(aten.expand_as.default, S(), F(B, 3))
case(aten.clone.default, S(B, 3))
case(aten.clone.default, S(B, 3), memory_format=torch.contiguous_format)
case(aten.contiguous.default, S(B, 3))
case(aten.alias.default, S(B, 3))
_SINGLE = torch.float32
case(aten._to_copy.default, S(B, 3, dtype=_SINGLE), dtype=torch.float64)
case(aten._to_copy.default, S(B, 3), dtype=torch.complex128)
case(aten.to.dtype, S(B, 3, dtype=_SINGLE), torch.float64)
case(aten.to.device, S(B, 3, dtype=_SINGLE), torch.device("cpu"), torch.float64)
case(aten.to.dtype_layout, S(B, 3, dtype=_SINGLE), dtype=torch.float64)
case(aten.type_as.default, S(B, 3, dtype=_SINGLE), F(2))
for target in (aten.sum.default, aten.mean.default):
    case(target, S(4, 3, dtype=_SINGLE), dtype=torch.float64)
for target in (aten.sum.dim_IntList, aten.mean.dim, aten.cumsum.default):
    case(target, S(B, 3, dtype=_SINGLE), [1] if target is not aten.cumsum.default else 1, dtype=torch.float64)
for target in (aten.sum.dim_IntList, aten.mean.dim):
    case(target, S(), [-1])
    case(target, S(), [0], True)
    case(target, S(4, 1), None, True)
case(aten.zeros.default, [N, 3], dtype=torch.float64)
case(aten.zeros_like.default, S(B, 3))
case(aten.new_zeros.default, S(B, 3), [N, 1, 4])
case(aten.ones_like.default, S(B, 3))
case(aten.new_ones.default, S(B, 3), [4, 2])
case(aten.full_like.default, S(B, 3), 2.5)
case(aten.new_full.default, S(B, 3), [2, 4], -1.5)
case(aten.new_full.default, S(B, 3), [2, 4], 0)
_LONG = torch.int64
case(aten.full_like.default, S(B, 3), 2.5, dtype=_LONG)
case(aten.new_full.default, S(B, 3, dtype=_LONG), [2, 4], -1.5)
case(aten.masked_fill.Scalar, S(B, 3, dtype=_LONG), M(3), 1.5)
case(aten.masked_fill.Tensor, S(B, 3), M(3), F(dtype=_SINGLE))
case(aten.masked_fill.Tensor, S(B, 3, dtype=_LONG), M(3), F(dtype=_LONG))
case(aten.addcmul.default, S(B, 3, dtype=_LONG), F(3, dtype=_LONG), F(B, 3, dtype=_LONG), value=2)
case(aten.addmv.default, S(3, dtype=_LONG), F(3, 3, dtype=_LONG), F(3, dtype=_LONG), beta=-1, alpha=2)
case(aten.div.Tensor, S(B, 3, dtype=_LONG), F(B, 3))
case(aten.linear.default, S(B, 3), F(4, 3), bias=F(4))
case(aten.linear.default, F(B, 3), F(4, 3), bias=S(4))

for start, end, by in (
    (0, 3, 1),
    (1, 4, 1),
    (3, 6, 1),
    (-2, None, 1),
    (0, None, 2),
    (1, 99, 2),
    (2, 2, 1),
    (None, -1, 4),
):
    case(aten.slice.Tensor, S(B, 6), 1, start, end, by)
    for first, second in ((S, F), (F, S), (S, S)):
        count = len(range(6)[slice(start, end, by)])
        case(aten.slice_scatter.default, first(B, 6), second(B, count), 1, start, end, by)
case(aten.slice.Tensor, S(4, B))
case(aten.narrow.default, S(B, 6), -1, -4, 2)
case(aten.select.int, S(B, 6), 1, -2)
case(aten.select.int, S(B, 2, 3), -2, 0)
for first, second in ((S, F), (F, S), (S, S)):
    case(aten.select_scatter.default, first(B, 6), second(B), 1, -2)
    case(aten.select_scatter.default, first(B, 2, 3), second(B, 3), -2, 0)
    case(aten.index_add.default, first(B, 4), 1, P(6, to=4), second(B, 6))
    case(aten.index_add.default, first(B, 4, 3), -2, P(2, to=4), second(B, 2, 3), alpha=-2)
    case(aten.scatter_add.default, first(B, 4), 1, P(B, 6, to=4), second(B, 6))
    case(aten.scatter_add.default, first(B, 4, 3), -2, P(B, 2, 2, to=4), second(B, 6, 3))
case(aten.gather.default, S(B, 4), 1, P(B, 6, to=4))
case(aten.gather.default, S(B, 4, 3), -2, P(B, 2, 2, to=4))
case(aten.gather.default, S(B, 4), -1, P(B, 1, to=4))
case(aten.index_select.default, S(B, 4), 1, P(6, to=4))
case(aten.index_select.default, S(B, 4, 3), -2, P(1, to=4))
case(aten.index.Tensor, S(B, 4), [None, P(6, to=4, start=-4)])
case(aten.index.Tensor, S(B, 4, 3), [None, P(2, 6, to=4)])
case(aten.index.Tensor, S(4, B), [P(3, to=4)])
case(aten.index.Tensor, S(B, 4, 3), [None, P(2, 1, to=4), P(6, to=3, start=-3)])
case(aten.index.Tensor, S(4, B, 3), [P(2, to=4), None, P(2, to=3)])
case(aten.index.Tensor, S(B, 4), [None, P(to=4)])
case(aten.flip.default, S(B, 6), [1])
case(aten.flip.default, S(B, 2, 3), [-1, 1])
for shift in (1, -2, 3, 7):
    case(aten.roll.default, S(B, 6), [shift], [1])
case(aten.roll.default, S(B, 4, 3), [2, 1], [1, -1])
case(aten.constant_pad_nd.default, S(B, 6), [2, 0])
case(aten.constant_pad_nd.default, S(4, 4, 3), [1, 2, -1, 2], 0.0)
for mode in ("constant", "circular", "replicate", "reflect"):
    case(aten.pad.default, S(B, 2, 4), [2, 1], mode)
case(aten.pad.default, S(B, 2, 3, 4), [1, 1, 2, 0], "circular")
case(aten.repeat_interleave.self_int, S(B, 3), 2, 1)
case(aten.repeat_interleave.self_int, S(B, 3, 4), 2, -2)
case(aten.repeat.default, S(B, 3), [2, 1, 4])
for parts in ([S(B, 3), F(B, 3), S(B, 6)], [F(B, 1), S(B, 1)], [S(B, 4)]):
    case(aten.cat.default, parts, -1)
    case(aten.stack.default, [S(B, 3), F(B, 3), S(B, 3)][: len(parts)], len(parts) - 1)
case(aten.conv1d.default, S(B, 4, 6), F(3, 4, 2), F(3))
case(aten.conv1d.default, S(4, 6), F(3, 4, 3), None, [2], [1], [2])
case(aten.conv1d.default, F(B, 4, 6), S(3, 4, 2), S(3))
case(aten.conv1d.default, S(B, 4, 6), F(4, 2, 3), None, [1], [2], [1], 2)
case(aten.conv1d.padding, S(B, 4, 6), F(4, 1, 4), None, [1], "same", [1], 4)
case(aten.conv1d.padding, S(B, 4, 6), F(3, 4, 3), None, [1], "valid")
case(aten.conv2d.default, S(B, 2, 4, 3), F(3, 2, 3, 2), F(3), [2, 1], [1, 0])
case(aten.conv2d.padding, S(B, 2, 4, 3), F(2, 1, 3, 3), None, [1, 1], "same", [1, 1], 2)
case(aten.conv3d.default, S(B, 1, 2, 3, 4), F(2, 1, 2, 2, 3), None, [1, 1, 1], [0, 1, 0])
case(aten.conv3d.padding, S(B, 1, 2, 3, 4), F(2, 1, 1, 3, 3), None, [1, 1, 1], "same")
case(aten.convolution.default, S(B, 4, 6), F(3, 4, 2), None, [1], [1], [1], False, [0], 1)

_COMPLEX = torch.complex128
case(aten.mean.default, S(4, 3))
case(aten.mean.default, S())
for dim, size, by in ((1, 2, 2), (1, 3, 1), (-1, 6, 1), (0, 1, 3)):
    case(aten.unfold.default, S(4, 6), dim, size, by)
case(aten.unfold.default, S(B, 6, 2), 1, 2, 3)
case(aten.convolution.default, S(B, 4, 6), F(4, 3, 2), F(3), [1], [0], [1], True, [0], 1)
case(aten.convolution.default, S(B, 4, 6), F(4, 2, 3), None, [2], [1], [2], True, [1], 2)
case(aten.convolution.default, S(B, 2, 3, 4), F(2, 1, 2, 3), None, [2, 1], [0, 1], [1, 1], True, [0, 0], 1)
for padding in (0, 1):
    case(aten.avg_pool1d.default, S(B, 2, 6), [3], [2], [padding])
    case(aten.avg_pool2d.default, S(B, 2, 4, 6), [3, 2], [1, 2], [padding, 0])
case(aten.avg_pool1d.default, S(2, 6), [2])
case(aten.avg_pool2d.default, S(B, 2, 4, 6), [2, 2], [], [0, 0], False, True, 3)
case(aten.avg_pool3d.default, S(B, 2, 4, 6, 2), [2, 3, 2])
case(aten.real.default, S(B, 3))
case(aten.view_as_complex.default, S(B, 3, 2))
case(aten.view_as_complex_copy.default, S(4, 2))
case(aten.complex.default, S(B, 3), F(3))
case(aten.complex.default, F(B, 3), S(B, 3))
for dim in (-1, 0):
    case(aten.cumsum.default, S(4, 3), dim)
case(aten.cumsum.default, S(B, 1), 1)
case(aten.cumsum.default, S(), 0)
for diagonal in (-4, -1, 0, 1, 3):
    case(aten.tril.default, S(B, 4, 3), diagonal)
    case(aten.triu.default, S(B, 3, 4), diagonal)
    case(aten.diagonal.default, S(B, 4, 6), diagonal, 1, 2)
    case(aten.diag_embed.default, S(B, 3), diagonal)
case(aten.diagonal.default, S(3, B, 4), 0, -1, 0)
case(aten.diagonal_copy.default, S(3, 4))
case(aten.diag_embed.default, S(B, 3), 0, 0, -1)
case(aten.diag_embed.default, S(2, 3), -1, 2, 1)
case(aten.trace.default, S(3, 4))
case(aten.linalg_solve.default, F(3, 3), S(3))
case(aten.linalg_solve.default, F(3, 3), S(3, 2))
case(aten.linalg_solve.default, F(2, 3, 3), S(2, 3))
case(aten.linalg_solve.default, F(3, 3), S(B, 3, 2))
case(aten.linalg_solve.default, F(3, 3), S(B, 2, 3), left=False)
for points in (None, 3, 6, 5, 8):
    for norm in (None, "ortho", "forward"):
        case(aten.fft_rfft.default, S(B, 6), points, -1, norm)
        case(aten.fft_fft.default, S(6, 4), points, 0, norm)
        case(aten.fft_ifft.default, S(B, 6), points, 1, norm)
        case(aten.fft_irfft.default, S(B, 4), points, 1, norm)
        case(aten.fft_hfft.default, S(B, 4), points, 1, norm)
        case(aten.fft_ihfft.default, S(B, 6), points, 1, norm)
case(aten.fft_fft.default, S(B, 1))
case(aten.fft_rfft.default, S(3, 2, 6), dim=1)
for target in (aten.fft_fft2, aten.fft_ifft2, aten.fft_rfft2, aten.fft_irfft2):
    case(target.default, S(2, 4, 3))
    case(target.default, S(2, 4, 3), [6, 2], [1, -1], "ortho")
for target in (aten.fft_fftn, aten.fft_ifftn, aten.fft_rfftn, aten.fft_irfftn):
    case(target.default, S(2, 4, 3))
    case(target.default, S(2, 4, 3), [6, 2])
    case(target.default, S(2, 4, 3), [6, -1], [2, 1], "forward")
for division in (0, 1, 2):
    case(aten._fft_r2c.default, S(3, 4, 6), [1, 2], division, True)
    case(aten._fft_r2c.default, S(3, 4, 6), [2, 1], division, False)
case(aten.fft_fftshift.default, S(2, 3))
case(aten.fft_ifftshift.default, S(4, 3), [1])

# What takes complex numbers has them from real states.
for shape in ((B, 3), (2, 3, 4)):
    for target in (aten.real, aten.imag, aten._conj, aten.conj, aten.conj_physical, aten._conj_physical):
        case(target.default, J(*shape))
    case(aten.view_as_real.default, J(*shape))
    case(aten.view_as_real_copy.default, J(*shape))
    case(aten.fft_irfft.default, J(*shape), 5)
    case(aten.fft_hfft.default, J(*shape), None, 1)
    case(aten._fft_c2c.default, J(*shape), [1], 1, True)
    case(aten._fft_c2c.default, J(*shape), [1], 2, False)
for last in (4, 7):
    case(aten._fft_c2r.default, J(2, 4, 4), [1, 2], 1, last)
    case(aten._fft_c2r.default, J(3, 4), [1], 0, last)
case(aten.resolve_conj.default, S(B, 3, dtype=_COMPLEX))
case(aten.resolve_neg.default, S(B, 3, dtype=_COMPLEX))
case(aten.conj.default, S(B, 3))
case(aten.conj_physical.default, S(B, 3))
case(aten._conj_physical.default, S(B, 3))
