"""Masks and resets, casts, coefficients and the time index as numbers, shifted inputs, tokens and dicts in, reads
before and after the update.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Call, Table, bt, btd, tbd
from .styles_state import D, Gates

ENTRIES = Table()


class WithMask(nn.Module):
    """Input, and a mask `(B, T)` of the steps that count; subclasses say what it does."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.update(h, f[:, t], v[:, t], mask[:, t])
            ys.append(h)
        return torch.stack(ys, 1)

    def update(self, h: Tensor, f: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """`(B, D)` three times and `(B,)`."""
        raise NotImplementedError


def masked(batch: int, length: int) -> tuple[Tensor, Tensor]:
    """`(B, T, D)` and booleans `(B, T)`."""
    return torch.randn(batch, length, D), torch.rand(batch, length) > 0.3


@ENTRIES.add(masked)
class MaskWhere(WithMask):
    """Padding keeps the state."""

    def update(self, h: Tensor, f: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return torch.where(mask.unsqueeze(-1), f * h + v, h)


@ENTRIES.add(masked)
class MaskReset(WithMask):
    """A new document starts from zero."""

    def update(self, h: Tensor, f: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return f * (h * (1 - mask.to(h.dtype))[:, None]) + v


@ENTRIES.add(masked)
class MaskFilled(WithMask):
    def update(self, h: Tensor, f: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return f * h.masked_fill(~mask[:, None], 0.0) + v.masked_fill(mask[:, None], 0.5)


@ENTRIES.add(masked)
class MaskArithmetic(WithMask):
    def update(self, h: Tensor, f: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        m = mask.unsqueeze(1).type_as(h)
        return m * (f * h + v) + (1.0 - m) * h


@ENTRIES.add(btd(D), dtype=torch.float32, rtol=1e-4)
class CastToDouble(nn.Module):
    """The state in float64 inside a float32 model."""

    def __init__(self) -> None:
        super().__init__()
        self.gates = Gates()

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros(x.shape[0], D, dtype=torch.float64, device=x.device), []
        for t in range(x.shape[1]):
            h = f[:, t].double() * h + v[:, t].double()
            ys.append(h.to(x.dtype))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), rtol=1e-4)
class CastAroundLoop(nn.Module):
    """float32 inside, whatever came in."""

    def __init__(self) -> None:
        super().__init__()
        self.log_a = nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        dtype, xf, a = x.dtype, x.float(), torch.exp(-self.log_a.float().exp())
        h, ys = torch.zeros_like(xf[:, 0]), []
        for t in range(x.shape[1]):
            h = a * h + xf[:, t]
            ys.append(h)
        return torch.stack(ys, 1).to(dtype)


@ENTRIES.add(btd(D), dtype=torch.bfloat16, rtol=4e-2)
class CastFromBfloat16(nn.Module):
    """A bfloat16 model with a float32 state, as mixed-precision mixers do it."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.dt = nn.Parameter(torch.randn(D, 3)), nn.Linear(D, D)

    def forward(self, x: Tensor) -> Tensor:
        A = -torch.exp(self.A_log.float())
        delta = F.softplus(self.dt(x))
        h, ys = torch.zeros(x.shape[0], D, 3, dtype=torch.float32), []
        for t in range(x.shape[1]):
            h = torch.exp(A * delta[:, t, :, None].float()) * h + (delta[:, t] * x[:, t]).float().unsqueeze(-1)
            ys.append(h.sum(-1).to(x.dtype))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class ReadBeforeUpdate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gates, self.bonus = Gates(), nn.Parameter(torch.randn(D))

    def forward(self, x: Tensor) -> Tensor:
        f, v = self.gates(x)
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            ys.append(torch.tanh(h + self.bonus * v[:, t]))
            h = f[:, t] * h + v[:, t]
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class ReadBothSides(nn.Module):
    """Old and new state, several readouts, one of them an innovation."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.C = nn.Parameter(torch.rand(D)), nn.Linear(D, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, predicted, errors = torch.zeros_like(x[:, 0]), [], []
        for x_t in x.unbind(1):
            predicted.append(self.C(h))
            new = self.a * h + x_t
            errors.append((new - h).abs().mean(-1))
            h = new
        return torch.stack(predicted, 1), torch.stack(errors, 1), h


@ENTRIES.add(btd(D))
class LayersInsideTheLoop(nn.Module):
    """Projections, norm, activation and a feed-forward, all per step."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 5), nn.Linear(5, D)
        self.a = nn.Parameter(torch.rand(5))
        self.head = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.Linear(D, 2))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = x.new_zeros(x.shape[0], 5), []
        for t in range(x.shape[1]):
            h = self.a * h + F.silu(self.up(self.norm(x[:, t])))
            ys.append(torch.log_softmax(self.head(self.down(h) + x[:, t]), dim=-1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class PythonCoefficients(nn.Module):
    """Floats from Python arithmetic and from an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.tau = 5.0

    def forward(self, x: Tensor) -> Tensor:
        h, trace, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            decay = math.exp(-1.0 / self.tau)
            h = h * decay + (1.0 - decay) * x[:, t]
            trace = trace - trace / self.tau + h
            ys.append(trace)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class TimeIndexAsNumber(nn.Module):
    """The running mean."""

    def forward(self, x: Tensor) -> Tensor:
        mean, total, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            mean = mean + (x[:, t] - mean) / (t + 1)
            total = total + x[:, t]
            ys.append(mean + total / (t + 1))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "any")
class TimeIndexAsPower(nn.Module):
    """Adam's bias correction: a float that is not an affine function of t."""

    def forward(self, x: Tensor) -> Tensor:
        m, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            m = 0.9 * m + 0.1 * x[:, t]
            ys.append(m / (1 - 0.9 ** (t + 1)))
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class PositionTable(nn.Module):
    """A row of a learned table for each step."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Parameter(torch.randn(40, D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t] + self.table[t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class PreviousInput(nn.Module):
    """A token shift, `x[:, t-1]` from t = 1."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.a = nn.Parameter(torch.rand(D)), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros_like(x[:, 0])
        ys = [h]
        for t in range(1, x.shape[1]):
            h = self.a * h + x[:, t] + self.mix * (x[:, t - 1] - x[:, t])
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D))
class PreviousInputCarried(nn.Module):
    """The same shift through a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.gates = nn.Parameter(torch.rand(D)), Gates()

    def forward(self, x: Tensor) -> Tensor:
        previous, h, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for x_t in x.unbind(1):
            f, v = self.gates(torch.lerp(previous, x_t, self.mix))
            h = f * h + v
            previous = x_t
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(btd(D), "stateless")
class FiniteImpulseResponse(nn.Module):
    """FSMN: a weighted sum of the last three inputs, no state at all."""

    def __init__(self) -> None:
        super().__init__()
        self.taps = nn.Parameter(torch.randn(3, D))

    def forward(self, x: Tensor) -> Tensor:
        padded, ys = F.pad(x, (0, 0, 2, 0)), []
        for t in range(x.shape[1]):
            ys.append((padded[:, t : t + 3] * self.taps).sum(1))
        return torch.stack(ys, 1)


@ENTRIES.add(bt)
class ScalarPerBatch(nn.Module):
    """`x: (B, T)`; the state is one number."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.a * h + x[:, t]
            ys.append(h)
        return torch.stack(ys, 1)


