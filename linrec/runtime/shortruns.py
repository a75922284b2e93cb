"""What short runs of a module tell before it is traced: what it reads, what two modules must share to share a plan, and
what it must not do."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.discover import TimeAxis
from linrec.capture.probe import (
    attribute_reads,
    calls_of,
    count_calls,
    differentiable,
    has_memory,
    record,
    resize,
    undone,
)
from linrec.capture.recorders import READS_REQUIRES_GRAD, Record
from linrec.capture.snapshot import Memos, in_both, memos, snapshot_attributes
from linrec.capture.trace import raised_at
from linrec.ir import members
from linrec.ir.held import held, named_attributes, places
from linrec.ir.obstruction import refuse
from linrec.ops.precision import autocast_state

Varied = list[set[int]]
"""For each tensor leaf, the dimensions that had other sizes in calls before."""


def read_by(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis) -> set[str]:
    """The names of the attributes that a short run reads from the module or its submodules."""
    short = resize(leaves, axis.dims, axis.shown_at)
    args, kwargs = pytree.tree_unflatten(short, spec)
    with attribute_reads(module) as names, undone(module, short), torch.no_grad():
        try:
            forward(*args, **kwargs)
        except Exception:  # a class that cannot be watched: then every attribute counts as read
            names |= {n for sub in members.modules(module) for n in sub.__dict__}
    return names


def free_dims(leaves: Sequence[Any], axis: TimeAxis, varied: Varied) -> list[set[int]]:
    """For each tensor leaf, the dimensions that become symbols: the first one besides time, and those that varied."""
    found: list[set[int]] = []
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            other = [d for d in range(leaf.dim()) if d not in axis.dims.get(i, {})]
            found.append(set(other[:1]) | (varied[len(found)] & set(other) if varied else set()))
    return found


def fingerprint(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis, varied: Varied
) -> Hashable:
    """What two modules must share to share a plan: all operators, where all their arguments come from, and the sizes
    that a plan is made for."""
    parts: list[Any] = [type(module), getattr(forward, "__func__", None), str(spec), module.training]
    parts.append(tuple((i, tuple(sorted(d.items()))) for i, d in axis.dims.items()))
    parts.append(tuple(type(x).__name__ if isinstance(x, Tensor) else repr(x) for x in leaves))
    parts += [torch.is_grad_enabled(), autocast_state(), axis.shown_at, axis.unit]
    parts.append(tuple([tuple(names) for names in places(module).values() if len(names) > 1]))
    short = [x for x in resize(leaves, axis.dims, axis.shown_at) if isinstance(x, Tensor)]
    for x, free in zip(short, free_dims(leaves, axis, varied), strict=True):
        parts.append((x.dtype, x.device, *(None if d in free else size for d, size in enumerate(x.shape))))
    if axis.runs is not None:
        runs = [axis.runs.shorter, axis.runs.longer]
    else:
        try:
            runs = [record(module, forward, spec, resize(leaves, axis.dims, n)) for n in axis.short]
        except Exception:  # at a length that the model does not take, nothing can be shared
            return None
    for found in runs:
        parts += [tuple(found.events), found.result]
    return tuple(parts)


_ON_TENSORS = ("requires_grad_", "register_hook", "register_post_accumulate_grad_hook", "retain_grad")
"""Methods that change what backward does at a tensor of the loop, which no operator shows."""


def asks_tensors(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis
) -> tuple[bool, bool]:
    """Whether forward asks tensors if they require gradient, and if they are contiguous: it may decide by it.

    Raises:
        Refused: what a trace does not show: draws of Python's or numpy's random generator (LR009), hooks on tensors,
            gradient requested or layouts asked for inside forward (LR014), assignments to the `data` of what the module
            has, and writes into parameters and what is no buffer (LR013).
    """
    if axis.runs is not None:
        found, given = axis.runs.shorter, axis.runs.memory
    else:
        short = differentiable(resize(leaves, axis.dims, axis.shown_at), leaves)
        try:
            found = record(module, forward, spec, short)
        except Exception:  # at this length the model does not run: tracing will say so
            return False, False
        given = frozenset(x.untyped_storage().data_ptr() for x in short if has_memory(x))
    if found.drew:
        raise refuse("LR009", "forward draws from a random generator of Python or numpy.")
    if found.replaced:
        hint = "Write into it under torch.no_grad() after the call, or use a parametrization."
        raise refuse("LR013", f"forward assigns self.{found.replaced[0]}.data, which no trace shows.", hint=hint)
    if found.set:
        raise refuse("LR013", f"forward assigns the {sorted(found.set)[0]} of a tensor, which no trace shows.")
    own = given.union(x.untyped_storage().data_ptr() for x in members.buffers(module) if has_memory(x))
    if found.wrote - own:
        raise refuse("LR013", f"forward writes into {_whose(module, found.wrote - own)}.", hint=_WRITES)
    called = {str(key[0]).rpartition(".")[2] for key in found.calls}  # type: ignore[index]
    for name in _ON_TENSORS:
        if name in called:
            raise refuse("LR014", f"forward calls {name}.")
    asked = found.asked - {"is_contiguous"}
    if asked:
        raise refuse("LR014", f"forward asks for the {sorted(asked)[0]} of a tensor.")
    layout = bool(found.asked)
    if layout and not all(x.is_contiguous() for x in leaves if isinstance(x, Tensor)):
        raise refuse("LR014", "forward asks whether a tensor is contiguous, and an input is not.")
    return any(key[0] == READS_REQUIRES_GRAD for key in found.calls), layout  # type: ignore[index]


_WRITES = "Register it as a buffer, or make a new tensor of it."


def _whose(module: nn.Module, memory: frozenset[int]) -> str:
    """What a module calls a tensor that it has written into."""
    every = [*named_attributes(module), *members.named_state(module)]
    for name, value in every:
        for keys, x in [((), value)] if isinstance(value, Tensor) else held(value):
            if has_memory(x) and x.untyped_storage().data_ptr() in memory:
                kind = "the parameter " if isinstance(x, nn.Parameter) else ""
                return kind + "self." + "".join([name, *(f"[{key!r}]" for key in keys)])
    return "a tensor that it has from elsewhere"


def find_memos(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], axis: TimeAxis) -> Memos:
    """What forward changes outside its tensors in a first run and no more in others that run the same operators:
    one of the same length, and a longer one."""
    runs = [resize(leaves, axis.dims, length) for length in (axis.shown_at, *axis.short)]
    with undone(module, leaves), torch.no_grad():
        before = snapshot_attributes(module)
        try:
            calls = calls_of(forward, spec, runs[0])
            first = snapshot_attributes(module)
            if calls_of(forward, spec, runs[1]) != calls:
                return Memos()
            after = memos(before, first)  # what goes to and fro is what it was one run later
            calls_of(forward, spec, runs[2])
        except Exception:  # the user's, at a length that the model does not take
            return Memos()
        return in_both(after, memos(before, first))


def counted(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], log: bool = False) -> Record:
    """A run at a length of ours, which the model may not take."""
    try:
        return count_calls(module, forward, spec, leaves, log)
    except Exception as error:
        text = f"forward raises {type(error).__name__} with another number of steps: {error}"
        raise refuse("LR002", text, raised_at(error)) from None
