"""States that are integers: counts since an event, codes, sums that overflow."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import linrec

Update = Callable[[Tensor, Tensor], Tensor]
"""The new state (B), of the old one and the tokens of the step (B)."""

UPDATES: dict[str, tuple[torch.dtype, Update]] = {
    "since an event": (torch.int64, lambda h, k: torch.where(k == 0, 0, h + 1)),
    "since an event, like": (torch.int64, lambda h, k: torch.where(k == 0, torch.zeros_like(h), h + 1)),
    "filled": (torch.int64, lambda h, k: (h + 1).masked_fill(k == 0, 0)),
    "masked": (torch.int64, lambda h, k: (h + 1) * (k > 2).long()),
    "gated": (torch.int64, lambda h, k: h * (k != 0) + k),
    "alternating": (torch.int64, lambda h, k: k - h),
    "overflowing": (torch.int64, lambda h, k: h * 31 + k),
    "narrow": (torch.int32, lambda h, k: (h * k.int() + 1).int()),
    "bytes": (torch.uint8, lambda h, k: h * 3 + k.to(torch.uint8)),
}


class Counting(nn.Module):
    def __init__(self, dtype: torch.dtype, update: Update) -> None:
        super().__init__()
        self.dtype, self.update = dtype, update
        self.a = nn.Parameter(torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64))

    def forward(self, x: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, count = torch.zeros_like(x[:, 0]), torch.ones(x.shape[0], dtype=self.dtype)
        out, counts = [], []
        for t in range(x.shape[1]):
            count = self.update(count, tokens[:, t])
            h = self.a * h + x[:, t] * (count % 5)[:, None]
            out.append(h)
            counts.append(count)
        return torch.stack(out, 1), torch.stack(counts, 1), count


@pytest.mark.parametrize("name", UPDATES)
def test_integers(name: str) -> None:
    model, oracle = linrec.parallelize(Counting(*UPDATES[name])), Counting(*UPDATES[name])
    for batch, length in ((3, 30), (2, 17), (5, 91), (3, 3)):
        generator = torch.Generator().manual_seed(length)
        x = torch.randn(batch, length, 3, dtype=torch.float64, generator=generator).requires_grad_()
        tokens = torch.randint(0, 5, (batch, length), generator=generator)
        found = []
        for each in (model, oracle):
            y, counts, last = each(x, tokens)
            found.append([y, counts, last, *torch.autograd.grad(y.square().sum(), [x, each.a])])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    report = linrec.report(model)
    assert not report.obstructions and all(r.parallel for r in report.recurrences)
