"""Recurrences with one dense, time-invariant transition (the LMU, LSSL, S4 before it was diagonalised): by chunks, by
FFT with the impulse response, or, where only the last state is read, by one product."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Factor, Index, Monomial
from linrec.analysis.rules import Algebra
from linrec.ir.nodes import emit, size_expr, value
from linrec.ir.recurrence import LinearRecurrence
from linrec.ir.sizes import hint
from linrec.ir.timeaxis import linear
from linrec.lowering.cost import Work
from linrec.lowering.registry import (
    Lowering,
    Site,
    coefficients,
    is_inexact,
    is_zero,
    register,
    state_bytes,
    state_size,
)
from linrec.ops import lti_fft, lti_last, lti_scan
from linrec.ops.opaque import opaque, states_shape
from linrec.ops.powers import matrix_power_apply
from linrec.ops.precision import own_precision
from linrec.ops.response import backwards, backwards_and_sum, response

aten = torch.ops.aten


def is_plain_matrix(recurrence: LinearRecurrence) -> bool:
    """Whether the transition is one matrix, the same for every other state index and every step."""
    t = recurrence.transition
    if t.kind != "dense" or not t.time_invariant or not is_inexact(recurrence):
        return False
    row = set(recurrence.update.axes[t.axis])
    free = {i for axis in recurrence.update.axes for i in axis}
    for m in recurrence.update.terms:
        for state in m.of_kind("state"):
            rest = [i for f in m.factors if f is not state for i in f.indices()]
            if any(i in free and i not in row for i in rest):
                return False
    return True


def _matrix(recurrence: LinearRecurrence, site: Site) -> fx.Node:
    """The transition as a (d, d) matrix: rows are the new state's indices, columns the old state's."""
    t, space = recurrence.transition, recurrence.algebra.space
    row = recurrence.update.axes[t.axis]
    column = t.column
    terms = []
    for m in recurrence.update.terms:
        for state in m.of_kind("state"):
            own = state.axes[t.axis]
            rest = m.without(state)
            terms.append(Monomial(rest.coefficient, tuple(f.substitute({own[0]: column}) for f in rest.factors)))
    emitter = site.emitter(recurrence)
    matrix = coefficients(emitter, tuple(terms), (row, column), recurrence.states[0])
    size = space.size(row)
    like = recurrence.states[0]
    matrix = site.vectorizer.emit(aten.select.int, (matrix, 0, 0), like)
    if all(size_expr(s) == size for s in value(matrix).shape):
        return matrix
    if isinstance(size, int):
        return site.vectorizer.emit(aten.expand.default, (matrix, [size, size]), like)
    return site.vectorizer.emit(_square, (matrix, site.initial[0], t.axis), like)


def _square(matrix: Tensor, state: Tensor, axis: int) -> Tensor:
    size = state.shape[axis]
    return matrix.expand(size, size)


def _diagonal(recurrence: LinearRecurrence, site: Site) -> fx.Node | None:
    t = recurrence.transition
    row = recurrence.update.axes[t.axis]
    kept = tuple(m.without(s) for m in recurrence.update.terms for s in m.of_kind("state") if s.axes[t.axis] == row)
    if not kept:
        return None
    emitter = site.emitter(recurrence)
    diagonal = coefficients(emitter, kept, (row,), recurrence.states[0])
    return site.vectorizer.emit(_diag, (diagonal, site.initial[0], t.axis), recurrence.states[0])


def _diag(diagonal: Tensor, state: Tensor, axis: int) -> Tensor:
    return torch.diag_embed(diagonal[0].expand(state.shape[axis]))


def transition_matrix(recurrence: LinearRecurrence, site: Site) -> fx.Node:
    """The whole transition as one matrix, its diagonal part included."""
    t = recurrence.transition
    row = recurrence.update.axes[t.axis]
    dense = tuple(m for m in recurrence.update.terms if any(s.axes[t.axis] != row for s in m.of_kind("state")))
    only_dense = LinearRecurrence(
        recurrence.states,
        (type(recurrence.update)(recurrence.update.axes, dense),),
        recurrence.algebra,
        t,
        recurrence.invariant,
    )
    matrix = _matrix(only_dense, site)
    diagonal = _diagonal(recurrence, site)
    if diagonal is None:
        return matrix
    return site.vectorizer.emit(aten.add.Tensor, (matrix, diagonal), recurrence.states[0])


def factored_drive(
    recurrence: LinearRecurrence,
) -> tuple[LinearRecurrence, tuple[Factor, ...], tuple[Factor, ...], tuple[Index, ...], Monomial] | None:
    """The drive as ``B u``: a time-invariant matrix over (state axis, inputs) times inputs without the state axis.

    Returns:
        (the recurrence with its drive looked into, factors of B, factors of u, the input indices, the monomial), or
        None where the drive is no such product with fewer inputs than states.
    """
    t = recurrence.transition
    algebra = Algebra(set(recurrence.states), recurrence.algebra.core, expand=True)
    node = _update_node(recurrence)
    opened = algebra.of(node)
    drive = [m for m in opened.terms if not m.of_kind("state")]
    if len(drive) != 1 or drive[0].of_kind("opaque", "mask", "unmask"):
        return None
    (m,) = drive
    row = set(opened.axes[t.axis])
    matrix, inputs = [], []
    for f in m.factors:
        steady = f.atom.node in recurrence.invariant
        if row & set(f.indices()):
            if not steady:
                return None
            matrix.append(f)
        elif steady and not {i for axis in opened.axes for i in axis} & set(f.indices()):
            matrix.append(f)
        else:
            inputs.append(f)
    if not matrix or not inputs or any(i in row for f in inputs for i in f.indices()):
        return None
    free = {i for axis in opened.axes for i in axis}
    in_matrix = {i for f in matrix for i in f.indices()} - row
    in_inputs = {i for f in inputs for i in f.indices()}
    shared = tuple(sorted(in_matrix & in_inputs))
    if in_matrix & free:
        return None
    width = math.prod(algebra.space.sizes[i] if isinstance(algebra.space.sizes[i], int) else 10**6 for i in shared)
    size = algebra.space.size(opened.axes[t.axis])
    if not isinstance(size, int) or width >= size:
        return None
    transition = type(t)("dense", True, t.axis, t.column, t.is_complex)
    again = LinearRecurrence(recurrence.states, (opened,), algebra, transition, recurrence.invariant)
    return again, tuple(matrix), tuple(inputs), shared, m


def _update_node(recurrence: LinearRecurrence) -> fx.Node:
    graph = recurrence.states[0].graph
    placeholders = [n for n in graph.nodes if n.op == "placeholder"]
    output = next(n for n in graph.nodes if n.op == "output")
    return output.args[0][placeholders.index(recurrence.states[0])]


class DenseScan(Lowering):
    """Chunks of steps, all chunks at once, then the states between them: as stable as the loop for any matrix."""

    name = "chunked powers"

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether the transition is one matrix, the same in every step."""
        return is_plain_matrix(recurrence)

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """`length` products with the matrix, twice, in chunks of chunks of 8 steps, copied in and out of each step."""
        calls, rest = 0, length
        while rest > 16:
            calls, rest = calls + 40, rest // 8
        size = state_size(recurrence) * length
        work = Work(products=2.3 * size * state_width(recurrence), bytes=16 * state_bytes(recurrence) * length)
        return work + Work(calls=calls + 3 * rest)

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the algorithm; return (all states, final state) of the carry."""
        state, axis = recurrence.states[0], recurrence.transition.axis
        drive = coefficients(site.emitter(recurrence), recurrence.drive_terms(), recurrence.update.axes, state)
        matrix = transition_matrix(recurrence, site)
        args = (matrix, drive, site.initial[0], axis, site.vectorizer.length)
        states = site.call(dense_states, args, state)
        return [(states, site.final(states, state))]


@opaque(lambda A, b, h0, axis, length: states_shape(h0, length))
def dense_states(A: Tensor, b: Tensor, h0: Tensor, axis: int, length: int) -> Tensor:
    """`lti_scan` over a leading time dimension, with the state's contracted dimension anywhere."""
    b = b.expand(length, *h0.shape).movedim(axis + 1, -1)
    return lti_scan(A, b, h0.movedim(axis, -1), dim=0).movedim(-1, axis + 1)


