"""The linear state-space layer of Gu et al., "Combining Recurrent, Convolutional, and Continuous-time Models" (NeurIPS
2021).

    x_t = A_bar x_{t-1} + B_bar u_t                  (4)
    y_t = C x_t + D u_t                              (5)

with A of HiPPO-LegS, discretised by the bilinear rule (eq. 3 with alpha = 1/2) once at construction: the LSSL with
fixed A and dt.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def hippo_legs(order: int) -> tuple[Tensor, Tensor]:
    """A (order, order) and B (order,) of HiPPO-LegS (S4, eq. 2), in float64."""
    q = torch.arange(order, dtype=torch.float64)
    b = torch.sqrt(2 * q + 1)
    a = torch.tril(b[:, None] * b[None, :], diagonal=-1) + torch.diag(q + 1)
    return -a, b


def bilinear(a: Tensor, b: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """a (N, N) or (H, N, N), b (N,) or (H, N), dt (H,) -> A_bar (H, N, N), B_bar (H, N): the trapezoidal rule."""
    half = dt[:, None, None] / 2 * a
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    b = b.expand(dt.shape[0], -1)
    return torch.linalg.solve(eye - half, eye + half), torch.linalg.solve(eye - half, dt[:, None] * b)


class LSSL(nn.Module):
    """u (B, T, channels), x (B, channels, order) or None -> y (B, T, channels); dt differs between the channels."""

    A: Tensor
    B: Tensor

    def __init__(self, channels: int, order: int, dt_min: float = 0.01, dt_max: float = 0.2) -> None:
        super().__init__()
        self.order = order
        dt = torch.logspace(math.log10(dt_min), math.log10(dt_max), channels, dtype=torch.float64)
        a, b = bilinear(*hippo_legs(order), dt)
        self.register_buffer("A", a.to(torch.get_default_dtype()))
        self.register_buffer("B", b.to(torch.get_default_dtype()))
        self.C = nn.Parameter(torch.randn(channels, order) / math.sqrt(order))
        self.D = nn.Parameter(torch.ones(channels))

    def forward(self, u: Tensor, x: Tensor | None = None) -> Tensor:
        state = {"x": u.new_zeros(u.shape[0], u.shape[2], self.order) if x is None else x}
        ys = []
        for t in range(u.shape[1]):
            u_t = u[:, t]
            state["x"] = torch.einsum("hij,bhj->bhi", self.A, state["x"]) + self.B * u_t[..., None]
            ys.append((self.C * state["x"]).sum(-1) + self.D * u_t)
        return torch.stack(ys, dim=1)
