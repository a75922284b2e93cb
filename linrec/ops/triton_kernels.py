"""The diagonal scan as Triton kernels: tiles of (steps, lanes), an associative scan in each, a carry between them.

A lane is one element of the state. Lanes have up to four axes, each with a stride for every operand, so that operands
are read where they lie, broadcast or transposed. Complex numbers are pairs: pointers and strides are those of
`torch.view_as_real`. A program walks one chunk of one block of lanes; steps are counted along the walk, from the
last one if FROM_END. Low precision is read as it is and accumulated in ACC.

Composed transitions may overflow although no transition is infinite. A state that is zero stays zero under them, as
it does in the loop; a NaN among the transitions is written into the drive first, so that it is not lost there.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def compose(a1, b1, a2, b2):
    """What an early and then a late stretch of steps do to a state."""
    return a1 * a2, tl.where(b1 == 0, b2, a2 * b1 + b2)


@triton.jit
def compose_complex(ar1, ai1, br1, bi1, ar2, ai2, br2, bi2):
    """`compose` for pairs."""
    zero = (br1 == 0) & (bi1 == 0)
    br = tl.where(zero, br2, ar2 * br1 - ai2 * bi1 + br2)
    bi = tl.where(zero, bi2, ar2 * bi1 + ai2 * br1 + bi2)
    return ar1 * ar2 - ai1 * ai2, ar1 * ai2 + ai1 * ar2, br, bi


@triton.jit
def lane_offset(lane, n1, n2, n3, s0, s1, s2, s3):
    """Where lanes lie, for axes of sizes (..., n1, n2, n3) with some strides."""
    rest = lane // n3
    offset = (lane % n3).to(tl.int64) * s3 + (rest % n2).to(tl.int64) * s2
    rest = rest // n2
    return offset + (rest % n1).to(tl.int64) * s1 + (rest // n1).to(tl.int64) * s0


@triton.jit
def read(pointer, offset, mask, other, COMPLEX: tl.constexpr, CONJ: tl.constexpr, ACC: tl.constexpr):
    """Real and imaginary parts; the latter means nothing where numbers are real."""
    re = tl.load(pointer + offset, mask=mask, other=other).to(ACC)
    im = re
    if COMPLEX:
        im = tl.load(pointer + offset + 1, mask=mask, other=0.0).to(ACC)
        if CONJ:
            im = -im
    return re, im


@triton.jit
def write(pointer, offset, mask, re, im, COMPLEX: tl.constexpr):
    """The inverse of `read`."""
    tl.store(pointer + offset, re.to(pointer.dtype.element_ty), mask=mask)
    if COMPLEX:
        tl.store(pointer + offset + 1, im.to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def times(ar, ai, br, bi, COMPLEX: tl.constexpr):
    """The product."""
    if COMPLEX:
        re, im = ar * br - ai * bi, ar * bi + ai * br
    else:
        re, im = ar * br, ar * br
    return re, im


@triton.jit
def tile_scan(
    ar, ai, br, bi, cr, ci, COMPLEX: tl.constexpr, PRODUCTS: tl.constexpr, STEPS: tl.constexpr, REVERSE: tl.constexpr
):
    """Products and states within a tile that is entered with the state (cr, ci), at its last row if REVERSE.

    PRODUCTS: the transitions are compositions already.
    """
    first = (tl.arange(0, STEPS) == (STEPS - 1 if REVERSE else 0))[:, None]
    mr, mi = times(ar, ai, cr[None, :], ci[None, :], COMPLEX)
    if PRODUCTS:
        if COMPLEX:
            first = first & ((cr != 0) | (ci != 0))[None, :]
        else:
            first = first & (cr != 0)[None, :]
    else:
        if COMPLEX:
            br = tl.where((ar != ar) | (ai != ai), float("nan"), br)
        else:
            br = tl.where(ar != ar, ar, br)
    br = tl.where(first, br + mr, br)
    if COMPLEX:
        bi = tl.where(first, bi + mi, bi)
        pr, pi, hr, hi = tl.associative_scan((ar, ai, br, bi), 0, compose_complex, REVERSE)
    else:
        pr, hr = tl.associative_scan((ar, br), 0, compose, REVERSE)
        pi, hi = pr, hr
    return pr, pi, hr, hi


@triton.jit
def row(x, index, STEPS: tl.constexpr):
    """One row of a tile."""
    return tl.sum(tl.where((tl.arange(0, STEPS) == index)[:, None], x, 0), 0)


@triton.jit
def forward(
    a, b, start, out,
    length, chunk, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    b_t, b_0, b_1, b_2, b_3,
    s_c, s_0, s_1, s_2, s_3,
    o_t, o_0, o_1, o_2, o_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_START: tl.constexpr, FROM_END: tl.constexpr, PRODUCTS: tl.constexpr,
    STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All states of h[t] = a[t] h[t-1] + b[t]; `start` holds the state before each chunk."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    b_lane = lane_offset(lane, n1, n2, n3, b_0, b_1, b_2, b_3)
    o_lane = lane_offset(lane, n1, n2, n3, o_0, o_1, o_2, o_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    if HAS_START:
        s_lane = lane_offset(lane, n1, n2, n3, s_0, s_1, s_2, s_3) + tl.cast(tl.program_id(1), tl.int64) * s_c
        cr, ci = read(start, s_lane, lane < lanes, 0.0, COMPLEX, False, ACC)
    for tile in range(begin, end, STEPS):
        step = tile + tl.arange(0, STEPS)
        mask = (step < end)[:, None] & (lane < lanes)[None, :]
        t = step.to(tl.int64)
        if FROM_END:
            t = length - 1 - t
        ar, ai = read(a, t[:, None] * a_t + a_lane[None, :], mask, 1.0, COMPLEX, CONJ, ACC)
        br, bi = read(b, t[:, None] * b_t + b_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        _, _, hr, hi = tile_scan(ar, ai, br, bi, cr, ci, COMPLEX, PRODUCTS, STEPS, False)
        write(out, t[:, None] * o_t + o_lane[None, :], mask, hr, hi, COMPLEX)
        cr = row(hr, STEPS - 1, STEPS)
        if COMPLEX:
            ci = row(hi, STEPS - 1, STEPS)


@triton.jit
def summarise(
    a, b, product, state,
    length, chunk, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    b_t, b_0, b_1, b_2, b_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, FROM_END: tl.constexpr, LAG: tl.constexpr,
    STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What each chunk does: the product of its transitions, and the state that it makes of zero; (chunks, lanes) each.

    LAG: each step takes the transition of the step before it in the walk, 0 or 1 steps.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    b_lane = lane_offset(lane, n1, n2, n3, b_0, b_1, b_2, b_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    totalr = cr + 1
    totali = ci
    for tile in range(begin, end, STEPS):
        step = tile + tl.arange(0, STEPS)
        mask = (step < end)[:, None] & (lane < lanes)[None, :]
        earlier = mask & (step >= LAG)[:, None]
        t = step.to(tl.int64)
        u = t - LAG
        if FROM_END:
            t = length - 1 - t
            u = length - 1 - u
        ar, ai = read(a, u[:, None] * a_t + a_lane[None, :], earlier, 1.0, COMPLEX, CONJ, ACC)
        br, bi = read(b, t[:, None] * b_t + b_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        pr, pi, hr, hi = tile_scan(ar, ai, br, bi, cr, ci, COMPLEX, False, STEPS, False)
        lastr = row(pr, STEPS - 1, STEPS)
        lasti = lastr
        cr = row(hr, STEPS - 1, STEPS)
        if COMPLEX:
            lasti = row(pi, STEPS - 1, STEPS)
            ci = row(hi, STEPS - 1, STEPS)
        totalr, totali = times(totalr, totali, lastr, lasti, COMPLEX)
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    where = (tl.cast(tl.program_id(1), tl.int64) * lanes + lane) * PAIR
    write(product, where, lane < lanes, totalr, totali, COMPLEX)
    write(state, where, lane < lanes, cr, ci, COMPLEX)


@triton.jit
def backward(
    a, grad, h, h0, start, grad_a, grad_b,
    length, chunk, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    g_t, g_0, g_1, g_2, g_3,
    h_t, h_0, h_1, h_2, h_3,
    i_0, i_1, i_2, i_3,
    s_c, s_0, s_1, s_2, s_3,
    o_t, o_0, o_1, o_2, o_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_H0: tl.constexpr, HAS_START: tl.constexpr, WITH_A: tl.constexpr,
    FROM_END: tl.constexpr, STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_b[t] = grad[t] + conj(a[t+1]) grad_b[t+1], and grad_a[t] = grad_b[t] conj(h[t-1]) in the same pass.

    Written for a scan that runs forwards, whose derivative is walked FROM_END. CONJ: `a` is to be conjugated.
    grad_a and grad_b have the same strides.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    g_lane = lane_offset(lane, n1, n2, n3, g_0, g_1, g_2, g_3)
    h_lane = lane_offset(lane, n1, n2, n3, h_0, h_1, h_2, h_3)
    o_lane = lane_offset(lane, n1, n2, n3, o_0, o_1, o_2, o_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    if HAS_START:
        s_lane = lane_offset(lane, n1, n2, n3, s_0, s_1, s_2, s_3) + tl.cast(tl.program_id(1), tl.int64) * s_c
        cr, ci = read(start, s_lane, lane < lanes, 0.0, COMPLEX, False, ACC)
    for tile in range(begin, end, STEPS):
        step = tile + tl.arange(0, STEPS)
        mask = (step < end)[:, None] & (lane < lanes)[None, :]
        earlier = mask & (step >= 1)[:, None]
        t = step.to(tl.int64)
        u = t - 1  # the step whose transition comes in
        v = t + 1  # the step whose state this one started from
        if FROM_END:
            t = length - 1 - t
            u = length - 1 - u
            v = length - 1 - v
        ar, ai = read(a, u[:, None] * a_t + a_lane[None, :], earlier, 1.0, COMPLEX, CONJ, ACC)
        gr, gi = read(grad, t[:, None] * g_t + g_lane[None, :], mask, 0.0, COMPLEX, False, ACC)
        _, _, br, bi = tile_scan(ar, ai, gr, gi, cr, ci, COMPLEX, False, STEPS, False)
        where = t[:, None] * o_t + o_lane[None, :]
        write(grad_b, where, mask, br, bi, COMPLEX)
        if WITH_A:
            later = mask & (step + 1 < length)[:, None]
            pr, pi = read(h, v[:, None] * h_t + h_lane[None, :], later, 0.0, COMPLEX, True, ACC)
            if HAS_H0:
                i_lane = lane_offset(lane, n1, n2, n3, i_0, i_1, i_2, i_3)
                ir, ii = read(h0, i_lane, lane < lanes, 0.0, COMPLEX, True, ACC)
                final = (step == length - 1)[:, None]
                pr = tl.where(final, ir[None, :], pr)
                if COMPLEX:
                    pi = tl.where(final, ii[None, :], pi)
            xr, xi = times(br, bi, pr, pi, COMPLEX)
            write(grad_a, where, mask, xr, xi, COMPLEX)
        cr = row(br, STEPS - 1, STEPS)
        if COMPLEX:
            ci = row(bi, STEPS - 1, STEPS)
