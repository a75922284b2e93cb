"""Numbers that count the steps, as Python has them: the number of the last step after a loop, a counter, the length of
a list. What forward decides on them it may decide otherwise at some lengths only; they are plain numbers, so they are
looked for in the source, where it compares or divides, and read there in two short runs."""

from __future__ import annotations

import ast
import builtins
import collections
import contextlib
import functools
import inspect
import math
import operator
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from linrec.capture.beside import is_foreign
from linrec.ir.source import Source, source_of

Record = tuple[bool, tuple[Any, ...]]
"""Whether a place compares, and the numbers that it was reached with."""
Records = dict[tuple[str, ast.AST], list[Record]]
Frame = types.FrameType

_DIVISIONS = (
    ast.Mod,
    ast.FloorDiv,
    ast.Pow,
    ast.BitAnd,
    ast.BitOr,
    ast.BitXor,
    ast.LShift,
    ast.RShift,
)
_PURE = frozenset((len, range, int, max, min, sum, abs, round, bool, float))
_TELLS = frozenset((str, repr, hash, divmod, bin, oct, hex, format, float, bool, round, chr, math.isqrt))
_FILLED = frozenset(("zeros", "ones", "empty", "arange"))
_GETS = frozenset(("get", "pop", "setdefault"))
_SIZED = (list, tuple, dict, set, frozenset, str, range, collections.deque)
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


class _Size(int):
    """A size of a tensor, or a number of steps made of one: what is asked of those is noted where it is asked."""


class _Unknown(Exception):
    """An expression that cannot be read without running the user's code."""


@functools.lru_cache(maxsize=64)
def _asking(source: Source) -> dict[int, list[ast.AST]]:
    """By line, what compares numbers, divides them, or tells them apart."""
    found: dict[int, list[ast.AST]] = {}
    for node in ast.walk(source.tree):
        asks = isinstance(node, (ast.Compare, ast.FormattedValue, ast.Call, ast.Subscript, ast.Match))
        asks |= isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, (*_DIVISIONS, ast.Mult, ast.Div))
        asks |= isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)) and not isinstance(node.test, ast.Compare)
        if asks:
            found.setdefault(getattr(node, "lineno", 0), []).append(node)
    return found


@contextlib.contextmanager
def watched(found: Records) -> Iterator[None]:
    """In the block, note in `found` what numbers the user's code compares and divides, in this thread."""
    asking: dict[types.CodeType, dict[int, list[ast.AST]]] = {}

    def lines_of(frame: Frame) -> dict[int, list[ast.AST]]:
        code = frame.f_code
        if code not in asking:
            foreign = is_foreign(str(frame.f_globals.get("__name__", "")))
            source = None if foreign else source_of(code.co_filename)
            asking[code] = {} if source is None else _asking(source)
        return asking[code]

    def line(frame: Frame, event: str, arg: Any) -> Any:
        if event == "line":
            for node in lines_of(frame).get(frame.f_lineno, ()):
                with contextlib.suppress(Exception):
                    record = _record(node, frame)
                    if record is not None:
                        found.setdefault((frame.f_code.co_filename, node), []).append(record)
        return line

    def call(frame: Frame, event: str, arg: Any) -> Any:
        return line if lines_of(frame) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield
    finally:
        sys.settrace(before)


def differ(first: Records, second: Records, short: int, lengths: tuple[int, int]) -> bool:
    """Whether what was noted at two numbers of steps depends on them, and not as it would at every length: a place that
    is reached as often in both was reached with other numbers.

    Args:
        first, second: what was noted; lengths: at which numbers of steps.
        short: the least number of steps that matters.
    """
    for key, records in first.items():
        others = second.get(key, [])
        if len(records) == len(others):
            pairs = zip(records, others, strict=True)
            if any(a != b and not _is_settled(a, b, short, lengths) for a, b in pairs):
                return True
    return False


def _is_settled(a: Record, b: Record, short: int, lengths: tuple[int, int]) -> bool:
    """Whether a comparison of two numbers has one answer at all lengths from `short` on."""
    if not (a[0] and b[0]) or len(a[1]) != 2 or None in a[1] or None in b[1]:
        return False
    apart, later = a[1][0] - a[1][1], b[1][0] - b[1][1]
    if apart == later:
        return True
    slope = (later - apart) / (lengths[1] - lengths[0])
    return bool(lengths[0] - apart / slope < short)


def _record(node: ast.AST, frame: Frame) -> Record | None:
    """The plain whole numbers that a place is about to compare or divide, or None."""
    parts = list(_parts(node, frame))
    if not any(type(x) is int for _, x in parts):
        return None
    compares = all(c for c, _ in parts)
    return compares, tuple(x if type(x) in (int, float) else None for _, x in parts)