@ENTRIES.add(lambda batch, length: torch.randint(0, 9, (batch, length)))
class TokensIn(nn.Module):
    """Integers in, embedded at each step, logits out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gates = nn.Embedding(9, D), Gates()

    def forward(self, tokens: Tensor) -> Tensor:
        h, logits = self.embed.weight.new_zeros(tokens.shape[0], D), []
        for t in range(tokens.shape[1]):
            f, v = self.gates(self.embed(tokens[:, t]))
            h = f * h + v
            logits.append(F.linear(h, self.embed.weight))
        return torch.stack(logits, 1)


@ENTRIES.add(
    lambda batch, length: Call(
        (), {"batch": {"x": torch.randn(batch, length, D), "keep": torch.rand(batch, length, 1)}}
    )
)
class DictIn(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x, keep = batch["x"], batch["keep"]
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = keep[:, t] * h + x[:, t]
            ys.append(h)
        return {"states": torch.stack(ys, 1), "last": h}


@ENTRIES.add(tbd(D), is_function=True)
def summed_loss(x: Tensor) -> Tensor:
    """The loss is summed up inside the loop: the memory feeds a scalar accumulator through a square."""
    h, loss = torch.zeros_like(x[0]), x.new_zeros(())
    for t in range(x.shape[0] - 1):
        h = 0.8 * h + 0.2 * x[t]
        loss = loss + F.mse_loss(h, x[t + 1])
    return loss


@ENTRIES.add(tbd(D), "partial")
class AffineMemoryFeedsTanh(nn.Module):
    """The memory leaves the loop, the recurrent layer over it stays."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.rnn = nn.Parameter(torch.rand(D)), nn.RNNCell(D, 3)

    def forward(self, x: Tensor) -> Tensor:
        m, h, ys = torch.zeros_like(x[0]), x.new_zeros(x.shape[1], 3), []
        for x_t in x:
            m = self.a * m + x_t
            h = self.rnn(m, h)
            ys.append(h)
        return torch.stack(ys)


@ENTRIES.add(btd(D), "partial")
class TanhFeedsAffineMemory(nn.Module):
    """And the other way round."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.a = nn.Linear(2 * D, D), nn.Parameter(torch.rand(D))

    def forward(self, x: Tensor) -> Tensor:
        h, m, ys = torch.zeros_like(x[:, 0]), torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = torch.tanh(self.w(torch.cat([x[:, t], h], -1)))
            m = self.a * m + h
            ys.append(m)
        return torch.stack(ys, 1)
