"""The diagonal scan with a readout as Triton kernels: states are kept only where a tile of steps begins, and computed
again in the backward pass.

A program takes a block of rows, all of one place along the outer axes, and all N elements of the state in each row, in
tiles of (steps, rows x N padded to a power of two). See `linrec.ops.triton_kernels` for what the two share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import read, row, tile_scan, times, write


@triton.jit
def place(outer, i, n, n1, n2, s0, s1, s2, s3, sn):
    """Where elements lie: a place along three outer axes of sizes (..., n1, n2), rows and elements of the state."""
    rest = outer // n2
    offset = tl.cast(outer % n2, tl.int64) * s2 + tl.cast(rest % n1, tl.int64) * s1 + tl.cast(rest // n1, tl.int64) * s0
    return offset + i.to(tl.int64) * s3 + n.to(tl.int64) * sn


@triton.jit
def forward(
    a, b, c, h0, y, kept, last,
    length, outers, inner, N, n1, n2,
    a_t, a_0, a_1, a_2, a_3, a_n,
    b_t, b_0, b_1, b_2, b_3, b_n,
    c_t, c_0, c_1, c_2, c_3, c_n,
    i_0, i_1, i_2, i_3, i_n,
    y_t, y_0, y_1, y_2, y_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_H0: tl.constexpr, FROM_END: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over n of h[t] c[t]; the state before each tile, (tiles, outers, inner, N), and the last one."""
    blocks = tl.cdiv(inner, ROWS)
    outer = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    lane = tl.arange(0, ROWS * PADDED)
    i = block * ROWS + lane // PADDED
    n = lane % PADDED
    inside = (i < inner) & (n < N)
    a_lane = place(outer, i, n, n1, n2, a_0, a_1, a_2, a_3, a_n)
    b_lane = place(outer, i, n, n1, n2, b_0, b_1, b_2, b_3, b_n)
    c_lane = place(outer, i, n, n1, n2, c_0, c_1, c_2, c_3, c_n)
    r = block * ROWS + tl.arange(0, ROWS)
    y_lane = place(outer, r, r, n1, n2, y_0, y_1, y_2, y_3, 0)
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    own = ((tl.cast(outer, tl.int64) * inner + i) * N + n) * PAIR
    cr = tl.zeros((ROWS * PADDED,), ACC)
    ci = tl.zeros((ROWS * PADDED,), ACC)
    if HAS_H0:
        cr, ci = read(h0, place(outer, i, n, n1, n2, i_0, i_1, i_2, i_3, i_n), inside, 0.0, COMPLEX, False, ACC)
    for tile in range(0, length, STEPS):
        saved = tl.cast(tile // STEPS, tl.int64) * outers * inner * N * PAIR
        write(kept, saved + own, inside, cr, ci, COMPLEX)
        step = tile + tl.arange(0, STEPS)
        mask = (step < length)[:, None] & inside[None, :]
        t = step.to(tl.int64)
        if FROM_END:
            t = length - 1 - t
        ar, ai = read(a, t[:, None] * a_t + a_lane[None, :], mask, 1.0, COMPLEX, CONJ, ACC)
        br, bi = read(b, t[:, None] * b_t + b_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        er, ei = read(c, t[:, None] * c_t + c_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        _, _, hr, hi = tile_scan(ar, ai, br, bi, cr, ci, COMPLEX, False, STEPS, False)
        yr, yi = times(hr, hi, er, ei, COMPLEX)
        yr = tl.sum(tl.reshape(yr, (STEPS, ROWS, PADDED)), 2)
        if COMPLEX:
            yi = tl.sum(tl.reshape(yi, (STEPS, ROWS, PADDED)), 2)
        rows = (step < length)[:, None] & (r < inner)[None, :]
        write(y, t[:, None] * y_t + y_lane[None, :], rows, yr, yi, COMPLEX)
        cr = row(hr, STEPS - 1, STEPS)
        if COMPLEX:
            ci = row(hi, STEPS - 1, STEPS)
    write(last, own, inside, cr, ci, COMPLEX)


@triton.jit
def backward(
    a, b, c, grad, grad_last, kept, grad_a, grad_b, grad_c,
    length, outers, inner, N, n1, n2,
    a_t, a_0, a_1, a_2, a_3, a_n,
    b_t, b_0, b_1, b_2, b_3, b_n,
    c_t, c_0, c_1, c_2, c_3, c_n,
    g_t, g_0, g_1, g_2, g_3,
    l_0, l_1, l_2, l_3, l_n,
    o_t, o_0, o_1, o_2, o_3, o_n,
    e_b, e_t, e_0, e_1, e_2, e_3, e_n,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_LAST: tl.constexpr, SHARED: tl.constexpr, FROM_END: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivatives of a, b and c, given those of y and of the last state, tile by tile from the last one.

    grad_a and grad_b have the same strides. SHARED: c is the same for all rows; grad_c is then a sum over those of the
    block, with stride e_b by block.
    """
    blocks = tl.cdiv(inner, ROWS)
    outer = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    lane = tl.arange(0, ROWS * PADDED)
    i = block * ROWS + lane // PADDED
    n = lane % PADDED
    inside = (i < inner) & (n < N)
    a_lane = place(outer, i, n, n1, n2, a_0, a_1, a_2, a_3, a_n)
    b_lane = place(outer, i, n, n1, n2, b_0, b_1, b_2, b_3, b_n)
    c_lane = place(outer, i, n, n1, n2, c_0, c_1, c_2, c_3, c_n)
    g_lane = place(outer, i, n, n1, n2, g_0, g_1, g_2, g_3, 0)
    o_lane = place(outer, i, n, n1, n2, o_0, o_1, o_2, o_3, o_n)
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    own = ((tl.cast(outer, tl.int64) * inner + i) * N + n) * PAIR
    dr = tl.zeros((ROWS * PADDED,), ACC)
    di = tl.zeros((ROWS * PADDED,), ACC)
    if HAS_LAST:
        dr, di = read(grad_last, place(outer, i, n, n1, n2, l_0, l_1, l_2, l_3, l_n), inside, 0.0, COMPLEX, False, ACC)
    tiles = tl.cdiv(length, STEPS)
    for back in range(tiles):
        tile = tiles - 1 - back
        step = tile * STEPS + tl.arange(0, STEPS)
        mask = (step < length)[:, None] & inside[None, :]
        earlier = mask & (tl.arange(0, STEPS) >= 1)[:, None]
        later = (step + 1 < length)[:, None] & inside[None, :]
        t = step.to(tl.int64)
        u = t - 1
        v = t + 1
        if FROM_END:
            t = length - 1 - t
            u = length - 1 - u
            v = length - 1 - v
        # The states that the steps start from: the scan of the operands one step earlier, entered with what was kept.
        saved = tl.cast(tile, tl.int64) * outers * inner * N * PAIR
        sr, si = read(kept, saved + own, inside, 0.0, COMPLEX, False, ACC)
        ar, ai = read(a, u[:, None] * a_t + a_lane[None, :], earlier, 1.0, COMPLEX, CONJ, ACC)
        br, bi = read(b, u[:, None] * b_t + b_lane[None, :], earlier, 0.0, COMPLEX, False, ACC)
        _, _, pr, pi = tile_scan(ar, ai, br, bi, sr, si, COMPLEX, False, STEPS, False)
        ar, ai = read(a, t[:, None] * a_t + a_lane[None, :], mask, 1.0, COMPLEX, CONJ, ACC)
        br, bi = read(b, t[:, None] * b_t + b_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        hr, hi = times(ar, ai, pr, pi, COMPLEX)
        hr += br
        hi += bi
        # The derivatives by the states: those of the readout, and what comes back from the step after.
        gr, gi = read(grad, t[:, None] * g_t + g_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        er, ei = read(c, t[:, None] * c_t + c_lane[None, :], mask, 0.0, COMPLEX, True, ACC)
        er, ei = times(gr, gi, er, ei, COMPLEX)
        ar, ai = read(a, v[:, None] * a_t + a_lane[None, :], later, 1.0, COMPLEX, not CONJ, ACC)
        _, _, xr, xi = tile_scan(ar, ai, er, ei, dr, di, COMPLEX, False, STEPS, True)
        dr = row(xr, 0, STEPS)
        if COMPLEX:
            di = row(xi, 0, STEPS)
        where = t[:, None] * o_t + o_lane[None, :]
        write(grad_b, where, mask, xr, xi, COMPLEX)
        ar, ai = times(xr, xi, pr, -pi, COMPLEX)
        write(grad_a, where, mask, ar, ai, COMPLEX)
        er, ei = times(gr, gi, hr, -hi, COMPLEX)
        if SHARED:
            er = tl.sum(tl.reshape(tl.where(mask, er, 0), (STEPS, ROWS, PADDED)), 1)
            if COMPLEX:
                ei = tl.sum(tl.reshape(tl.where(mask, ei, 0), (STEPS, ROWS, PADDED)), 1)
            m = tl.arange(0, PADDED)
            e_lane = tl.cast(block, tl.int64) * e_b + place(outer, m * 0, m, n1, n2, e_0, e_1, e_2, 0, e_n)
            once = (step < length)[:, None] & (m < N)[None, :]
            write(grad_c, t[:, None] * e_t + e_lane[None, :], once, er, ei, COMPLEX)
        else:
            e_lane = place(outer, i, n, n1, n2, e_0, e_1, e_2, e_3, e_n)
            write(grad_c, t[:, None] * e_t + e_lane[None, :], mask, er, ei, COMPLEX)
