"""A constant transition whose states are read through a constant matrix: the matrix is folded into the impulse
response, and neither the states nor the product with them is formed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from linrec.analysis.polynomial import Axis, Monomial
from linrec.analysis.readout import Readout
from linrec.ir.nodes import value
from linrec.ir.recurrence import LinearRecurrence
from linrec.ir.sizes import hint
from linrec.lowering.cost import Work
from linrec.lowering.dense import (
    DenseConvolution,
    convolution_inputs,
    convolution_operands,
    convolution_work,
    convolved_last,
    grows,
    input_count,
    response_work,
    state_width,
)
from linrec.lowering.emission import Emitter
from linrec.lowering.registry import Site, register, state_size
from linrec.ops import lti_readout, lti_scan
from linrec.ops.opaque import Shape, opaque
from linrec.ops.response import response

aten = torch.ops.aten


@dataclass(frozen=True)
class _Matrix:
    """A readout ``y = C m + r``: the terms of C over (output, state), and where the output's dimensions come from."""

    terms: tuple[Monomial, ...]
    output: Axis
    column: Axis
    order: tuple[int, ...]
    """For each dimension of y the state's other dimension (as numbered without the contracted one), -1 for C's output,
    -2 for a dimension of size 1."""


def matrix_of(readout: Readout, recurrence: LinearRecurrence) -> _Matrix | None:
    """What a readout multiplies the new state by, where that is one constant matrix."""
    axis, p = recurrence.transition.axis, readout.polynomial
    if readout.state is recurrence.states[0] or any(len(a) > 1 for a in p.axes):
        return None
    terms, first = [], None
    for m in p.terms:
        for state in m.of_kind("state"):
            first = first or state.axes
            if any(len(a) > 1 for a in state.axes) or len(set(state.indices())) != len(list(state.indices())):
                return None
            rest = m.without(state)
            if m.of_kind("mask", "unmask", "opaque") or not _steady(rest, recurrence):
                return None
            if [a for d, a in enumerate(state.axes) if d != axis] != [a for d, a in enumerate(first) if d != axis]:
                return None
            names = {o[0]: n for o, n in zip(state.axes, first, strict=True) if o and o != n}
            terms.append(Monomial(rest.coefficient, tuple(f.substitute(names) for f in rest.factors)))
    assert first is not None
    others = [a for d, a in enumerate(first) if d != axis]
    free = {i for a in p.axes for i in a}
    named = {i for m in terms for f in m.factors for i in f.indices()}
    outputs = [a for a in p.axes if a and a not in others]
    if not first[axis] or set(first[axis]) & free or len(outputs) > 1 or named & {i for a in others for i in a}:
        return None
    if any(a and a not in p.axes for a in others):
        return None
    order = tuple(-2 if not a else others.index(a) if a in others else -1 for a in p.axes)
    return _Matrix(tuple(terms), outputs[0] if outputs else (), first[axis], order)


def _steady(m: Monomial, recurrence: LinearRecurrence) -> bool:
    return all(f.atom.node is None or f.atom.node in recurrence.invariant for f in m.factors)


class FoldedConvolution(DenseConvolution):
    """Few inputs and a constant readout: convolution with the impulse response seen through the readout."""

    name = "FFT, readout folded in"
    forms_states = False

    def applies(self, recurrence: LinearRecurrence, site: Site) -> bool:
        """Whether all that is read of the states is constant matrices times the new state."""
        if not site.readouts or not super().applies(recurrence, site):
            return False
        if any(value(r.node).dtype != value(recurrence.states[0]).dtype for r in site.readouts):
            return False
        return all(matrix_of(r, recurrence) is not None for r in site.readouts)

    def cost(self, recurrence: LinearRecurrence, site: Site, length: int) -> Work:
        """The response and its product with the readout, then one FFT for each output and sequence."""
        inputs, d = input_count(recurrence), state_width(recurrence)
        outputs = sum(self._outputs(r, recurrence) for r in site.readouts)
        work = response_work(recurrence, length) + Work(products=length * d * inputs * outputs, calls=2)
        return work + convolution_work(recurrence, length, state_size(recurrence) / d, outputs, inputs)

    @staticmethod
    def _outputs(readout: Readout, recurrence: LinearRecurrence) -> int:
        found = matrix_of(readout, recurrence)
        assert found is not None
        at = found.order.index(-1) if -1 in found.order else None
        return int(hint(value(readout.node).shape[at])) if at is not None else 1

    def emit(self, recurrence: LinearRecurrence, site: Site) -> list[tuple[fx.Node | None, fx.Node]]:
        """Write one convolution for each readout; return (None, final state)."""
        args = convolution_operands(recurrence, site)
        state = recurrence.states[0]
        for readout in site.readouts:
            site.read[readout.node] = self._readout(recurrence, site, readout, args)
        return [(None, site.last(convolved_last, args, state))]

    def _readout(
        self, recurrence: LinearRecurrence, site: Site, readout: Readout, args: tuple[fx.Node, ...]
    ) -> fx.Node:
        found, v, like = matrix_of(readout, recurrence), site.vectorizer, readout.node
        assert found is not None
        emitter = Emitter(v, readout.algebra, like)
        matrix = emitter.terms(found.terms, (found.output, found.column))
        val, axis = value(recurrence.states[0]), recurrence.transition.axis
        others = [s for d, s in enumerate(val.shape) if d != axis]
        outputs = value(like).shape[found.order.index(-1)] if -1 in found.order else 1
        node = site.call(convolved_readout, (*args[:2], matrix, *args[2:]), like)
        with val.fake_mode:
            node.meta["val"] = val.new_empty((value(v.length), *others, outputs))
        kept = [k if k >= 0 else len(others) for k in found.order if k > -2]
        ones = [1 + d for d in range(len(others) + 1) if d not in kept]
        if ones:
            node = v.emit(aten.squeeze.dims, (node, ones), like)
            kept = [sorted(kept).index(k) for k in kept]
        node = v.emit(aten.permute.default, (node, [0, *(1 + k for k in kept)]), like)
        for d, k in enumerate(found.order):
            if k == -2:
                node = v.emit(aten.unsqueeze.default, (node, 1 + d), like)
        rest = tuple(m for m in readout.polynomial.terms if not m.of_kind("state"))
        if rest:
            node = v.emit(aten.add.Tensor, (node, emitter.terms(rest, readout.polynomial.axes)), like)
        if value(node).dtype != value(like).dtype:
            node = v.emit(aten._to_copy.default, (node,), like, {"dtype": value(like).dtype})
        return node


def _shape(
    A: Tensor, B: Tensor, C: Tensor, u: Tensor, h0: Tensor, axis: int, length: int, started: bool = True
) -> list[Shape]:
    return [((length, *h0.shape[:axis], *h0.shape[axis + 1 :], C.shape[1]), h0.dtype)]


@opaque(_shape)
def convolved_readout(
    A: Tensor, B: Tensor, C: Tensor, u: Tensor, h0: Tensor, axis: int, length: int, started: bool = True
) -> Tensor:
    """``C h[t]`` for all steps, (T, *others, p), with ``h[t] = A h[t-1] + B u[t]``; C: (1, p, d) or sizes of 1."""
    B, u, start = convolution_inputs(A, B, u, h0, axis, length, started)
    C = C[0].expand(C.shape[1], A.shape[0])
    kernel = response(A, B, length)
    if grows(kernel):
        return lti_scan(A, torch.einsum("dm,...m->...d", B, u), start, dim=0) @ C.mT
    return lti_readout(A, B, C, u, start, dim=0, response=kernel)


register(FoldedConvolution())
