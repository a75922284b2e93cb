"""How the values of a step are called in a formula: by the user's variable, by their expression where it is short, or
by a letter that is explained beside the formula. Different values get different names."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable
from typing import Any

import sympy
from torch import fx

from linrec.ir.formula import Call, Symbol
from linrec.ir.location import places
from linrec.ir.names import is_whole, operator_name, value_name
from linrec.ir.source import Source, expression, plain_text, variable, without_views

_LETTERS = {
    "coefficient": ("a", "c", "d", "p", "q", "r"),
    "matrix": ("A", "C", "D", "F", "G", "H"),
    "drive": ("b", "u", "w", "s", "y", "z"),
    "drive matrix": ("B", "U", "W", "V", "Y", "Z"),
}
_OPERATORS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}
_VIEWS = frozenset(
    ["unsqueeze", "squeeze", "expand", "view", "reshape", "_unsafe_view", "clone", "permute", "flatten", "unflatten"]
)
_SHORT, _FEW = 34, 3
_FUNCTIONS = frozenset(
    ["exp", "log", "sigmoid", "tanh", "relu", "softplus", "silu", "gelu", "abs", "sqrt", "square", "cos", "sin", "neg"]
)
_MODULES = frozenset(["self", "torch", "F", "nn", "functional"])


class Labels:
    """Hands out symbols for the nodes of a step.

    Args:
        states: the names of the states, which nothing else may have.
        invariant: the nodes that are the same in every step.

    Attributes:
        where: for each symbol that stands for an expression, its text in the user's words.
    """

    def __init__(self, states: Iterable[str], invariant: Collection[fx.Node]) -> None:
        self.states = tuple(states)
        self.invariant = invariant
        self.where: dict[str, str] = {}
        self._taken: dict[str, fx.Node | None] = dict.fromkeys(self.states)
        self._known: dict[fx.Node, tuple[Any, bool]] = {}

    def of(self, node: fx.Node, role: str = "coefficient") -> tuple[Any, bool]:
        """(symbol, whether it names the transpose of the value), the same at each call for the same node."""
        node = _unwrapped(node)
        if node not in self._known:
            self._known[node] = self._find(node, role)
        return self._known[node]

    def _find(self, node: fx.Node, role: str) -> tuple[Any, bool]:
        found = places(node)
        place = expression(found[0]) if found else None
        bare, turned = without_views(place.node) if place else (None, False)
        name = value_name(node)
        if name and not self._blocked(name, node):
            text = plain_text(bare) if bare is not None and variable(bare) != name else ""
            return self._named(name, node, text), False
        name = _parameter(node)
        if name and not self._blocked(name, node):
            return self._named(name, node), False
        whole = place is not None and is_whole(node, found)
        if whole and bare is not None:
            name = _read_name(bare, node in self.invariant)
            if name and not self._blocked(name, node) and not _changes(place.source, bare, name):  # type: ignore[union-attr]
                return self._named(name, node), turned
            short = self._short(place.source, bare, node in self.invariant) if bare is place.node else None  # type: ignore[union-attr]
            if short is not None:
                return short, False
        letter = next(x for x in self._letters(role) if not self._blocked(x, node))
        return self._named(letter, node, plain_text(place.node) if whole and place else operator_name_of(node)), False

    def sum_of(self, role: str, terms: int) -> Any:
        """A letter for a sum that is too long to be written out."""
        letter = next(x for x in self._letters(role) if x not in self._taken)
        self._taken[letter] = None
        self.where[f"{letter}[t]"] = f"a sum of {terms} products" if terms > 1 else "one product"
        return Symbol(f"{letter}[t]")

    def _letters(self, role: str) -> Iterable[str]:
        yield from _LETTERS[role]
        yield from (f"{_LETTERS[role][0]}{k}" for k in range(2, 1000))

    def _blocked(self, name: str, node: fx.Node) -> bool:
        name = name.removesuffix("_t")
        return name in self._taken and self._taken[name] is not node

    def _named(self, name: str, node: fx.Node, text: str = "") -> Symbol:
        name = name.removesuffix("_t") or name
        self._taken[name] = node
        symbol = name if node in self.invariant else f"{name}[t]"
        if text and text not in (name, symbol):
            self.where[symbol] = text
        return Symbol(symbol)

    def _short(self, source: Source, node: ast.AST, steady: bool) -> Any:
        """An expression of few variables as a formula, or None where it is long, or a name in it is ambiguous."""
        scope = source.scope(node)
        bound = source.bindings(scope)
        names = [n for n in ast.walk(node) if isinstance(n, (ast.Name, ast.Attribute)) and variable(n)]
        if len(plain_text(node)) > _SHORT or len(names) > 4 * _FEW:
            return None
        try:
            result = _Converter(self, source, scope, bound, steady).convert(node)
        except _TooComplex:
            return None
        return result if 1 <= len(result.atoms(Symbol)) <= _FEW else None


class _TooComplex(Exception):
    pass


class _Converter:
    """From a syntax tree to a formula; only what acts element by element, on names that mean one thing."""

    def __init__(
        self, labels: Labels, source: Source, scope: ast.AST, bound: dict[str, list[ast.AST]], steady: bool
    ) -> None:
        self.labels, self.source, self.scope, self.bound, self.steady = labels, source, scope, bound, steady

    def convert(self, node: ast.AST) -> Any:
        """The formula of an expression."""
        if without_views(node)[0] is not node:
            raise _TooComplex
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
            return sympy.sympify(node.value)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -self.convert(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            a, b = self.convert(node.left), self.convert(node.right)
            if isinstance(node.op, ast.Add):
                return a + b
            if isinstance(node.op, ast.Sub):
                return a - b
            return a * b if isinstance(node.op, ast.Mult) else a * b**-1
        if isinstance(node, ast.Call) and not node.keywords:
            name, operand = _called(node)
            if name and operand is not None and name not in self.labels.states:
                return Call(sympy.Symbol(name), self.convert(operand))
        if isinstance(node, (ast.Name, ast.Attribute)) or (isinstance(node, ast.Subscript) and _is_read(node)):
            return self._variable(node)
        raise _TooComplex

    def _variable(self, node: ast.AST) -> Any:
        name = variable(node)
        local = _root(node)
        if self.steady and isinstance(node, ast.Subscript):
            raise _TooComplex
        if not name or name in self.labels.states or name in ("self", "torch"):
            raise _TooComplex
        if local is not None and local in self.bound:
            if len(self.bound[local]) > 1 and not isinstance(node, ast.Subscript):
                raise _TooComplex
            timed = not self.steady and (
                isinstance(node, ast.Subscript) or self.source.in_loop(self.bound[local][0], self.scope)
            )
            if not timed and not self.steady and not self._has_loop():
                timed = True
        elif isinstance(node, ast.Subscript):
            timed = not self.steady
        else:
            timed = False
        name = name.removesuffix("_t") or name
        if name in self.labels.states:
            raise _TooComplex
        return Symbol(f"{name}[t]" if timed else name)

    def _has_loop(self) -> bool:
        return any(isinstance(n, (ast.For, ast.While)) for n in ast.walk(self.scope))


def _called(node: ast.Call) -> tuple[str, ast.AST | None]:
    """(name, operand) of a function of one tensor, as a call or as a method."""
    called = node.func
    if isinstance(called, ast.Name) and len(node.args) == 1:
        return called.id, node.args[0]
    if isinstance(called, ast.Attribute):
        root: ast.AST = called.value
        while isinstance(root, ast.Attribute):
            root = root.value
        module = isinstance(root, ast.Name) and root.id in _MODULES and variable(called.value) not in ("", called.attr)
        if module and len(node.args) == 1:
            return called.attr, node.args[0]
        if called.attr in _FUNCTIONS and not node.args:
            return called.attr, called.value
    return "", None


def _root(node: ast.AST) -> str | None:
    """The local variable that an expression starts from, None for attributes of ``self``."""
    while isinstance(node, (ast.Subscript, ast.Attribute)):
        node = node.value
    return node.id if isinstance(node, ast.Name) and node.id != "self" else None


def _is_read(node: ast.Subscript) -> bool:
    """``x[:, t]``: one index that is a variable, beside whole slices."""
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    kept = [i for i in inner if not isinstance(i, ast.Slice) and not isinstance(i, ast.Constant)]
    slices = [i for i in inner if isinstance(i, ast.Slice) and (i.lower or i.upper or i.step)]
    return len(kept) == 1 and isinstance(kept[0], ast.Name) and not slices


def _read_name(node: ast.AST, steady: bool) -> str:
    """The variable that an expression reads; of a constant tensor, an element by its number: ``phi[0]`` is phi0."""
    if steady and isinstance(node, ast.Subscript):
        fixed = isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)
        return f"{variable(node)}{node.slice.value}" if fixed else ""  # type: ignore[attr-defined]
    return variable(node)


def _changes(source: Source, node: ast.AST, name: str) -> bool:
    """Whether a variable that is read here is bound several times in its function, so that its name is ambiguous."""
    if isinstance(node, ast.Subscript):
        return False
    return len(source.bindings(source.scope(node)).get(name, ())) > 1


def _unwrapped(node: fx.Node) -> fx.Node:
    """A value behind views of the same graph that have no name of their own."""
    while node.op == "call_function" and operator_name(node) in _VIEWS and not value_name(node):
        inner = node.args[0]
        if not isinstance(inner, fx.Node):
            break
        node = inner
    return node


def _parameter(node: fx.Node) -> str:
    """The name of a parameter or buffer of the module, from the placeholder that holds it."""
    text = str(node.meta.get("source", node.name if node.op == "placeholder" else ""))
    match = re.match(r"^(?:p|b|c)_(?:inner_)?(.+)$", text)
    if node.op != "placeholder" or not match:
        return ""
    # Export writes names in lower case; where the user's line reads the attribute, it says how it is written.
    for user in node.users:
        for place in map(expression, places(user)[:1]):
            for inner in ast.walk(place.node) if place else ():
                name = variable(inner) if isinstance(inner, (ast.Name, ast.Attribute)) else ""
                if name and name.lower() == match.group(1).rpartition(".")[2]:
                    return name
    return match.group(1)


def operator_name_of(node: fx.Node) -> str:
    """What computes a value, where its source is not known."""
    return operator_name(node) + "(...)" if node.op == "call_function" else ""
