"""One operator each, with shapes, for the test of vectorisation over time: see `test_vectorize`."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .graphs import BATCH as B
from .graphs import aten


@dataclass(frozen=True)
class Arg:
    """A tensor argument of one step. `fixed`: the rule may refuse it where it changes over time."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float64
    high: int = 0
    fixed: bool = False
    like: str = ""

    def draw(self, *lead: int) -> Tensor:
        shape = (*lead, *self.shape)
        if self.dtype is torch.bool:
            return torch.rand(shape) < 0.5
        if self.high:
            return torch.randint(self.high, shape).to(self.dtype)
        if not (self.dtype.is_floating_point or self.dtype.is_complex):
            return (2 * torch.randint(-2, 2, shape) + 1).to(self.dtype)  # never 0, to divide by
        values = torch.randn(shape, dtype=torch.complex128 if self.dtype.is_complex else torch.float64).to(self.dtype)
        if self.like == "square":  # well conditioned, and positive definite
            values = values @ values.mT + torch.eye(self.shape[-1], dtype=self.dtype)
        if self.like == "share":
            values = values.sigmoid()
        if self.like == "positive":
            values = values.abs() + 0.5
        return values


class _Batch:
    """Where an operator takes sizes: the batch size."""

    def __repr__(self) -> str:
        return "B"


N = _Batch()


@dataclass(frozen=True)
class Case:
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    refused: bool = False
    symbolic: bool = True
    pick: int | None = None
    """For an operator of several results that only its reader takes apart: which."""

    def __repr__(self) -> str:
        def text(x: Any) -> str:
            if isinstance(x, Arg):
                kind = "" if x.dtype is torch.float64 else str(x.dtype).removeprefix("torch.")
                return kind + ("x".join(map(str, x.shape)) or "scalar")
            if isinstance(x, (list, tuple)):
                return "[" + " ".join(map(text, x)) + "]"
            return str(x).removeprefix("torch.")

        named = [f"{k}={text(v)}" for k, v in self.kwargs.items()]
        name = str(getattr(self.target, "__name__", self.target)).removeprefix("aten.")
        return f"{name}({' '.join([*map(text, self.args), *named])})"


CASES: list[Case] = []


def case(target: Any, *args: Any, refused: bool = False, symbolic: bool = True, **kwargs: Any) -> None:
    CASES.append(Case(target, args, kwargs, refused, symbolic))


def V(*shape: int, dtype: torch.dtype = torch.float64, **options: Any) -> Arg:
    """A tensor that changes over time, or not: both are tried."""
    return Arg(shape, dtype, **options)


def W(*shape: int, dtype: torch.dtype = torch.float64, **options: Any) -> Arg:
    """A tensor that the rule may take to be the same in every step (a weight)."""
    return Arg(shape, dtype, fixed=True, **options)


_BOOL, _LONG, _SINGLE, _HALF, _COMPLEX = torch.bool, torch.int64, torch.float32, torch.bfloat16, torch.complex128

# Elementwise, over broadcast shapes of every combination of ranks.
for shapes in [
    ((B, 3), (B, 3)),
    ((B, 3), (3,)),
    ((3,), (B, 3)),
    ((B, 3), ()),
    ((), (B, 3)),
    ((), ()),
    ((B, 4, 3), (4, 1)),
    ((4, 1), (B, 1, 3)),
    ((1,), (B, 3)),
    ((1, 1), (1,)),
]:
    case(aten.add.Tensor, V(*shapes[0]), V(*shapes[1]))
    case(aten.maximum.default, V(*shapes[0]), V(*shapes[1]))
