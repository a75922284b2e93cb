"""The names in Python's code: globals that it looks up or assigns, modules that it imports, attributes by string."""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator

from linrec.capture.beside import is_foreign

_IMPORTS = frozenset((dis.opmap["IMPORT_NAME"], dis.opmap["IMPORT_FROM"]))


def imported(code: types.CodeType, package: str) -> list[types.ModuleType]:
    """The Python modules that code imports, absolutely or from the packages around it."""
    names = set(_import_names(code))
    parts = package.split(".") if package else []
    around = ["", *(".".join(parts[: k + 1]) + "." for k in range(len(parts)))]
    found = [sys.modules.get(prefix + name) for name in names for prefix in around]
    return [x for x in found if isinstance(x, types.ModuleType) and not is_foreign(x.__name__)]


def _import_names(code: types.CodeType) -> Iterator[str]:
    if _IMPORTS & set(code.co_code[::2]):
        yield from (i.argval for i in dis.get_instructions(code) if i.opcode in _IMPORTS)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _import_names(constant)


_GLOBAL = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS", "STORE_GLOBAL", "DELETE_GLOBAL"))
_SPACES = ("globals", "locals", "vars", "modules", "__dict__", "__globals__", "f_globals", "getmodule")
BY_STRING = frozenset((*_SPACES, "eval", "exec", "import_module", "__import__"))
"""Names by which code may read a global variable as something else than a global variable."""


@functools.lru_cache(maxsize=4096)
def global_names(code: types.CodeType) -> frozenset[str]:
    """The names that code and the functions within it may look up among the globals. Names of attributes are none of
    them: the variable of a training loop is often called like a method of the model."""
    every = set(code_names(code))
    if every & BY_STRING:
        return frozenset(every)
    found = {i.argval for i in dis.get_instructions(code) if i.opname in _GLOBAL}
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(found.union(*map(global_names, inner)))


ASKING = frozenset(("getattr", "hasattr", "get"))
"""By which names code asks whether something is there."""


@functools.lru_cache(maxsize=4096)
def loaded_names(code: types.CodeType) -> frozenset[str]:
    """The globals that code and the functions within it look up, which may not be there yet."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(found.union(*map(loaded_names, inner)))


def strings(code: types.CodeType) -> frozenset[str]:
    """The constants of code and of the functions within it that may be names."""
    found = {c for c in code.co_consts if isinstance(c, str) and c.isidentifier()}
    return frozenset(found.union(*(strings(c) for c in code.co_consts if isinstance(c, types.CodeType))))


@functools.lru_cache(maxsize=4096)
def assigned_names(code: types.CodeType) -> frozenset[str]:
    """The globals that code and the functions within it assign, which may not be there yet."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname == "STORE_GLOBAL"}
    inner = [c for c in code.co_consts if isinstance(c, types.CodeType)]
    return frozenset(found.union(*map(assigned_names, inner)))


def code_names(code: types.CodeType) -> Iterator[str]:
    """The names that code and the functions within it look up, by strings, too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from code_names(constant)
        elif isinstance(constant, str) and constant.isidentifier():
            yield constant
