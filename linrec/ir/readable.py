"""A graph with its loops as text for a person: one line for each operator, with the user's names, the shape, and the
user's line as a comment."""

from __future__ import annotations

import ast
import operator
import re
import textwrap
from typing import Any

import torch
from torch import fx

from linrec.ir.location import location, places
from linrec.ir.names import operator_name, state_names, value_name
from linrec.ir.scan import Scan
from linrec.ir.source import expression, variable
from linrec.ir.timeaxis import affine

_DTYPES = {"float32": "f32", "float64": "f64", "float16": "f16", "bfloat16": "bf16", "int64": "i64", "int32": "i32"}
_KEYWORD = re.compile(r"\W")
_PARAMETER = re.compile(r"^(?:p|b|c)_(?:inner_)?(.+)$")
_MODULES = frozenset(["torch", "F", "nn", "self"])


def readable(graph_module: fx.GraphModule, *, locations: bool = True) -> str:
    """The text of a graph: operators by their plain names, loops with their step indented below them.

    Args:
        graph_module: a graph, with or without `Scan` nodes.
        locations: whether to end lines with the place in the user's code that they come from.
    """
    return "\n".join(_Text(locations).graph(graph_module, ""))


class _Text:
    def __init__(self, locations: bool) -> None:
        self.locations = locations
        self.taken: set[str] = set()
        self.numbers: dict[fx.Node, str] = {}
        self.hints: dict[fx.Node, str] = {}
        self.timed: set[fx.Node] = set()
        self.lengths: dict[int, str] = {}
        self.symbols: dict[str, str] = {}

    def graph(self, graph_module: fx.GraphModule, indent: str) -> list[str]:
        """The lines of a whole graph."""
        names: dict[fx.Node, str] = {}
        lines: list[str] = []
        self._look_ahead(graph_module)
        inputs = [n for n in graph_module.graph.nodes if n.op == "placeholder"]
        for node in inputs:
            names[node] = self._named(node, input_name(node))
        listed = ", ".join(f"{names[n]}: {self._shape(n)}" for n in inputs if n.users)
        start = f"{indent}inputs "
        lines += textwrap.wrap(listed, 100, initial_indent=start, subsequent_indent=start) or [start.rstrip()]
        lines += self._body(graph_module, names, indent)
        return lines

    def _look_ahead(self, graph_module: fx.GraphModule) -> None:
        """Numbers that are shown as T and B, and names for what enters a loop, from the loop that it enters."""
        for node in graph_module.graph.nodes:
            if (node.op == "placeholder" and not _is_parameter(node)) or (
                any(n in self.timed for n in node.all_input_nodes) and not operator_name(node).startswith("new_")
            ):
                self.timed.add(node)
            if node.op == "call_function" and operator_name(node) in ("sym_size", "size"):
                self.timed.discard(node)
                val = node.meta.get("val")
                self.numbers[node] = self._symbol(val) if isinstance(val, torch.SymInt) else "T"
                if self.numbers[node] == "T":
                    self.lengths[node.meta.get("val")] = "T"
            elif node.target is affine:
                _, slope, offset, *period = node.args
                scaled = "T" if slope == 1 else f"{slope} * T"
                text = scaled if not offset else f"{scaled} {'+' if offset > 0 else '-'} {abs(offset)}"
                if period:
                    text = f"({text}) // {period[0]}" if offset else f"{text} // {period[0]}"
                self.numbers[node] = text
                self.lengths.setdefault(node.meta.get("val"), text)
            elif node.op == "call_module":
                inner = graph_module.get_submodule(str(node.target))
                if isinstance(inner, Scan):
                    self._hint(inner, node)

    def _hint(self, scan: Scan, node: fx.Node) -> None:
        inputs = [n for n in scan.step.graph.nodes if n.op == "placeholder"]
        output = next(n for n in scan.step.graph.nodes if n.op == "output").args[0]
        for update, carry, initial in zip(output, inputs[: scan.carries], node.args[1], strict=False):
            self.hints.setdefault(initial, f"{_state_name(carry, update)}_0")
        for x, series in zip(inputs[scan.carries :][: scan.xs], node.args[2], strict=True):
            if input_name(x) != x.name:
                self.hints.setdefault(series, f"{input_name(x)}_all")

    def _body(self, graph_module: fx.GraphModule, names: dict[fx.Node, str], indent: str) -> list[str]:
        lines: list[str] = []
        for node in graph_module.graph.nodes:
            if node.op == "call_module":
                lines += self._module(graph_module, node, names, indent)
            elif node.op == "call_function":
                if node in self.numbers or (node.target is operator.getitem and node.args[0].op == "call_module"):
                    continue
                names[node] = self._named(node, self._wanted(node))
                text = f"{indent}{names[node]} = {operator_name(node)}({self._arguments(node, names)})"
                lines.append(self._commented(text, node))
            elif node.op == "output":
                lines.append(f"{indent}return {self._value(node.args[0], names)}")
        return lines

    def _wanted(self, node: fx.Node) -> str:
        name = self.hints.get(node) or value_name(node)
        found = places(node)
        place = expression(found[0]) if found and not name else None
        if place is not None and operator_name(node) == "steps" and variable(place.node):
            return f"{variable(place.node)}_all"
        return name or operator_name(node)

    def _module(self, graph_module: fx.GraphModule, node: fx.Node, names: dict[fx.Node, str], indent: str) -> list[str]:
        inner = graph_module.get_submodule(str(node.target))
        results = {int(u.args[1]): u for u in node.users if u.target is operator.getitem}
        if not isinstance(inner, Scan):
            for i, user in results.items():
                names[user] = self._named(user, value_name(user) or f"states_{i}")
            left = ", ".join(names[results[i]] for i in sorted(results)) or "_"
            text = f"{indent}{left} = {_module_name(inner)}({self._arguments(node, names)})"
            return [self._commented(text, node)]
        return self._scan(inner, node, results, names, indent)

    def _scan(
        self, scan: Scan, node: fx.Node, results: dict[int, fx.Node], names: dict[fx.Node, str], indent: str
    ) -> list[str]:
        length, initial, series, constants = node.args
        step = scan.step.graph
        own: dict[fx.Node, str] = {}
        inputs = [n for n in step.nodes if n.op == "placeholder"]
        output = next(n for n in step.nodes if n.op == "output").args[0]
        carries = inputs[: scan.carries]
        for carry, update in zip(carries, output, strict=False):
            own[carry] = self._named(carry, _state_name(carry, update))
        for x in inputs[scan.carries :][: scan.xs]:
            own[x] = self._named(x, re.sub(r"_\d+$", "", input_name(x)))
        for const, outer in zip(inputs[scan.carries + scan.xs :], constants, strict=True):
            own[const] = self._value(outer, names)
        starts = [f"{own[c]} from {self._value(i, names)}" for c, i in zip(carries, initial, strict=True)]
        rows = inputs[scan.carries :][: scan.xs]
        reads = [f"{own[x]} in {self._value(s, names)}" for x, s in zip(rows, series, strict=True)]
        head = "for each" if not scan.carries else "loop over"
        about = "; ".join(part for part in (", ".join(starts), ", ".join(reads)) if part)
        lines = [
            self._commented(
                f"{indent}{head} {self._value(length, names)} steps{' with ' + about if about else ''}:", node
            )
        ]
        body = self._body(scan.step, own, indent + "    ")[:-1]
        lines += body
        for i, user in results.items():
            stem = own.get(output[i], "y")
            last = i < scan.carries
            names[user] = self._named(user, f"{stem}_last" if last else f"{stem}_all")
        nexts = [f"{own[c]} = {own[u]}" for c, u in zip(carries, output, strict=False) if c is not u and u in own]
        if nexts:
            lines.append(f"{indent}    next {', '.join(nexts)}")
        given = [
            f"{names[results[i]]} = {'last' if i < scan.carries else 'all'} {own[output[i]]}" for i in sorted(results)
        ]
        if given:
            lines.append(f"{indent}    gives {', '.join(given)}")
        return lines

    def _arguments(self, node: fx.Node, names: dict[fx.Node, str]) -> str:
        parts = [self._value(a, names) for a in node.args]
        parts += [f"{k}={self._value(v, names)}" for k, v in node.kwargs.items()]
        return ", ".join(parts)

    def _value(self, x: Any, names: dict[fx.Node, str]) -> str:
        if isinstance(x, fx.Node):
            return self.numbers.get(x) or names.get(x, x.name)
        if isinstance(x, (list, tuple)):
            inner = ", ".join(self._value(i, names) for i in x)
            return f"[{inner}]" if isinstance(x, list) else f"({inner})"
        if isinstance(x, (torch.dtype, torch.device)):
            return str(x).removeprefix("torch.")
        return f"{x:.6g}" if isinstance(x, float) else repr(x)

    def _shape(self, node: fx.Node) -> str:
        val = node.meta.get("val")
        if not isinstance(val, torch.Tensor):
            return ""
        dtype = str(val.dtype).removeprefix("torch.")
        sizes: list[str] = []
        for dim, size in enumerate(val.shape):
            fixed = size if isinstance(size, int) else size.node.maybe_as_int()
            # The first dimension of the traced length is taken to be time; one of a computed length only in front.
            known = self.lengths.get(fixed) if fixed is not None and node in self.timed else None
            if known and "T" not in sizes and (dim == 0 or known == "T"):
                sizes.append(known)
            else:
                sizes.append(self._symbol(size) if fixed is None else str(fixed))
        return f"{_DTYPES.get(dtype, dtype)}[{', '.join(sizes)}]"

    def _symbol(self, size: Any) -> str:
        """A letter for a symbolic size: B for the first, which is the batch as a rule."""
        return self.symbols.setdefault(str(size), "BNMKLPQR"[min(len(self.symbols), 7)])

    def _named(self, node: fx.Node, wanted: str) -> str:
        base = _KEYWORD.sub("_", wanted) or "v"
        name, n = base, 2
        while name in self.taken:
            name, n = f"{base}_{n}", n + 1
        self.taken.add(name)
        return name

    def _commented(self, text: str, node: fx.Node) -> str:
        shape = self._shape(node)
        where = location(node) if self.locations else ""
        notes = "  ".join(x for x in (shape, where) if x)
        return f"{text:<64}  # {notes}" if notes else text