class DenseConvolution(Lowering):
    """Few inputs: convolution with the impulse response by FFT (Chilkuri & Eliasmith 2021, eq. 26), or one product with
    it where only the last state is read (eq. 25)."""

    name = "FFT with the impulse response"

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether a real float32 or float64 state has one constant matrix and a drive that is a matrix times inputs."""
        if not is_plain_matrix(recurrence) or value(recurrence.states[0]).is_complex():
            return False
        return (
            value(recurrence.states[0]).dtype in (torch.float32, torch.float64)
            and factored_drive(recurrence) is not None
        )

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """The impulse response and the FFTs, or one product where only the last state is read."""
        inputs, d = input_count(recurrence), state_width(recurrence)
        work = response_work(recurrence, length)
        if site.only_last:
            return work + Work(products=state_size(recurrence) * inputs * length, calls=6)
        return work + convolution_work(recurrence, length, state_size(recurrence) / d, d, inputs)

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write the convolution; return (all states, final state), the first None where only the last is read."""
        args, state = convolution_operands(recurrence, site), recurrence.states[0]
        if site.only_last:
            return [(None, site.last(convolved_last, args, state))]
        states = site.call(convolved_states, args, state)
        return [(states, site.final(states, state))]


def state_width(recurrence: LinearRecurrence) -> int:
    """The size of the dimension that the transition contracts."""
    return int(hint(value(recurrence.states[0]).shape[recurrence.transition.axis]))