case(aten.sub.Tensor, V(B, 3), V(3), alpha=2)
case(aten.mul.Tensor, V(B, 3), 2.5)
case(aten.rsub.Scalar, V(B, 3), 1)
case(aten.sigmoid.default, V(B, 3))
case(aten.silu.default, V(3))
case(aten.softplus.default, V(B, 3), 2, 10)
case(aten.gelu.default, V(B, 3), approximate="tanh")
case(aten.clamp.default, V(B, 3), -0.5, None)
case(aten.clamp.Tensor, V(B, 3), V(3), None)
case(aten.clamp.Tensor, V(B, 3), None, V())
case(aten.pow.Tensor_Scalar, V(B, 3), 2)
case(aten.pow.Scalar, 0.5, V(B, 3))
case(aten.pow.Tensor_Tensor, V(B, 3, high=3), V(3, high=3))
case(aten.where.self, V(B, 3, dtype=_BOOL), V(3), V(B, 1))
case(aten.where.self, V(dtype=_BOOL), V(B, 3), V())
case(aten.where.self, V(3, dtype=_BOOL), V(B, 1), V(4, 1, 1))
case(aten.where.ScalarOther, V(B, 1, dtype=_BOOL), V(3), 0.5)
case(aten.where.ScalarSelf, V(B, 1, dtype=_BOOL), 0.5, V(3))
case(aten.where.Scalar, V(B, 1, dtype=_BOOL), 0.5, 2.0)
case(aten.masked_fill.Scalar, V(B, 3), V(3, dtype=_BOOL), 7.0)
case(aten.masked_fill.Tensor, V(B, 3), V(3, dtype=_BOOL), V())
case(aten.addcmul.default, V(B, 3), V(3), V(B, 1), value=2, symbolic=False)
case(aten.addcdiv.default, V(B, 3), V(3), V(B, 1), value=2, symbolic=False)
case(aten.lerp.Scalar, V(B, 3), V(B, 3), 0.3)
case(aten.lerp.Tensor, V(B, 3), V(B, 3), V(3), symbolic=False)
case(aten.eq.Tensor, V(B, 3, dtype=_LONG), V(3, dtype=_LONG))
case(aten.lt.Scalar, V(B, 3), 0)
case(aten.logical_and.default, V(B, 3, dtype=_BOOL), V(3, dtype=_BOOL))
case(aten.bitwise_not.default, V(B, 3, dtype=_BOOL))
case(aten.div.Tensor_mode, V(B, 3), V(3), rounding_mode="floor")
case(aten.remainder.Tensor, V(B, 3), V(3))
case(aten.complex.default, V(B, 3), V(B, 3))
case(aten.polar.default, V(B, 3), V(B, 3))
case(aten.abs.default, V(B, 3, dtype=_COMPLEX))
case(aten.threshold.default, V(B, 3), 0, 0)
case(aten.hardtanh.default, V(B, 3))
case(aten.leaky_relu.default, V(B, 3), 0.1)
case(aten.prelu.default, V(B, 3), W(3), refused=True)
case(aten.nan_to_num.default, V(B, 3))
# A scalar per step of another dtype: it takes no part in promotion within its category.
_KINDS = (_SINGLE, torch.float64, _HALF, torch.complex64, _COMPLEX, _LONG, torch.int32, _BOOL)
for tensor in (_SINGLE, _HALF, torch.int32, torch.complex64, _BOOL):
    for scalar in _KINDS:
        case(aten.add.Tensor, V(B, 3, dtype=tensor), V(dtype=scalar))
for scalar in (torch.float64, _LONG, _COMPLEX):
    case(aten.mul.Tensor, V(dtype=scalar), V(3, dtype=_SINGLE))
    case(aten.where.self, V(3, dtype=_BOOL), V(3, dtype=_SINGLE), V(dtype=scalar))
    case(aten.mul.Tensor, V(dtype=scalar), V(dtype=_SINGLE))
