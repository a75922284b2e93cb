"""One trace: a module run by ``torch.export`` at one short length, as a functional ATen graph with the loop unrolled.
The trace records what the module returned, the buffers it changed and the attributes it assigned, and leaves the module
itself exactly as it was."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any

import sympy.tensor.tensor  # noqa: F401  # the first sum of symbolic sizes would load it, within a user's first call
import torch
import torch.export._trace  # as above
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorConverter
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.experimental import proxy_tensor
from torch.fx.traceback import annotate, preserve_node_meta
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from linrec.capture.autocast import has_regions, mark_casts, protect_casts, write_casts
from linrec.capture.autograd_function import opaque_autograd_functions
from linrec.capture.decisions import Asked, Decision, condition_of, grouped, is_asked
from linrec.capture.fakes import thrift
from linrec.capture.functionalize import functionalize
from linrec.capture.grad_modes import inline_grad_modes
from linrec.capture.listed import Slot, gathered, marked_lists
from linrec.capture.ran import Ran
from linrec.capture.snapshot import PLAIN, Memos, assigned, containers, restore_attributes, snapshot_attributes, touched
from linrec.capture.source import Assigned, Source
from linrec.capture.surrogates import open_surrogates
from linrec.ir import members
from linrec.ir.held import Place, identity, lookup, places
from linrec.ir.location import USER_FRAME, is_library, note
from linrec.ir.nodes import emit, fake_mode
from linrec.ir.obstruction import Refused, refuse
from linrec.ir.results import opened
from linrec.ops.precision import is_autocast, no_autocast


@dataclass
class Trace:
    """A functional graph of one run.

    Attributes:
        graph_module: the ATen graph; its output is a flat tuple.
        sources: one `Source` per placeholder, in order.
        outputs: for each element of the output tuple, ("user", leaf index), ("buffer", name), ("input", leaf index)
            or ("attribute", (module path, attribute, leaf index)).
        out_spec: pytree structure of what the module returned.
        out_leaves: the returned leaves; graph outputs are marked by `None`-holding slots in `user_slots`.
        attributes: what is assigned to attributes, and put into containers that they hold.
        length: the length traced.
        mixed: whether autocast had a part in it, from outside or by a region inside forward.
        decisions: the tensors on which forward branched, and how.
        backward: the code of hand-written derivatives that is written out.
    """

    graph_module: fx.GraphModule
    sources: list[Source]
    outputs: list[tuple[str, Any]]
    out_spec: Any
    out_leaves: list[Any]
    attributes: list[Assigned] = field(default_factory=list)
    length: int = 0
    mixed: bool = False
    decisions: list[Decision] = field(default_factory=list)
    backward: Ran = field(default_factory=dict)

    def copy(self) -> Trace:
        """One whose graph can be rewritten apart from this one's."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        result = graph.graph_copy(self.graph_module.graph, copies)
        graph.output(result).meta = dict(self.graph_module.graph.output_node().meta)
        return replace(self, graph_module=fx.GraphModule(self.graph_module, graph), sources=[*self.sources])


_DATA: Any = Tensor.data.__get__  # type: ignore[attr-defined]


class _UserFrames(TorchFunctionMode):
    """Notes for every operator of a trace the innermost line of user code that called it; torch keeps only the frames
    of forward methods."""

    def __init__(self, loose: set[int], decisions: Asked) -> None:
        super().__init__()
        self.loose = loose
        self.decisions = list(decisions)
        self.decided: list[Decision] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _DATA:  # of which torch.export knows nothing
            func = Tensor.detach
        frame: FrameType | None = sys._getframe(1)
        while frame is not None and is_library(frame.f_code.co_filename):
            frame = frame.f_back
        for x in (*args, *(kwargs or {}).values()):
            for item in x if type(x) in (list, tuple) else (x,):
                if type(item) is nn.Parameter:  # those of the module are replaced while it is traced
                    self.loose.add(item.data_ptr())
        if func in (torch.equal, Tensor.equal) and args[0].shape != args[1].shape:
            return False
        if self.decisions and is_asked(func, args, kwargs or {}):
            outcome, lines = self.decisions.pop(0)
            self.decided.append(Decision(condition_of(func, args, kwargs or {}), outcome, lines))
            return outcome
        if frame is None:
            return func(*args, **(kwargs or {}))
        with annotate({USER_FRAME: note(frame)}):
            return func(*args, **(kwargs or {}))


class _Results:
    """Carries what a traced call returned out of the export, which resets the attributes of the module it traces."""

    def __init__(self) -> None:
        self.value: Any = None
        self.loose: set[int] = set()


