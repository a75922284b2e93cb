"""Samples over other algebras: stabilised softmax recurrences (max-plus), running reductions, and small dense
transitions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models import aaren, kalman, markov, mlstm, monoids, rwkv4
from models.sample import DENSE, DIAGONAL, LTI_DIAGONAL, MAX_PLUS, NONLINEAR, Sample, normal, seeded

PREFIX = "Ladner & Fischer, Parallel Prefix Computation (1980)"
RABINER = "Rabiner, A Tutorial on Hidden Markov Models (1989)"
KALMAN_1960 = "Kalman, A New Approach to Linear Filtering and Prediction Problems (1960)"


def measured(batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Measurements (B, T, 2) and gains (B, T, 3, 2) small enough for a stable filter."""
    y, gains = normal("B T 2", "B T 3 2")(batch, length, dtype)
    return y, 0.1 * gains


SAMPLES: tuple[Sample, ...] = (
    Sample(
        "rwkv4",
        seeded(rwkv4.RWKV4TimeMix, 4),
        normal("B T 4"),
        "B T 4",
        "Peng et al., RWKV (2023)",
        "stable wkv",
        MAX_PLUS,
    ),
    Sample(
        "aaren",
        seeded(aaren.Aaren, 6, 2),
        normal("B T 6"),
        "B T 6",
        "Feng et al., Attention as an RNN (2024)",
        "section 3",
        MAX_PLUS,
    ),
    Sample(
        "mlstm",
        seeded(mlstm.MLSTM, 6, 2),
        normal("B T 6"),
        "B T 6; B 2 3 3; B 2 3; B 2",
        "Beck et al., xLSTM (2024)",
        "15-17, 19-27",
        MAX_PLUS,
    ),
    Sample("running_sum", seeded(monoids.RunningSum), normal("B T 4"), "B T 4", PREFIX, "sum", LTI_DIAGONAL),
    Sample(
        "running_product",
        seeded(monoids.RunningProduct),
        normal("B T 4", scale=0.05, mean=1.0),
        "B T 4",
        PREFIX,
        "product",
        DIAGONAL,
    ),
    Sample("running_max", seeded(monoids.RunningMax), normal("B T 4"), "B T 4", PREFIX, "maximum", MAX_PLUS),
    Sample(
        "running_logsumexp", seeded(monoids.RunningLogSumExp), normal("B T 4"), "B T 4", PREFIX, "log-sum-exp", MAX_PLUS
    ),
    Sample(
        "peak_follower", seeded(monoids.PeakFollower, 4), normal("B T 4"), "B T 4", PREFIX, "decaying maximum", MAX_PLUS
    ),
    Sample(
        "cusum",
        seeded(monoids.Cusum, 4),
        normal("B T 4"),
        "B T 4",
        "Page, Continuous Inspection Schemes (1954)",
        "sums kept positive",
        MAX_PLUS,
    ),
    Sample("hidden_markov", seeded(markov.HiddenMarkov, 3), normal("B T 3"), "B T 3", RABINER, "19-20", MAX_PLUS),
    Sample("viterbi", seeded(markov.Viterbi, 3), normal("B T 3"), "B T 3", RABINER, "32a-33a", MAX_PLUS),
    Sample(
        "kalman_mean",
        seeded(kalman.FilterMean, 3, 2),
        measured,
        "B T 3",
        KALMAN_1960,
        "mean for given gains",
        DENSE,
        time_dims=(1, 1),
    ),
    Sample(
        "kalman",
        seeded(kalman.KalmanFilter, 3, 2),
        normal("B T 2"),
        "B T 3",
        KALMAN_1960,
        "mean and covariance",
        NONLINEAR,
        affine=False,
        expect="partial",
    ),
)
