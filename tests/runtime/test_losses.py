"""Losses that a program adds up while it loops: computed for all steps at once, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import linrec

CLASSES = 4
Loss = Callable[[Tensor, Tensor], Tensor]
WEIGHTS = torch.tensor([0.5, 1.0, 2.0, 0.1], dtype=torch.float64)


def best(y: Tensor) -> Tensor:
    return y.argmax(-1)


LOSSES: dict[str, Loss] = {
    "squares": lambda h, y: F.mse_loss(h, y),
    "sum of squares": lambda h, y: F.mse_loss(h, y, reduction="sum"),
    "squares of each": lambda h, y: F.mse_loss(h, y, reduction="none").sum(-1).mean(),
    "squares of one number each": lambda h, y: F.mse_loss(h[0, 0], y[0, 0]),
    "squares, spread": lambda h, y: F.mse_loss(h, y[:1].expand_as(h)),
    "absolute": lambda h, y: F.l1_loss(h, y),
    "smooth": lambda h, y: F.smooth_l1_loss(h, y, beta=0.5),
    "Huber": lambda h, y: F.huber_loss(h, y, delta=0.7),
    "soft margin": lambda h, y: F.soft_margin_loss(h, y.sign()),
    "binary": lambda h, y: F.binary_cross_entropy(torch.sigmoid(h), (y > 0).to(h.dtype)),
    "binary, saturated": lambda h, y: F.binary_cross_entropy(torch.clamp(h, 0, 1), (y > 0).to(h.dtype)),
    "binary, weighted": lambda h, y: F.binary_cross_entropy(torch.sigmoid(h), (y > 0).to(h.dtype), WEIGHTS),
    "binary of logits": lambda h, y: F.binary_cross_entropy_with_logits(h, (y > 0).to(h.dtype), pos_weight=WEIGHTS),
    "classes": lambda h, y: F.cross_entropy(h, best(y)),
    "classes, summed": lambda h, y: F.cross_entropy(h, best(y), reduction="sum"),
    "classes of each": lambda h, y: F.cross_entropy(h, best(y), reduction="none").square().sum(),
    "classes, weighted": lambda h, y: F.cross_entropy(h, best(y), WEIGHTS),
    "classes, smoothed": lambda h, y: F.cross_entropy(h, best(y), WEIGHTS, label_smoothing=0.2),
    "classes, some ignored": lambda h, y: F.cross_entropy(h, best(y).where(y[:, 0] > y[:, 0].min(), 7), ignore_index=7),
    "classes, weighted and some ignored": lambda h, y: F.cross_entropy(
        h, best(y).where(y[:, 0] > y[:, 0].min(), -100), WEIGHTS, label_smoothing=0.1
    ),
    "classes of one": lambda h, y: F.cross_entropy(h[0], best(y[0]), WEIGHTS),
    "classes of pixels": lambda h, y: F.cross_entropy(
        torch.stack([h, -h, 0.5 * h], -1), torch.stack([best(y)] * 3, -1), WEIGHTS
    ),
    "classes by their shares": lambda h, y: F.cross_entropy(h, y.softmax(-1)),
    "likelihood": lambda h, y: F.nll_loss(F.log_softmax(h, -1), best(y), WEIGHTS),
    "divergence": lambda h, y: F.kl_div(F.log_softmax(h, -1), y.softmax(-1), reduction="batchmean"),
    "Poisson": lambda h, y: F.poisson_nll_loss(h, y.abs()),
    "angle": lambda h, y: F.cosine_similarity(h, y).mean(),
    "distance": lambda h, y: F.pairwise_distance(h, y).mean(),
}


class Trained(nn.Module):
    """A leaky integrator that adds up its loss."""

    def __init__(self, loss: Loss) -> None:
        super().__init__()
        self.loss = loss
        self.w = nn.Parameter(torch.linspace(0.5, 0.95, CLASSES, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h, total = torch.zeros_like(x[:, 0]), torch.zeros((), dtype=x.dtype)
        for t in range(x.shape[1]):
            h = self.w * h + 0.5 * x[:, t]
            total = total + self.loss(h, y[:, t])
        return total / x.shape[1]


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str) -> None:
    ours, theirs = linrec.parallelize(Trained(LOSSES[name])), Trained(LOSSES[name])
    for batch, length in ((3, 20), (6, 33), (2, 11)):
        generator = torch.Generator().manual_seed(length)
        x, y = torch.randn(2, batch, length, CLASSES, dtype=torch.float64, generator=generator)
        found = []
        for model in (ours, theirs):
            leaf = x.clone().requires_grad_()
            total = model(leaf, y)
            found.append([total.detach(), *torch.autograd.grad(total, [leaf, model.w])])
        torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-11)
    report = linrec.report(ours)
    assert report.parallel and not report.obstructions, report


def test_a_step_in_which_nothing_counts() -> None:
    """Its mean is no number, in all forms."""
    loss: Loss = lambda h, y: F.cross_entropy(h, best(y).where(y[:1, 0] < 1e9, -100))  # noqa: E731
    ours, theirs = linrec.parallelize(Trained(loss)), Trained(loss)
    x, y = torch.randn(2, 3, 20, CLASSES, dtype=torch.float64)
    torch.testing.assert_close(ours(x, y), theirs(x, y))
    y[0, 7] = 1e10
    assert ours(x, y).isnan() and theirs(x, y).isnan()