class _Flat(nn.Module):
    """Calls a module with its tensor leaves as one list; returns its tensor leaves, assigned attributes included."""

    def __init__(
        self,
        module: nn.Module,
        spec: Any,
        leaves: Sequence[Any],
        forward: Any,
        known: Memos,
        decisions: Asked,
        periods: dict[str, int],
        listed: int,
    ) -> None:
        super().__init__()
        self.inner = module
        self.listed = listed
        self.memos = known
        self.decisions, self.periods = decisions, periods
        self._call = (spec, list(leaves), forward)
        self.results = _Results()

    def forward(self, tensors: list[Tensor]) -> list[Tensor]:
        spec, leaves, forward = self._call
        rest = iter(tensors)
        args, kwargs = pytree.tree_unflatten([next(rest) if isinstance(x, Tensor) else x for x in leaves], spec)
        saved = snapshot_attributes(self.inner)
        own = frozenset(map(id, members.modules(self.inner)))
        given = [("", c, copy.copy(c)) for c in containers((args, kwargs), own)]
        try:
            with preserve_node_meta(), _UserFrames(self.results.loose, self.decisions) as watch:
                out = forward(*args, **kwargs)
            other = touched(given)
            if other:
                raise refuse("LR013", f"forward changes a {other[1]} that it is given.")
            flat: list[Tensor] = []

            def slots(value: Any, what: str, otherwise: str = "LR002") -> tuple[list[Any], Any]:
                leaves, spec = pytree.tree_flatten(opened(value))
                marked: list[Any] = []
                for leaf in marked_lists(leaves, put):
                    if isinstance(leaf, Slot):
                        marked.append(leaf)
                    elif isinstance(leaf, Tensor):
                        marked.append(Slot(len(flat)))
                        flat.append(leaf)
                    elif isinstance(leaf, torch.SymInt):
                        # A number of the module's own that forward moves is another at the next call.
                        kind = "LR005" if what == "the result" else "LR013"
                        raise refuse(kind, f"{what} holds a number that depends on the batch size.")
                    elif isinstance(leaf, (torch.SymFloat, torch.SymBool)):
                        hint = "Return the tensor, and take the number of it outside."
                        raise refuse("LR015", f"{what} holds a number that is read off a tensor.", hint=hint)
                    elif type(leaf) in PLAIN:
                        marked.append(leaf)
                    else:
                        raise refuse(otherwise, f"{what} holds a {type(leaf).__name__}, which cannot be traced.")
                return marked, spec

            def put(x: Tensor) -> int:
                flat.append(x)
                return len(flat) - 1

            out = gathered(opened(out), self.listed) if self.listed else out
            out_leaves, out_spec = slots(out, "the result")
            attributes = []
            for path, name, keys, value in assigned(saved, self.inner, self.memos):
                marked, attribute_spec = slots(value, f"the attribute {name!r}", "LR013" if keys else "LR002")
                attributes.append(Assigned(path, name, keys, attribute_spec, marked))
            decided = []
            for decision in grouped(watch.decided, self.decisions[: len(watch.decided)], self.periods):
                flat.append(decision.condition)
                decided.append(replace(decision, condition=Slot(len(flat) - 1)))
            self.results.value = (out_spec, out_leaves, attributes, decided)
            return flat
        finally:
            restore_attributes(saved)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    names = ("torch.export", "torch._export", "torch.fx", "torch._dynamo", "torch._subclasses")
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _mutates(graph: fx.Graph) -> bool:
    """Whether an operator writes into a tensor."""
    schemas = (getattr(n.target, "_schema", None) for n in graph.nodes if n.op == "call_function")
    return any(schema is not None and schema.is_mutable for schema in schemas)


