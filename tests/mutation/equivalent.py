"""Mutants that change nothing that anyone could see, each with the reason. The keys are parts of a mutant's name."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "RULES[aten.where.Scalar]": "of two numbers, it reads no state; state-free it is an atom without a rule as well",
    "Algebra.is_free: condition dropped: not isinstance(node, fx.Node)": "what is no node is in neither set",
    "Algebra.of: condition dropped: not isinstance(node, fx.Node)": "the value of what is no node is itself, no tensor",
    "found is not None and (stateful or self.expand or node.target in _C...  ->  stateful": "calling None gives up, too",
    "_evaluate: guard dropped: if tuple(": "to be aligned with zeros of its own shape changes no polynomial",
    "_div: guard dropped: if not _inexact(node)": "torch divides integers into floating-point numbers",
    "admits: condition dropped: self.guards and": "all() of no guards is true",
    "admits: condition dropped: dim is not None and": "no dimension of a plan is None",
    "_assemble: arguments swapped: pytree.tree_unflatten": "torch takes the two in either order",
    "_frozen: results swapped: return (type(value), value)": "a pair compares equal in either order",
    "_frozen: guard dropped: if key in memo": "the depth ends it as well",
    "_frozen: off by one: 0  ->  1": "one level less is seen by identity, which compares unequal more often",
}


def why_equivalent(name: str) -> str:
    """The reason, empty for a mutant that a test should kill."""
    return next((why for part, why in EQUIVALENT.items() if part in name), "")
