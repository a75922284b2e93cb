"""Compiled loops (numba) for recurrences on a CPU: one loop over time per lane, lanes shared out by tickets.

A kernel is a C function of one pointer, to a table of integers: the next ticket, how the lanes are cut into blocks, and
address and strides of each operand. Any number of threads may run it on one table at once, each taking tickets until
none is left; so a kernel needs no thread pool of its own and is also the serial form. Imported by `cpu_scan` alone,
and only where numba is installed.
"""

# mypy: ignore-errors
# What follows is in numba's language, which a type checker for Python misreads.

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import cfunc, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

TICKET, ITEMS, BLOCKS, BLOCK, INNER, STEPS, OPERANDS = range(7)  # the table's head
POINTER, TIME, OUTER, LANE = range(4)  # per operand: address, then strides in elements
OPERAND_SIZE = 4

_X86 = platform.machine().lower() in ("x86_64", "amd64")
_FLUSH = 0x8040  # MXCSR: flush subnormal results to zero, read subnormal operands as zero


def _cacheable() -> bool:
    """Whether numba finds a folder to keep compiled code in, beside this file or in the user's cache."""
    try:
        njit(cache=True)(_cacheable)
    except RuntimeError:
        return False
    return True


# Contraction to fused multiply-add is the only liberty taken with the arithmetic.
_options = {"fastmath": {"contract"}, "cache": _cacheable()}


@intrinsic
def _entry(typing_context: Any, args: Any, index: Any) -> Any:
    """The integer at `index` of the table."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        table = builder.bitcast(values[0], ir.IntType(64).as_pointer())
        return builder.load(cgutils.gep_inbounds(builder, table, values[1]), typ=ir.IntType(64))

    return types.int64(args, types.int64), generate


@intrinsic
def _take_ticket(typing_context: Any, args: Any) -> Any:
    """Count the ticket up by one, atomically; the value before."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        table = builder.bitcast(values[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", table, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(args), generate


@intrinsic
def _address(typing_context: Any, args: Any, address: Any) -> Any:
    """The integer `address` as a pointer of the same type as `args`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[1], context.get_value_type(signature.return_type))

    return args(args, types.int64), generate


@intrinsic
def _at(typing_context: Any, pointer: Any, offset: Any) -> Any:
    """The pointer `offset` elements further on; unlike an array's index, the offset may be negative."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.gep(values[0], [values[1]], source_etype=context.get_data_type(pointer.dtype))

    return pointer(pointer, types.int64), generate