case(aten.div.Tensor, V(B, 3, dtype=_LONG), V(dtype=_LONG))
case(aten.div.Tensor, V(B, 3, dtype=_SINGLE), V(dtype=torch.float64))
case(aten.gt.Tensor, V(B, 3, dtype=_SINGLE), V(dtype=torch.float64))
case(aten.lerp.Tensor, V(3), V(3), V(), symbolic=False)
case(aten.minimum.default, V(B, 3, dtype=_SINGLE), V(dtype=torch.float64))
case(aten.pow.Tensor_Tensor, V(B, 3, dtype=_SINGLE, high=3), V(dtype=_LONG, high=3))
case(aten.pow.Scalar, 0.9, V(dtype=_LONG))
case(aten.mul.Tensor, V(dtype=_LONG), 0.5)
case(aten.rsub.Scalar, V(dtype=_LONG), 1)

# Trailing dimensions, or the same shape.
case(aten.layer_norm.default, V(B, 3), [3], W(3), W(3))
case(aten.layer_norm.default, V(B, 4, 3), [4, 3])
case(aten.layer_norm.default, V(3), [3])
case(aten.native_layer_norm.default, V(B, 3), [3], W(3), W(3), 1e-5)
case(aten.rms_norm.default, V(B, 3), [3], W(3), 1e-6)
case(aten.tril.default, V(B, 3, 3), -1)
case(aten.triu.default, V(3, 3))
case(aten.view_as_real.default, V(B, 3, dtype=_COMPLEX))
case(aten.view_as_complex.default, V(B, 3, 2))
for target in (aten.real, aten.imag, aten.conj, aten._conj, aten.resolve_conj, aten.resolve_neg):
    case(target.default, V(B, 3, dtype=_COMPLEX))
case(aten._to_copy.default, V(B, 3), dtype=_SINGLE)
case(aten.to.dtype, V(B, 3), _HALF)
case(aten.to.dtype, V(), _LONG)
case(aten.detach.default, V(B, 3))
case(aten.clone.default, V(B, 3))
case(aten.zeros_like.default, V(B, 3))
case(aten.ones_like.default, V(3), dtype=_SINGLE)
case(aten.full_like.default, V(B, 1), 2.5)
case(aten.matrix_exp.default, V(B, 3, 3))
case(aten.linalg_matrix_exp.default, V(B, 3, 3))
case(aten.linalg_inv.default, V(B, 3, 3, like="square"))
case(aten.mT.default, V(B, 3, 4))
case(aten.one_hot.default, V(B, dtype=_LONG, high=4), 4)
case(aten.one_hot.default, V(dtype=_LONG, high=4), 4)

# Along dimensions: first, last, several, negative, all.
for target in (aten.sum.dim_IntList, aten.mean.dim, aten.amax.default, aten.amin.default, aten.logsumexp.default):
    for dims in ([0], [-1], [0, 2], [-1, -3]):
        case(target, V(B, 4, 3), dims)
    case(target, V(B, 1, 3), [1], True)
case(aten.sum.dim_IntList, V(B, 3), None)
case(aten.sum.dim_IntList, V(B, 3), [])
case(aten.mean.dim, V(B, 3), None)
case(aten.sum.dim_IntList, V(B, 3), [1], dtype=_SINGLE)
case(aten.sum.dim_IntList, V(), [-1])
case(aten.amax.default, V(4, 3))
case(aten.amin.default, V(4, 3), [], True)
for target in (aten.max.default, aten.min.default, aten.prod.default):
    case(target, V(B, 3))
    case(target, V())
for target in (aten.all.default, aten.any.default):
    case(target, V(B, 3, dtype=torch.bool))
for target in (aten.max.dim, aten.min.dim):
    case(target, V(B, 3), -1)
    case(target, V(B, 3), 0, True)
for target in (aten.argmax.default, aten.argmin.default):
    case(target, V(B, 3), -1)
    case(target, V(B, 3), 0, True)
    case(target, V(B, 3), refused=True)
case(aten.prod.dim_int, V(B, 3), 1)
for target in (aten.var, aten.std):
    case(target.correction, V(B, 3), [-1], correction=0)
    case(target.correction, V(B, 4, 3), [1, 2], keepdim=True)
    case(target.correction, V(4, 3))
    case(target.dim, V(B, 3), [1])
    case(target.dim, V(B, 3), [-2], False, True)
