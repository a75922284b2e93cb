"""The semirings over which recurrences are known, and the call that adds one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from linrec.analysis.semiring import JOINS
from linrec.ir.extension import Extension, ExtensionError, enter, is_own, origin
from linrec.ops import logsumexp_scan, max_plus_scan, max_times_scan
from linrec.ops.doubling import doubling_scan

Scan = Callable[..., Tensor]
SCANS: dict[str, Scan] = {}


def semiring(
    name: str,
    *targets: Any,
    join: Callable[[Tensor, Tensor], Tensor],
    scan: Scan | None = None,
    replace: bool = False,
) -> None:
    """Register a class of recurrences ``m[t] = join(m[t-1] + a[t], b[t])``: affine over a semiring whose product is +.

    Args:
        name: what reports call it, e.g. "max-plus".
        targets: the operators of the graph that are its sum, e.g. ``torch.ops.aten.maximum.default``.
        join: that sum as a function of two tensors; one step of the recurrence with it is the reference of the scan.
        scan: ``scan(a, b, h0, dim=0)`` gives all states, (T, *state); by doubling with `join` where it is None.
        replace: whether it may take the place of one that is registered for the same operators.

    Raises:
        ExtensionError: where `join` is not associative or the sum does not distribute over it, where the scan differs
            from the loop (values or gradients, in float64), or where an operator belongs to another semiring.
    """
    chosen: Scan = scan or (lambda a, b, h0, dim=0: doubling_scan(join, a, b, h0, dim))
    if not is_own(join):
        _check(Extension("semiring", name, origin(join)), join, chosen)
    known = next((JOINS[t] for t in targets if JOINS.get(t, name) != name), None)
    if known is not None and not replace:
        raise ExtensionError(f"the semiring {name!r} claims an operator of the semiring {known!r}")
    enter("semiring", name, join, None, replace)
    JOINS.update(dict.fromkeys(targets, name))
    SCANS[name] = chosen


def _check(who: Extension, join: Callable[[Tensor, Tensor], Tensor], scan: Scan) -> None:
    generator = torch.Generator().manual_seed(0)
    x, y, z, s = torch.randn(4, 64, dtype=torch.float64, generator=generator)
    laws = {
        "is not associative": (join(join(x, y), z), join(x, join(y, z))),
        "does not distribute: join(x + s, y + s) differs from join(x, y) + s": (join(x + s, y + s), join(x, y) + s),
    }
    for law, (left, right) in laws.items():
        if not torch.allclose(left, right):
            raise ExtensionError(f"{who}: its join {law}")
    for length in (1, 2, 3, 17):
        a, b = torch.randn(2, length, 3, dtype=torch.float64, generator=generator)
        leaves = [a.requires_grad_(), b.requires_grad_(), torch.zeros(3, dtype=torch.float64, requires_grad=True)]
        h, rows = leaves[2], []
        for t in range(length):
            h = join(h + a[t], b[t])
            rows.append(h)
        if not _agree(torch.stack(rows), scan, leaves):
            raise ExtensionError(f"{who}: its scan differs from its loop at {length} steps")


def _agree(expected: Tensor, scan: Scan, leaves: list[Tensor]) -> bool:
    """Whether a scan has the values and the gradients of the loop; one that fails has not."""
    weight = torch.linspace(-1, 2, expected.numel(), dtype=expected.dtype).view(expected.shape)
    try:
        found = scan(*leaves, dim=0)
        gradients = [
            torch.autograd.grad((v * weight).sum(), leaves, allow_unused=True, materialize_grads=True)
            for v in (expected, found)
        ]
    except Exception:
        return False
    pairs = [(expected, found), *zip(*gradients, strict=True)]
    return all(e.shape == f.shape and torch.allclose(e, f) for e, f in pairs)


def _greater(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x, y)


def _soft(x: Tensor, y: Tensor) -> Tensor:
    return torch.logaddexp(x, y)


aten = torch.ops.aten
semiring("max-plus", aten.maximum.default, aten.max.other, join=_greater, scan=max_plus_scan)
semiring("log-sum-exp", aten.logaddexp.default, join=_soft, scan=logsumexp_scan)


def _least(x: Tensor, y: Tensor) -> Tensor:
    return torch.minimum(x, y)


def _least_scan(a: Tensor, b: Tensor, h0: Tensor, dim: int = 0) -> Tensor:
    return -max_plus_scan(-a, -b, -h0, dim=dim)


def _least_times_scan(a: Tensor, b: Tensor, h0: Tensor, dim: int = 0) -> Tensor:
    return -max_times_scan(a, -b, -h0, dim=dim)


semiring("min-plus", aten.minimum.default, aten.min.other, join=_least, scan=_least_scan)
SCANS |= {"max-times": max_times_scan, "min-times": _least_times_scan}
