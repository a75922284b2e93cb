"""Hidden Markov models, in log space.

Rabiner, "A Tutorial on Hidden Markov Models and Selected Applications in Speech Recognition" (1989): the forward
algorithm, eqs. 19-20, alpha_{t+1}(j) = (sum_i alpha_t(i) a_ij) b_j(o_{t+1}), and the scores of Viterbi's algorithm,
eqs. 32a-33a, with a maximum in place of the sum.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class HiddenMarkov(nn.Module):
    """The forward algorithm: log-likelihoods of what was observed (B, T, states) -> log alpha (B, T, states)."""

    def __init__(self, states: int) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.randn(states, states))
        self.start = nn.Parameter(torch.randn(states))

    def step(self, log_alpha: Tensor) -> Tensor:
        """(B, states) -> (B, states), summed over where each came from."""
        log_a = torch.log_softmax(self.transitions, dim=1)
        return torch.logsumexp(log_alpha.unsqueeze(2) + log_a, dim=1)

    def forward(self, log_b: Tensor) -> Tensor:
        log_alpha = torch.log_softmax(self.start, dim=0) + log_b[:, 0]
        out = [log_alpha]
        for t in range(1, log_b.shape[1]):
            log_alpha = self.step(log_alpha) + log_b[:, t]
            out.append(log_alpha)
        return torch.stack(out, dim=1)


class Viterbi(HiddenMarkov):
    """The score of the best path to each state: log-likelihoods (B, T, states) -> (B, T, states)."""

    def step(self, log_alpha: Tensor) -> Tensor:
        """(B, states) -> (B, states), the best over where each came from."""
        log_a = torch.log_softmax(self.transitions, dim=1)
        best, _ = torch.max(log_alpha.unsqueeze(2) + log_a, dim=1)
        return best