case(aten.norm.ScalarOpt_dim, V(B, 3), 2, [-1])
case(aten.norm.ScalarOpt_dim, V(B, 3), 1, [0], True)
case(aten.linalg_vector_norm.default, V(B, 3), 2, [-1], True)
case(aten.linalg_vector_norm.default, V(B, 3))
for target in (aten.all.dim, aten.any.dim):
    case(target, V(B, 3, dtype=_BOOL), -1)
    case(target, V(B, 3, dtype=_BOOL), 0, True)
for target in (aten.softmax.int, aten.log_softmax.int):
    case(target, V(B, 3), -1)
    case(target, V(B, 3), 0)
    case(target, V(B, 3, dtype=_SINGLE), 1, torch.float64)
    case(target, V(), 0)
for target in (aten._softmax.default, aten._log_softmax.default):
    case(target, V(B, 3), -1, False)
for target in (aten.cumsum.default, aten.cumprod.default, aten.logcumsumexp.default):
    case(target, V(B, 3), -1)
    case(target, V(B, 3), 0)
    case(target, V(), 0)
for name in ("fft", "ifft", "rfft", "irfft", "hfft", "ihfft"):
    transform = getattr(aten, f"fft_{name}").default
    given = _COMPLEX if name in ("ifft", "irfft", "hfft") else torch.float64
    case(transform, V(B, 3, dtype=given))
    case(transform, V(4, 3, dtype=given), 5, 0, "ortho")
for name in ("fft2", "ifft2", "rfft2", "irfft2", "fftn", "ifftn", "rfftn", "irfftn"):
    transform = getattr(aten, f"fft_{name}").default
    given = _COMPLEX if name.startswith("i") else torch.float64
    case(transform, V(2, 4, 3, dtype=given))
    case(transform, V(2, 4, 3, dtype=given), [4, 2])
    case(transform, V(2, 4, 3, dtype=given), [4, -1], [1, -1], "forward")
case(aten.fft_fftshift.default, V(4, 3))
case(aten.fft_ifftshift.default, V(4, 3), [-1])
case(aten.index_select.default, V(B, 4), -1, V(6, dtype=torch.int64, high=4, fixed=True))
case(aten.flip.default, V(B, 3), [0, -1])
case(aten.roll.default, V(B, 3), [1], [-1])
case(aten.roll.default, V(B, 4, 3), [1, -2], [1, 2])
case(aten.roll.default, V(4, 3), [2], refused=True)
case(aten.select.int, V(B, 3), -1, 2)
case(aten.select.int, V(B, 3), 1, -1)
case(aten.slice.Tensor, V(B, 6), 1, 2, 4)
case(aten.slice.Tensor, V(B, 6), -1, -3, 9223372036854775807)
case(aten.slice.Tensor, V(6, B), 0, 1, 6, 2)
case(aten.slice.Tensor, V(6, B))
case(aten.narrow.default, V(B, 6), -1, 1, 3)
case(aten.squeeze.dim, V(B, 1, 3), 1)
case(aten.squeeze.dim, V(B, 1, 3), -1)
case(aten.squeeze.dim, V(1, 1), -2)
case(aten.squeeze.dims, V(1, B, 1), [0, -1])
case(aten.unbind.int, V(B, 3), -1)
case(aten.unbind.int, V(3, B))
case(aten.split.Tensor, V(B, 6), 4, -1)
case(aten.split.Tensor, V(6, B), 2)
case(aten.split_with_sizes.default, V(B, 6), [1, 2, 3], 1)
case(aten.chunk.default, V(B, 6), 2, -1)
case(aten.chunk.default, V(6, B), 3)
case(aten.glu.default, V(B, 6))
case(aten.glu.default, V(6, B), 0)
case(aten.topk.default, V(B, 6), 2)
case(aten.topk.default, V(6, B), 2, 0, False)
case(aten.sort.default, V(B, 6))
case(aten.sort.default, V(6, B), 0, True)
case(aten.renorm.default, V(4, 3), 2, 0, 1.0, refused=True)
case(aten.repeat_interleave.self_int, V(B, 3), 2, 1)
case(aten.repeat_interleave.self_int, V(B, 3), 2, -2)
case(aten.repeat_interleave.self_int, V(4, 3), 2, refused=True)
for target in (aten.sum.default, aten.mean.default):
    case(target, V(B, 3))
    case(target, V())
    case(target, V(1, 1))