@intrinsic
def _load(typing_context: Any, pointer: Any, offset: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = builder.gep(values[0], [values[1]], source_etype=context.get_data_type(pointer.dtype))
        return context.data_model_manager[pointer.dtype].load_from_data_pointer(builder, element)

    return pointer.dtype(pointer, types.int64), generate


@intrinsic
def _store(typing_context: Any, pointer: Any, offset: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        element = builder.gep(values[0], [values[1]], source_etype=context.get_data_type(pointer.dtype))
        data = context.data_model_manager[pointer.dtype].as_data(builder, values[2])
        builder.store(data, element)
        return context.get_dummy_value()

    return types.void(pointer, types.int64, pointer.dtype), generate


def _mode_register(builder: Any, slot: Any, name: str) -> None:
    byte = ir.IntType(8).as_pointer()
    function = cgutils.get_or_insert_function(builder.module, ir.FunctionType(ir.VoidType(), [byte]), name)
    builder.call(function, [builder.bitcast(slot, byte)])


@intrinsic
def _flush_subnormals(typing_context: Any) -> Any:
    """From here on this thread takes subnormal numbers for zero; the mode it was in, for `_restore_mode`."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(32)
        if not _X86:
            return ir.Constant(word, 0)
        slot = cgutils.alloca_once(builder, word)
        _mode_register(builder, slot, "llvm.x86.sse.stmxcsr")
        before = builder.load(slot, typ=word)
        builder.store(builder.or_(before, ir.Constant(word, _FLUSH)), slot)
        _mode_register(builder, slot, "llvm.x86.sse.ldmxcsr")
        return before

    return types.int32(), generate


@intrinsic
def _restore_mode(typing_context: Any, mode: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        if _X86:
            slot = cgutils.alloca_once(builder, ir.IntType(32))
            builder.store(values[0], slot)
            _mode_register(builder, slot, "llvm.x86.sse.ldmxcsr")
        return context.get_dummy_value()

    return types.void(types.int32), generate


@njit(inline="always", **_options)
def _operand(args, k, outer, lane):
    base = OPERANDS + k * OPERAND_SIZE
    offset = outer * _entry(args, base + OUTER) + lane * _entry(args, base + LANE)
    start = _at(_address(args, _entry(args, base + POINTER)), offset)
    return start, _entry(args, base + TIME), _entry(args, base + LANE)


@njit(**_options)
def _forward_lanes(args, outer, lane, lanes):
    """h[t] = a[t] * h[t-1] + b[t]; operands a, b, h, h0."""
    steps = _entry(args, STEPS)
    a, a_time, a_lane = _operand(args, 0, outer, lane)
    b, b_time, b_lane = _operand(args, 1, outer, lane)
    h, h_time, h_lane = _operand(args, 2, outer, lane)
    before, _, before_lane = _operand(args, 3, outer, lane)
    if abs(h_time) < h_lane or lanes == 1:
        # Time is the fast axis in memory: one lane after another, its state in a register.
        for i in range(lanes):
            state = _load(before, i * before_lane)
            for t in range(steps):
                state = _load(a, i * a_lane + t * a_time) * state + _load(b, i * b_lane + t * b_time)
                _store(h, i * h_lane + t * h_time, state)
        return
    for t in range(steps):
        a_row, b_row, h_row = _at(a, t * a_time), _at(b, t * b_time), _at(h, t * h_time)
        if a_lane == 1 and b_lane == 1 and h_lane == 1 and before_lane == 1:
            for i in range(lanes):
                _store(h_row, i, _load(a_row, i) * _load(before, i) + _load(b_row, i))
        elif a_lane == 0 and b_lane == 1 and h_lane == 1 and before_lane == 1:
            decay = _load(a_row, 0)
            for i in range(lanes):
                _store(h_row, i, decay * _load(before, i) + _load(b_row, i))
        else:
            for i in range(lanes):
                state = _load(a_row, i * a_lane) * _load(before, i * before_lane) + _load(b_row, i * b_lane)
                _store(h_row, i * h_lane, state)
        before, before_lane = h_row, h_lane


@njit(**_options)
def _backward_lanes(args, outer, lane, lanes):
    """From the last step back: grad_b[t] = grad[t] + conj(a[t+1]) grad_b[t+1], grad_a[t] = grad_b[t] conj(h[t-1]).

    Operands a, grad, h, grad_a, grad_b, h0; their addresses are those of the last step and their time strides lead
    back.
    """
    steps = _entry(args, STEPS)
    a, a_time, a_lane = _operand(args, 0, outer, lane)
    grad, grad_time, grad_lane = _operand(args, 1, outer, lane)
    h, h_time, h_lane = _operand(args, 2, outer, lane)
    da, da_time, da_lane = _operand(args, 3, outer, lane)
    db, db_time, db_lane = _operand(args, 4, outer, lane)
    h0, _, h0_lane = _operand(args, 5, outer, lane)
    if abs(db_time) < db_lane or lanes == 1:
        for i in range(lanes):
            state = _load(grad, i * grad_lane)
            for t in range(steps):
                if t > 0:
                    decay = _load(a, i * a_lane + (t - 1) * a_time).conjugate()
                    state = decay * state + _load(grad, i * grad_lane + t * grad_time)
                _store(db, i * db_lane + t * db_time, state)
                if t < steps - 1:
                    before = _load(h, i * h_lane + (t + 1) * h_time)
                else:
                    before = _load(h0, i * h0_lane)
                _store(da, i * da_lane + t * da_time, state * before.conjugate())
        return
    for t in range(steps):
        grad_row, da_row, db_row = _at(grad, t * grad_time), _at(da, t * da_time), _at(db, t * db_time)
        before, before_lane = _at(h, (t + 1) * h_time), h_lane
        if t == steps - 1:
            before, before_lane = h0, h0_lane
        if t == 0:
            for i in range(lanes):
                state = _load(grad_row, i * grad_lane)
                _store(db_row, i * db_lane, state)
                _store(da_row, i * da_lane, state * _load(before, i * before_lane).conjugate())
            continue
        a_row, db_later = _at(a, (t - 1) * a_time), _at(db, (t - 1) * db_time)
        if a_lane == 1 and grad_lane == 1 and before_lane == 1 and da_lane == 1 and db_lane == 1:
            for i in range(lanes):
                state = _load(a_row, i).conjugate() * _load(db_later, i) + _load(grad_row, i)
                _store(db_row, i, state)
                _store(da_row, i, state * _load(before, i).conjugate())
        else:
            for i in range(lanes):
                decay = _load(a_row, i * a_lane).conjugate()
                state = decay * _load(db_later, i * db_lane) + _load(grad_row, i * grad_lane)
                _store(db_row, i * db_lane, state)
                _store(da_row, i * da_lane, state * _load(before, i * before_lane).conjugate())


@njit(**_options)
def _next_block(args):
    """Outer index, first lane and number of lanes of the next block of work; no lanes when all is taken."""
    item = _take_ticket(args)
    if item >= _entry(args, ITEMS):
        return 0, 0, 0
    blocks, block = _entry(args, BLOCKS), _entry(args, BLOCK)
    lane = item % blocks * block
    return item // blocks, lane, min(block, _entry(args, INNER) - lane)


def _forward(args):
    mode = _flush_subnormals()
    outer, lane, lanes = _next_block(args)
    while lanes > 0:
        _forward_lanes(args, outer, lane, lanes)
        outer, lane, lanes = _next_block(args)
    _restore_mode(mode)


def _backward(args):
    mode = _flush_subnormals()
    outer, lane, lanes = _next_block(args)
    while lanes > 0:
        _backward_lanes(args, outer, lane, lanes)
        outer, lane, lanes = _next_block(args)
    _restore_mode(mode)


KERNELS: dict[str, Callable[..., None]] = {"forward": _forward, "backward": _backward}


def compile_kernel(name: str, dtype: str) -> Any:
    """The compiled kernel `name` for elements of the numba type `dtype`; its `address` is what to call."""
    signature = types.void(types.CPointer(getattr(types, dtype)))
    return cfunc(signature, **_options)(KERNELS[name])
