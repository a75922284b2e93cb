"""The formula of an update that is not affine, read off the user's expression: ``h[t] = tanh(R(h[t-1]) + x[t])``."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any

import sympy
from torch import fx

from linrec.ir.formula import Call, Symbol, Transpose, to_text
from linrec.ir.location import places
from linrec.ir.names import is_whole
from linrec.ir.source import Source, expression, variable, without_views

LONGEST = 90
_MODULES = frozenset(["self", "cls", "torch", "F", "nn", "functional"])


class _Unclear(Exception):
    """The expression cannot be quoted as a formula."""


def quoted(update: fx.Node, name: str, names: Sequence[str]) -> Any:
    """The right-hand side of the update of a state in terms of the states of these names, or None where it is long or
    unclear, or reads what the step has made of the same state before."""
    found = places(update)
    place = expression(found[0]) if found and is_whole(update, found) else None
    if place is None:
        return None
    try:
        result = _Quote(place.source, place.node, names).convert(place.node)
    except _Unclear:
        return None
    clear = Symbol(f"{name}[t]") not in result.atoms(Symbol)
    return result if clear and len(to_text(result)) <= LONGEST else None


class _Quote:
    def __init__(self, source: Source, node: ast.AST, names: Sequence[str]) -> None:
        self.source, self.names = source, names
        self.scope = source.scope(node)
        self.bound = source.bindings(self.scope)
        self.line = getattr(node, "lineno", 0)
        self.loops = [n for n in ast.walk(self.scope) if isinstance(n, (ast.For, ast.While))]

    def convert(self, node: ast.AST) -> Any:
        """The formula of an expression."""
        node, turned = without_views(node)
        if turned:
            return Transpose(self.convert(node))
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return sympy.sympify(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.convert(node.operand)
        if isinstance(node, ast.BinOp):
            return self._binary(node)
        if isinstance(node, ast.Call) and not node.keywords and 1 <= len(node.args) <= 3:
            name = variable(node.func)
            of_module = isinstance(node.func, ast.Name) or _root(node.func) in _MODULES
            if name and of_module:
                return Call(sympy.Symbol(name), *(self.convert(a) for a in node.args))
        if isinstance(node, (ast.Name, ast.Attribute, ast.Subscript)):
            return self._variable(node)
        raise _Unclear

    def _binary(self, node: ast.BinOp) -> Any:
        a, b = self.convert(node.left), self.convert(node.right)
        if isinstance(node.op, ast.Add):
            return sympy.Add(a, b, evaluate=False)
        if isinstance(node.op, ast.Sub):
            return sympy.Add(a, -b, evaluate=False)
        if isinstance(node.op, (ast.Mult, ast.MatMult)):
            return a * b
        if isinstance(node.op, ast.Div):
            return a * b**-1
        raise _Unclear

    def _variable(self, node: ast.AST) -> Any:
        name, root = variable(node), _root(node)
        if not name:
            raise _Unclear
        if name in self.names:
            return Symbol(f"{name}[t]" if self._is_new(name) else f"{name}[t-1]")
        local = root is not None and root in self.bound and root != "self"
        timed = local and (not self.loops or self.source.in_loop(self.bound[str(root)][-1], self.scope))
        read = isinstance(node, ast.Subscript)
        return Symbol(f"{name.removesuffix('_t') or name}[t]" if timed or read else name)

    def _is_new(self, name: str) -> bool:
        """Whether the step has assigned a state before this expression; Unclear where only a branch of it has."""
        new = False
        for binding in self.bound.get(name, ()):
            if isinstance(binding, ast.arg) or getattr(binding, "lineno", 0) >= self.line:
                continue
            if self.loops and not self.source.in_loop(binding, self.scope):
                continue
            parent: ast.AST | None = binding
            while parent is not None and parent is not self.scope and not isinstance(parent, ast.stmt):
                parent = self.source.parents.get(parent)
            # Taking a state out of what the step was given is no update.
            if isinstance(parent, ast.Assign) and isinstance(parent.value, (ast.Name, ast.Attribute, ast.Subscript)):
                continue
            if isinstance(self.source.parents.get(parent) if parent else None, ast.If):
                raise _Unclear
            new = True
        return new


def _root(node: ast.AST) -> str | None:
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None