def input_count(recurrence: LinearRecurrence) -> float:
    """How many inputs the matrix of a factored drive has."""
    found = factored_drive(recurrence)
    assert found is not None
    return float(found[0].algebra.space.size(found[3]))


def response_work(recurrence: LinearRecurrence, length: int) -> Work:
    """The impulse response by doubling."""
    d = state_width(recurrence)
    return Work(products=d * d * (length * input_count(recurrence) + d * math.log2(length)), calls=20)


def convolution_work(
    recurrence: LinearRecurrence, length: int, sequences: float, outputs: float, inputs: float
) -> Work:
    """Fourier transforms of twice the length for each output of each sequence."""
    points = 2 * length * sequences * outputs
    size = value(recurrence.states[0]).element_size()
    return Work(
        elements=points * (math.log2(2 * length) + 2 * inputs), bytes=2 * points * size, calls=12 + 4 * sequences
    )


def convolution_operands(recurrence: LinearRecurrence, site: Site) -> tuple[Any, ...]:
    """Write A, B and u of a recurrence with a factored drive; with the initial state, the axis, the length, and whether
    the initial state is anything but zeros: what is left of it costs as much as all the rest."""
    found = factored_drive(recurrence)
    assert found is not None
    again, matrix, inputs, shared, m = found
    state, axis = recurrence.states[0], recurrence.transition.axis
    axes = again.update.axes
    emitter = site.emitter(again)
    A = transition_matrix(recurrence, site)
    B = coefficients(emitter, (Monomial(m.coefficient, matrix),), (axes[axis], shared), state)
    kept = (*axes[:axis], *axes[axis + 1 :], shared)
    u = coefficients(emitter, (Monomial(1, inputs),), kept, state)
    started = not is_zero(site.initial[0])
    h0 = site.initial[0] if started else _shaped(site, site.initial[0])
    return A, B, u, h0, axis, site.vectorizer.length, started


_EMPTY = {
    aten.new_zeros.default: aten.new_empty.default,
    aten.zeros_like.default: aten.empty_like.default,
    aten.zeros.default: aten.empty.memory_format,
}


def _shaped(site: Site, zeros: fx.Node) -> fx.Node:
    """In place of zeros, where nothing but their shape is asked for, memory that nobody fills."""
    target = _EMPTY.get(zeros.target)
    if target is None:
        return zeros
    return emit(site.graph_module.graph, site.vectorizer.before, target, zeros.args, zeros, dict(zeros.kwargs))


