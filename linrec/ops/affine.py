"""Affine recurrences of any structure over named indices, by chunks: h[t] = sum of terms (factors times a state) +
b[t]. A term may keep, contract, broadcast or exchange the indices of the states, so Householder products, coupled
states and dense transitions are all the same program here. All chunks advance together; what one chunk does to the
state it is entered with is found by running the linear part on a basis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._dtypes import compute_dtype
from .contraction import contract
from .precision import own_precision


@dataclass(frozen=True)
class Term:
    """One term of the update of state `target`: an einsum of state `source` with `operands`.

    Attributes:
        target, source: which states.
        operands: positions of the factors in the operand list (each of shape (T or 1, *indices)).
        labels: one string of index letters per operand.
        source_labels: for each dimension of the source state, its letters (several where a view split it).
        target_labels: the same for the target state.
        masks: (operand position, labels, keep) of boolean factors, applied with ``torch.where``.
        coefficient: a number.
    """

    target: int
    source: int
    operands: tuple[int, ...]
    labels: tuple[str, ...]
    source_labels: tuple[str, ...]
    target_labels: tuple[str, ...]
    masks: tuple[tuple[int, str, bool], ...] = ()
    coefficient: float | complex = 1


@dataclass(frozen=True)
class AffineProgram:
    """The linear part of an affine recurrence over several states.

    Attributes:
        terms: the terms.
        sizes: for index letters that a view split off, their size.
        lanes: for each state, the dimensions that no term mixes and no factor mentions.
        mixed: for each state, the dimensions that some term contracts or exchanges.
    """

    terms: tuple[Term, ...]
    sizes: tuple[tuple[str, int], ...]
    lanes: tuple[tuple[int, ...], ...]
    mixed: tuple[tuple[int, ...], ...]

    @property
    def zero(self) -> float:
        """What is neutral for the sum."""
        return 0.0

    @property
    def one(self) -> float:
        """What is neutral for the product."""
        return 1.0

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """The sum of two tensors."""
        return x + y

    def solve(
        self, drives: Sequence[Tensor], operands: Sequence[Tensor], initial: Sequence[Tensor], length: int
    ) -> list[Tensor]:
        """See `affine_scan`."""
        return affine_scan(self, drives, operands, initial, length)

    def apply(self, states: Sequence[Tensor], operands: Sequence[Tensor]) -> list[Tensor]:
        """The linear part, once. States are (C, *state, X); operands (C or 1, *indices)."""
        sizes = dict(self.sizes)
        out: list[Tensor | None] = [None] * len(states)
        for term in self.terms:
            value = self._term(term, states[term.source], operands, sizes)
            known = out[term.target]
            out[term.target] = value if known is None else self.join(known, value)
        result = []
        for state, total in zip(states, out, strict=True):
            if total is None:
                result.append(torch.full_like(state, self.zero))
            else:
                result.append(total if total.shape == state.shape else total.expand(state.shape))
        return result

    def _term(self, term: Term, state: Tensor, operands: Sequence[Tensor], sizes: dict[str, int]) -> Tensor:
        read = "".join(term.source_labels)
        if any(len(labels) != 1 for labels in term.source_labels):
            state = state.reshape(
                state.shape[0], *_split_sizes(state.shape[1:-1], term.source_labels, sizes), state.shape[-1]
            )
        factors = [(operands[k], labels) for k, labels in zip(term.operands, term.labels, strict=True)]
        seen = set(read).union(*term.labels)
        own = {c for labels in term.target_labels for c in labels if c in seen}
        masks = []
        for k, labels, keep in term.masks:
            if set(labels) <= own:
                masks.append((operands[k], labels, keep))
            elif set(labels) <= set(read):  # of what is summed over
                state = _masked(_aligned(operands[k], labels, read), state, keep)
            else:
                factors.append((_masked(operands[k], state.new_ones(()), keep), labels))
                seen |= set(labels)
        written = "".join(c for labels in term.target_labels for c in labels if c in seen)
        if read == written and all(set(labels) <= set(written) for _, labels in factors):
            value = state
            for factor, labels in factors:
                value = value * _aligned(factor, labels, written)
        elif not factors:
            value = torch.einsum(f"Y{read}Z->Y{written}Z", state)
        else:
            inputs = ",".join(f"Y{labels}" for _, labels in factors)
            value = contract(f"Y{read}Z,{inputs}->Y{written}Z", state, *(factor for factor, _ in factors))
        if term.coefficient != 1:
            value = value * term.coefficient
        for mask, labels, keep in masks:
            value = _masked(_aligned(mask, labels, written), value, keep)
        return _merged(value, term.target_labels, seen, sizes)

    def basis(self, states: Sequence[Tensor]) -> list[Tensor]:
        """The columns of the identity over all mixed dimensions: states of shape (1, *state with lanes 1, n)."""
        volumes = [math.prod(s.shape[1 + d] for d in mixed) for s, mixed in zip(states, self.mixed, strict=True)]
        total, start = sum(volumes), 0
        out: list[Tensor] = []
        for state, mixed, volume in zip(states, self.mixed, volumes, strict=True):
            eye = torch.full((volume, total), self.zero, dtype=state.dtype, device=state.device)
            eye[:, start : start + volume].fill_diagonal_(self.one)
            shape = [state.shape[1 + d] if d in mixed else 1 for d in range(state.dim() - 2)]
            full = [
                1 if d in lanes else state.shape[1 + d]
                for lanes in [self.lanes[len(out)]]
                for d in range(state.dim() - 2)
            ]
            out.append(eye.reshape(1, *shape, total).expand(1, *full, total))
            start += volume
        return out

    def combine(self, columns: Sequence[Tensor], states: Sequence[Tensor]) -> list[Tensor]:
        """Apply a composed linear part, given by its columns, to states (1, *state, 1)."""
        flat = torch.cat([self._coordinates(s, i) for i, s in enumerate(states)], dim=-2)
        out = []
        for i, column in enumerate(columns):
            lanes = self.lanes[i]
            rows = column.movedim([1 + d for d in lanes], list(range(1, 1 + len(lanes)))).flatten(0, len(lanes))
            # rows: (C or 1, coupled and mixed dims in order, n); flat: (coupled dims, n, lanes)
            out.append(self._spread(rows, flat, states[i], lanes, self.mixed[i]))
        return out

    def _product(self, matrix: Tensor, flat: Tensor) -> Tensor:
        return matrix @ flat

    def _spread(
        self, rows: Tensor, flat: Tensor, like: Tensor, lanes: tuple[int, ...], mixed: tuple[int, ...]
    ) -> Tensor:
        dims = [d for d in range(like.dim() - 2) if d not in lanes]
        coupled = [d for d in dims if d not in mixed]
        order = [dims.index(d) for d in coupled] + [dims.index(d) for d in mixed]
        matrix = rows[0].permute(*order, len(dims))
        lead = matrix.shape[: len(coupled)]
        product = self._product(matrix.reshape(*lead, -1, matrix.shape[-1]), flat)
        sizes = [like.shape[1 + d] for d in (*coupled, *mixed, *lanes)]
        spread = product.reshape(sizes)
        back = [(*coupled, *mixed, *lanes).index(d) for d in range(like.dim() - 2)]
        return spread.permute(back).unsqueeze(0).unsqueeze(-1)

    def _coordinates(self, state: Tensor, i: int) -> Tensor:
        """A state (1, *state, 1) as (*coupled, mixed volume, lane volume)."""
        lanes, mixed = self.lanes[i], self.mixed[i]
        coupled = [d for d in range(state.dim() - 2) if d not in lanes and d not in mixed]
        moved = state[0, ..., 0].permute([*coupled, *mixed, *lanes])
        lead = [state.shape[1 + d] for d in coupled]
        volume = math.prod(state.shape[1 + d] for d in mixed)
        return moved.reshape(*lead, volume, -1)


def _masked(mask: Tensor, value: Tensor, keep: bool) -> Tensor:
    zero = value.new_zeros(())
    return torch.where(mask, value, zero) if keep else torch.where(mask, zero, value)


def _split_sizes(shape: Sequence[int], labels: Sequence[str], sizes: dict[str, int]) -> list[int]:
    out: list[int] = []
    for size, letters in zip(shape, labels, strict=True):
        if len(letters) <= 1 or size == 1:  # in a basis a lane has size 1, whatever it is made of
            out += [size] * len(letters)
            continue
        known = math.prod(sizes[c] for c in letters if c in sizes)
        out += [sizes.get(c, size // known) for c in letters]
    return out


def _aligned(operand: Tensor, labels: str, order: str) -> Tensor:
    """An operand (C or 1, *indices) permuted and padded to the letters of `order`, with a trailing column axis."""
    present = [c for c in order if c in labels]
    if "".join(present) != labels:
        operand = operand.permute(0, *(labels.index(c) + 1 for c in present))
    shape = iter(operand.shape[1:])
    return operand.reshape(operand.shape[0], *(next(shape) if c in labels else 1 for c in order), 1)


def _merged(value: Tensor, target_labels: Sequence[str], seen: set[str], sizes: dict[str, int]) -> Tensor:
    """From one dimension per letter to one per dimension of the state. A letter that the term does not have repeats the
    others of its dimension; a dimension without any has size 1."""
    if all(len(labels) == 1 and labels in seen for labels in target_labels):
        return value
    shape, at = [value.shape[0]], 1
    for labels in target_labels:
        present = [c for c in labels if c in seen]
        total = 1
        for c in labels if present else "":
            if c not in seen:
                value = value.unsqueeze(at).expand(*value.shape[:at], sizes[c], *value.shape[at:])
            total *= value.shape[at]
            at += 1
        shape.append(total)
    return value.reshape(*shape, value.shape[-1])


def affine_scan(
    program: AffineProgram, drives: Sequence[Tensor], operands: Sequence[Tensor], initial: Sequence[Tensor], length: int
) -> list[Tensor]:
    """All states of an affine recurrence, h[t] = L[t](h[t-1]) + b[t], h[-1] = initial.

    Args:
        program: the linear part L.
        drives: b, one per state: (T, *state).
        operands: the factors that the terms name: (T or 1, *indices).
        initial: one per state: (*state).
        length: T.

    Returns:
        One tensor per state, (T, *state), in its dtype; half precision is computed in float32. No division, no
        logarithm: as stable as the loop.
    """
    dtypes = [h.dtype for h in initial]
    drives, operands, initial = ([x.to(compute_dtype(x.dtype)) for x in xs] for xs in (drives, operands, initial))
    return [
        h.to(dtype) for h, dtype in zip(chunked_scan(program, drives, operands, initial, length), dtypes, strict=True)
    ]


@own_precision
def chunked_scan(
    program: AffineProgram, drives: Sequence[Tensor], operands: Sequence[Tensor], initial: Sequence[Tensor], length: int
) -> list[Tensor]:
    """`affine_scan` of operands in one dtype, over the semiring of the program."""
    starts = [h.unsqueeze(0).unsqueeze(-1) for h in initial]
    if length <= 16:
        return scan_by_steps(program, drives, operands, starts, length)
    inner = max(4, round(math.sqrt(length / 3)))
    chunks = -(-length // inner)
    pad = chunks * inner - length
    first = program.apply(starts, [x[:1] for x in operands])
    entered = [torch.cat([program.join(b[:1], f[..., 0]), b[1:]]) for b, f in zip(drives, first, strict=True)]
    steps = [_chunked(b, pad, chunks, inner, program.zero) for b in entered]
    factors = [_chunked(x, pad, chunks, inner) if x.shape[0] != 1 else [x] * inner for x in operands]
    at = [[f[k] for f in factors] for k in range(inner)]

    local = [s[0].unsqueeze(-1) for s in steps]
    for k in range(1, inner):
        moved = program.apply(local, at[k])
        local = [program.join(m, s[k].unsqueeze(-1)) for m, s in zip(moved, steps, strict=True)]
    columns = [
        c.expand(chunks, *c.shape[1:]) if any(f.shape[0] != 1 for f in at[0]) else c for c in program.basis(starts)
    ]
    for k in range(inner):
        columns = program.apply(columns, at[k])
    ends = [[x[:1] for x in local]]
    for c in range(1, chunks):
        here = [x[c : c + 1] if x.shape[0] != 1 else x for x in columns]
        moved = program.combine(here, ends[-1])
        ends.append([program.join(m, x[c : c + 1]) for m, x in zip(moved, local, strict=True)])
    state = [
        torch.cat([torch.full_like(ends[0][i], program.zero), *(e[i] for e in ends[:-1])]) for i in range(len(initial))
    ]
    rows: list[list[Tensor]] = []
    for k in range(inner):
        moved = program.apply(state, at[k])
        state = [program.join(m, s[k].unsqueeze(-1)) for m, s in zip(moved, steps, strict=True)]
        rows.append([x[..., 0] for x in state])
    return [torch.stack([row[i] for row in rows], 1).flatten(0, 1)[pad:] for i in range(len(initial))]


def scan_by_steps(
    program: AffineProgram, drives: Sequence[Tensor], operands: Sequence[Tensor], state: list[Tensor], length: int
) -> list[Tensor]:
    """The states of `chunked_scan`, one step after another; `state` holds the first ones, (1, *state, 1)."""
    rows = []
    for t in range(length):
        moved = program.apply(state, [x[t : t + 1] if x.shape[0] != 1 else x for x in operands])
        state = [program.join(m, b[t : t + 1].unsqueeze(-1)) for m, b in zip(moved, drives, strict=True)]
        rows.append(state)
    return [torch.cat([row[i][..., 0] for row in rows]) for i in range(len(drives))]


def _chunked(x: Tensor, pad: int, chunks: int, inner: int, before: float = 0.0) -> list[Tensor]:
    """(T, ...) as `inner` tensors (chunks, ...): step k of every chunk, with a number in front of the first."""
    if pad:
        x = torch.cat([x.new_full((pad, *x.shape[1:]), before), x])
    return list(x.reshape(chunks, inner, *x.shape[1:]).unbind(1))