def _module_name(module: torch.nn.Module) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", type(module).__name__).lower()


def input_name(node: fx.Node) -> str:
    """What a reader calls an input of a graph: the attribute of the module, or the variable that reads it."""
    match = _PARAMETER.match(str(node.meta.get("source", node.name)))
    if match:
        return match.group(1)
    name = value_name(node)
    found = places(node)
    place = expression(found[0]) if found and not name else None
    name = name or (variable(place.node) if place else "")
    for user in node.users if not name else ():
        # The variable whose part or method an operator on the input reads.
        own = places(user)
        read = expression(own[0]) if own else None
        node_read = read.node if read else None
        if isinstance(node_read, ast.Call) and isinstance(node_read.func, ast.Attribute):
            node_read = node_read.func.value if isinstance(node_read.func.value, ast.Name) else None
        if isinstance(node_read, ast.Subscript) or (isinstance(node_read, ast.Name) and node_read.id not in _MODULES):
            name = variable(node_read)
            break
    return name or re.sub(r"^tensors_", "input_", node.name)


def _is_parameter(node: fx.Node) -> bool:
    return node.op == "placeholder" and bool(_PARAMETER.match(str(node.meta.get("source", node.name))))


def _state_name(carry: fx.Node, update: fx.Node) -> str:
    return state_names([carry], [update])[0]
