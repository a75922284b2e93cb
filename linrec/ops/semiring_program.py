"""Affine recurrences of any structure over (max, +), (min, +) and (log-sum-exp, +), by chunks: the program of named
indices is that of `linrec.ops.affine`, with its sums and products taken in the semiring. The derivative is a linear
recurrence over the ordinary sum, whose coefficients are the shares that the operands have in each sum."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.autograd import forward_ad

from ._dtypes import compute_dtype, in_old_vmap
from .affine import AffineProgram, Term, _aligned, _merged, _split_sizes, affine_scan, chunked_scan
from .precision import own_precision
from .semiring_kinds import KINDS

_WHOLE = 1 << 22
"""The number of elements up to which what is summed is formed at once; above, a part of the steps at a time."""


@dataclass(frozen=True)
class SemiringProgram(AffineProgram):
    """The linear part of an affine recurrence over a semiring. A coefficient is added, as factors are.

    Attributes:
        kind: "log-sum-exp", "max-plus" or "min-plus".
        ties: for each state, whose the derivative is where a maximum has equal operands: "even" (shared), "first",
            "state" or "drive".
        outer: for each state, positions of operands that every term of it has, outside of its sum: their derivative is
            the state's, also where the sum is one of nothing.
    """

    kind: str = "log-sum-exp"
    ties: tuple[str, ...] = ()
    outer: tuple[tuple[int, ...], ...] = ()

    @property
    def zero(self) -> float:
        """What is neutral for the sum."""
        return KINDS[self.kind].zero

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """The semiring's sum of two tensors."""
        joined: Tensor = KINDS[self.kind].join(x, y)
        return joined

    @property
    def one(self) -> float:
        """What is neutral for the product."""
        return 0.0

    def total(self, x: Tensor, dims: Sequence[int], tie: str = "even") -> Tensor:
        """The semiring's sum over dimensions, the last ones."""
        if tie == "first":
            flat = x.flatten(dims[0], dims[-1])
            return (flat.min(dims[0]) if self.kind == "min-plus" else flat.max(dims[0])).values
        found: Tensor = KINDS[self.kind].total(x, list(dims))
        return found

    def joined(self, moved: Tensor, drive: Tensor, tie: str) -> Tensor:
        """The sum of what a step makes of a state and of its drive, with its derivative where they are equal."""
        if tie not in ("state", "drive"):
            return self.join(moved, drive)
        low, high = (moved, drive) if self.kind == "min-plus" else (drive, moved)
        return torch.where(low <= high if tie == "state" else low < high, moved, drive)

    def terms_of(self, term: Term, state: Tensor, operands: Sequence[Tensor]) -> tuple[Tensor, str]:
        """What a term sums up, (C, *letters, X), and its letters: those of the target, then those summed over."""
        sizes = dict(self.sizes)
        read = "".join(term.source_labels)
        if any(len(labels) != 1 for labels in term.source_labels):
            split = _split_sizes(state.shape[1:-1], term.source_labels, sizes)
            state = state.reshape(state.shape[0], *split, state.shape[-1])
        target = _joined(term)
        seen = dict.fromkeys(c for labels in (read, *term.labels, *(m[1] for m in term.masks)) for c in labels)
        order = "".join(c for c in target if c in seen) + "".join(c for c in seen if c not in target)
        value = _placed(state, read, order)
        for k, labels in zip(term.operands, term.labels, strict=True):
            value = value + _aligned(operands[k], labels, order)
        return (value + term.coefficient if term.coefficient != 0 else value), order

    def masked(
        self, value: Tensor, order: str, masks: Sequence[tuple[int, str, bool]], operands: Sequence[Tensor]
    ) -> Tensor:
        """(C, *order, X) with nothing where a mask says so."""
        for k, labels, keep in masks:
            mask, nothing = _aligned(operands[k], labels, order), value.new_full((), self.zero)
            value = torch.where(mask, value, nothing) if keep else torch.where(mask, nothing, value)
        return value

    def _term(self, term: Term, state: Tensor, operands: Sequence[Tensor], sizes: dict[str, int]) -> Tensor:
        target = _joined(term)
        outer = [m for m in term.masks if set(m[1]) <= set(target)]  # of the sum, which may be of nothing
        inner = [m for m in term.masks if m not in outer]
        parts, order = [], ""
        for piece, own in self._pieces(term, state, operands):
            value, order = self.terms_of(term, piece, own)
            value = self.masked(value, order, inner, own)
            kept = [c for c in order if c in target]
            if len(kept) < len(order):
                dims = range(len(kept) + 1, len(order) + 1)
                value = self.total(value, dims, self.ties[term.target] if self.ties else "even")
            parts.append(self.masked(value, "".join(kept), outer, own))
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        return _merged(value, term.target_labels, set(order), sizes)

    def _pieces(self, term: Term, state: Tensor, operands: Sequence[Tensor]) -> list[tuple[Tensor, Sequence[Tensor]]]:
        """The state and the operands in parts along the first axis, few enough elements each."""
        sizes: dict[str, int] = {}
        for k, labels in (*zip(term.operands, term.labels, strict=True), *(m[:2] for m in term.masks)):
            sizes.update(zip(labels, operands[k].shape[1:], strict=True))
        bound = math.prod(n for c, n in sizes.items() if not any(c in labels for labels in term.source_labels))
        lead = max(state.shape[0], *(operands[k].shape[0] for k in term.operands), 1)
        count = min(lead, -(-state.numel() // max(1, state.shape[0]) * lead * bound // _WHOLE))
        if count <= 1:
            return [(state, operands)]
        step = -(-lead // count)
        return [
            (_rows(state, begin, step), [_rows(x, begin, step) for x in operands]) for begin in range(0, lead, step)
        ]

    def solve(
        self, drives: Sequence[Tensor], operands: Sequence[Tensor], initial: Sequence[Tensor], length: int
    ) -> list[Tensor]:
        """See `semiring_scan`."""
        return semiring_scan(self, drives, operands, initial, length)

    def _product(self, matrix: Tensor, flat: Tensor) -> Tensor:
        """The product of matrices in the semiring."""
        return self.total(matrix.unsqueeze(-1) + flat.unsqueeze(-3), [-2])


def _rows(x: Tensor, begin: int, count: int) -> Tensor:
    return x if x.shape[0] == 1 else x[begin : begin + count]


def _placed(state: Tensor, labels: str, order: str) -> Tensor:
    """(C, *labels, X) permuted and padded to the letters of `order`."""
    moved = state.permute(0, *(labels.index(c) + 1 for c in order if c in labels), len(labels) + 1)
    for d, c in enumerate(order):
        if c not in labels:
            moved = moved.unsqueeze(d + 1)
    return moved


def semiring_scan(
    program: SemiringProgram,
    drives: Sequence[Tensor],
    operands: Sequence[Tensor],
    initial: Sequence[Tensor],
    length: int,
) -> list[Tensor]:
    """All states of an affine recurrence over a semiring, m[t] = sum(L[t] m[t-1], b[t]), m[-1] = initial.

    Args:
        program: the linear part L.
        drives: b, one per state: (T, *state).
        operands: the factors that the terms name: (T or 1, *indices).
        initial: one per state: (*state).
        length: T.

    Returns:
        One tensor per state, (T, *state), in its dtype; half precision is computed in float32. Nothing leaves log
        space, and no difference is taken but from the greatest of a sum.

    Source: the forward algorithm of Rabiner, "A Tutorial on Hidden Markov Models" (1989), eq. 20, in log space; its
    scan is that of Särkkä and García-Fernández, "Temporal Parallelization of Bayesian Smoothers" (2021).
    """
    dtypes = [h.dtype for h in initial]
    drives, operands, initial = ([x.to(compute_dtype(x.dtype)) for x in xs] for xs in (drives, operands, initial))
    tensors = [*drives, *operands, *initial]
    if forward_ad._current_level >= 0 or in_old_vmap(*tensors) or any(map(is_functorch_wrapped_tensor, tensors)):
        found: Sequence[Tensor] = _loop(program, drives, operands, initial, length)
    else:
        counts = len(drives), len(operands), len(initial)
        found = _SemiringProgramScan.apply(program, length, counts, *tensors)  # type: ignore[no-untyped-call]
    return [m.to(dtype) for m, dtype in zip(found, dtypes, strict=True)]


def _loop(
    program: SemiringProgram, drives: list[Tensor], operands: list[Tensor], initial: list[Tensor], length: int
) -> list[Tensor]:
    """One step after another, in operators whose derivatives are those of the original's."""
    state, rows = [h.unsqueeze(0).unsqueeze(-1) for h in initial], []
    for t in range(length):
        moved = program.apply(state, [x[t : t + 1] if x.shape[0] != 1 else x for x in operands])
        state = [
            program.joined(m, b[t : t + 1].unsqueeze(-1), tie)
            for m, b, tie in zip(moved, drives, program.ties, strict=True)
        ]
        rows.append([x[..., 0] for x in state])
    return [torch.cat([row[i] for row in rows]) if rows else b for i, b in enumerate(drives)]


class _SemiringProgramScan(torch.autograd.Function):
    """The scan as one operation."""

    @staticmethod
    @own_precision
    def forward(
        ctx: Any, program: SemiringProgram, length: int, counts: tuple[int, int, int], *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        drives, operands, initial = _parted(tensors, counts)
        states = chunked_scan(program, drives, operands, initial, length)
        ctx.program, ctx.length, ctx.counts = program, length, counts
        ctx.save_for_backward(*tensors, *states)
        return tuple(states)

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved, program, length = ctx.saved_tensors, ctx.program, ctx.length
        counts: tuple[int, int, int] = ctx.counts
        split = sum(counts)
        if not length:
            return (None,) * (3 + split)
        drives, operands, initial = _parted(saved[:split], counts)
        states = list(saved[split:])
        before = [torch.cat([h.unsqueeze(0), m[:-1]]) for h, m in zip(initial, states, strict=True)]
        # What one step makes of the states is what its operands are compared with: a scan rounds elsewhere.
        moved = program.apply([m.unsqueeze(-1) for m in before], operands)
        made = [program.join(x[..., 0], b) for x, b in zip(moved, drives, strict=True)]
        shares, own, orders = _shares(program, drives, operands, before, made)
        adjoint = _adjoint(program, orders)
        late = [torch.cat([torch.zeros_like(w[:1]), w[1:].flip(0)]) for w in shares]
        zeros = [torch.zeros_like(h) for h in initial]
        reached = [x.flip(0) for x in affine_scan(adjoint, [g.flip(0) for g in grads], late, zeros, length)]
        needs = ctx.needs_input_grad[3:]
        for_drives = [x * s if need else None for x, s, need in zip(reached, own, needs, strict=False)]
        for_operands: list[Tensor | None] = [None] * len(operands)
        done: set[tuple[int, int]] = set()  # (state, operand) of those outside of sums
        for term, w, order in zip(program.terms, shares, orders, strict=True):
            whole = _letters(reached[term.target], term.target_labels, program)
            flow = _aligned(whole, _joined(term), order)[..., 0] * w
            for k, labels in zip(term.operands, term.labels, strict=True):
                outer = bool(program.outer) and k in program.outer[term.target]
                if not needs[counts[0] + k] or (outer and (term.target, k) in done):
                    continue
                part = _reduced(whole, _joined(term), labels, operands[k]) if outer else None
                part = _reduced(flow, order, labels, operands[k]) if part is None else part
                done.add((term.target, k))
                known = for_operands[k]
                for_operands[k] = part if known is None else known + part
        first = adjoint.apply([x[:1].unsqueeze(-1) for x in reached], [w[:1] for w in shares])
        for_initial = [x[0, ..., 0] for x in first]
        return (None, None, None, *for_drives, *for_operands, *for_initial)


def _parted(tensors: Sequence[Tensor], counts: tuple[int, int, int]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    a, b, _ = counts
    return list(tensors[:a]), list(tensors[a : a + b]), list(tensors[a + b :])


def _joined(term: Term) -> str:
    return "".join(term.target_labels)


def _letters(x: Tensor, labels: tuple[str, ...], program: AffineProgram) -> Tensor:
    """(T, *state) with a dimension for each letter."""
    if all(len(own) == 1 for own in labels):
        return x
    return x.reshape(x.shape[0], *_split_sizes(x.shape[1:], labels, dict(program.sizes)))


def _shares(
    program: SemiringProgram,
    drives: list[Tensor],
    operands: list[Tensor],
    before: list[Tensor],
    states: list[Tensor],
) -> tuple[list[Tensor], list[Tensor], list[str]]:
    """The derivative of each sum by its operands: for every term (T, *letters), for the drives (T, *state); and the
    letters of each term."""
    values, orders, met = [], [], []
    for term in program.terms:
        value, order = program.terms_of(term, before[term.source].unsqueeze(-1), operands)
        full = _joined(term)
        whole = full + "".join(c for c in order if c not in full)
        met.append(_aligned(_letters(states[term.target], term.target_labels, program), full, whole)[..., 0])
        values.append(_spread_out(value[..., 0], order, whole))
        orders.append(whole)
    if program.kind == "log-sum-exp":  # of a sum of nothing it is not a number, as torch has it
        found = [(value - m).exp() for value, m in zip(values, met, strict=True)]
        own = [(b - m).exp() for b, m in zip(drives, states, strict=True)]
    else:
        greatest = [
            _present(value == m, order, term, operands)
            for term, value, m, order in zip(program.terms, values, met, orders, strict=True)
        ]
        shares, own = _tied(program, greatest, drives, states)
        if torch.is_grad_enabled():  # derivatives of theirs are asked for: they are 0, as those of the original's are
            shares = [w + 0 * torch.sign(value) for w, value in zip(shares, values, strict=True)]
        return shares, own, orders
    found = [
        torch.where(_present(torch.ones_like(w, dtype=torch.bool), order, term, operands), w, 0.0)
        for term, w, order in zip(program.terms, found, orders, strict=True)
    ]
    return found, own, orders


def _present(which: Tensor, order: str, term: Term, operands: Sequence[Tensor]) -> Tensor:
    """`which`, and no mask is against it."""
    for k, labels, keep in term.masks:
        mask = _aligned(operands[k], labels, order)[..., 0]
        which = which & (mask if keep else ~mask)
    return which


def _spread_out(value: Tensor, order: str, wanted: str) -> Tensor:
    for d, c in enumerate(wanted):
        if c not in order:
            value = value.unsqueeze(d + 1)
    return value


def _tied(
    program: SemiringProgram, greatest: list[Tensor], drives: list[Tensor], states: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """The shares in a maximum (or minimum): one for the greatest, and what `ties` says for several that are equal."""
    driven = [b == m for b, m in zip(drives, states, strict=True)]
    shares: list[Tensor] = [torch.empty(0)] * len(greatest)
    own: list[Tensor] = []
    for i, m in enumerate(states):
        mine = [k for k, term in enumerate(program.terms) if term.target == i]
        lead = len("".join(program.terms[mine[0]].target_labels)) + 1 if mine else 0
        rule = program.ties[i]
        if rule == "first":
            for k in mine:
                flat = greatest[k].flatten(lead) if greatest[k].dim() > lead else greatest[k].unsqueeze(-1)
                greatest[k] = (flat & (flat.cumsum(-1) == 1)).reshape(greatest[k].shape)
        if rule == "drive":
            for k in mine:
                at = _letters(driven[i], program.terms[k].target_labels, program)
                greatest[k] = greatest[k] & ~at.reshape(*at.shape, *[1] * (greatest[k].dim() - at.dim()))
        counts = [g.flatten(lead).sum(-1) if g.dim() > lead else g.long() for g in (greatest[k] for k in mine)]
        counts = [c.reshape(m.shape) for c in counts]
        kept = sum(counts, torch.zeros_like(m, dtype=torch.long))
        drive = driven[i] & (kept == 0) if rule in ("state", "first") else driven[i]
        total = (kept + drive).clamp(min=1).to(m.dtype)
        own.append(drive / total)
        for k in mine:
            at = _letters(total, program.terms[k].target_labels, program)
            shares[k] = greatest[k] / at.reshape(*at.shape, *[1] * (greatest[k].dim() - at.dim()))
    return shares, own


def _adjoint(program: SemiringProgram, orders: list[str]) -> AffineProgram:
    """The derivative's recurrence, run backwards: every term with its ends exchanged and its shares as only factor."""
    terms = tuple(
        replace(
            term,
            target=term.source,
            source=term.target,
            operands=(k,),
            labels=(order,),
            source_labels=term.target_labels,
            target_labels=term.source_labels,
            masks=(),
            coefficient=1,
        )
        for k, (term, order) in enumerate(zip(program.terms, orders, strict=True))
    )
    return AffineProgram(terms, program.sizes, ((),) * len(program.lanes), program.mixed)


def _reduced(flow: Tensor, order: str, labels: str, operand: Tensor) -> Tensor:
    """A derivative (T, *order) as that of an operand (T or 1, *labels)."""
    dims = [d + 1 for d, c in enumerate(order) if c not in labels]
    value = flow.sum(dims) if dims else flow
    kept = [c for c in order if c in labels]
    value = value.permute(0, *(kept.index(c) + 1 for c in labels))
    return value if value.shape == operand.shape else value.sum_to_size(operand.shape)
