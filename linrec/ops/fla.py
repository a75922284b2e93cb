"""Chunked ops by flash-linear-attention's kernels, where the package is installed: adapters, and what they require.

Its kernels take decays as logarithms, multiply matrices in the operands' half precision or in TF32, and lose digits
where a decay is tiny or a delta step enlarges the state. `..._fits` says whether a call is one that they compute to the
precision of its dtype; these look at values, so the host waits for the device once a call.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
import re
import warnings
from importlib import metadata
from typing import Any

import torch
from torch import Tensor

from ._dtypes import broadcast_shape, result_dtype, time_axis

SMALLEST_DECAY = 2.0**-8
"""The derivative by a decay is that by its logarithm divided by the decay: the error grows as the decay shrinks."""

WIDEST = 256
"""Keys, at most."""

_HALF = (torch.bfloat16, torch.float16)


@functools.cache
def library() -> Any:
    """The module ``fla.ops``, or None where it is not installed or does not load (then with a warning)."""
    if importlib.util.find_spec("fla") is None:
        return None
    try:
        return importlib.import_module("fla.ops")
    except Exception as error:  # what its import needs depends on the machine, and must not stop a training run
        warnings.warn(f"linrec: flash-linear-attention does not load, torch forms run instead: {error}", stacklevel=2)
        return None


def linear_attention_fits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    value_decay: Tensor | None = None,
    reads_old: bool = False,
) -> bool:
    """Whether the kernels compute `linrec.ops.linear_attention` for these arguments."""
    dtype = result_dtype(q, k, v, decay, h0, value_decay)
    fits = value_decay is None and not reads_old and _computes(dtype, k, v, single=True)
    return fits and _has_steps(dim, (q, 1), (k, 1), (v, 1), (decay, 1)) and _decays_fit(decay)


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    value_decay: Tensor | None = None,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `linrec.ops.linear_attention`."""
    layout = _Layout.of(dim, result_dtype(q, k, v, decay, h0), (q, 1), (k, 1), (v, 1), (decay, 1))
    given = [layout.heads(x) for x in (q, k, v)]
    options = layout.options(h0, k.shape[-1], v.shape[-1])
    if decay is None:
        found = library().chunk_linear_attn(*given, normalize=False, **options)
    elif decay.shape[-1] == 1:
        found = library().chunk_simple_gla(*given, g=layout.heads(decay.float().log(), keep=True)[..., 0], **options)
    else:
        found = library().chunk_gla(*given, g=layout.heads(decay.float().log(), keep=True), **options)
    return layout.back(*found)


def delta_rule_fits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
) -> bool:
    """Whether the kernels compute `linrec.ops.delta_rule` for these arguments."""
    dtype = result_dtype(q, k, v, beta, decay, h0)
    if not _computes(dtype, k, v, single=False) or not _has_steps(dim, (q, 1), (k, 1), (v, 1), (beta, 1), (decay, 1)):
        return False
    return (decay is None or decay.shape[-1] == 1) and _decays_fit(decay) and _between(beta.detach() * _square(k), 0, 2)


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
) -> tuple[Tensor, Tensor]:
    """See `linrec.ops.delta_rule`."""
    layout = _Layout.of(dim, result_dtype(q, k, v, beta, decay, h0), (q, 1), (k, 1), (v, 1), (beta, 1), (decay, 1))
    given = [layout.heads(x) for x in (q, k, v)]
    options = layout.options(h0, k.shape[-1], v.shape[-1])
    rate = layout.heads(beta)[..., 0]
    if decay is None:
        return layout.back(*library().chunk_delta_rule(*given, beta=rate, **options))
    gate = layout.heads(decay.float().log(), keep=True)[..., 0]
    return layout.back(*library().chunk_gated_delta_rule(*given, g=gate, beta=rate, **options))


def dplr_attention_fits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    w: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    reads_old: bool = False,
) -> bool:
    """Whether the kernels compute `linrec.ops.dplr_attention` for these arguments."""
    if reads_old or any(x.shape[-2] != 1 for x in (k, v, u, w)):
        return False
    if not _computes(result_dtype(q, k, v, u, w, decay, h0), k, v, single=False):
        return False
    steps = _has_steps(dim, (q, 1), (k, 2), (v, 2), (u, 2), (w, 2), (decay, 1))
    return steps and _decays_fit(decay) and _between(_square(u) * _square(w), 0, 4)


def dplr_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    u: Tensor,
    w: Tensor,
    decay: Tensor | None = None,
    h0: Tensor | None = None,
    *,
    dim: int = 1,
    chunk: int = 32,
    reads_old: bool = False,
) -> tuple[Tensor, Tensor]:
    """See `linrec.ops.dplr_attention`."""
    k, v, u, w = (x.squeeze(-2) for x in (k, v, u, w))
    layout = _Layout.of(dim, result_dtype(q, k, v, u, w, decay, h0), (q, 1), (k, 1), (v, 1), (u, 1), (w, 1), (decay, 1))
    given = [layout.heads(x) for x in (q, k, v, w, u)]
    gates = torch.zeros(1, device=q.device) if decay is None else decay.float().log()
    gates = layout.heads(gates.expand(*gates.shape[:-1], k.shape[-1]), keep=True)
    options = layout.options(h0, k.shape[-1], v.shape[-1])
    return layout.back(*library().chunk_dplr_delta_rule(*given, gk=gates, **options))


