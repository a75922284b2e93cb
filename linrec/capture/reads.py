"""Reads of consecutive steps of one tensor that are put together again: one operator reads all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import fx

from linrec.ir.nodes import emit, value
from linrec.ir.timeaxis import unsteps

aten = torch.ops.aten

_JOINING = (aten.stack.default, aten.cat.default)


def windows(shorter: fx.Graph, longer: fx.Graph) -> set[int]:
    """The sizes of `stack` and `cat` of which there are more in the longer of two graphs: those within steps."""
    few, more = (
        Counter(len(n.args[0]) for n in g.nodes if n.op == "call_function" and n.target in _JOINING)
        for g in (shorter, longer)
    )
    return {size for size, count in few.items() if more[size] > count}


def merge_reads(graph: fx.Graph, windows: Collection[int] = ()) -> None:
    """A `stack` or `cat` of consecutive reads of one tensor becomes a single `unsteps` of it.

    Args:
        graph: is changed.
        windows: how many tensors those have that stay, as they belong to a step.
    """
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _JOINING or len(node.args[0]) in windows:
            continue
        stacked = node.target is aten.stack.default
        rank = value(node).dim()
        dim = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % rank
        pieces: list[Any] = []
        items = list(node.args[0])
        while items:
            run = _run_of_reads(items, stacked, dim)
            turns = _in_turns(items, stacked, dim) if run is None else []
            if turns:
                items = items[len(turns) * turns[0][2] :]
                pieces.append(_interleaved(graph, node, turns, dim))
                continue
            if run is None:
                head = items.pop(0)
                pieces.append(emit(graph, node, aten.unsqueeze.default, (head, dim), node) if stacked else head)
                continue
            args, joined, count = run
            items = items[count:]
            pieces.append(emit(graph, node, unsteps, (*args, dim, joined), node))
        merged = [p for p in pieces if p.target in (unsteps, aten.flatten.using_ints)]
        if not merged:
            for piece in pieces:
                if not piece.users and stacked:
                    graph.erase_node(piece)
            continue
        new = pieces[0] if len(pieces) == 1 else emit(graph, node, aten.cat.default, (pieces, dim), node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)
    graph.eliminate_dead_code()


def _in_turns(items: list[Any], stacked: bool, dim: int) -> list[tuple[tuple[Any, ...], bool, int]]:
    """The runs of reads that take turns at the head of a list, as many items of each; empty where there are none."""
    for turns in range(2, len(items) // 2 + 1):
        found: list[tuple[tuple[Any, ...], bool, int]] = []
        for k in range(turns):
            run = _run_of_reads(items[k::turns], stacked, dim)
            if run is None:
                break
            found.append(run)
        if len(found) < turns:
            continue
        count = min(run[2] for run in found)
        if len({(run[0][3], run[1]) for run in found}) == 1:
            return [((*args[:4], count), joined, count) for args, joined, _ in found]
    return []


def _interleaved(graph: fx.Graph, node: fx.Node, turns: list[tuple[tuple[Any, ...], bool, int]], dim: int) -> fx.Node:
    """Reads that take turns, along one dimension."""
    rows = [emit(graph, node, unsteps, (*args, dim, False), node) for args, _, _ in turns]
    joining = aten.cat.default if turns[0][1] else aten.stack.default
    both = emit(graph, node, joining, (rows, dim + 1), node)
    return emit(graph, node, aten.flatten.using_ints, (both, dim, dim + 1), node)


def split_reads(graph: fx.Graph) -> None:
    """Undo `merge_reads` in a step: what is read there is no time axis, and later stages know `stack` and `select`."""
    for node in list(graph.nodes):
        if node.target is not unsteps:
            continue
        base, dim, start, step, length, into, joined = node.args
        reads = [emit(graph, node, aten.select.int, (base, dim, start + step * k), node) for k in range(length)]
        new = emit(graph, node, aten.cat.default if joined else aten.stack.default, (reads, into), node)
        node.replace_all_uses_with(new)
        graph.erase_node(node)


def _run_of_reads(items: list[Any], stacked: bool, dim: int) -> tuple[tuple[Any, ...], bool, int] | None:
    """The longest arithmetic run of reads at the head of a list: (arguments of `unsteps`, joined, how many items)."""

    def parse(item: fx.Node) -> tuple[Any, ...] | None:
        joined = False
        if not stacked:
            joined = True
            if item.target is aten.unsqueeze.default and item.args[1] % value(item).dim() == dim:
                item, joined = item.args[0], False
        if item.target is aten.select.int and isinstance(item.args[2], int):
            return (item.args[0], item.args[1], item.args[2], joined)
        return None

    reads: list[tuple[Any, ...]] = []
    for item in items:
        read = parse(item)
        if read is None or (reads and (read[:2] != reads[0][:2] or read[3] != reads[0][3])):
            break
        if reads and (read[2] < 0) != (reads[0][2] < 0):  # from the end and from the start: no one stride
            break
        if len(reads) >= 2 and read[2] - reads[-1][2] != reads[1][2] - reads[0][2]:
            break
        reads.append(read)
    if len(reads) < 2 or reads[0][2] == reads[1][2]:
        return None
    base, at, start, joined = reads[0]
    return (base, at, start, reads[1][2] - start, len(reads)), joined, len(reads)
