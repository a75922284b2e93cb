"""What the user's source says at a place: the expression that ran, the variable that its value ends up in, and its text
as a reader would write it in a formula."""

from __future__ import annotations

import ast
import bisect
import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from linrec.ir.location import Place

Extent = tuple[int, int, int, int]

_VIEWS = frozenset(
    [
        "unsqueeze",
        "squeeze",
        "view",
        "reshape",
        "expand",
        "expand_as",
        "contiguous",
        "clone",
        "flatten",
        "unflatten",
        "float",
        "double",
        "to",
        "type_as",
        "type",
        "half",
        "bfloat16",
    ]
)
_TRANSPOSES = frozenset(["T", "mT", "t", "transpose"])
_PREFIXES = frozenset(["self", "cls", "torch", "F", "nn", "functional", "linalg", "math", "np"])


@dataclass(frozen=True)
class Expression:
    """An expression (or an augmented assignment) in a file.

    Attributes:
        node: its syntax tree.
        source: the file that it stands in.
    """

    node: ast.AST
    source: Source

    @property
    def parent(self) -> ast.AST | None:
        """The syntax node around it."""
        return self.source.parents.get(self.node)


class Source:
    """The syntax tree of one file, by extent."""

    def __init__(self, text: str) -> None:
        self.tree = ast.parse(text)
        self.parents: dict[ast.AST, ast.AST] = {}
        self.by_extent: dict[Extent, ast.AST] = {}
        statements: list[ast.stmt] = []
        for node in ast.walk(self.tree):
            for child in ast.iter_child_nodes(node):
                self.parents[child] = node
            if isinstance(node, (ast.expr, ast.AugAssign)):
                self.by_extent.setdefault(_extent(node), node)
            if isinstance(node, ast.stmt):
                statements.append(node)
        # Parents come before their children: of two that hold a line, the later start is the inner one.
        self.statements = sorted(statements, key=lambda n: n.lineno)
        self._starts = [n.lineno for n in self.statements]

    def at(self, start: tuple[int, int], end: tuple[int, int]) -> Expression | None:
        """The expression of this extent; of a call in a chain over several lines, only the end is known for sure."""
        node = self.by_extent.get((*start, *end))
        if node is None:
            ending = [n for e, n in self.by_extent.items() if e[2:] == end and e[:2] <= start]
            node = max(ending, key=lambda n: _extent(n)[:2], default=None)
        return Expression(node, self) if node is not None else None

    def statement(self, line: int) -> ast.stmt | None:
        """The innermost statement on a line."""
        before = self.statements[: bisect.bisect_right(self._starts, line)]
        return next((n for n in reversed(before) if line <= (n.end_lineno or n.lineno)), None)

    def scope(self, node: ast.AST) -> ast.AST:
        """The function (or module) that a syntax node stands in."""
        while node in self.parents:
            node = self.parents[node]
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                break
        return node

    def bindings(self, scope: ast.AST) -> dict[str, list[ast.AST]]:
        """The names that a function binds, each with the places where it does."""
        found: dict[str, list[ast.AST]] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.setdefault(node.id, []).append(node)
            elif isinstance(node, ast.arg):
                found.setdefault(node.arg, []).append(node)
        return found

    def in_loop(self, node: ast.AST, scope: ast.AST) -> bool:
        """Whether a syntax node stands in the body of a loop of this function, or is what the loop assigns."""
        while node is not scope and node in self.parents:
            child, node = node, self.parents[node]
            if isinstance(node, (ast.For, ast.While)) and child is not getattr(node, "iter", None):
                return True
        return False


def _extent(node: Any) -> Extent:
    return (node.lineno, node.col_offset, node.end_lineno or 0, node.end_col_offset or 0)


_parsed: dict[str, tuple[list[str], Source | None]] = {}


def source_of(path: str) -> Source | None:
    """The syntax tree of a file, or None where its source cannot be had."""
    lines = linecache.getlines(path)
    if path not in _parsed or _parsed[path][0] is not lines:  # linecache hands out one list until the file changes
        if len(_parsed) >= 64:
            _parsed.clear()
        _parsed[path] = (lines, _parse(lines))
    return _parsed[path][1]


