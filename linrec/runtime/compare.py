"""When the results of two programs count as the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def close(a: Any, b: Any, tolerance: float = 1e-7) -> bool:
    """Whether two results are the same: tensors up to `tolerance` of the largest value."""
    if isinstance(a, Tensor) != isinstance(b, Tensor):
        return False
    if not isinstance(a, Tensor):
        return bool(a == b or (a != a and b != b))
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    a, b = a.detach(), b.detach()
    finite = a.isfinite()
    if not torch.equal(finite, b.isfinite()):
        return False
    if not finite.any():
        return True
    a, b = a[finite], b[finite]
    scale = a.abs().max().clamp(min=1e-30)
    return bool((a - b).abs().max() <= tolerance * scale + 1e-12)


def worse(truth: Any, loop: Any, ours: Any, summed: float = 0.0) -> str | None:
    """Why a result in low precision is worse than the loop's, if it is: of another dtype, not finite elsewhere, or more
    than twice as far from the truth, beyond a few roundings of its largest value.

    Args:
        truth: in double precision; loop: what the original gives; ours: what the plan does.
        summed: for a gradient, the largest value of any gradient. One of a single number, as of a bias, may be little
            that is left of much: its rounding errors are those of what was summed.
    """
    tensors = all(isinstance(x, Tensor) for x in (truth, loop, ours))
    if not tensors or ours.dtype != loop.dtype or ours.shape != loop.shape:
        same = type(ours) is type(loop) and not isinstance(ours, Tensor) and (ours == loop or ours != ours)
        return None if same else f"is a {_kind(ours)} in place of a {_kind(loop)}"
    if not (ours.is_floating_point() or ours.is_complex()):
        return None  # it may turn on a rounding
    finite = loop.isfinite() & truth.isfinite()
    if not bool((ours.isfinite() | ~finite).all()):
        return "is not finite where the loop's is"
    if not finite.any():
        return None
    exact = truth.detach()[finite]
    theirs, own = (float((x.detach()[finite].to(exact.dtype) - exact).abs().max()) for x in (loop, ours))
    scale = float(exact.abs().max())
    if loop.numel() == 1:
        scale = max(scale, summed / 8)
    slack = _ROUNDINGS * torch.finfo(torch.bfloat16).eps * scale
    return None if own <= 2 * theirs + slack else f"is off by {own:.3g}, the loop's by {theirs:.3g}"


_ROUNDINGS = 4
"""In bfloat16, of the largest value: how much worse than the loop a lucky loop may make a plan look."""


def _kind(x: Any) -> str:
    return f"{tuple(x.shape)} {x.dtype}" if isinstance(x, Tensor) else type(x).__name__
