"""The Linear Recurrent Unit of Orvieto et al., "Resurrecting Recurrent Neural Networks for Long Sequences" (ICML 2023).

    x_k = Lambda x_{k-1} + exp(gamma_log) * (B u_k),      y_k = Re(C x_k) + D u_k

with Lambda = exp(-exp(nu_log) + i exp(theta_log)) (section 3.3) and the normalisation gamma of section 3.4, initialised
on a ring of the unit disc (lemma 3.2) as in the listing of appendix A. Twice: with a complex state, and with its two
real parts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def ring_init(d_hidden: int, r_min: float, r_max: float, max_phase: float) -> tuple[Tensor, Tensor, Tensor]:
    """nu_log, theta_log and gamma_log, each (d_hidden,), for eigenvalues uniform on the ring r_min..r_max."""
    u1, u2 = torch.rand(d_hidden), torch.rand(d_hidden)
    nu_log = torch.log(-0.5 * torch.log(u1 * (r_max**2 - r_min**2) + r_min**2))
    theta_log = torch.log(max_phase * u2)
    gamma_log = 0.5 * torch.log(1 - torch.exp(-2 * torch.exp(nu_log)))
    return nu_log, theta_log, gamma_log


class LRU(nn.Module):
    """u (B, T, d_model), x0 (B, d_hidden) complex or None -> y (B, T, d_model)."""

    def __init__(
        self,
        d_model: int,
        d_hidden: int,
        r_min: float = 0.0,
        r_max: float = 1.0,
        max_phase: float = 2 * math.pi,
    ) -> None:
        super().__init__()
        self.d_hidden = d_hidden
        nu_log, theta_log, gamma_log = ring_init(d_hidden, r_min, r_max, max_phase)
        self.nu_log = nn.Parameter(nu_log)
        self.theta_log = nn.Parameter(theta_log)
        self.gamma_log = nn.Parameter(gamma_log)
        self.B_re = nn.Parameter(torch.randn(d_hidden, d_model) / math.sqrt(2 * d_model))
        self.B_im = nn.Parameter(torch.randn(d_hidden, d_model) / math.sqrt(2 * d_model))
        self.C_re = nn.Parameter(torch.randn(d_model, d_hidden) / math.sqrt(d_hidden))
        self.C_im = nn.Parameter(torch.randn(d_model, d_hidden) / math.sqrt(d_hidden))
        self.D = nn.Parameter(torch.randn(d_model))

    def step(self, lam: Tensor, B: Tensor, x: Tensor, u: Tensor) -> Tensor:
        return lam * x + u.to(B.dtype) @ B.T

    def forward(self, u: Tensor, x0: Tensor | None = None) -> Tensor:
        lam = torch.exp(torch.complex(-self.nu_log.exp(), self.theta_log.exp()))
        B = torch.complex(self.B_re, self.B_im) * self.gamma_log.exp().unsqueeze(-1)
        C = torch.complex(self.C_re, self.C_im)
        x = torch.zeros(u.shape[0], self.d_hidden, dtype=lam.dtype, device=u.device) if x0 is None else x0
        states = []
        for t in range(u.shape[1]):
            x = self.step(lam, B, x, u[:, t])
            states.append(x)
        return (torch.stack(states, dim=1) @ C.T).real + self.D * u


class RealLRU(nn.Module):
    """The same unit without complex numbers, time first: u (T, B, d_model) -> y (T, B, d_model).

    A complex mode is a rotation of the pair (re, im): each of the two states reads the other.
    """

    def __init__(self, d_model: int, d_hidden: int, r_min: float = 0.4, r_max: float = 0.99) -> None:
        super().__init__()
        nu_log, theta_log, gamma_log = ring_init(d_hidden, r_min, r_max, math.pi / 10)
        self.nu_log = nn.Parameter(nu_log)
        self.theta_log = nn.Parameter(theta_log)
        self.gamma_log = nn.Parameter(gamma_log)
        self.B_re = nn.Linear(d_model, d_hidden, bias=False)
        self.B_im = nn.Linear(d_model, d_hidden, bias=False)
        self.C_re = nn.Linear(d_hidden, d_model, bias=False)
        self.C_im = nn.Linear(d_hidden, d_model, bias=False)
        self.D = nn.Parameter(torch.randn(d_model))

    def forward(self, u: Tensor) -> Tensor:
        modulus = torch.exp(-self.nu_log.exp())
        cos = modulus * torch.cos(self.theta_log.exp())
        sin = modulus * torch.sin(self.theta_log.exp())
        gamma = self.gamma_log.exp()

        re = im = u.new_zeros(u.shape[1], cos.shape[0])
        ys = []
        for u_t in u:
            re, im = cos * re - sin * im + gamma * self.B_re(u_t), sin * re + cos * im + gamma * self.B_im(u_t)
            ys.append(self.C_re(re) - self.C_im(im) + self.D * u_t)
        return torch.stack(ys)