class _Layout:
    """Operands with time at `axis` of `shape`, and the [batch, time, heads, features] that the kernels take."""

    def __init__(self, shape: tuple[int, ...], axis: int, dtype: torch.dtype) -> None:
        self.shape, self.axis, self.dtype = shape, axis, dtype
        self.batch = shape[:axis] + shape[axis + 1 :]

    @staticmethod
    def of(dim: int, dtype: torch.dtype, *operands: tuple[Tensor | None, int]) -> _Layout:
        """For operands that broadcast but for their last axes; each comes with their number."""
        shape = _steps(*operands)
        return _Layout(shape, time_axis(len(shape) + 1, dim), dtype)

    def heads(self, x: Tensor, keep: bool = False) -> Tensor:
        """An operand as the kernels take it, in its own dtype if `keep`, else in the common one."""
        x = (x if keep else x.to(self.dtype)).expand(*self.shape, x.shape[-1]).movedim(self.axis, 0)
        heads = math.prod(self.batch[1:])
        first = self.batch[0] if self.batch else 1
        x = x.reshape(self.shape[self.axis], first, heads, x.shape[-1])
        return x.transpose(0, 1).contiguous()

    def options(self, h0: Tensor | None, keys: int, values: int) -> dict[str, Any]:
        """The keyword arguments that all of the kernels take."""
        start = None
        if h0 is not None:
            heads = math.prod(self.batch[1:])
            start = h0.float().expand(*self.batch, keys, values).reshape(-1, heads, keys, values).contiguous()
        return {"scale": 1.0, "initial_state": start, "output_final_state": True}

    def back(self, y: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """What the kernels return, as the op returns it."""
        y = y.transpose(0, 1).reshape(self.shape[self.axis], *self.batch, y.shape[-1]).movedim(0, self.axis)
        return y.to(self.dtype), state.reshape(*self.batch, *state.shape[-2:]).to(self.dtype)


def _steps(*operands: tuple[Tensor | None, int]) -> tuple[int, ...]:
    return broadcast_shape(*(x.shape[: x.ndim - last] for x, last in operands if x is not None))


def _has_steps(dim: int, *operands: tuple[Tensor | None, int]) -> bool:
    """Whether there is something to compute, and time is no axis of a step: else the op itself has the say."""
    shape = _steps(*operands)
    return 0 not in shape and -len(shape) - 1 <= dim <= len(shape) and dim % (len(shape) + 1) != len(shape)


def _computes(dtype: torch.dtype, k: Tensor, v: Tensor, single: bool) -> bool:
    """Whether there are kernels for a dtype, whose precision is what the dtype promises, and for these widths."""
    fits = dtype in _HALF or (single and dtype == torch.float32 and _tf32())
    return fits and 0 < k.shape[-1] <= WIDEST and v.shape[-1] > 0 and library() is not None


def _tf32() -> bool:
    """Whether the program has said that products of float32 matrices may be less precise."""
    try:
        return torch.get_float32_matmul_precision() != "highest"
    except RuntimeError:  # the program uses torch's newer settings, which this question does not mix with
        return False


def _decays_fit(decay: Tensor | None) -> bool:
    """Whether all decays lie in [SMALLEST_DECAY, 1], and the kernels for one decay a step are sound."""
    if decay is None:
        return True
    if decay.is_complex() or not decay.is_floating_point() or _capturing():
        return False
    if decay.shape[-1] == 1 and decay.is_cuda and not _sound(decay.device):
        return False
    return bool(((decay >= SMALLEST_DECAY) & (decay <= 1)).all())


@functools.cache
def _sound(device: torch.device) -> bool:
    """Whether Triton compiles the derivative by q, k and one decay a step correctly: on Hopper it did not in versions
    from 3.4 to 3.7.0 (flash-linear-attention's issue 640), where the package raises in the backward pass."""
    if torch.cuda.get_device_capability(device)[0] != 9 or importlib.util.find_spec("tilelang") is not None:
        return True
    version = tuple(int(n) for n in re.findall(r"\d+", metadata.version("triton"))[:3])
    return not (3, 4) <= version < (3, 7, 1)


def _between(x: Tensor, least: float, most: float) -> bool:
    """Whether all numbers lie in a range, up to rounding."""
    return not _capturing() and bool(((x >= least) & (x <= most * 1.01)).all())


def _square(x: Tensor) -> Tensor:
    return x.detach().float().square().sum(-1, keepdim=True)


def _capturing() -> bool:
    """Whether a CUDA graph is being recorded, in which the host cannot look at values."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
