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
    "Frozen.__eq__: condition dropped: self is other or": "what is the same has the same hash and value",
    "Frozen.__eq__: condition dropped: isinstance(other, Frozen) and self.hash == other.hash and (self.val...  ->  isins"
    "tance(other, Frozen) and self.value": "equal values have equal hashes",
    "Seen.frozen: ": "modules are frozen anew more often, or one with the very same attributes counts as the other",
    "_is_fixed: condition dropped: type(value) in _FIXED or": "tuples are frozen anew at every call",
    "_frozen: results swapped: return (type(value), bytes": "a pair compares equal in either order",
    "_frozen: arguments swapped: max(": "in either order",
    "_frozen: condition dropped: numpy is not None and": "it is there; of arrays of objects the addresses are compared",
    "Kept.still: condition dropped: now is old or": "equal numbers are other objects: to compile again does no harm",
    "Kept.still: guard dropped: if self._items is not None": "it is frozen in full, which takes longer",
    "is_fixed: guard dropped: if isinstance(value, types.FunctionType)": "it is frozen in full, which takes longer",
    "is_fixed: off by one: 1  ->  2": "what is not fixed is frozen, to what it is",
    "is_fixed: negation dropped: -1": "what is not fixed is frozen, to what it is",
    "is_fixed: condition dropped: type(value) in PLAIN or": "what is not fixed is frozen, to what it is",
    "_items: guard dropped": "it is frozen in full, which takes longer",
    "is_array: condition dropped": "numpy is there",
    "frozen._frozen: guard dropped: if type(value) in PLAIN": "to the object, which compares unequal more often",
    "frozen._frozen: guard dropped: if isinstance(value, Tensor)": "to the object that it is",
    "frozen._frozen: results swapped": "a pair compares equal in either order",
    "frozen._frozen: condition dropped: is_array(value)": "of arrays of objects the addresses are compared",
    "frozen._frozen: condition dropped: inside is None or depth == 0": "the depth, or the number of objects, ends it as well",
    "frozen._frozen: comparison: len(seen) > MAX_OBJECTS": "one object more or less is looked into",
    "frozen._frozen: guard dropped: if isinstance(inside, (set": "in the order of the set, which stays",
    "_is_small: ": "more is looked into, or less by one item",
    "_is_kept: condition dropped": "it is frozen in full, which takes longer",
    "_has: ": "it is frozen in full, which takes longer",
    "Decision.holds: guard dropped: if not self.period": "of one number, all and any are that number",
    "Decision.expects: off by one: 0  ->  1": "around the loop there are no first steps",
    "_together: off by one: 0  ->  1": "the last step is like itself",
    "_together: arguments swapped: min(": "in either order",
    "_together: off by one: 1  ->  2": "the last two steps go the same way",
    "first_otherwise: off by one: 0  ->  1": "of lines that are not known",
    "_frozen: off by one: 0  ->  1": "one level less is seen by identity, which compares unequal more often",
}


def why_equivalent(name: str) -> str:
    """The reason, empty for a mutant that a test should kill."""
    return next((why for part, why in EQUIVALENT.items() if part in name), "")
