"""Convolutions and means over windows: along each spatial dimension, output position and tap together select the input
position."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from linrec.analysis.polynomial import Axis, Factor, Monomial, NoRule, Polynomial, selection_atom
from linrec.analysis.rules import Algebra, rule
from linrec.analysis.selection import MAX_ROWS, as_list, size_of
from linrec.ir.nodes import shape_of

aten = torch.ops.aten


def _windows(
    algebra: Algebra, x: Polynomial, sizes: Sequence[int], taps: Sequence[int], place: Callable[[int, int, int], int]
) -> tuple[Polynomial, list[Axis], list[Axis]]:
    """The tensor read at every output position and tap of its last dimensions: over its other axes; and for each of the
    last ones, the axes of positions and of taps.

    Args:
        sizes: the number of output positions along each; taps: that of taps.
        place: the input position for (dimension, output position, tap); outside of the input stands for a zero.
    """
    positions, kernel, terms = [], [], list(x.terms)
    first = x.rank - len(sizes)
    for d, (size, count) in enumerate(zip(sizes, taps, strict=True)):
        own = size_of(algebra, x, first + d)
        places = [place(d, o, k) for o in range(size) for k in range(count)]
        if len(places) > MAX_ROWS:
            raise NoRule("a convolution over a long axis")
        rows = tuple(i if 0 <= i < own else -1 for i in places)
        position, taken = algebra.space.fresh(size), algebra.space.fresh(count)
        factor = Factor(selection_atom(rows, own), ((*position, *taken), x.axes[first + d]))
        terms = [Monomial(m.coefficient, (*m.factors, factor)) for m in terms]
        positions.append(position)
        kernel.append(taken)
    return Polynomial(x.axes[:first], tuple(terms)), positions, kernel


@rule(
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv3d.padding,
    aten.convolution.default,
)
def _convolution(algebra: Algebra, node: fx.Node, x: Any, weight: Any, bias: Any = None, *options: Any) -> Polynomial:
    spatial = weight.rank - 2
    stride, padding, dilation, groups, transposed = _options(node, spatial, options)
    space = algebra.space
    lead = x.rank - spatial - 1
    shape = [space.size(axis) for axis in x.axes]
    channels = shape[lead]
    if groups > 1:
        x = space.reshape(x, [*shape[:lead], groups, channels // groups, *shape[lead + 1 :]])
        kernel = [space.size(axis) for axis in weight.axes]
        weight = space.reshape(weight, [groups, kernel[0] // groups, *kernel[1:]])
    group = 1 if groups > 1 else 0
    if transposed:  # (in, out, taps...) instead of (out, in, taps...)
        order = list(range(weight.rank))
        order[group], order[group + 1] = order[group + 1], order[group]
        weight = space.permute(weight, order)

    def place(d: int, o: int, k: int) -> int:
        if not transposed:
            return o * stride[d] - padding[d] + k * dilation[d]
        at = o + padding[d] - k * dilation[d]
        return at // stride[d] if at % stride[d] == 0 else -1

    sizes = [int(size) for size in shape_of(node)[lead + 1 :]]
    taps_of = [size_of(algebra, weight, weight.rank - spatial + d) for d in range(spatial)]
    read, positions, taps = _windows(algebra, x, sizes, taps_of, place)
    # (batch, group, out, in, positions..., taps...), every factor with size-1 axes where it does not vary.
    *front, inner = read.axes
    own, grouped = front[:lead], front[lead:]
    read = space.collect((*own, *grouped, (), inner, *positions, *taps), read.terms)
    w = weight.axes
    kernel_axes = (*((),) * lead, *w[:group], w[group], w[group + 1], *((),) * spatial, *w[group + 2 :])
    product = space.multiply(read, Polynomial(kernel_axes, weight.terms))
    summed = [lead + group + 1, *range(lead + group + 2 + spatial, lead + group + 2 + 2 * spatial)]
    result = space.reshape(space.contract(product, summed), shape_of(node))
    if bias is None:
        return result
    column = Polynomial((*bias.axes, *((),) * spatial), bias.terms)
    return space.add(result, column)


def _options(
    node: fx.Node, spatial: int, options: tuple[Any, ...]
) -> tuple[list[int], list[int], list[int], int, bool]:
    """Stride, padding, dilation and groups of a convolution, and whether it is a transposed one."""
    names = ["stride", "padding", "dilation", "groups"]
    if node.target is aten.convolution.default:
        names = ["stride", "padding", "dilation", "transposed", "output_padding", "groups"]
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, **node.kwargs}
    given |= dict(zip(names, options, strict=False))
    stride, dilation = _each(given["stride"], spatial), _each(given["dilation"], spatial)
    padding = given["padding"]
    if padding == "valid":
        padding = 0
    elif padding == "same":
        reach = [d * (k - 1) for d, k in zip(dilation, shape_of(node.args[1])[2:], strict=True)]
        padding = [r // 2 for r in reach]
    return stride, _each(padding, spatial), dilation, given["groups"], bool(given.get("transposed"))


def _each(x: Any, spatial: int) -> list[int]:
    values = as_list(x)
    return values * spatial if len(values) == 1 else values


@rule(aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default)
def _avg_pool(
    algebra: Algebra,
    node: fx.Node,
    x: Any,
    kernel_size: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: Any = None,
) -> Polynomial:
    spatial = int(node.target._schema.name[-2])
    taps, pad = _each(kernel_size, spatial), _each(padding, spatial)
    by = _each(stride, spatial) if stride else taps
    if ceil_mode or (any(pad) and not count_include_pad):
        raise NoRule("windows of different sizes")
    sizes = [int(size) for size in shape_of(node)[-spatial:]]
    read, positions, kernel = _windows(algebra, x, sizes, taps, lambda d, o, k: o * by[d] - pad[d] + k)
    whole = algebra.space.collect((*read.axes, *positions, *kernel), read.terms)
    summed = algebra.space.contract(whole, list(range(whole.rank - spatial, whole.rank)))
    return algebra.space.scale(summed, 1 / (divisor_override or math.prod(taps)))