def _parts(node: Any, frame: Frame) -> Iterator[tuple[bool, Any]]:
    """The operands that matter of an expression, each with whether it is compared, and nothing else is done with it."""
    if isinstance(node, ast.Compare):
        if any(isinstance(op, (ast.Is, ast.IsNot)) for op in node.ops):
            return
        ordered = len(node.ops) == 1 and not isinstance(node.ops[0], (ast.In, ast.NotIn))
        for operand in (node.left, *node.comparators):
            members = operand.elts if isinstance(operand, (ast.Set, ast.Tuple, ast.List)) else [operand]
            yield from ((ordered and len(members) == 1, _try(x, frame)) for x in members)
    elif isinstance(node, (ast.BinOp, ast.AugAssign)):
        sides = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.target, node.value)
        values = [_try(x, frame) for x in sides]
        kinds = [type(x) for x in values]
        rounds = float in kinds or (isinstance(node.op, ast.Div) and kinds == [int, int])
        if not any(isinstance(x, Tensor) for x in values) and (rounds or isinstance(node.op, _DIVISIONS)):
            yield from ((False, int.__add__(x, 0) if rounds and isinstance(x, _Size) else x) for x in values)
    elif isinstance(node, (ast.If, ast.IfExp, ast.While, ast.Assert)):
        tests = node.test.values if isinstance(node.test, ast.BoolOp) else [node.test]
        for test in tests:
            inner = test.operand if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not) else test
            if not isinstance(inner, ast.Compare):
                yield True, _try(inner, frame)
                yield True, 0
    elif isinstance(node, ast.FormattedValue):
        yield False, _try(node.value, frame)
    elif isinstance(node, ast.Match):
        yield False, _try(node.subject, frame)
    elif isinstance(node, ast.Subscript):
        if isinstance(_try(node.value, frame), dict):
            yield False, _try(node.slice, frame)
    elif isinstance(node, ast.Call):
        yield from _arguments(node, frame)


def _arguments(node: ast.Call, frame: Frame) -> Iterator[tuple[bool, Any]]:
    """Those of a call that tells numbers apart: `str`, `min`, `math.sqrt`, ``table.get``."""
    if isinstance(node.func, ast.Attribute) and node.func.attr in _GETS:
        if isinstance(_try(node.func.value, frame), dict):
            yield from ((False, _try(x, frame)) for x in node.args[:1])
        return
    function = _try(node.func, frame)
    if function in (max, min) and len(node.args) == 2:
        yield from ((True, _try(x, frame)) for x in node.args)
    elif function in _TELLS or (callable(function) and getattr(function, "__module__", "") == "math"):
        yield from ((False, _try(x, frame)) for x in node.args)


def _try(node: ast.AST, frame: Frame) -> Any:
    try:
        return _value(node, frame)
    except Exception:
        return None


def _value(node: Any, frame: Frame) -> Any:
    """What an expression is worth, where that can be read without running the user's code; raises otherwise."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        for names in (frame.f_locals, frame.f_globals, vars(builtins)):
            if node.id in names:
                x = names[node.id]
                return _Size(int.__add__(x, 0)) if isinstance(x, int) and type(x) not in (int, bool) else x
        raise _Unknown
    if isinstance(node, ast.Attribute):
        return _attribute(_value(node.value, frame), node.attr)
    if isinstance(node, ast.Subscript):
        holder, at = _value(node.value, frame), _value(node.slice, frame)
        if type(holder) is torch.Size and type(at) is int:
            return _Size(holder[at])
        if type(holder) in (list, tuple, dict) and type(at) in (int, str):
            return holder[at]
        raise _Unknown
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(_value(node.operand, frame))
    if isinstance(node, ast.BinOp) and type(node.op) in _ARITHMETIC:
        left, right = _value(node.left, frame), _value(node.right, frame)
        if isinstance(left, Tensor) or isinstance(right, Tensor):
            return left if isinstance(left, Tensor) else right
        result = _ARITHMETIC[type(node.op)](_number(left), _number(right))
        return _Size(result) if type(result) is int and _Size in (type(left), type(right)) else result
    if isinstance(node, ast.Call) and not node.keywords:
        function = _value(node.func, frame)
        where = getattr(function, "__module__", "")
        if function in _PURE or where == "math" or (where == "numpy" and function.__name__ in _FILLED):
            return function(*(_plain(_value(x, frame)) for x in node.args))
    raise _Unknown


def _attribute(holder: Any, name: str) -> Any:
    if isinstance(holder, types.ModuleType):
        return vars(holder)[name]
    if isinstance(holder, Tensor) and name == "shape":
        with torch._C.DisableTorchFunction():
            return holder.shape
    if type(holder).__module__ == "numpy" and name in ("size", "ndim"):
        return getattr(holder, name)
    found = inspect.getattr_static(holder, name)
    if type(found) in (int, float, dict, list, tuple):
        return found
    raise _Unknown


def _number(x: Any) -> Any:
    if type(x) not in (int, float, _Size):
        raise _Unknown
    return int.__add__(x, 0) if isinstance(x, _Size) else x


def _plain(x: Any) -> Any:
    if isinstance(x, _Size):
        return int.__add__(x, 0)
    if type(x) in (int, float) or type(x) in _SIZED:
        return x
    if type(x).__module__ == "numpy":
        return x
    raise _Unknown
