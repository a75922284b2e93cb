"""Drawings of a report as inline SVG: the state graph with its components, and the work before and after as bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import networkx as nx

from linrec.ir.recurrence import Estimate, LoopView
from linrec.show.data import seconds_text

RADIUS, GAP_X, GAP_Y = 24, 130, 84
LONGEST, LETTER = 18, 7.6
"""A name's greatest number of letters in a drawing, and how wide one is."""


def state_graph(view: LoopView, solved: Sequence[bool]) -> str:
    """States as nodes, reads as arrows, components side by side in the order in which they are solved.

    Args:
        view: the loop.
        solved: for each component of the view, whether it left the loop.
    """
    if not view.states:
        return ""
    component = {i: k for k, group in enumerate(view.groups) for i in group}
    graph = nx.DiGraph()
    graph.add_nodes_from(range(len(view.states)))
    graph.add_edges_from(view.edges)
    place = _places(graph, view.groups, max(map(_half, view.states)))
    width = max(x + _half(view.states[i]) for i, (x, _) in place.items()) + 46
    height = max(y for _, y in place.values()) + 60
    parts = [
        f'<svg class="states" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" role="img" '
        f'aria-label="state graph"><defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        f'markerHeight="7" orient="auto-start-reverse"><path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>'
    ]
    for k, group in enumerate(view.groups):
        xs, ys = [place[i][0] for i in group], [place[i][1] for i in group]
        half = max(_half(view.states[i]) for i in group)
        x, y = min(xs) - half - 12, min(ys) - RADIUS - 22
        w, h = max(xs) - min(xs) + 2 * half + 24, max(ys) - min(ys) + 2 * RADIUS + 34
        kind = "done" if k < len(solved) and solved[k] else "stays"
        parts.append(
            f'<rect class="component {kind}" x="{x:.0f}" y="{y:.0f}" width="{w:.0f}" height="{h:.0f}" rx="14"/>'
        )
    for a, b in graph.edges:
        halves = (_half(view.states[a]), _half(view.states[b]))
        parts.append(_edge(place[a], place[b], halves, (b, a) in graph.edges and a != b))
    for i, name in enumerate(view.states):
        x, y = place[i]
        k = component.get(i, 0)
        kind = "done" if k < len(solved) and solved[k] else "stays"
        half = _half(name)
        parts.append(
            f'<g class="state {kind}"><title>{escape(name)}</title><rect x="{x - half:.0f}" y="{y - RADIUS:.0f}" '
            f'width="{2 * half:.0f}" height="{2 * RADIUS}" rx="{RADIUS}"/>'
            f'<text x="{x:.0f}" y="{y + 4:.0f}">{escape(_short(name))}</text></g>'
        )
    return "".join(parts) + "</svg>"


def _short(name: str) -> str:
    return name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"


def _half(name: str) -> float:
    """Half the width of a state: a circle around a short name, longer for a long one."""
    return max(float(RADIUS), 12 + LETTER * len(_short(name)) / 2)


def _places(graph: nx.DiGraph, groups: Sequence[Sequence[int]], half: float) -> dict[int, tuple[float, float]]:
    """A column for each depth of the condensed graph; a component of several states is a circle of them.

    Args:
        graph: the states and who reads whom.
        groups: the components.
        half: half the width of the widest state.
    """
    wider = half - RADIUS
    condensed = nx.condensation(graph, [set(g) for g in groups]) if groups else nx.DiGraph()
    depth: dict[int, int] = {}
    for key in nx.topological_sort(condensed):
        depth[key] = 1 + max((depth[p] for p in condensed.predecessors(key)), default=-1)
    columns: dict[int, list[int]] = {}
    for key in sorted(depth):
        columns.setdefault(depth[key], []).append(key)
    found: dict[int, tuple[float, float]] = {}
    x = 62.0 + wider
    for column in (columns[d] for d in sorted(columns)):
        y, widest = 64.0, 0.0
        for key in column:
            members = sorted(condensed.nodes[key]["members"])
            ring = 0.0 if len(members) == 1 else max(48.0, len(members) * RADIUS * 0.75) + wider
            local = nx.circular_layout(members, scale=ring) if ring else {members[0]: (0.0, 0.0)}
            for i in members:
                found[i] = (x + ring + float(local[i][0]), y + ring + float(local[i][1]))
            y += 2 * ring + GAP_Y + 18
            widest = max(widest, 2 * ring)
        x += widest + 2 * wider + GAP_X
    top = min(y for _, y in found.values()) - 64
    return {i: (x, y - top) for i, (x, y) in found.items()}


