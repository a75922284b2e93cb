"""Small changes of a function's code, one at a time: a sign, a comparison, a guard, two arguments, a number."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Make = Callable[[], ast.AST]

_COMPARE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_ADDED: dict[type[ast.operator], type[ast.operator]] = {ast.Add: ast.Sub, ast.Sub: ast.Add}
_CONTEXT = frozenset(("algebra", "space", "site", "v", "t", "self", "node", "emitter"))
"""Arguments that say where, not what: the ones after them are exchanged."""

_NOT_SWAPPED = frozenset(("isinstance", "getattr", "hasattr", "zip", "NoRule", "Unsupported", "NotVectorisable"))


@dataclass(frozen=True)
class Edit:
    """One change.

    Attributes:
        function: qualified name; line: where it is; number: which of the function's changes.
        kind: what is done; text: before and after.
    """

    function: str
    line: int
    number: int
    kind: str
    text: str


class _Changes(ast.NodeTransformer):
    """Counts the possible changes of one function, and makes the wanted one."""

    def __init__(self, wanted: int | None = None) -> None:
        self.wanted = wanted
        self.found: list[tuple[int, str, str]] = []

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, (ast.Raise, ast.Assert, ast.JoinedStr, ast.Import, ast.ImportFrom)):
            return node
        if isinstance(node, ast.keyword) and node.arg == "strict":  # what is zipped is of one length
            return node
        for kind, make in _possible(node):
            number = len(self.found)
            before, after = ast.unparse(node), ast.unparse(make())
            self.found.append((getattr(node, "lineno", 0), kind, f"{_short(before)}  ->  {_short(after)}"))
            if number == self.wanted:
                return ast.copy_location(make(), node)
        if isinstance(node, (ast.FunctionDef, ast.Lambda)):
            # What a signature holds is no code: defaults and annotations were evaluated when the file was imported.
            body = node.body if isinstance(node.body, list) else [node.body]
            done = [self.visit(x) for x in body]
            node.body = done if isinstance(node.body, list) else done[0]
            return node
        if isinstance(node, ast.AnnAssign):
            if node.value is not None:
                node.value = self.visit(node.value)
            return node
        return self.generic_visit(node)


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 70 else line[:67] + "..."


def _possible(node: ast.AST) -> Iterator[tuple[str, Make]]:
    if (
        isinstance(node, ast.If)
        and not node.orelse
        and isinstance(node.body[-1], (ast.Raise, ast.Return, ast.Continue))
    ):
        yield "guard dropped", lambda: ast.If(ast.Constant(False), node.body, [])
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = _COMPARE[type(node.ops[0])]
        yield "comparison", lambda: ast.Compare(node.left, [other()], node.comparators)
    if isinstance(node, ast.BoolOp):
        for i in range(len(node.values)):
            kept = [x for k, x in enumerate(node.values) if k != i]
            yield (
                "condition dropped",
                lambda kept=kept: kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept),
            )
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub)):
        yield "negation dropped", lambda: node.operand
    if isinstance(node, ast.BinOp):
        if type(node.op) in _ADDED:
            yield "sign", lambda: ast.BinOp(node.left, _ADDED[type(node.op)](), node.right)
        elif isinstance(node.op, (ast.Mult, ast.Div, ast.FloorDiv, ast.Mod)):
            yield "operand dropped", lambda: node.left
    if isinstance(node, ast.Constant):
        if type(node.value) is bool:
            yield "flag", lambda: ast.Constant(not node.value)
        elif type(node.value) is int:
            yield "off by one", lambda: ast.Constant(node.value + 1)
        elif type(node.value) is float:
            yield "number", lambda: ast.Constant(2 * node.value if node.value else 1.0)
    if isinstance(node, ast.Call):
        name = (
            node.func.id
            if isinstance(node.func, ast.Name)
            else node.func.attr
            if isinstance(node.func, ast.Attribute)
            else ""
        )
        if name in ("all", "any"):
            other = "any" if name == "all" else "all"
            yield "quantifier", lambda: ast.Call(ast.Name(other, ast.Load()), node.args, node.keywords)
        first = next((k for k, a in enumerate(node.args) if not _is_context(a)), len(node.args))
        pair = node.args[first : first + 2]
        plain = name not in _NOT_SWAPPED and not any(_names_a_thing(a) for a in pair)
        if len(pair) == 2 and plain and ast.dump(pair[0]) != ast.dump(pair[1]):
            swapped = [*node.args[:first], pair[1], pair[0], *node.args[first + 2 :]]
            yield "arguments swapped", lambda: ast.Call(node.func, swapped, node.keywords)
    if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple) and len(node.value.elts) == 2:
        a, b = node.value.elts
        if ast.dump(a) != ast.dump(b):
            yield "results swapped", lambda: ast.Return(ast.Tuple([b, a], ast.Load()))


def _names_a_thing(node: ast.AST) -> bool:
    """What cannot be exchanged with a value without raising at once: a string, an operator."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str)
    return isinstance(node, ast.Starred) or (isinstance(node, ast.Attribute) and ast.unparse(node).startswith("aten."))


def _is_context(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in _CONTEXT


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.Lambda]]:
    """The outermost functions of a file with their qualified names; a lambda is named by what it is passed with."""

    def inside(body: list[Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for node in body:
            if isinstance(node, ast.FunctionDef):
                yield prefix + node.name, node
            elif isinstance(node, ast.ClassDef):
                yield from inside(node.body, f"{prefix}{node.name}.")
            else:
                for part in ast.walk(node):
                    if isinstance(part, ast.Call):
                        for x in part.args:
                            if isinstance(x, ast.Lambda):
                                yield prefix + ast.unparse(part.args[0]).strip("'"), x

    yield from inside(tree.body, "")


def edits(source: str) -> list[Edit]:
    """All changes of a file's functions."""
    found = []
    for name, node in functions(ast.parse(source)):
        changes = _Changes()
        changes.visit(node)
        found += [Edit(name, line, k, kind, text) for k, (line, kind, text) in enumerate(changes.found)]
    return found


def edited(source: str, edit: Edit) -> ast.Module:
    """The file with one change made."""
    tree = ast.parse(source)
    for name, node in functions(tree):
        if name == edit.function:
            changes = _Changes(edit.number)
            changes.visit(node)
            if edit.number < len(changes.found) and changes.found[edit.number] == (edit.line, edit.kind, edit.text):
                break
    return ast.fix_missing_locations(tree)
