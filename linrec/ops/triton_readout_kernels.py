"""The diagonal scan with a readout as Triton kernels: states are kept only where a tile of steps begins, and computed
again in the backward pass.

A program takes a block of rows, all of one place along the outer axes, and all N elements of the state in each row,
padded to a power of two. See `linrec.ops.triton_kernels` for what the two share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .triton_kernels import VARYING, entered, read, tile_of, times, walked, write


@triton.jit
def place(outer, i, n, n1, n2, s0, s1, s2, s3, sn):
    """Where elements lie: a place along three outer axes of sizes (..., n1, n2), rows and elements of the state."""
    rest = outer // n2
    offset = tl.cast(outer % n2, tl.int64) * s2 + tl.cast(rest % n1, tl.int64) * s1 + tl.cast(rest // n1, tl.int64) * s0
    return offset + i.to(tl.int64) * s3 + n.to(tl.int64) * sn


@triton.jit(do_not_specialize=VARYING)
def forward(
    a, b, c, h0, product, state, y, kept, last,
    length, chunk, outers, inner, N, n1, n2,
    a_t, a_0, a_1, a_2, a_3, a_n,
    b_t, b_0, b_1, b_2, b_3, b_n,
    c_t, c_0, c_1, c_2, c_3, c_n,
    i_0, i_1, i_2, i_3, i_n,
    y_t, y_0, y_1, y_2, y_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_H0: tl.constexpr, CUT: tl.constexpr, FROM_END: tl.constexpr,
    STEPS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """y[t] = sum over n of h[t] c[t]; the state before each tile, (tiles, outers, inner, N), and the last one."""
    blocks = tl.cdiv(inner, ROWS)
    outer = tl.program_id(0) // blocks
    r = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    i, n = r[:, None], tl.arange(0, PADDED)[None, :]
    inside = (i < inner) & (n < N)
    a_lane = place(outer, i, n, n1, n2, a_0, a_1, a_2, a_3, a_n)
    b_lane = place(outer, i, n, n1, n2, b_0, b_1, b_2, b_3, b_n)
    c_lane = place(outer, i, n, n1, n2, c_0, c_1, c_2, c_3, c_n)
    y_lane = place(outer, r, r, n1, n2, y_0, y_1, y_2, y_3, 0)
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    element = (tl.cast(outer, tl.int64) * inner + i) * N + n
    elements = tl.cast(outers, tl.int64) * inner * N
    cr = tl.zeros((ROWS, PADDED), ACC)
    ci = tl.zeros((ROWS, PADDED), ACC)
    if HAS_H0:
        cr, ci = read(h0, place(outer, i, n, n1, n2, i_0, i_1, i_2, i_3, i_n), inside, 0.0, COMPLEX, False, ACC)
    if CUT:
        cr, ci = entered(product, state, cr, ci, element, inside, elements, COMPLEX, STEPS, ACC)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    for tile in range(begin, end, STEPS):
        saved = (tl.cast(tile // STEPS, tl.int64) * elements + element) * PAIR
        write(kept, saved, inside, cr, ci, COMPLEX)
        ar, ai = tile_of(a, a_lane, tile, end, length, a_t, inside, 1.0, 0, COMPLEX, CONJ, FROM_END, STEPS, ACC)
        br, bi = tile_of(b, b_lane, tile, end, length, b_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        er, ei = tile_of(c, c_lane, tile, end, length, c_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        for k in tl.static_range(STEPS):
            xr, xi = times(ar[k], ai[k], cr, ci, COMPLEX)
            cr = xr + br[k]
            if COMPLEX:
                ci = xi + bi[k]
            xr, xi = times(cr, ci, er[k], ei[k], COMPLEX)
            yr = tl.sum(xr, 1)
            yi = yr
            if COMPLEX:
                yi = tl.sum(xi, 1)
            where = walked(tile + k, length, FROM_END) * y_t + y_lane
            write(y, where, (r < inner) & (tile + k < end), yr, yi, COMPLEX)
    if end == length:
        write(last, element * PAIR, inside, cr, ci, COMPLEX)


@triton.jit(do_not_specialize=VARYING)
def backward(
    a, b, c, grad, grad_last, product, state, kept, grad_a, grad_b, grad_c,
    length, chunk, outers, inner, N, n1, n2,
    a_t, a_0, a_1, a_2, a_3, a_n,
    b_t, b_0, b_1, b_2, b_3, b_n,
    c_t, c_0, c_1, c_2, c_3, c_n,
    g_t, g_0, g_1, g_2, g_3,
    l_0, l_1, l_2, l_3, l_n,
    o_t, o_0, o_1, o_2, o_3, o_n,
    e_b, e_t, e_0, e_1, e_2, e_3, e_n,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_LAST: tl.constexpr, CUT: tl.constexpr, SHARED: tl.constexpr,
    FROM_END: tl.constexpr, STEPS: tl.constexpr, ROWS: tl.constexpr, PADDED: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """The derivatives of a, b and c, given those of y and of the last state, tile by tile from the last one.

    grad_a and grad_b have the same strides. SHARED: c is the same for all rows; grad_c is then a sum over those of the
    block, with stride e_b by block.
    """
    blocks = tl.cdiv(inner, ROWS)
    outer = tl.program_id(0) // blocks
    block = tl.program_id(0) % blocks
    r = block * ROWS + tl.arange(0, ROWS)
    m = tl.arange(0, PADDED)
    i, n = r[:, None], m[None, :]
    inside = (i < inner) & (n < N)
    a_lane = place(outer, i, n, n1, n2, a_0, a_1, a_2, a_3, a_n)
    b_lane = place(outer, i, n, n1, n2, b_0, b_1, b_2, b_3, b_n)
    c_lane = place(outer, i, n, n1, n2, c_0, c_1, c_2, c_3, c_n)
    g_lane = place(outer, r, r, n1, n2, g_0, g_1, g_2, g_3, 0)
    o_lane = place(outer, i, n, n1, n2, o_0, o_1, o_2, o_3, o_n)
    once = tl.cast(block, tl.int64) * e_b + place(outer, m * 0, m, n1, n2, e_0, e_1, e_2, 0, e_n)
    e_lane = place(outer, i, n, n1, n2, e_0, e_1, e_2, e_3, e_n)
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    element = (tl.cast(outer, tl.int64) * inner + i) * N + n
    elements = tl.cast(outers, tl.int64) * inner * N
    dr = tl.zeros((ROWS, PADDED), ACC)
    di = tl.zeros((ROWS, PADDED), ACC)
    if HAS_LAST:
        dr, di = read(grad_last, place(outer, i, n, n1, n2, l_0, l_1, l_2, l_3, l_n), inside, 0.0, COMPLEX, False, ACC)
    if CUT:
        dr, di = entered(product, state, dr, di, element, inside, elements, COMPLEX, STEPS, ACC)
    # Chunks are those of the forward pass, and the first program has the last one.
    begin = (tl.num_programs(1) - 1 - tl.program_id(1)) * (chunk // STEPS)
    tiles = tl.minimum(chunk // STEPS, tl.cdiv(length, STEPS) - begin)
    for back in range(tiles):
        tile = (begin + tiles - 1 - back) * STEPS
        ar, ai = tile_of(a, a_lane, tile, length, length, a_t, inside, 1.0, 0, COMPLEX, CONJ, FROM_END, STEPS, ACC)
        br, bi = tile_of(b, b_lane, tile, length, length, b_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        er, ei = tile_of(c, c_lane, tile, length, length, c_t, inside, 0.0, 0, COMPLEX, True, FROM_END, STEPS, ACC)
        rows = r < inner
        gr, gi = tile_of(grad, g_lane, tile, length, length, g_t, rows, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        saved = (tl.cast(tile // STEPS, tl.int64) * elements + element) * PAIR
        cr, ci = read(kept, saved, inside, 0.0, COMPLEX, False, ACC)
        # The states, from what was kept: before the first step, and after each.
        hr, hi = (cr,), (ci,)
        for k in tl.static_range(STEPS):
            xr, xi = times(ar[k], ai[k], cr, ci, COMPLEX)
            cr = xr + br[k]
            if COMPLEX:
                ci = xi + bi[k]
            hr = hr + (cr,)  # type: ignore[assignment]  # noqa: RUF005
            hi = hi + (ci,)  # type: ignore[assignment]  # noqa: RUF005
        # The transition of the step after, through which that one's derivative comes.
        after = inside & (tile + STEPS < length)
        fr, fi = read(a, walked(tile + STEPS, length, FROM_END) * a_t + a_lane, after, 1.0, COMPLEX, CONJ, ACC)
        for k in tl.static_range(STEPS - 1, -1, -1):
            step = tile + k
            mask = inside & (step < length)
            ur, ui = gr[k][:, None], gi[k][:, None]
            xr, xi = times(ur, ui, er[k], ei[k], COMPLEX)
            dr, di = times(dr, di, fr, -fi, COMPLEX)
            dr += xr
            if COMPLEX:
                di += xi
            fr, fi = ar[k], ai[k]
            where = walked(step, length, FROM_END) * o_t + o_lane
            write(grad_b, where, mask, dr, di, COMPLEX)
            xr, xi = times(dr, di, hr[k], -hi[k], COMPLEX)
            write(grad_a, where, mask, xr, xi, COMPLEX)
            xr, xi = times(ur, ui, hr[k + 1], -hi[k + 1], COMPLEX)
            if SHARED:
                xr = tl.sum(tl.where(mask, xr, 0), 0)
                if COMPLEX:
                    xi = tl.sum(tl.where(mask, xi, 0), 0)
                where = walked(step, length, FROM_END) * e_t + once
                write(grad_c, where, (m < N) & (step < length), xr, xi, COMPLEX)
            else:
                write(grad_c, walked(step, length, FROM_END) * e_t + e_lane, mask, xr, xi, COMPLEX)
