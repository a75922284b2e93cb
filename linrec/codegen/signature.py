"""What a step's tensors are for, counted operand by operand: a complex tensor has two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from linrec.codegen.lanes import Operand, Program
from linrec.codegen.memory import Form, Slot
from linrec.codegen.program import Access, Node

Key = tuple[int, str]
"""An input or output of the step, by number, and which part of it."""


@dataclass
class Signature:
    """A program with its inputs told apart.

    Attributes:
        program: the program.
        carries, xs, consts: the operands of each group and the nodes that hold them.
        updates: for each carry its new value.
        ys: what is put out at each step.
    """

    program: Program
    carries: dict[Key, tuple[Operand, Node]] = field(default_factory=dict)
    xs: dict[Key, tuple[Operand, Node]] = field(default_factory=dict)
    consts: dict[Key, tuple[Operand, Node]] = field(default_factory=dict)
    updates: dict[Key, tuple[Operand, Access]] = field(default_factory=dict)
    ys: dict[Key, tuple[Operand, Access]] = field(default_factory=dict)

    @classmethod
    def of(cls, program: Program, carries: int, xs: int) -> Signature:
        """Tell the inputs of a step with so many carries and per-step inputs apart."""
        found = cls(program)
        for i, operands in enumerate(program.inputs):
            group = found.carries if i < carries else found.xs if i < carries + xs else found.consts
            for operand, node in operands:
                group[i, operand.part] = operand, node
        for i, stored in enumerate(program.outputs):
            into = found.updates if i < carries else found.ys
            for operand, access in stored:
                into[i, operand.part] = operand, access
        return found

    @property
    def inputs(self) -> dict[Key, tuple[Operand, Node]]:
        """All inputs."""
        return {**self.carries, **self.xs, **self.consts}

    def slot(
        self,
        name: Any,
        operand: Operand,
        form: Form,
        along: Mapping[Any, str],
        timed: bool = False,
        partial: bool = False,
    ) -> Slot:
        """An operand's place in the table of a kernel."""
        lanes = tuple(sorted(operand.lanes))
        how = along.get(name, "unit") if form.simd in operand.lanes else "none"
        return Slot(name, operand.dtype, lanes, len(operand.shape), timed, partial, how)
