"""The real-gated linear recurrent unit of De et al., "Griffin" (2024), section 2.4.

    r_t = sigmoid(W_a x_t + b_a)                                 (1)
    i_t = sigmoid(W_x x_t + b_x)                                 (2)
    a_t = a^{c r_t}, a = sigmoid(Lambda), c = 8                  (3)
    h_t = a_t h_{t-1} + sqrt(1 - a_t^2) (i_t x_t)                (4)

a_t is computed in log space (appendix A, eq. 6). Where a new document starts inside a packed row, the state is reset
and the input enters unscaled, as in the published code of RecurrentGemma.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RGLRU(nn.Module):
    """x (B, T, width), segment_pos (B, T) int or None, h (B, width) or None -> (B, T, width) and the last state.

    A position of 0 in `segment_pos` starts a document.
    """

    c = 8.0

    def __init__(self, width: int) -> None:
        super().__init__()
        self.input_gate = nn.Linear(width, width)
        self.a_gate = nn.Linear(width, width)
        # a^c uniform in [0.9, 0.999], as in section 2.4; then Lambda = logit(a).
        a = (0.9 + 0.099 * torch.rand(width)) ** (1 / self.c)
        self.a_param = nn.Parameter(torch.logit(a))

    def forward(self, x: Tensor, segment_pos: Tensor | None = None, h: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if h is None:
            h = torch.zeros_like(x[:, 0])
        log_a = F.logsigmoid(self.a_param)
        out = []
        for t in range(x.shape[1]):
            x_t = x[:, t]
            r = torch.sigmoid(self.a_gate(x_t))
            i = torch.sigmoid(self.input_gate(x_t))
            log_a_t = self.c * r * log_a
            scale = torch.sqrt(-torch.expm1(2 * log_a_t))
            if segment_pos is not None:
                reset = segment_pos[:, t, None] == 0
                h = h.masked_fill(reset, 0.0)
                scale = scale.masked_fill(reset, 1.0)
            h = torch.exp(log_a_t) * h + scale * (i * x_t)
            out.append(h)
        return torch.stack(out, dim=1), h
