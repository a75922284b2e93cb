"""What the step is written with: operators on the state, masks and resets, casts, constants, the time index as a
number, reads before and after.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Table, btd
from .styles_state import D, Gates

ENTRIES = Table()


class Dense(nn.Module):
    """A memory `(B, 3)` with one constant matrix; subclasses say how the product is written."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(0.4 * torch.randn(3, 3)), nn.Parameter(torch.randn(3, D))
        self.bias = nn.Parameter(torch.randn(3))

    def forward(self, x: Tensor) -> Tensor:
        m, ys = x.new_zeros(x.shape[0], 3), []
        for t in range(x.shape[1]):
            m = self.update(m, x[:, t])
            ys.append(m)
        return torch.stack(ys, 1)

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        """`(B, 3), (B, D) -> (B, 3)`."""
        raise NotImplementedError


@ENTRIES.add(btd(D))
class DenseByEinsum(Dense):
    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return torch.einsum("bj,ij->bi", m, self.A) + torch.einsum("id,bd->bi", self.B, u)


@ENTRIES.add(btd(D))
class DenseByColumns(Dense):
    """The state as a column: `A @ m` with `m: (B, 3, 1)`."""

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return (self.A @ m.unsqueeze(-1) + self.B @ u[..., None]).squeeze(-1) + self.bias


@ENTRIES.add(btd(D))
class DenseByTransposes(Dense):
    """The batch as columns: `A @ m.T`."""

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return torch.mm(self.A, m.t()).t() + torch.mm(u, self.B.t())


@ENTRIES.add(btd(D))
class DenseByBmm(Dense):
    def update(self, m: Tensor, u: Tensor) -> Tensor:
        A = self.A.expand(m.shape[0], -1, -1)
        return torch.bmm(A, m.unsqueeze(2)).squeeze(2) + F.linear(u, self.B, self.bias)


@ENTRIES.add(btd(D))
class DenseByBaddbmm(Dense):
    def update(self, m: Tensor, u: Tensor) -> Tensor:
        drive = (u @ self.B.T).unsqueeze(1)
        return torch.baddbmm(drive, m.unsqueeze(1), self.A.expand(m.shape[0], 3, 3)).squeeze(1)


@ENTRIES.add(btd(D))
class DenseByAddmm(Dense):
    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return torch.addmm(u @ self.B.T, m, self.A, alpha=0.5, beta=2.0)


@ENTRIES.add(btd(D))
class DenseByProductAndSum(Dense):
    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return (m[:, None, :] * self.A).sum(-1) + (u.unsqueeze(1) * self.B).sum(dim=2)


@ENTRIES.add(btd(D))
class DenseByConcatenation(Dense):
    """One linear map of `[u, m]`, as a cell without activation is written."""

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return F.linear(torch.cat([u, m], dim=-1), torch.cat([self.B, self.A], dim=1), self.bias)


@ENTRIES.add(btd(D))
class DenseEulerStep(Dense):
    """`m + dt (A m + B u)`, and the skew part of A only."""

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        return m + 0.1 * (m @ (self.A - self.A.T) - m + u @ self.B.T)


@ENTRIES.add(btd(D))
class DenseBilinear(Dense):
    """The transition is discretised (bilinear) inside the loop."""

    def update(self, m: Tensor, u: Tensor) -> Tensor:
        eye = torch.eye(3, dtype=m.dtype, device=m.device)
        A = torch.linalg.solve(eye - 0.05 * self.A, eye + 0.05 * self.A)
        return m @ A.mT + u @ self.B.T


class Diagonal(nn.Module):
    """A gated state `(B, D)`; subclasses say how the update is written."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(h, f[:, t], v[:, t])
            ys.append(h)
        return torch.stack(ys, 1)

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        """`(B, D)` each."""
        raise NotImplementedError


@ENTRIES.add(btd(D))
class DiagonalLerp(Diagonal):
    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return h.lerp(v, 1 - f)


@ENTRIES.add(btd(D))
class DiagonalDifference(Diagonal):
    """`h += g (v - h)`, the state read twice."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return h + (1 - f) * (v - h)


@ENTRIES.add(btd(D))
class DiagonalAddcmul(Diagonal):
    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return torch.addcmul(v, f, h, value=0.5).sub(h / 7)


@ENTRIES.add(btd(D))
class DiagonalInPlaceAddcmul(Diagonal):
    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return v.clone().addcmul_(f, h)


@ENTRIES.add(btd(D))
class DiagonalEinsum(Diagonal):
    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return torch.einsum("bd,bd->bd", f, h) + torch.mul(v, 2)


@ENTRIES.add(btd(D))
class DiagonalNegative(Diagonal):
    """Decays between -1 and 1, a division and an `rsub`."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return v - h * (2 * f - 1) / 1.1


@ENTRIES.add(btd(D))
class DiagonalCancelling(Diagonal):
    """`(h + v)^2 - h^2 - v^2 + f h`: affine after cancellation."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return 0.2 * ((h + v) * (h + v) - h * h - v * v) + f * h


@ENTRIES.add(btd(D))
class GateOfOnesLikeTheState(Diagonal):
    """A softmax over a gate and tensors that are made like the state: only its shape is read."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        made = [torch.ones_like(h), torch.full_like(h[:, :1], 0.3).tanh().expand_as(h), h.new_zeros(h.shape)]
        gates = torch.softmax(torch.stack([f, v, *made]), 0)
        return gates[0] * h + gates[1] * v + gates[2:].sum(0)


@ENTRIES.add(btd(D))
class GateExpandedAsTheState(Diagonal):
    """`expand_as` and `type_as` read the shape and the dtype of the state."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        spread = f[:, :1].expand_as(h)
        return torch.sigmoid(spread - (v > 0).type_as(h)) * h + v


@ENTRIES.add(btd(D))
class AttentionOfTheInput(Diagonal):
    """Attention without dropout draws nothing."""

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        heads = v.view(v.shape[0], 1, -1, 1)
        mixed = F.scaled_dot_product_attention(heads, heads, heads).flatten(1)
        return f * h + mixed


@ENTRIES.add(btd(D))
class RnnBeforeTheLoop(Diagonal):
    """torch's own RNNs list their parameters anew while they are traced, where these are others."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(D, D, num_layers=2, batch_first=True, bidirectional=True, proj_size=D // 2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.rnn(x)[0])

    def update(self, h: Tensor, f: Tensor, v: Tensor) -> Tensor:
        return f * h + v


@ENTRIES.add(btd(D), "partial")
class RnnInTheStep(Diagonal):
    """Without dropout it draws nothing; it has a state of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(D, D, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        f = self.gates(x)[0]
        h, own, ys = torch.zeros_like(x[:, 0]), None, []
        for t in range(x.shape[1]):
            y, own = self.rnn(x[:, t : t + 1], own)
            h = f[:, t] * h + y[:, 0]
            ys.append(h)
        return torch.stack(ys, 1)
