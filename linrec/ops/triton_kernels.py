"""The diagonal scan as Triton kernels. A lane is one element of the state, and a thread walks over time with few of
them: a tile of steps is read before the first of them is computed, so that many numbers are on their way at once.

Lanes have up to four axes, each with a stride for every operand, so that operands are read where they lie, broadcast or
transposed. Complex numbers are pairs: pointers and strides are those of `torch.view_as_real`. A program walks one chunk
of one block of lanes; steps are counted along the walk, from the last one if FROM_END. Low precision is read as it is
and accumulated in ACC. Within a chunk the arithmetic is the loop's own.

The product of a chunk's transitions may overflow although no transition is infinite. A state that is zero stays zero
under it, as it does in the loop.
"""

from __future__ import annotations

import triton
import triton.language as tl

VARYING = ("length", "chunk", "short", "lanes", "outers")
"""Arguments that change from call to call: a kernel is compiled once for all of them."""


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
def walked(step, length, FROM_END: tl.constexpr):
    """Where a step of the walk is in time."""
    t = tl.cast(step, tl.int64)
    if FROM_END:
        t = length - 1 - t
    return t


@triton.jit
def tile_of(
    x, lane, tile, end, length, stride, inside, other,
    SHIFT: tl.constexpr, COMPLEX: tl.constexpr, CONJ: tl.constexpr, FROM_END: tl.constexpr,
    STEPS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """An operand in the steps of a tile, SHIFT steps further along the walk: real parts, imaginary parts."""
    re, im = (), ()
    for i in tl.static_range(STEPS):
        step = tile + i + SHIFT
        mask = inside & (tile + i < end) & (step >= 0) & (step < length)
        r, j = read(x, walked(step, length, FROM_END) * stride + lane, mask, other, COMPLEX, CONJ, ACC)
        re = re + (r,)  # type: ignore[assignment]  # noqa: RUF005
        im = im + (j,)  # type: ignore[assignment]  # noqa: RUF005
    return re, im


@triton.jit
def entered(
    product, state, cr, ci, index, inside, lanes, COMPLEX: tl.constexpr, STEPS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """The state that a program's chunk starts from: the one before all chunks, taken through those before this one.

    product, state: what `summarise` found; index: where the program's lanes lie among the `lanes` of each chunk.
    """
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    count = tl.program_id(1)
    stride = tl.cast(lanes, tl.int64) * PAIR
    place = tl.cast(index, tl.int64) * PAIR
    for tile in range(0, count, STEPS):
        ar, ai = tile_of(product, place, tile, count, count, stride, inside, 1.0, 0, COMPLEX, False, False, STEPS, ACC)
        br, bi = tile_of(state, place, tile, count, count, stride, inside, 0.0, 0, COMPLEX, False, False, STEPS, ACC)
        for i in tl.static_range(STEPS):
            xr, xi = times(ar[i], ai[i], cr, ci, COMPLEX)
            if COMPLEX:
                zero = (cr == 0) & (ci == 0)
                ci = tl.where(zero, bi[i], xi + bi[i])
            else:
                zero = cr == 0
            cr = tl.where(zero, br[i], xr + br[i])
    return cr, ci


@triton.jit(do_not_specialize=VARYING)
def forward(
    a, b, h0, product, state, out,
    length, chunk, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    b_t, b_0, b_1, b_2, b_3,
    i_0, i_1, i_2, i_3,
    o_t, o_0, o_1, o_2, o_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_H0: tl.constexpr, CUT: tl.constexpr, FROM_END: tl.constexpr,
    STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """All states of h[t] = a[t] h[t-1] + b[t]. CUT: `product` and `state` say what each of several chunks does."""
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < lanes
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    b_lane = lane_offset(lane, n1, n2, n3, b_0, b_1, b_2, b_3)
    o_lane = lane_offset(lane, n1, n2, n3, o_0, o_1, o_2, o_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    if HAS_H0:
        cr, ci = read(h0, lane_offset(lane, n1, n2, n3, i_0, i_1, i_2, i_3), inside, 0.0, COMPLEX, False, ACC)
    if CUT:
        cr, ci = entered(product, state, cr, ci, lane, inside, lanes, COMPLEX, STEPS, ACC)
    for tile in range(begin, end, STEPS):
        ar, ai = tile_of(a, a_lane, tile, end, length, a_t, inside, 1.0, 0, COMPLEX, CONJ, FROM_END, STEPS, ACC)
        br, bi = tile_of(b, b_lane, tile, end, length, b_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        for i in tl.static_range(STEPS):
            xr, xi = times(ar[i], ai[i], cr, ci, COMPLEX)
            cr = xr + br[i]
            if COMPLEX:
                ci = xi + bi[i]
            where = walked(tile + i, length, FROM_END) * o_t + o_lane
            write(out, where, inside & (tile + i < end), cr, ci, COMPLEX)


@triton.jit(do_not_specialize=VARYING)
def summarise(
    a, b, c, product, state,
    length, chunk, short, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    b_t, b_0, b_1, b_2, b_3,
    c_t, c_0, c_1, c_2, c_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, FROM_END: tl.constexpr, LAG: tl.constexpr, FACTOR: tl.constexpr,
    STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """What each chunk does: the product of its transitions, and the state that it makes of zero; (chunks, lanes) each.

    short: by how many steps the first chunk is shorter than the others. LAG: each step takes the transition of the step
    before it in the walk, 0 or 1 steps. FACTOR: what enters is b times conj(c).
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < lanes
    begin = tl.maximum(tl.program_id(1) * chunk - short, 0)
    end = tl.minimum((tl.program_id(1) + 1) * chunk - short, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    b_lane = lane_offset(lane, n1, n2, n3, b_0, b_1, b_2, b_3)
    c_lane = lane_offset(lane, n1, n2, n3, c_0, c_1, c_2, c_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    totalr = cr + 1
    totali = ci
    for tile in range(begin, end, STEPS):
        ar, ai = tile_of(a, a_lane, tile, end, length, a_t, inside, 1.0, -LAG, COMPLEX, CONJ, FROM_END, STEPS, ACC)
        br, bi = tile_of(b, b_lane, tile, end, length, b_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        if FACTOR:
            er, ei = tile_of(c, c_lane, tile, end, length, c_t, inside, 0.0, 0, COMPLEX, True, FROM_END, STEPS, ACC)
        for i in tl.static_range(STEPS):
            gr, gi = br[i], bi[i]
            if FACTOR:
                gr, gi = times(gr, gi, er[i], ei[i], COMPLEX)
            xr, xi = times(ar[i], ai[i], cr, ci, COMPLEX)
            totalr, totali = times(ar[i], ai[i], totalr, totali, COMPLEX)
            cr = xr + gr
            if COMPLEX:
                ci = xi + gi
    PAIR: tl.constexpr = 2 if COMPLEX else 1
    where = (tl.cast(tl.program_id(1), tl.int64) * lanes + lane) * PAIR
    write(product, where, inside, totalr, totali, COMPLEX)
    write(state, where, inside, cr, ci, COMPLEX)


@triton.jit(do_not_specialize=VARYING)
def backward(
    a, grad, h, h0, product, state, grad_a, grad_b,
    length, chunk, lanes, n1, n2, n3,
    a_t, a_0, a_1, a_2, a_3,
    g_t, g_0, g_1, g_2, g_3,
    h_t, h_0, h_1, h_2, h_3,
    i_0, i_1, i_2, i_3,
    o_t, o_0, o_1, o_2, o_3,
    CONJ: tl.constexpr, COMPLEX: tl.constexpr, HAS_H0: tl.constexpr, CUT: tl.constexpr, WITH_A: tl.constexpr,
    FROM_END: tl.constexpr, STEPS: tl.constexpr, LANES: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """grad_b[t] = grad[t] + conj(a[t+1]) grad_b[t+1], and grad_a[t] = grad_b[t] conj(h[t-1]) in the same pass.

    Written for a scan that runs forwards, whose derivative is walked FROM_END. CONJ: `a` is to be conjugated.
    grad_a and grad_b have the same strides.
    """
    lane = tl.program_id(0) * LANES + tl.arange(0, LANES)
    inside = lane < lanes
    begin = tl.program_id(1) * chunk
    end = tl.minimum(begin + chunk, length)
    a_lane = lane_offset(lane, n1, n2, n3, a_0, a_1, a_2, a_3)
    g_lane = lane_offset(lane, n1, n2, n3, g_0, g_1, g_2, g_3)
    h_lane = lane_offset(lane, n1, n2, n3, h_0, h_1, h_2, h_3)
    o_lane = lane_offset(lane, n1, n2, n3, o_0, o_1, o_2, o_3)
    cr = tl.zeros((LANES,), ACC)
    ci = tl.zeros((LANES,), ACC)
    startr = cr
    starti = ci
    if HAS_H0:
        i_lane = lane_offset(lane, n1, n2, n3, i_0, i_1, i_2, i_3)
        startr, starti = read(h0, i_lane, inside, 0.0, COMPLEX, True, ACC)
    if CUT:
        cr, ci = entered(product, state, cr, ci, lane, inside, lanes, COMPLEX, STEPS, ACC)
    for tile in range(begin, end, STEPS):
        # The transition that comes in is that of the step before in the walk; the state that a step started from, that
        # of the step after.
        ar, ai = tile_of(a, a_lane, tile, end, length, a_t, inside, 1.0, -1, COMPLEX, CONJ, FROM_END, STEPS, ACC)
        gr, gi = tile_of(grad, g_lane, tile, end, length, g_t, inside, 0.0, 0, COMPLEX, False, FROM_END, STEPS, ACC)
        if WITH_A:
            pr, pi = tile_of(h, h_lane, tile, end, length, h_t, inside, 0.0, 1, COMPLEX, True, FROM_END, STEPS, ACC)
        for i in tl.static_range(STEPS):
            xr, xi = times(ar[i], ai[i], cr, ci, COMPLEX)
            cr = xr + gr[i]
            if COMPLEX:
                ci = xi + gi[i]
            mask = inside & (tile + i < end)
            where = walked(tile + i, length, FROM_END) * o_t + o_lane
            write(grad_b, where, mask, cr, ci, COMPLEX)
            if WITH_A:
                last = tile + i == length - 1
                xr, xi = times(cr, ci, tl.where(last, startr, pr[i]), tl.where(last, starti, pi[i]), COMPLEX)
                write(grad_a, where, mask, xr, xi, COMPLEX)
