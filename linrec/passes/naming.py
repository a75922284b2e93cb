"""The last touch on a rewritten graph: nodes named as the user names their values, each with the user's line as its
source, so that ``print_readable()`` of torch.fx is readable."""

from __future__ import annotations

import ast
import keyword
import linecache
import operator
import re

import torch
from torch import fx
from torch.fx.graph import _Namespace

from linrec.codegen import CompiledScan
from linrec.ir.location import PLACES, USER_FRAME, Place, places
from linrec.ir.names import operator_name, value_name
from linrec.ir.readable import input_name
from linrec.ir.scan import scan_nodes, scan_of
from linrec.ir.source import source_of
from linrec.ir.timeaxis import affine


def name_values(graph_module: fx.GraphModule) -> None:
    """Name the nodes of a graph, and of the steps of its loops, and note where they come from."""
    compiled = [m.step for m in graph_module.children() if isinstance(m, CompiledScan)]
    for owner in (graph_module, *(scan_of(graph_module, node).step for node in scan_nodes(graph_module)), *compiled):
        nodes = list(owner.graph.nodes)
        wanted = {node: _wanted(node) for node in nodes}
        # Names that are gone stay taken in the old namespace, and would number the new ones.
        names = owner.graph._graph_namespace = _Namespace()
        for node in nodes:
            if node.op == "placeholder":
                node.meta.setdefault("source", node.name)
            node.name = names.create_name(wanted[node], node)
            if node.op == "placeholder":
                node.target = node.name
            _locate(node)
        owner.recompile()


def _wanted(node: fx.Node) -> str:
    if node.op == "placeholder":
        name = input_name(node)
    elif node.op == "call_module":
        name = str(node.target)
    elif node.op != "call_function":
        return str(node.name)
    elif node.target is affine:
        name = "T" if node.args[1:] == (1, 0) else "length"
    elif operator_name(node) == "sym_size":
        name = "B" if isinstance(node.meta.get("val"), torch.SymInt) else "T"
    elif node.target is operator.getitem:
        name = value_name(node) or str(node.name)
    else:
        name = value_name(node) or operator_name(node)
    name = re.sub(r"\W", "_", name)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"v_{name}"


def _locate(node: fx.Node) -> None:
    found = places(node)
    if not found:
        return
    node.meta[PLACES] = found
    custom = {k: v for k, v in node.meta.get("custom", {}).items() if k != USER_FRAME and not k.startswith("_torch")}
    if custom:
        node.meta["custom"] = custom
    else:
        node.meta.pop("custom", None)
    place = found[0]
    line = linecache.getline(place.path, place.line).strip()
    node.meta["stack_trace"] = f'  File "{place.path}", line {place.line}, in {_function(place)}\n    {line}\n'


def _function(place: Place) -> str:
    source = source_of(place.path)
    statement = source.statement(place.line) if source else None
    scope = source.scope(statement) if source and statement else None
    return scope.name if isinstance(scope, (ast.FunctionDef, ast.AsyncFunctionDef)) else "forward"