def _parse(lines: list[str]) -> Source | None:
    try:
        return Source("".join(lines)) if lines else None
    except (SyntaxError, ValueError, RecursionError):
        return None


def expression(place: Place) -> Expression | None:
    """The expression at a place, None where its extent or the source is not known."""
    if not place.end[0]:
        return None
    source = source_of(place.path)
    return source.at(place.start, place.end) if source else None


def assigned_name(places: Sequence[Place]) -> str:
    """The variable, attribute or key that the value of an expression ends up in, through returns; "" where there is
    none: the value is only a part of another one."""
    picks: list[int] = []
    for place in places:
        found = expression(place)
        if found is None:
            return ""
        node: ast.AST = found.node
        while True:
            if isinstance(node, ast.AugAssign):
                return _target(node.target, picks)
            parent = found.source.parents.get(node)
            if isinstance(parent, ast.Assign) and parent.value is node:
                return _target(parent.targets[0], picks)
            if isinstance(parent, (ast.AnnAssign, ast.NamedExpr)) and parent.value is node:
                return _target(parent.target, picks)
            if isinstance(parent, ast.For) and parent.iter is node:
                return _target(parent.target, picks)
            if isinstance(parent, (ast.Return, ast.Lambda)):
                break
            climbed = _climb(node, parent, picks)
            if isinstance(climbed, str):
                return climbed
            node = climbed
    return ""


def _climb(node: ast.AST, parent: ast.AST | None, picks: list[int]) -> ast.AST | str:
    """The expression around one that merely passes its value on, or the name that it gets."""
    if isinstance(parent, (ast.Tuple, ast.List)):
        picks.append(parent.elts.index(node))  # type: ignore[arg-type]
        return parent
    if isinstance(parent, ast.IfExp) and node is not parent.test:
        return parent
    if isinstance(parent, ast.Dict) and node in parent.values:
        key = parent.keys[parent.values.index(node)]
        return str(key.value) if isinstance(key, ast.Constant) and isinstance(key.value, str) else ""
    if isinstance(parent, ast.Call) and node in parent.args:
        position = parent.args.index(node)
        if isinstance(parent.func, ast.Attribute) and parent.func.attr == "append":
            return _target(parent.func.value, picks)
        called = parent.func.id if isinstance(parent.func, ast.Name) else ""
        if called == "enumerate":
            picks.append(1)
            return parent
        if called == "zip":
            picks.append(position)
            return parent
        if called in ("reversed", "list", "tuple", "iter"):
            return parent
    return ""


def _target(target: ast.AST, picks: list[int]) -> str:
    while isinstance(target, (ast.Tuple, ast.List)):
        if not picks or picks[-1] >= len(target.elts):
            return ""
        target = target.elts[picks.pop()]
    return variable(target)


def variable(node: ast.AST) -> str:
    """The variable that an expression names or reads a part of: ``self.h``, ``state["h"]``, ``x[:, t]``; else ""."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Starred):
        return variable(node.value)
    if isinstance(node, ast.Subscript):
        if isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
            return node.slice.value
        return variable(node.value)
    return ""


def kept_as(places: Sequence[Place], name: str) -> str:
    """The variable that carries a value on where `name` is only a step on the way: ``m`` where the step ends with
    ``m = m_new``, or returns `m_new` to a call that is assigned to ``m``."""
    for depth, place in enumerate(places):
        found = expression(place)
        if found is None:
            return name
        scope = found.source.scope(found.node)
        bound = found.source.bindings(scope)
        if name not in bound:
            continue
        if len(bound[name]) > 1:
            return name
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign):
                for target, value in _matched(node.targets[0], node.value):
                    other = variable(target)
                    if isinstance(value, ast.Name) and value.id == name and len(bound.get(other, [])) > 1:
                        return other
            elif isinstance(node, ast.Return) and depth + 1 < len(places):
                call = expression(places[depth + 1])
                statement = call.parent if call else None
                if isinstance(statement, ast.Assign) and node.value is not None:
                    for target, value in _matched(statement.targets[0], node.value):
                        if isinstance(value, ast.Name) and value.id == name and variable(target):
                            return variable(target)
        return name
    return name


def _matched(target: ast.AST, value: ast.AST) -> list[tuple[ast.AST, ast.AST]]:
    """The pairs of targets and values of two tuples, as far as their shapes agree."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        return [pair for t, v in zip(target.elts, value.elts, strict=True) for pair in _matched(t, v)]
    return [(target, value)]