def trace(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    dynamic: Sequence[Any],
    known: Memos | None = None,
    decisions: Asked = (),
    periods: dict[str, int] | None = None,
    listed: int = 0,
) -> Trace:
    """Trace one call of `forward` (the module's own, unwrapped) on the given leaves.

    Args:
        module: the module that owns parameters and buffers.
        forward: what to run, with the module's arguments.
        spec: pytree structure of ``(args, kwargs)``.
        leaves: its leaves; tensors become inputs of the graph, everything else is fixed.
        dynamic: for each tensor leaf, a dict {dim: Dim.AUTO} of the dimensions to keep symbolic, or None.
        known: what forward may change outside.
        decisions: how its branches on tensors go; periods: how many the same lines ask in one step.
        listed: the number of steps of which results may be lists; 0 where they are not looked for.

    Raises:
        Refused: LR002 or LR015 where ``torch.export`` fails, LR014 where forward switches gradient on.
    """
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    flat = _Flat(module, spec, leaves, forward, known or Memos(), decisions, periods or {}, listed)
    # nn.Module.train(...) must not be called here: the flags of the module are part of what is traced.
    flat.training = module.training
    rng = torch.get_rng_state()
    saved = snapshot_attributes(module)
    backward: Ran = {}
    try:
        with _quiet(), opaque_autograd_functions(), _this_thread_only(), thrift():
            try:
                program = torch.export.export(flat, (tensors,), dynamic_shapes=(list(dynamic),), strict=False)
                literals = _literals(program)
                inline_grad_modes(program.graph_module)
                mixed = is_autocast() or has_regions(program.graph_module)
                if mixed:
                    protect_casts(program.graph_module)
                written = mixed and write_casts(program.graph_module)
                in_place = _mutates(program.graph) and (mixed or not functionalize(program.graph_module))
                if in_place or (mixed and not written):
                    with no_autocast() if written else contextlib.nullcontext():
                        program = program.run_decompositions({})
                if mixed:
                    mark_casts(program.graph)
                else:
                    backward = open_surrogates(program.graph)
            except Refused:
                raise
            except Exception as error:
                raise _export_failure(error) from error
    finally:
        torch.set_rng_state(rng)
        restore_attributes(saved)
    out_spec, out_leaves, attributes, decided = flat.results.value
    found = _as_trace(program, module, out_spec, out_leaves, attributes, flat.results.loose)
    _merge_inputs(found, literals)
    _detach_buffers(found)
    _forget_tensors(found)
    found.mixed = mixed
    found.decisions, found.backward = decided, backward
    own = {name for name, key in literals.items() if isinstance(key[-1], bytes)}
    found.sources[:] = [replace(s, literal=s.kind == "constant" and s.name in own) for s in found.sources]
    return found


def _forget_tensors(trace: Trace) -> None:
    """Keep no references to the module's tensors, not even weak ones, which `torch.utils.swap_tensors` minds."""
    mode = fake_mode(trace.graph_module.graph)
    if hasattr(mode, "fake_tensor_converter"):
        mode.fake_tensor_converter = FakeTensorConverter()


def _detach_buffers(trace: Trace) -> None:
    """What is written into a buffer carries no gradient: the value without, which the program may have."""
    graph = trace.graph_module.graph
    output = graph.output_node()
    values = list(output.args[0])
    for k, (kind, _) in enumerate(trace.outputs):
        if kind == "buffer":
            without = (u for u in values[k].users if u.target is torch.ops.aten.detach.default)
            values[k] = next(without, None) or emit(
                graph, output, torch.ops.aten.detach.default, (values[k],), values[k]
            )
    output.args = (tuple(values),)


def _literals(program: Any) -> dict[str, tuple[Hashable, ...]]:
    """What tells constants apart that forward makes anew whenever it runs, as `torch.tensor` and lists of indices do
    (all that reads them copies them first), by name: their values, or where the memory is an array's of the user's,
    who may write into it, that memory."""
    found: dict[str, tuple[Hashable, ...]] = {}
    copies = {torch.ops.aten.lift_fresh_copy.default, torch.ops.aten.lift_fresh.default}
    specs = {s.arg.name: s for s in program.graph_signature.input_specs if s.kind is InputKind.CONSTANT_TENSOR}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in specs and {user.target for user in node.users} <= copies:
            name = str(specs[node.name].target)
            x = program.constants[name]
            own = x.untyped_storage().resizable()
            content = x.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if own else x.data_ptr()
            found[name] = (x.dtype, x.device, tuple(x.shape), x.stride(), content)
    return found


def _merge_inputs(trace: Trace, literals: dict[str, tuple[Hashable, ...]]) -> None:
    """Let equal literals be one constant, and what is read from one place one input: the same line makes its own at
    every step, of what no module has registered."""
    placeholders = [n for n in trace.graph_module.graph.nodes if n.op == "placeholder"]
    first: dict[Hashable, fx.Node] = {}
    kept = []
    for node, source in zip(placeholders, trace.sources, strict=True):
        key: Hashable = None
        if source.kind == "constant" and source.name in literals:
            key = literals[source.name]
        elif source.kind in ("parameter", "attribute"):
            key = (source.kind, source.name, source.keys)
        if key is not None:
            other = first.setdefault(key, node)
            if other is not node:
                node.replace_all_uses_with(other)
                trace.graph_module.graph.erase_node(node)
                continue
        kept.append(source)
    trace.sources[:] = kept


