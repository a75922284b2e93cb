"""A class of recurrences that linrec does not know, in one file: circulant transitions, solved in the Fourier domain.

    h[t] = sum over k of c[k] roll(h[t-1], k) + x[t]

The domain that linrec proves affinity in sees `roll` as a selection of elements, so the class is recognised by its
indices: every term of the update takes the state through a cyclic shift, and nothing else varies along it. There the
Fourier transform makes the transition diagonal, and `linrec.ops.linear_scan` does the rest.

    python examples/circulant.py
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import linrec
from linrec.extend import Lowering, register
from linrec.lowering.registry import coefficients
from linrec.ops import linear_scan


class Ring(nn.Module):
    """A ring of cells that leak into their neighbours; x: (B, T, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.c = nn.Parameter(torch.tensor([0.7, 0.2, -0.15]))

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], self.width), []
        for t in range(x.shape[1]):
            h = self.c[0] * h + self.c[1] * torch.roll(h, 1, -1) + self.c[2] * torch.roll(h, -1, -1) + x[:, t]
            out.append(h)
        return torch.stack(out, 1)


def shifts(recurrence: Any) -> list[tuple[int, Any]] | None:
    """For each term of the transition, by how much it rolls the state's last axis, and its coefficient."""
    if len(recurrence.states) != 1 or not recurrence.transition.time_invariant:
        return None
    update, found = recurrence.update, []
    row = update.axes[-1]
    for term in update.terms:
        for state in term.of_kind("state"):
            rest, shift = term.without(state), 0
            for f in rest.of_kind("selection"):
                size, first = f.atom.columns, f.atom.rows[0]
                if f.axes != (row, state.axes[-1]) or f.atom.rows != tuple((first + i) % size for i in range(size)):
                    return None
                rest, shift = rest.without(f), -first
            if state.axes[:-1] != update.axes[:-1] or (not shift and state.axes[-1] != row):
                return None
            if {i for axis in update.axes for i in axis} & {i for f in rest.factors for i in f.indices()}:
                return None
            found.append((shift, rest))
    return found if any(shift for shift, _ in found) else None


def solve(coefficient: list[Tensor], by: list[int], b: Tensor, h0: Tensor, length: int) -> Tensor:
    """All states, (T, *state), of a circulant recurrence with drives (T or 1, *state)."""
    size = h0.shape[-1]
    first = torch.eye(1, size, dtype=h0.dtype)[0]
    kernel = sum(c.reshape(1) * torch.roll(first, k) for c, k in zip(coefficient, by, strict=True))
    a = torch.fft.fft(kernel).expand(length, *h0.shape)
    spectra = linear_scan(a, torch.fft.fft(b.expand(length, *h0.shape)), torch.fft.fft(h0), dim=0)
    return torch.fft.ifft(spectra).real


class Circulant(Lowering):
    """One multiplication for each frequency and step, between two Fourier transforms."""

    name = "circulant by FFT"

    def applies(self, recurrence: Any, site: Any) -> bool:
        """Whether every term rolls a real state."""
        return not recurrence.transition.is_complex and shifts(recurrence) is not None

    def cost(self, recurrence: Any, site: Any, length: int) -> float:
        """Operations on elements; the transforms cost a few for each."""
        return 20.0 * length * recurrence.states[0].meta["val"].shape[-1]

    def emit(self, recurrence: Any, site: Any) -> list[tuple[Any, Any]]:
        """Write the call of `solve`; return (all states, the last state)."""
        (state,), found = recurrence.states, shifts(recurrence) or []
        emitter = site.emitter(recurrence)
        c = [coefficients(emitter, (term,), (), state) for _, term in found]
        b = coefficients(emitter, recurrence.drive_terms(), recurrence.update.axes, state)
        args = (c, [shift for shift, _ in found], b, site.initial[0], site.vectorizer.length)
        states = site.call(solve, args, state)
        return [(states, site.final(states, state))]


def main() -> None:
    """Show what becomes of the ring, and that it is the loop's result."""
    torch.manual_seed(0)
    ring, x = Ring(8).double(), torch.randn(2, 100, 8, dtype=torch.float64)
    expected = ring(x)
    register(Circulant())
    model = linrec.parallelize(ring)
    found = model(x)
    print(linrec.report(model))
    print(f"largest difference from the loop: {(found - expected).abs().max():.1e}")


if __name__ == "__main__":
    main()