case(aten.sum.default, V(4, dtype=_BOOL))
case(aten.mean.default, V(4, dtype=_SINGLE), dtype=torch.float64)
case(aten.sum.default, V(dtype=_SINGLE), dtype=torch.float64)

# Shapes.
for dim in (0, 1, 2, -1, -2, -3):
    case(aten.unsqueeze.default, V(B, 3), dim)
case(aten.unsqueeze.default, V(), 0)
case(aten.unsqueeze.default, V(), -1)
case(aten.squeeze.default, V(1, B, 1, 3))
case(aten.squeeze.default, V(B, 3))
case(aten.squeeze.default, V(1))
case(aten.transpose.int, V(B, 4, 3), 0, -1)
case(aten.transpose.int, V(B, 4, 3), -2, 2)
case(aten.t.default, V(B, 3))
case(aten.t.default, V(3))
case(aten.numpy_T.default, V(B, 4, 3))
case(aten.numpy_T.default, V(3))
case(aten.permute.default, V(B, 4, 3), [2, 0, 1])
case(aten.permute.default, V(B, 4, 3), [-1, -3, -2])
case(aten.movedim.int, V(B, 4, 3), -1, 0)
case(aten.movedim.intlist, V(B, 4, 3), [0, 1], [-1, 0])
for target in (aten.reshape.default, aten.view.default, aten._unsafe_view.default):
    case(target, V(B, 12), [N, 3, 4])
    case(target, V(B, 3, 4), [N, -1])
    case(target, V(3, 4), [-1])
    case(target, V(), [1, 1])
    case(target, V(1), [])
case(aten.reshape.default, V(4, 3, B), [-1, N])
case(aten.flatten.using_ints, V(B, 4, 3), 1)
case(aten.flatten.using_ints, V(B, 4, 3))
case(aten.flatten.using_ints, V(B, 4, 3), -2, -1)
case(aten.flatten.using_ints, V())
case(aten.unflatten.int, V(B, 12), 1, [3, 4])
case(aten.unflatten.int, V(12, B), -2, [3, -1])
for target in (aten.expand.default, aten.broadcast_to.default):
    case(target, V(B, 1), [N, 3])
    case(target, V(B, 1), [-1, 3])
    case(target, V(3), [4, N, 3])
    case(target, V(), [N, 3])
    case(target, V(1), [2, -1])