def without_views(node: ast.AST) -> tuple[ast.AST, bool]:
    """An expression without views and copies around it, and whether an odd number of transposes was among them."""
    turned = False
    while True:
        call = node.func if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else None
        if call is not None and call.attr in _VIEWS:
            node = call.value
        elif call is not None and call.attr in _TRANSPOSES:
            node, turned = call.value, not turned
        elif isinstance(node, ast.Attribute) and node.attr in _TRANSPOSES:
            node, turned = node.value, not turned
        elif isinstance(node, ast.Subscript) and all(_is_whole(i) for i in _indices(node)):
            node = node.value
        else:
            return node, turned


def _indices(node: ast.Subscript) -> list[ast.expr]:
    return list(node.slice.elts) if isinstance(node.slice, ast.Tuple) else [node.slice]


def _is_whole(index: ast.expr) -> bool:
    """``:``, ``...`` or ``None``: an index that takes nothing away."""
    if isinstance(index, ast.Slice):
        return index.lower is None and index.upper is None and index.step is None
    return isinstance(index, ast.Constant) and index.value in (None, ...)


class _Plain(ast.NodeTransformer):
    """Drops ``self.`` and module prefixes, and the whole slices beside an index: ``x[:, t]`` becomes ``x[t]``."""

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        node = self.generic_visit(node)  # type: ignore[assignment]
        if isinstance(node.value, ast.Name) and node.value.id in _PREFIXES:
            return ast.copy_location(ast.Name(node.attr, ast.Load()), node)
        return node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        node = self.generic_visit(node)  # type: ignore[assignment]
        kept = [i for i in _indices(node) if not _is_whole(i)]
        if not kept:
            return node.value
        node.slice = kept[0] if len(kept) == 1 else ast.Tuple(kept, ast.Load())
        return node


def plain_text(node: ast.AST, limit: int = 72) -> str:
    """An expression as a reader would write it: ``sigmoid(gate(x[t]))`` for ``torch.sigmoid(self.gate(x[:, t]))``.

    Of a statement (``h += x``) it is what is assigned.
    """
    if isinstance(node, (ast.Assign, ast.AugAssign, ast.AnnAssign)) and node.value is not None:
        node = node.value
    text = ast.unparse(ast.fix_missing_locations(_Plain().visit(ast.parse(ast.unparse(node)))))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def line_with_caret(place: Place) -> tuple[str, str]:
    """The source line of a place, and a line of carets under the operator or the function that ran there, or under the
    whole line where that is not known."""
    start, end = _operator_extent(place)
    line = linecache.getline(place.path, start[0] or place.line).rstrip("\n")
    bare = line.lstrip()
    if not bare:
        return "", ""
    shift = len(line) - len(bare)
    first, last = shift, len(line)
    if end[0]:
        raw = line.encode()
        first = max(len(raw[: start[1]].decode(errors="ignore")), shift)
        if end[0] == start[0]:
            last = len(raw[: end[1]].decode(errors="ignore"))
    return bare, " " * (first - shift) + "^" * max(last - first, 1)


def _operator_extent(place: Place) -> tuple[tuple[int, int], tuple[int, int]]:
    """The extent of what acts in an expression: the function of a call, the sign between two operands."""
    found = expression(place)
    node = found.node if found else None
    if isinstance(node, ast.Call):
        line, column, last, end = _extent(node.func)
        # Of a chain of methods, the last one: it begins where its name does.
        if isinstance(node.func, ast.Attribute) and not isinstance(node.func.value, ast.Name):
            return (last, end - len(node.func.attr.encode())), (last, end)
        return (line, column), (last, end)
    if isinstance(node, ast.BinOp):
        left, right = _extent(node.left), _extent(node.right)
        if left[2] == right[0]:
            between = linecache.getline(place.path, left[2]).encode()[left[3] : right[1]]
            sign = between.decode(errors="ignore").strip(" ()\\\n")
            offset = between.find(sign.encode()) if sign else -1
            if offset >= 0:
                return (left[2], left[3] + offset), (left[2], left[3] + offset + len(sign.encode()))
    return place.start, place.end