def project_late(graph: fx.Graph) -> None:
    """Let last states of convolutions with a projected series know of the series: see `projected_last`."""
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target is not convolved_last:
            continue
        A, B, u, *rest = node.args
        if u.target is linear and value(u.args[0]).shape[-1] == 1:
            projection = (*u.args, *(None,) * (3 - len(u.args)))
            node.replace_all_uses_with(emit(graph, node, projected_last, (A, B, *projection, *rest), node))
            for gone in (node, u):
                if not gone.users:
                    graph.erase_node(gone)


def convolution_inputs(
    A: Tensor, B: Tensor, u: Tensor, h0: Tensor, axis: int, length: int, started: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """B (d, m), u (T, *others, m) and the initial state (*others, d), in full; None where it is zeros."""
    B = _whole(B, A)
    full = (length, *h0.shape[:axis], *h0.shape[axis + 1 :], u.shape[-1])
    return B, u if u.shape == full else u.expand(full), h0.movedim(axis, -1) if started else None


@opaque(lambda A, B, u, h0, axis, length, started=True: states_shape(h0, length))
def convolved_states(
    A: Tensor, B: Tensor, u: Tensor, h0: Tensor, axis: int, length: int, started: bool = True
) -> Tensor:
    """All states of ``h[t] = A h[t-1] + B u[t]`` by FFT; by chunks where the impulse response grows."""
    B, u, start = convolution_inputs(A, B, u, h0, axis, length, started)
    kernel = response(A, B, length)
    if grows(kernel):
        return lti_scan(A, torch.einsum("dm,...m->...d", B, u), start, dim=0).movedim(-1, axis + 1)
    return lti_fft(A, B, u, start, dim=0, response=kernel).movedim(-1, axis + 1)


@opaque(lambda A, B, u, h0, axis, length, started=True: [(h0.shape, h0.dtype)])
def convolved_last(A: Tensor, B: Tensor, u: Tensor, h0: Tensor, axis: int, length: int, started: bool = True) -> Tensor:
    """The last state of ``h[t] = A h[t-1] + B u[t]`` by one product with the reversed impulse response."""
    B, u, start = convolution_inputs(A, B, u, h0, axis, length, started)
    last = lti_last(A, B, u, start, dim=0, backwards=backwards(A, B, length))
    return last if axis == last.dim() - 1 else last.movedim(-1, axis)


@opaque(lambda A, B, x, weight, bias, h0, axis, length, started=True: [(h0.shape, h0.dtype)])
@own_precision
def projected_last(
    A: Tensor,
    B: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    h0: Tensor,
    axis: int,
    length: int,
    started: bool = True,
) -> Tensor:
    """`convolved_last` for ``u = weight x + bias`` of a series ``x``, (T, *others, 1).

    Where no derivative by the series is wanted it meets the impulse response first, and the projection what comes out:
    the same product over time forwards, and none backwards.
    """
    known = None
    if not (torch.is_grad_enabled() and x.requires_grad) and x.dtype == weight.dtype == A.dtype == h0.dtype:
        known = backwards_and_sum(A, _whole(B, A), length)
    if known is None:
        return convolved_last(A, B, linear(x, weight, bias), h0, axis, length, started)
    backward, total = known
    seen = x.squeeze(-1).movedim(0, -1) @ backward.flatten(1)
    if weight.shape[0] == 1:
        last = seen * weight
    else:
        last = (seen.unflatten(-1, backward.shape[1:]) * weight).sum(-2)
    if bias is not None:
        last = last + bias @ total
    if started:
        last = last + matrix_power_apply(A, length, h0.movedim(axis, -1))
    return last if axis == last.dim() - 1 else last.movedim(-1, axis)


def _whole(B: Tensor, A: Tensor) -> Tensor:
    """The input matrix, (d, m), of one with a leading dimension of steps."""
    return B[0] if B.shape[1] == A.shape[0] else B[0].expand(A.shape[0], B.shape[-1])


def grows(kernel: Tensor) -> bool:
    """Whether an impulse response grows so much that an FFT over it would lose the early steps.

    The error of an FFT is relative to the largest value it sums over, while the loop's is relative to each step's own.
    """
    if not kernel.numel():
        return False
    size = kernel.detach().abs()
    return not bool(size.amax() <= 100 * size[:1].amax())


register(DenseScan())
register(DenseConvolution())