case(aten.expand_as.default, V(3), V(B, 3))
case(aten.expand_as.default, V(B, 1), V(4, B, 3))
case(aten.expand_as.default, V(), V(3))
case(aten.repeat.default, V(B, 3), [1, 2])
case(aten.repeat.default, V(3), [4, 2])
case(aten.repeat.default, V(3), [N, 1])
case(aten.repeat.default, V(), [2, 3])
case(aten.cat.default, [V(B, 3), V(B, 4)], -1)
case(aten.cat.default, [V(2, B), V(3, B)])
case(aten.cat.default, [V(B, 3), V(B, 1), V(B, 2)], 1)
case(aten.cat.default, [V(3, dtype=_SINGLE), V(2)], 0)
case(aten.cat.default, [V(0), V(B, 3)], 1, refused=True)
case(aten.stack.default, [V(B, 3), V(B, 3)])
case(aten.stack.default, [V(B, 3), V(B, 3)], -1)
case(aten.stack.default, [V(), V()], 0)
case(aten.new_zeros.default, V(B, 3), [N, 4])
case(aten.new_ones.default, V(3), [2], dtype=_SINGLE)
case(aten.new_full.default, V(3), [], 2.5)
case(aten.new_empty.default, V(3), [0, 4])
case(aten.constant_pad_nd.default, V(B, 3), [1, 2], 0.5)
case(aten.constant_pad_nd.default, V(B, 4, 3), [1, -1, 0, 2], symbolic=False)
case(aten.pad.default, V(B, 3), [1, 2])
case(aten.pad.default, V(B, 3), [1, 2], "constant", 1.5)
case(aten.pad.default, V(B, 3, 4), [1, 2], "reflect")
case(aten.pad.default, V(B, 3, 4), [1, 1], mode="circular")
case(aten.pad.default, V(3, 4), [1, 2], "replicate", refused=True)

# Products.
case(aten.linear.default, V(B, 3), W(4, 3), W(4))
case(aten.tensordot.default, V(B, 3), V(3, 4, 2), [1], [0])
case(aten.linear.default, V(3), W(4, 3))
case(aten.linear.default, V(B, 2, 3), W(1, 3), W(1))
for shapes in [
    ((B, 3), (3, 4)),
    ((B, 3), (3,)),
    ((3,), (3, 4)),
    ((3,), (3,)),
    ((1,), (1, 4)),
    ((B, 2, 3), (3, 4)),
    ((2, 3), (B, 3, 4)),
    ((B, 2, 3), (B, 3, 4)),
    ((B, 2, 3), (1, 3, 4)),
    ((3,), (B, 3, 4)),
    ((B, 2, 3), (3,)),
    ((B, 1, 2, 3), (6, 3, 4)),
    ((6, 3, 3), (B, 1, 3, 4)),
    ((B, 2, 2, 3), (3,)),
    ((3,), (B, 2, 3, 4)),
]:
    case(aten.matmul.default, V(*shapes[0]), V(*shapes[1]))
case(aten.mm.default, V(B, 3), V(3, 4))
case(aten.bmm.default, V(B, 2, 3), V(B, 3, 4))
case(aten.mv.default, V(4, 3), V(3))
case(aten.dot.default, V(3), V(3))
case(aten.addmm.default, V(4), V(B, 3), V(3, 4))
case(aten.addmm.default, V(B, 4), V(B, 3), V(3, 4), beta=0.5, alpha=2)
case(aten.addmm.default, V(1), V(B, 3), V(3, 4), beta=0)
case(aten.baddbmm.default, V(B, 2, 4), V(B, 2, 3), V(B, 3, 4), alpha=0.5, symbolic=False)
case(aten.baddbmm.default, V(2, 1), V(B, 2, 3), V(B, 3, 4), symbolic=False)
case(aten.addmv.default, V(4), V(4, 3), V(3), beta=2)
case(aten.outer.default, V(B), V(3))
case(aten.outer.default, V(1), V(3))
for equation, operand_shapes in [
    ("bi,ij->bj", [(B, 3), (3, 4)]),
    ("bi,bj->bij", [(B, 3), (B, 4)]),
    ("bt,bt->b", [(B, 3), (B, 3)]),
    ("ij, jk", [(B, 3), (3, 4)]),
    ("bi,bj,bij->b", [(B, 3), (B, 4), (B, 3, 4)]),
    ("bij->b", [(B, 3, 4)]),
    ("bii->bi", [(B, 3, 3)]),
    ("i,->i", [(B,), ()]),
    ("b,bi->", [(B,), (B, 3)]),
]:
    case(aten.einsum.default, equation, [V(*s) for s in operand_shapes])