@contextlib.contextmanager
def _this_thread_only() -> Iterator[None]:
    """Let modules that other threads call meanwhile run as they are: torch's tracer wraps every module's call."""
    tracer, tracing = proxy_tensor._ModuleStackTracer, threading.get_ident()
    call_module, getattr_ = tracer.call_module, tracer.getattr

    def call(self: Any, module: Any, forward: Any, args: Any, kwargs: Any) -> Any:
        if threading.get_ident() != tracing:
            return forward(*args, **kwargs)
        return call_module(self, module, forward, args, kwargs)

    def get(self: Any, name: str, value: Any, proxies: Any) -> Any:
        return value if threading.get_ident() != tracing else getattr_(self, name, value, proxies)

    own: Any = tracer
    own.call_module, own.getattr = call, get
    try:
        yield
    finally:
        own.call_module, own.getattr = call_module, getattr_


def _export_failure(error: BaseException) -> Refused:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, Refused):
            return cause
        cause = cause.__cause__ or cause.__context__
    text = str(error)
    first = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)[:300]
    guard = "data-dependent" in text or type(error).__name__ in (
        "GuardOnDataDependentSymNode",
        "DataDependentOutputException",
    )
    if guard:
        said = "forward goes by the numbers in a tensor, as a number of steps that is taken from one."
        hint = "Take the number of steps from a shape, x.shape[1], and let a mask keep states that have ended."
        return refuse("LR015", said, raised_at(error), hint)
    kind = "LR015" if "_local_scalar_dense" in text else "LR002"
    return refuse(kind, f"{type(error).__name__}: {first}", raised_at(error))


def raised_at(error: BaseException) -> str:
    """The innermost line of the user's that an exception passed."""
    import traceback

    found = ""
    for frame in traceback.extract_tb(error.__traceback__):
        if not is_library(frame.filename):
            found = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    return found


def _as_trace(
    program: Any, module: nn.Module, out_spec: Any, out_leaves: list[Any], attributes: list[Any], loose: set[int]
) -> Trace:
    sources: list[Source] = []
    names = {
        InputKind.PARAMETER: "parameter",
        InputKind.BUFFER: "buffer",
        InputKind.CONSTANT_TENSOR: "attribute",
    }
    inputs = 0
    known = places(module)

    def others(tensor: Any, place: Place) -> tuple[Place, ...]:
        return tuple(p for p in known.get(identity(tensor), ()) if p != place and lookup(module, *p) is tensor)

    for spec in program.graph_signature.input_specs:
        if spec.kind is InputKind.USER_INPUT:
            sources.append(Source("input", index=inputs))
            inputs += 1
        elif spec.kind in names:
            target = str(spec.target)
            name = target.removeprefix("inner.")
            if spec.kind is not InputKind.CONSTANT_TENSOR:
                sources.append(Source(names[spec.kind], name=name, others=others(lookup(module, name), (name, ()))))
                continue
            value = program.constants[target]
            found = (
                None if name != target and lookup(module, name) is not None else known.get(identity(value), [None])[0]
            )
            if found is not None:
                held = lookup(module, *found)
                kind = "parameter" if isinstance(held, nn.Parameter) and not found[1] else "attribute"
                sources.append(Source(kind, found[0], keys=found[1], others=others(held, found)))
            elif name == target or lookup(module, name) is None:
                if value.requires_grad or value.data_ptr() in loose:
                    text = "A tensor that requires gradient is used, but is no parameter of the module."
                    hint = "Register it: as an attribute, in nn.ParameterList or nn.ModuleList, not in a plain list."
                    raise refuse("LR002", text, hint=hint)
                sources.append(Source("constant", name=target, value=value))
            else:
                sources.append(Source("attribute", name, others=others(lookup(module, name), (name, ()))))
        else:
            raise refuse("LR002", f"The program takes an input of kind {spec.kind.name}, which is not supported.")
    outputs: list[tuple[str, Any]] = []
    user = 0
    for out in program.graph_signature.output_specs:
        if out.kind is OutputKind.USER_OUTPUT:
            outputs.append(("user", user))
            user += 1
        elif out.kind is OutputKind.BUFFER_MUTATION:
            outputs.append(("buffer", str(out.target).removeprefix("inner.")))
        elif out.kind is OutputKind.USER_INPUT_MUTATION:
            index = (
                [s.arg.name for s in program.graph_signature.user_inputs_specs].index(out.target)
                if hasattr(program.graph_signature, "user_inputs_specs")
                else list(program.graph_signature.user_inputs).index(out.target)
            )
            outputs.append(("input", index))
        else:
            raise refuse("LR013", f"The program has a side effect of kind {out.kind.name}.")
    graph_module = fx.GraphModule(program.graph_module, program.graph)
    return Trace(graph_module, sources, outputs, out_spec, out_leaves, attributes)
