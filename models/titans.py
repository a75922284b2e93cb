"""A memory trained at test time: Behrouz, Zhong & Mirrokni, "Titans: Learning to Memorize at Test Time" (2024), with a
linear memory.

    l(M; x_t) = || M k_t - v_t ||^2
    M_t = (1 - alpha_t) M_{t-1} - theta_t grad l(M_{t-1}; x_t),        y_t = M_t q_t

Gradient descent with weight decay, without the momentum of the full model (see `momentum_delta`). In Miras (Behrouz et
al. 2025) it is the case of a linear memory, l2 attentional bias and l2 retention. The gradient is written out, or left
to autograd.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def squared_error(M: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Sum of || M k - v ||^2 over the batch; its gradient with respect to one M does not depend on the other rows."""
    return ((M @ k.unsqueeze(-1)).squeeze(-1) - v).square().sum()


class LinearTitans(nn.Module):
    """x (B, T, width), M (B, d, d) or None -> (B, T, d); `autograd` takes the gradient by `torch.func.grad`.

    `torch.export` of torch 2.13 cannot trace that call, so a compiler built on it has to leave such a loop as it is.
    """

    def __init__(self, width: int, d: int, autograd: bool = False) -> None:
        super().__init__()
        self.d = d
        self.q = nn.Linear(width, d, bias=False)
        self.k = nn.Linear(width, d, bias=False)
        self.v = nn.Linear(width, d, bias=False)
        self.rates = nn.Linear(width, 2)
        self.autograd = autograd

    def gradient(self, M: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.autograd:
            return torch.func.grad(squared_error)(M, k, v)
        error = torch.einsum("bij,bj->bi", M, k) - v
        return 2 * torch.einsum("bi,bj->bij", error, k)

    def forward(self, x: Tensor, M: Tensor | None = None) -> Tensor:
        if M is None:
            M = x.new_zeros(x.shape[0], self.d, self.d)
        q, k, v = F.normalize(self.q(x), dim=-1), F.normalize(self.k(x), dim=-1), self.v(x)
        theta, alpha = torch.sigmoid(self.rates(x)).unsqueeze(-1).chunk(2, dim=2)
        ys = []
        for t in range(x.shape[1]):
            M = (1 - alpha[:, t]) * M - theta[:, t] * self.gradient(M, k[:, t], v[:, t])
            ys.append(torch.einsum("bij,bj->bi", M, q[:, t]))
        return torch.stack(ys, dim=1)