case(aten.einsum.default, "...i,ij->...j", [V(B, 3), V(3, 4)], refused=True)
for like in ((B, 3, 3), (3, 3)):
    case(aten.linalg_cholesky.default, V(*like, like="square"))
    case(aten.linalg_det.default, V(*like))
    case(aten.linalg_pinv.default, V(*like, like="square"), 1e-15, symbolic=False)
case(aten.linalg_solve.default, V(B, 3, 3, like="square"), V(B, 3, 4))
case(aten.linalg_solve.default, V(3, 3, like="square"), V(3))
case(aten.linalg_solve.default, V(B, 3, 3, like="square"), V(B, 3))
case(aten.linalg_solve.default, V(3, 3, like="square"), V(B, 3, 4))
case(aten.linalg_solve.default, V(B, 3, 3, like="square"), V(3, 4))
case(aten.linalg_solve_triangular.default, V(B, 3, 3, like="square"), V(B, 3, 4), upper=False, symbolic=False)
case(aten.linalg_solve_triangular.default, V(3, 3, like="square"), V(B, 3, 4), upper=True, symbolic=False)
case(aten.cholesky_solve.default, V(B, 3, 2), V(B, 3, 3, like="square"), symbolic=False)
case(aten.cholesky_solve.default, V(3, 2), V(3, 3, like="square"), symbolic=False)

# Tables and indices.
case(aten.embedding.default, W(4, 3), V(B, dtype=_LONG, high=4))
case(aten.embedding.default, W(4, 3), V(dtype=_LONG, high=4), 1)
case(aten.gather.default, V(B, 3), 1, V(B, 2, dtype=_LONG, high=3))
case(aten.gather.default, V(3, B), -2, V(2, B, dtype=_LONG, high=3))
case(aten.scatter.src, V(B, 3), 1, V(B, 1, dtype=_LONG, high=3), V(B, 1))
case(aten.scatter.src, V(3), -1, V(1, dtype=_LONG, high=3), V(2))
case(aten.index_select.default, W(4, 3), 0, V(1, dtype=_LONG, high=4))
case(aten.index_select.default, W(B, 4), -1, V(2, dtype=_LONG, high=4))

# Parts that take the place of others.
case(aten.slice_scatter.default, V(B, 4), V(B, 2), 1, 1, 3)
case(aten.slice_scatter.default, V(4, 3), W(2, 3), 0, 1, 3)
case(aten.slice_scatter.default, W(B, 4), V(B, 2), -1, 0, 4, 2)
case(aten.select_scatter.default, V(B, 4), V(B), -1, 2)
case(aten.select_scatter.default, W(4, 3), V(3), 0, -1)

# A batch dimension in front, or none.
case(aten.group_norm.default, V(B, 4), 2, W(4), W(4))
case(aten.group_norm.default, V(B, 4, 3), 2)
case(aten.native_group_norm.default, V(B, 4, 3), W(4), W(4), N, 4, 3, 2, 1e-5, refused=True)
case(aten.conv1d.default, V(B, 3, 6), W(4, 3, 2), W(4))
case(aten.conv1d.default, V(B, 4, 6), W(4, 1, 3), None, [1], [1], [1], 4)
case(aten.conv1d.default, V(3, 6), W(4, 3, 2), W(4))
case(aten.conv1d.padding, V(B, 3, 6), W(4, 3, 3), None, [1], "same")
case(aten.conv2d.default, V(B, 3, 4, 6), W(2, 3, 3, 3), None, [1, 1], [1, 1])
case(aten.conv2d.default, V(3, 4, 6), W(2, 3, 3, 3), W(2))
case(aten.conv2d.padding, V(B, 3, 4, 6), W(2, 3, 3, 3), None, [1, 1], "same")
case(aten.conv3d.default, V(B, 1, 3, 4, 3), W(2, 1, 2, 2, 2))
case(aten.conv_transpose1d.default, V(B, 3, 4), W(3, 2, 2))
case(aten.conv_transpose1d.default, V(3, 4), W(3, 2, 2))
case(aten.conv_transpose2d.input, V(B, 3, 4, 4), W(3, 2, 2, 2))
case(aten.convolution.default, V(B, 3, 6), W(4, 3, 2), W(4), [1], [0], [1], False, [0], 1)
case(aten.instance_norm.default, V(B, 4, 6), W(4), W(4), None, None, True, 0.1, 1e-5, False)
case(aten.max_pool1d.default, V(B, 3, 6), [2])
case(aten.max_pool1d.default, V(3, 6), [2], refused=True)
case(aten.avg_pool1d.default, V(B, 3, 6), [2])
case(aten.avg_pool1d.default, V(3, 6), [2], refused=True)
case(aten.avg_pool2d.default, V(B, 3, 4, 6), [2])
case(aten.avg_pool2d.default, V(3, 4, 6), [2], refused=True)
for loss in (
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.huber_loss.default,
    aten.soft_margin_loss.default,
):
    for reduction in (0, 1, 2):
        case(loss, V(B, 3), V(B, 3), reduction)