def _edge(a: tuple[float, float], b: tuple[float, float], halves: tuple[float, float], both: bool) -> str:
    (x1, y1), (x2, y2) = a, b
    if a == b:
        return (
            f'<path class="edge" marker-end="url(#arrow)" d="M{x1 - 9:.1f} {y1 - RADIUS + 1:.1f} '
            f"C{x1 - 24:.1f} {y1 - RADIUS - 26:.1f} {x1 + 24:.1f} {y1 - RADIUS - 26:.1f} "
            f'{x1 + 9:.1f} {y1 - RADIUS - 1:.1f}"/>'
        )
    length = math.hypot(x2 - x1, y2 - y1)
    ux, uy = (x2 - x1) / length, (y2 - y1) / length
    bend = 18 if both else 0
    mx, my = (x1 + x2) / 2 - uy * bend, (y1 + y2) / 2 + ux * bend
    out, into = (_reach(half, ux, uy) for half in halves)
    start, end = (x1 + ux * out, y1 + uy * out), (x2 - ux * (into + 2), y2 - uy * (into + 2))
    return (
        f'<path class="edge" marker-end="url(#arrow)" d="M{start[0]:.1f} {start[1]:.1f} '
        f'Q{mx:.1f} {my:.1f} {end[0]:.1f} {end[1]:.1f}"/>'
    )


def _reach(half: float, ux: float, uy: float) -> float:
    """How far a state reaches in a direction: two half circles with a bar between them."""
    flat = half - RADIUS
    if abs(uy) * flat >= abs(ux) * RADIUS and uy:
        return RADIUS / abs(uy)
    along = abs(ux) * flat
    return along + math.sqrt(max(RADIUS**2 - flat**2 + along**2, 0.0))


def bars(estimates: Sequence[Estimate], chosen: str) -> str:
    """The expected seconds of each way of solving a recurrence, on a logarithmic axis."""
    if len(estimates) < 2:
        return ""
    values = [max(e.seconds, 1e-7) for e in estimates]
    low = math.floor(math.log10(min(values))) - 1
    high = max(math.ceil(math.log10(max(values)) + 0.05), low + 2)
    left, width, row = 210, 330, 24
    room = 170  # for what is written behind a bar
    height = row * len(estimates) + 36
    parts = [
        f'<svg class="bars" viewBox="0 0 {left + width + room} {height}" width="{left + width + room}" role="img">'
    ]
    for power in range(low, high + 1):
        x = left + width * (power - low) / (high - low)
        parts.append(f'<path class="grid" d="M{x:.0f} 4V{height - 26}"/>')
        if high - low < 8 or power % 2 == 0:
            parts.append(
                f'<text class="tick" x="{x:.0f}" y="{height - 12}">10<tspan dy="-4">{power}</tspan>'
                '<tspan dy="4"> s</tspan></text>'
            )
    for k, (estimate, value) in enumerate(zip(estimates, values, strict=True)):
        y = 6 + row * k
        w = width * (math.log10(value) - low) / (high - low)
        kind = "loop" if estimate.name == "loop" else "chosen" if estimate.name == chosen else "other"
        label = estimate.name + (" (used)" if estimate.name == chosen else "")
        calls = f", {estimate.calls:,} calls in a row" if estimate.calls else ""
        parts.append(
            f'<text class="label" x="{left - 8}" y="{y + 14}">{escape(label)}</text>'
            f'<rect class="bar {kind}" x="{left}" y="{y + 2}" width="{w:.1f}" height="{row - 8}" rx="3"/>'
            f'<text class="note" x="{left + w + 6:.1f}" y="{y + 14}">{seconds_text(estimate.seconds)}{calls}</text>'
        )
    parts.append("</svg>")
    return "".join(parts)
