"""What tracing need not do, above all work out the same shapes again: the steps of a loop run the same operators on
tensors of the same shapes, and what shape comes of it takes torch longest of all, with symbolic sizes."""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from typing import Any

import torch
import torch._dynamo.config
import torch.fx.config
from torch import SymInt, Tensor, fx
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.fx.experimental import proxy_tensor

from linrec.capture.arguments import leaves_of

_PLAIN = frozenset([int, float, bool, complex, str, type(None), torch.dtype, torch.device, torch.memory_format])
_NOT_ALWAYS = {"data_dependent_output", "dynamic_output_shape", "nondeterministic_seeded"}


def _is_pure(func: Any) -> bool:
    """Whether an operator makes one new tensor, whose shape follows from its arguments'."""
    schema = getattr(func, "_schema", None)
    if schema is None or schema.is_mutable or getattr(func, "namespace", "") != "aten":
        return False
    returns = schema.returns
    one = len(returns) == 1 and returns[0].alias_info is None and str(returns[0].type) == "Tensor"
    return one and not any(tag.name in _NOT_ALWAYS for tag in func.tags)


def _size(size: Any) -> Any:
    return size.node._expr if type(size) is SymInt else size


class _Shapes:
    """What came of which operator, in one trace."""

    def __init__(self, mode: FakeTensorMode) -> None:
        self.mode = mode
        self.known: dict[Hashable, tuple[Any, ...]] = {}

    def key(self, func: Any, args: Any, kwargs: Any) -> Hashable:
        """What the shape of an operator's result follows from; None where that is not said here."""
        parts: list[Hashable] = [func, torch._C._is_any_autocast_enabled(), torch.get_default_dtype()]
        for x in leaves_of(args, kwargs):
            kind = type(x)
            if kind is FakeTensor:
                if x.fake_mode is not self.mode or x.constant is not None or x.layout is not torch.strided:
                    return None
                flags = x.requires_grad, x.is_conj(), x.is_neg()
                sizes = *map(_size, x.shape), *map(_size, x.stride())
                parts.append((x.dtype, x.device, flags, sizes))
            elif kind in _PLAIN:
                parts.append((kind, x))
            elif kind is SymInt:
                parts.append((kind, x.node._expr))
            else:
                return None
        # Of lists and arguments by name, the form.
        parts.append(tuple(len(x) if type(x) in (list, tuple) else -1 for x in args))
        parts.append(tuple((name, len(x) if type(x) in (list, tuple) else -1) for name, x in kwargs.items()))
        return tuple(parts)

    def note(self, key: Hashable, out: Any, args: Any, kwargs: Any) -> None:
        """Remember what came of an operator, where it is a plain new tensor."""
        if type(out) is not FakeTensor or out.constant is not None or out.layout is not torch.strided:
            return
        if out.requires_grad or out.is_conj() or out.is_neg() or _size(out.storage_offset()) != 0:
            return
        memory = out.untyped_storage()._cdata
        if any(isinstance(x, Tensor) and x.untyped_storage()._cdata == memory for x in leaves_of(args, kwargs)):
            return
        self.known[key] = tuple(out.shape), tuple(out.stride()), out.dtype, out.device

    def made(self, entry: tuple[Any, ...]) -> FakeTensor:
        """A tensor of a remembered shape."""
        shape, stride, dtype, device = entry
        env = self.mode.shape_env
        with (
            fake_tensor.in_kernel_invocation_manager(self.mode),
            env.suppress_guards() if env is not None else contextlib.nullcontext(),
        ):
            empty = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
        return FakeTensor(self.mode, empty, device)


@contextlib.contextmanager
def remembered_shapes() -> Iterator[None]:
    """In the block, modes of fake tensors work out a shape once for all equal arguments."""
    own: Any = FakeTensorMode
    plain = getattr(own, "_dispatch_impl", None)
    if plain is None:  # a version of torch that does it otherwise
        yield
        return
    pure: dict[Any, bool] = {}
    tables: dict[int, _Shapes] = {}

    def dispatch(self: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func not in pure:
            pure[func] = _is_pure(func)
        if not pure[func]:
            return plain(self, func, types, args, kwargs)
        shapes = tables.get(id(self))
        if shapes is None:
            shapes = tables[id(self)] = _Shapes(self)
        key = shapes.key(func, args, kwargs)
        if key is None:
            return plain(self, func, types, args, kwargs)
        entry = shapes.known.get(key)
        if entry is not None:
            return shapes.made(entry)
        out = plain(self, func, types, args, kwargs)
        shapes.note(key, out, args, kwargs)
        return out

    own._dispatch_impl = dispatch
    try:
        yield
    finally:
        own._dispatch_impl = plain


@contextlib.contextmanager
def thrift() -> Iterator[None]:
    """Leave out what torch does for every operator of a trace and nobody reads: its own stack traces (`_UserFrames` has
    better ones), Python code for graphs that are not run, the layout of every result as a node's "tensor_meta", and a
    table of shapes for all traces, which takes longer to fill than it saves where sizes are symbols, new in every one
    (`remembered_shapes` has one for each)."""
    config: Any = torch._dynamo.config
    traces: Any = fx.config
    tracer: Any = proxy_tensor
    before = getattr(traces, "do_not_emit_stack_traces", None)  # not in every version
    layout = getattr(tracer, "_extract_tensor_metadata", None)  # nor this
    with config.patch(fake_tensor_cache_enabled=False), _use_lazy_graph_module(True), remembered_shapes():
        traces.do_not_emit_stack_traces = True
        if layout is not None:
            tracer._extract_tensor_metadata = lambda tensor: None
        try:
            yield
        finally:
            traces.do_not_emit_stack_traces = before
            if layout is not None:
                tracer._extract_tensor_metadata = layout