case(aten.mse_loss.default, V(B, 3), V(B, 3))
case(aten.mse_loss.default, V(B, 3), V(3))
case(aten.mse_loss.default, V(), V())
case(aten.huber_loss.default, V(B, 3), V(B, 3), 1, 0.5)
for reduction in (0, 1, 2):
    case(aten.binary_cross_entropy.default, V(B, 3, like="share"), V(B, 3, like="share"), W(3), reduction)
    case(aten.cross_entropy_loss.default, V(B, 4), V(B, dtype=_LONG, high=4), None, reduction)
    case(aten.cross_entropy_loss.default, V(B, 4), V(B, dtype=_LONG, high=4), W(4), reduction, 2, 0.1)
    case(aten.cross_entropy_loss.default, V(B, 4, 3), V(B, 3, dtype=_LONG, high=4), W(4), reduction, -100, 0.0)
    case(aten.nll_loss_nd.default, V(B, 4), V(B, dtype=_LONG, high=4), W(4), reduction, 1)
    case(aten.nll_loss.default, V(B, 4), V(B, dtype=_LONG, high=4), W(4), reduction, -100)
    case(aten.nll_loss2d.default, V(B, 4, 3, 2), V(B, 3, 2, dtype=_LONG, high=4), W(4), reduction, 0)
case(aten.cross_entropy_loss.default, V(4), V(dtype=_LONG, high=4), W(4))
case(aten.nll_loss_nd.default, V(4), V(dtype=_LONG, high=4), None, 1, 7)
for shape in ((B, 4), (B, 4, 3), (B, 4, 3, 2)):
    case(aten.batch_norm.default, V(*shape), W(4), W(4), W(4), W(4, like="positive"), False, 0.1, 1e-5, False)
    case(aten.batch_norm.default, V(*shape), W(4), W(4), None, None, True, 0.1, 1e-5, False)
    case(aten.batch_norm.default, V(*shape), None, None, None, None, True, 0.1, 1e-5, False)
for source, index in ((aten.unbind.int, 1), (aten.split.Tensor, 0), (aten.sort.default, 1)):
    args = {aten.split.Tensor: (2,)}.get(source, ())
    CASES.append(Case(operator.getitem, (Case(source, (V(4, 3), *args)), index)))
_ATTENTION = aten.scaled_dot_product_attention.default
case(_ATTENTION, V(B, 2, 5, 4), W(B, 2, 6, 4), V(B, 2, 6, 3), W(5, 6))
case(_ATTENTION, *[V(5, 4)] * 3, None, 0.0, True, scale=0.3)
case(_ATTENTION, V(B, 5, 4), W(B, 6, 4), W(B, 6, 4), W(5, 6, dtype=torch.bool))
case(_ATTENTION, *[V(B, 5, 4)] * 3, V(B, 5, 5), refused=True)
