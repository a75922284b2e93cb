"""Names for the values of a graph that a user recognises: the variable that holds the value in the user's own code."""

from __future__ import annotations

import ast
import linecache
import re
from collections.abc import Sequence

from torch import fx

from linrec.ir.location import Place, places, user_frame
from linrec.ir.source import assigned_name, expression, kept_as, variable

_ASSIGNMENT = re.compile(
    r"^\s*(?:(?:else|try|finally)\s*:\s*)?(?:self\.)?([A-Za-z_]\w*)\s*(?::[^=]+)?(?:[-+*/@]?=)(?!=)"
)

_PROVISIONAL = re.compile(r"(^|_)(new|next|updated)(_|$)")


def value_name(node: fx.Node) -> str:
    """The variable that holds exactly this value, "" where none does or where that is not known."""
    found = places(node)
    if not found or not is_whole(node, found):
        return ""
    return assigned_name(found)


def is_whole(node: fx.Node, found: Sequence[Place]) -> bool:
    """Whether a node is the value of the expression at its place, and not an operator inside a library's function."""
    return not any(user.op == "call_function" and places(user) == list(found) for user in node.users)


def user_name(node: fx.Node, default: str = "") -> str:
    """The variable that a value is kept in, or, where the extent of its expression is not known, the one that its line
    assigns."""
    found = places(node)
    name = assigned_name(found)
    if name:
        return kept_as(found, name)
    exact = found and expression(found[0]) is not None
    for place in found[1:] if exact else found:
        match = _ASSIGNMENT.match(linecache.getline(place.path, place.line))
        if match:
            return match.group(1)
    own = user_frame(node)
    match = _ASSIGNMENT.match(own[2]) if own else None
    return match.group(1) if match else default


def state_names(states: Sequence[fx.Node], updates: Sequence[fx.Node]) -> tuple[str, ...]:
    """One distinct name for each state: the variable that it is kept in, or h."""
    names: list[str] = []
    for state, update in zip(states, updates, strict=True):
        base = (user_name(update) or user_name(state) or "h").removesuffix("_t")
        if _PROVISIONAL.search(base):
            base = read_name(state) or base
        base += f"_{update.meta['part']}" if "part" in update.meta else ""
        name, n = base, 2
        while name in names:
            name, n = f"{base}{n}", n + 1
        names.append(name)
    return tuple(names)


def read_name(node: fx.Node) -> str:
    """The variable by which the operators that read a value call it, "" where they do not agree or none is known."""
    found = set()
    for user in node.users:
        own = places(user)
        place = expression(own[0]) if own else None
        if place is not None and is_whole(user, own) and isinstance(place.node, ast.BinOp):
            operands = (place.node.left, place.node.right)
            found |= {variable(x) for x, a in zip(operands, user.args, strict=False) if a is node}
    return found.pop() if len(found) == 1 else ""


def operator_name(node: fx.Node) -> str:
    """The plain name of the operator that a node runs, e.g. ``"tanh"``."""
    target = getattr(node.target, "_overloadpacket", node.target)
    return str(getattr(target, "__name__", target)).removeprefix("aten.")
