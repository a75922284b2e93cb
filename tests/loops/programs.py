"""Random recurrences: one to three coupled states, updates drawn from affine and other forms, several ways of walking
and collecting.

A program is fixed by its seed. Most are affine in some of their states and not in others, which is where a compiler
that splits, hoists and merges components goes wrong.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

D = 4


@dataclass
class Now:
    """What a step may read, beside its parameters."""

    x: Tensor
    previous: Tensor
    gate: Tensor
    drive: Tensor
    mask: Tensor
    t: int


Form = Callable[["Program", Now, Tensor, Tensor], Tensor]
"""`(program, now, state, other state) -> (B, D)`."""

DRIVES: list[Callable[[Any, Now], Tensor]] = [
    lambda p, n: n.x,
    lambda p, n: n.drive,
    lambda p, n: p.b * n.x,
    lambda p, n: n.x @ p.V,
    lambda p, n: n.previous * p.b + n.x,
    lambda p, n: torch.tanh(p.lin(n.x)) * n.gate,
    lambda p, n: n.x / (n.t + 1),
    lambda p, n: F.softmax(n.x, -1) - 0.25,
    lambda p, n: n.x.masked_fill(n.mask[:, None], 0.5),
    lambda p, n: p.b.expand_as(n.x),
]

LINEAR: list[Form] = [
    lambda p, n, s, o: 0.7 * s,
    lambda p, n, s, o: p.a * s,
    lambda p, n, s, o: n.gate * s,
    lambda p, n, s, o: s - n.gate * s,
    lambda p, n, s, o: torch.lerp(s, n.drive, n.gate),
    lambda p, n, s, o: torch.where(n.mask[:, None], s, p.a * s),
    lambda p, n, s, o: s.masked_fill(n.mask[:, None], 0.0),
    lambda p, n, s, o: torch.addcmul(n.drive, p.a, s, value=-0.5),
    lambda p, n, s, o: -s / 1.5,
    lambda p, n, s, o: (n.gate[:, :1] * s.neg()).sub(n.x, alpha=0.1),
    lambda p, n, s, o: 0.5 * s.clone().mul_(0.9).add_(n.x),
    lambda p, n, s, o: 0.5 * (s + n.x) ** 2 - 0.5 * s**2 - 0.5 * n.x**2 if p.scale < 0.5 else 0.3 * s,
    lambda p, n, s, o: (1 - n.gate) * s + n.gate * n.drive,
    lambda p, n, s, o: s * 0.8 if n.x.shape[-1] == D else s,
    lambda p, n, s, o: torch.stack([s, n.x, s]).mean(0),
    lambda p, n, s, o: s.unsqueeze(1).mul(p.a).squeeze(1),
    lambda p, n, s, o: torch.mul(s, n.mask[:, None].to(s.dtype)),
]

MIXING: list[Form] = [
    lambda p, n, s, o: s @ p.W,
    lambda p, n, s, o: F.linear(s, p.W, p.b),
    lambda p, n, s, o: (p.W @ s.unsqueeze(-1)).squeeze(-1),
    lambda p, n, s, o: torch.einsum("bi,ij->bj", s, p.W),
    lambda p, n, s, o: 0.5 * s.roll(1, -1),
    lambda p, n, s, o: 0.5 * s.flip(-1),
    lambda p, n, s, o: 0.5 * torch.cat(s.chunk(2, -1)[::-1], -1),
    lambda p, n, s, o: 0.2 * s.cumsum(-1),
    lambda p, n, s, o: 0.6 * (s - s.mean(-1, keepdim=True)),
    lambda p, n, s, o: 0.4 * s.view(-1, 2, D // 2).transpose(1, 2).reshape(-1, D),
    lambda p, n, s, o: 0.5 * s[:, :1].expand(-1, D),
    lambda p, n, s, o: n.gate * (n.x * s).sum(-1, keepdim=True) * 0.1,
    lambda p, n, s, o: torch.outer(s[:, 0], p.a) * 0.5,
]

OTHER: list[Form] = [
    lambda p, n, s, o: torch.tanh(s),
    lambda p, n, s, o: torch.relu(0.5 * s),
    lambda p, n, s, o: torch.sigmoid(s) * n.x,
    lambda p, n, s, o: 0.1 * torch.tanh(s) * s,
    lambda p, n, s, o: 0.5 * s.clamp(-1, 1),
    lambda p, n, s, o: 0.5 * s.abs(),
    lambda p, n, s, o: 0.5 * torch.where(s > n.x, s, n.x),
    lambda p, n, s, o: 0.3 * torch.maximum(s, n.x),
    lambda p, n, s, o: F.normalize(s + n.x, dim=-1),
    lambda p, n, s, o: 0.5 * s.detach(),
    lambda p, n, s, o: 0.5 * s.detach() + 0.3 * s,
    lambda p, n, s, o: 0.4 * torch.tanh(o) * s,
    lambda p, n, s, o: torch.sigmoid(o) * s,
    lambda p, n, s, o: 0.3 * torch.round(s, decimals=1),
]

READS: list[Form] = [
    lambda p, n, s, o: s,
    lambda p, n, s, o: torch.tanh(s) + n.x,
    lambda p, n, s, o: s * torch.sigmoid(o),
    lambda p, n, s, o: p.lin(s),
    lambda p, n, s, o: (s * n.x).sum(-1, keepdim=True) * p.b,
    lambda p, n, s, o: F.layer_norm(s - o, (D,)),
    lambda p, n, s, o: s @ p.W * n.gate,
    lambda p, n, s, o: torch.where(n.mask[:, None], s, o),
]


class Program(nn.Module):
    """One random recurrence, `(x: (B, T, D), mask: (B, T))` in."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        pick = random.Random(seed)
        self.scale = pick.random()
        self.a, self.b = nn.Parameter(torch.rand(D)), nn.Parameter(torch.randn(D))
        self.W, self.V = nn.Parameter(0.3 * torch.randn(D, D)), nn.Parameter(torch.randn(D, D))
        self.lin, self.proj = nn.Linear(D, D), nn.Linear(D, 2 * D)
        self.h0 = nn.Parameter(torch.randn(D))
        self.states = pick.choice([1, 2, 2, 3])
        kinds = [LINEAR] * 6 + [MIXING] * pick.choice([0, 2]) + [OTHER] * pick.choice([0, 0, 1])
        self.updates = []
        for index in range(self.states):
            terms = [(pick.choice(LINEAR + MIXING if len(kinds) > 6 else LINEAR), index, pick.randrange(self.states))]
            for _ in range(pick.choice([0, 1, 1])):
                form, source = pick.choice(pick.choice(kinds)), pick.randrange(self.states)
                terms.append((form, source, pick.randrange(self.states)))
            self.updates.append((terms, pick.choice(DRIVES), pick.random() < 0.5))
        self.reads = [
            (pick.choice(READS), pick.randrange(self.states), pick.randrange(self.states), pick.random() < 0.6)
            for _ in range(pick.choice([1, 2]))
        ]
        self.starts = [pick.choice(["zeros", "parameter", "mean", "first"]) for _ in range(self.states)]
        self.walk = pick.choice(["range", "unbind", "reversed"])
        self.collect = pick.choice(["stack", "buffer", "cat"])
        self.returns_states = pick.random() < 0.5
        self.order = pick.sample(range(self.states), self.states)

    def start(self, kind: str, x: Tensor) -> Tensor:
        """An initial state, `(B, D)`."""
        if kind == "zeros":
            return torch.zeros_like(x[:, 0])
        if kind == "parameter":
            return self.h0.expand(x.shape[0], -1)
        return x.mean(1) if kind == "mean" else x[:, 0]

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Any, ...]:
        gate, drive = self.proj(x).chunk(2, -1)
        gate = gate.sigmoid()
        states = [self.start(kind, x) for kind in self.starts]
        length, shape = x.shape[1], x.shape
        times = list(reversed(range(length))) if self.walk == "reversed" else list(range(length))
        buffers = [x.new_zeros(shape) for _ in self.reads]
        lists: list[list[Tensor]] = [[] for _ in self.reads]
        previous, rows = torch.zeros_like(x[:, 0]), x.unbind(1)
        for t in times:
            x_t = rows[t] if self.walk == "unbind" else x[:, t]
            now = Now(x_t, previous, gate[:, t], drive[:, t], mask[:, t], t)
            old, new = list(states), list(states)
            for index in self.order:
                terms, drive_form, reads_new = self.updates[index]
                total = drive_form(self, now)
                for form, source, other in terms:
                    at = new if reads_new else old
                    total = total + form(self, now, at[source] if source != index else old[index], at[other])
                new[index] = 0.6 * total
            states, previous = new, x_t
            for k, (form, source, other, after) in enumerate(self.reads):
                at = new if after else old
                y = form(self, now, at[source], at[other])
                if self.collect == "buffer":
                    buffers[k][:, t] = y
                else:
                    lists[k].append(y)
        if self.collect == "stack":
            buffers = [torch.stack(each, 1) for each in lists]
        elif self.collect == "cat":
            buffers = [torch.cat([y.unsqueeze(1) for y in each], 1) for each in lists]
        return (*buffers, *(states if self.returns_states else ()))
