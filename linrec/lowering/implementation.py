"""A function of tensors as what computes one of `linrec.ops` on some device: how a kernel for a GPU is registered. The
rewritten graph keeps the operator; which implementation runs is decided at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linrec.ir.extension import ExtensionError, enter, guarded, origin
from linrec.ops import dispatch
from linrec.ops.dispatch import Implementation


def implementation(
    op: str,
    name: str,
    *,
    device: str = "cuda",
    requires: Callable[..., bool] | None = None,
    reads_values: bool = False,
    complete: bool = False,
    replace: bool = False,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function as what computes an op of `linrec.ops` for tensors on a type of device.

    The function has the op's parameters and returns what the op returns, differentiable once. It is called with plain
    tensors only: for second derivatives, in function transforms, under tracing and for tensor subclasses the torch form
    of the op runs. Of several that fit a call, the one that was registered last is used.

    Args:
        op: "linear_scan", "scan_readout", "linear_attention", "delta_rule" or "dplr_attention".
        name: what it is called.
        device: the type of device.
        requires: whether it computes the op for the arguments of a call, which it gets with all defaults filled in.
        reads_values: whether `requires` reads values of tensors, for which the host has to wait for the device.
        complete: whether its backward pass sees to second derivatives and to many derivatives at once
            (``is_grads_batched``) itself; else the torch form does, at some cost for every call.
        replace: whether it may take the place of another one of the same name.

    Raises:
        ExtensionError: where another implementation of this op and device has the name, or there is no such op.

    >>> import torch
    >>> from linrec.extend import isolated
    >>> from linrec.ops import linear_scan, reference
    >>> with isolated():
    ...     @implementation("linear_scan", "a loop", device="cpu", requires=lambda a, *rest, **options: a.shape[1] == 3)
    ...     def by_loop(a, b, h0, *, dim, reverse):
    ...         print("a loop runs")
    ...         return reference.linear_scan(a, b, h0, dim=dim, reverse=reverse)
    ...     linear_scan(torch.ones(1, 3), torch.ones(1, 3))
    a loop runs
    tensor([[1., 2., 3.]])
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        title = f"{name} for {op} on {device}"
        if op not in dispatch.OPS:
            known = ", ".join(sorted(dispatch.OPS))
            raise ExtensionError(
                f"no op is called {op!r}, for which {origin(function)} has {name!r}; there are {known}"
            )
        known_one = dispatch.find(op, name, device)
        enter("implementation", title, function, known_one and known_one.function, replace)
        dispatch.add(
            Implementation(
                op,
                name,
                device,
                guarded("implementation", title, function),
                guarded("implementation", title, requires) if requires else None,
                reads_values,
                complete,
            )
        )
        return function

    return decorate
