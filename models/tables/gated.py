"""Samples with a diagonal transition that the input decides, and the gated networks whose gates read the state and are
not affine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models import gae, hgrn, mamba, mingru, plstm, qrnn, rglru, rnn, slstm, sru
from models.sample import DIAGONAL, NONLINEAR, Sample, normal, seeded

MIN_2024 = "Feng et al., Were RNNs All We Needed? (2024)"
QRNN_2017 = "Bradbury et al., Quasi-Recurrent Neural Networks (2017)"
GRIFFIN_2024 = "De et al., Griffin (2024)"
MAMBA_2023 = "Gu & Dao, Mamba (2023)"
SRU_2018 = "Lei et al., Simple Recurrent Units for Highly Parallelizable Recurrence (2018)"


def packed_documents(batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x (B, T, 4) and the position of each token in its document; rows hold documents of different lengths."""
    (x,) = normal("B T 4")(batch, length, dtype)
    document = torch.arange(3, 3 + batch).unsqueeze(1)
    return x, torch.arange(length).repeat(batch, 1) % document


def episodes(batch: int, length: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Rewards (B, T), values (B, T + 1), dones (B, T) bool; row i ends an episode every i + 3 steps.

    The first two are strided views, as slices of a rollout are.
    """
    (noise,) = normal("B T 2")(batch, length + 1, dtype)
    period = torch.arange(3, 3 + batch).unsqueeze(1)
    return noise[:, :-1, 0], noise[:, :, 1], torch.arange(1, length + 1) % period == 0


SAMPLES: tuple[Sample, ...] = (
    Sample("mingru", seeded(mingru.MinGRU, 3, 5), normal("B T 3"), "B T 5", MIN_2024, "section 3.1.3", DIAGONAL),
    Sample(
        "minlstm",
        seeded(mingru.MinLSTM, 3, 5),
        normal("B T 3", "B 5"),
        "B T 5",
        MIN_2024,
        "section 3.2.4",
        DIAGONAL,
        time_dims=(1, None),
    ),
    Sample("qrnn_f", seeded(qrnn.QRNN, 3, 5, "f"), normal("B T 3"), "B T 5", QRNN_2017, "3", DIAGONAL),
    Sample("qrnn_fo", seeded(qrnn.QRNN, 3, 5, "fo", 3), normal("B T 3"), "B T 5", QRNN_2017, "4", DIAGONAL),
    Sample("qrnn_ifo", seeded(qrnn.QRNN, 3, 5, "ifo"), normal("B T 3"), "B T 5", QRNN_2017, "5", DIAGONAL),
    Sample(
        "hgrn",
        seeded(hgrn.HGRN, 4, 2),
        normal("B T 4"),
        "B T 4",
        "Qin et al., Hierarchically Gated Recurrent Neural Network (2023)",
        "section 3, complex",
        DIAGONAL,
    ),
    Sample("rglru", seeded(rglru.RGLRU, 4), normal("B T 4"), "B T 4; B 4", GRIFFIN_2024, "1-4", DIAGONAL),
    Sample(
        "rglru_resets",
        seeded(rglru.RGLRU, 4),
        packed_documents,
        "B T 4; B 4",
        GRIFFIN_2024,
        "1-4, resets",
        DIAGONAL,
        time_dims=(1, 1),
    ),
    Sample("s6", seeded(mamba.S6, 4, 3), normal("B T 4"), "B T 4", MAMBA_2023, "2, algorithm 2", DIAGONAL),
    Sample("mamba", seeded(mamba.MambaBlock, 4, 3), normal("B T 4"), "B T 4", MAMBA_2023, "figure 3", DIAGONAL),
    Sample(
        "sru_first",
        seeded(sru.SRU, 4, False),
        normal("B T 4"),
        "B T 4; B 4",
        SRU_2018,
        "1-4, gates from x alone",
        DIAGONAL,
    ),
    Sample(
        "gae",
        seeded(gae.GAE),
        episodes,
        "B T",
        "Schulman et al., Generalized Advantage Estimation (2016)",
        "16",
        DIAGONAL,
        time_dims=(1, 1, 1),
        causal=False,
    ),
    Sample(
        "plstm_grid",
        seeded(plstm.GridLSTM, 4),
        normal("B T 3 4"),
        "B T 3 4",
        "Poppel et al., pLSTM (2025)",
        "2D recurrence",
        DIAGONAL,
    ),
    Sample(
        "sru",
        seeded(sru.SRU, 4),
        normal("B T 4"),
        "B T 4; B 4",
        SRU_2018,
        "1-4",
        NONLINEAR,
        affine=False,
        expect="sequential",
    ),
    Sample(
        "elman",
        seeded(rnn.Elman, 3, 5),
        normal("B T 3"),
        "B T 5",
        "Elman, Finding Structure in Time (1990)",
        "simple RNN",
        NONLINEAR,
        affine=False,
        expect="sequential",
    ),
    Sample(
        "gru",
        seeded(rnn.GRU, 3, 5),
        normal("T B 3"),
        "T B 5",
        "Cho et al., Learning Phrase Representations (2014)",
        "GRU",
        NONLINEAR,
        affine=False,
        expect="sequential",
        time_dims=(0,),
    ),
    Sample(
        "lstm",
        seeded(rnn.LSTM, 3, 5),
        normal("B T 3"),
        "B T 5; B 5; B 5",
        "Gers et al., Learning to Forget (2000)",
        "LSTM",
        NONLINEAR,
        affine=False,
        expect="sequential",
    ),
    Sample(
        "slstm",
        seeded(slstm.SLSTM, 3, 5),
        normal("B T 3"),
        "B T 5",
        "Beck et al., xLSTM (2024)",
        "8-17",
        NONLINEAR,
        affine=False,
        expect="sequential",
    ),
    Sample(
        "context_rnn",
        seeded(rnn.ContextRNN, 3, 4, 5, 2),
        normal("B T 3"),
        "B T 2",
        "Mikolov et al., Learning Longer Memory in Recurrent Neural Networks (2014)",
        "SCRN",
        NONLINEAR,
        affine=False,
        expect="partial",
    ),
)
