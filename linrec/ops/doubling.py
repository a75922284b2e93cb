"""The scan of any semiring whose product is the ordinary sum, by doubling: log2(T) rounds over all steps at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def doubling_scan(join: Callable[[Tensor, Tensor], Tensor], a: Tensor, b: Tensor, h0: Tensor, dim: int = 0) -> Tensor:
    """All states of ``m[t] = join(m[t-1] + a[t], b[t])``, where m[-1] = h0.

    Args:
        join: associative, and ``join(x + a, y + a) == join(x, y) + a``; differentiable by autograd.
        a, b: (T, *state) along `dim`, up to broadcasting.
        h0: (*state).

    Returns:
        m, of the broadcast shape of `a` and `b`.

    >>> a = torch.ones(4)
    >>> doubling_scan(torch.minimum, a, torch.tensor([5.0, 0.0, 5.0, 5.0]), torch.tensor(9.0))
    tensor([5., 0., 1., 2.])
    """
    shape = torch.broadcast_shapes(a.shape, b.shape)
    a, m = a.expand(shape).movedim(dim, 0), b.expand(shape).movedim(dim, 0)
    length = m.shape[0]
    if not length:
        return b.expand(shape)
    m = torch.cat([join(h0 + a[0], m[0]).unsqueeze(0), m[1:]])
    shift = 1
    while shift < length:
        m = torch.cat([m[:shift], join(m[:-shift] + a[shift:], m[shift:])])
        a = torch.cat([a[:shift], a[:-shift] + a[shift:]])
        shift *= 2
    return m.movedim(0, dim)
