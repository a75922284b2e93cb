"""Run a module for information only: on inputs of another length, with its operators recorded, and with every trace of
the run (buffers, attributes, random state, gradients) undone afterwards."""

from __future__ import annotations

import contextlib
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from linrec.capture.beside import State, changed, draws
from linrec.capture.ran import code_that_runs
from linrec.capture.recorders import Calls, OperatorCounter, Record, Recorder, is_plain, place
from linrec.capture.snapshot import containers, reachable, restore_attributes, snapshot_attributes
from linrec.ir import members
from linrec.ir.held import held, named_attributes
from linrec.ir.results import opened

Dims = dict[int, dict[int, int]]
"""For each tensor leaf, its dimensions that grow with the length: {leaf: {dim: offset}}, size = length + offset."""


@contextlib.contextmanager
def undone(module: nn.Module, tensors: Sequence[Any] = (), parameters: str = "watch") -> Iterator[_Writes]:
    """Restore parameters, buffers, the given tensors, attributes and random state on exit.

    Args:
        module: the module; tensors: inputs to restore.
        parameters: "watch" for a dispatch mode that keeps all that is about to be written into, "copy" to copy all of
            them in advance (the call then sees no mode), "leave" where the block replaces them anyway.
    """
    saved = snapshot_attributes(module)
    kept = [(b, b._version, b.detach().clone()) for b in members.buffers(module)]
    kept += [(t, t._version, t.detach().clone()) for t in tensors if isinstance(t, Tensor)]
    found = _attributes_of(module, (Tensor, torch.Generator))
    attributes = [x for x in found if isinstance(x, Tensor)]
    kept += [(p, p._version, p.detach().clone()) for p in attributes]
    apart = [t for t in [*members.buffers(module), *attributes] if not t.requires_grad]
    every = [*members.parameters(module), *members.buffers(module), *attributes]
    own = [(p, p.data, p.requires_grad) for p in every if is_plain(p)]
    writes = _Writes(saved.beside)
    if parameters == "copy":
        outside = [x for _, x in reachable(module) if isinstance(x, Tensor) and is_plain(x)]
        kept += [(t, t._version, t.detach().clone()) for t in outside]
        kept += [(p, p._version, p.detach().clone()) for p in members.parameters(module) if is_plain(p)]
    generators = [(g, g.get_state()) for g in found if isinstance(g, torch.Generator)]
    kept_hooks = _suspend_hooks(module)
    rng = torch.get_rng_state()
    python_rng, numpy_rng = random.getstate(), _numpy_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    try:
        with unpacked(), writes if parameters == "watch" else contextlib.nullcontext():
            yield writes
    finally:
        for owner, name, hooks in kept_hooks:
            owner.__dict__[name] = hooks
        torch.set_rng_state(rng)
        random.setstate(python_rng)
        if numpy_rng is not None:
            sys.modules["numpy"].random.set_state(numpy_rng)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
        for generator, state in generators:
            generator.set_state(state)
        restore_attributes(saved)
        for parameter, data, requires_grad in own:
            if parameter.requires_grad != requires_grad and parameter.is_leaf:
                parameter.requires_grad_(requires_grad)
            if replaced(parameter, data):
                parameter.data = data
        for tensor in apart:
            if tensor.requires_grad:  # what was written into it carries gradient
                tensor.detach_()
        with torch.no_grad():
            writes.undo()
            for tensor, version, value in kept:
                # Some operators write without telling: batch norm does not bump the version of its statistics.
                if tensor._version != version or not _has(tensor, value):
                    # What is detached from a sparse one has its numbers, but not its way to get others.
                    (tensor if tensor.is_sparse else tensor.detach()).copy_(value)


def _has(tensor: Tensor, value: Tensor) -> bool:
    """Whether a tensor has these numbers; a sparse one, which torch does not compare, tells when it is written."""
    return tensor.layout is not torch.strided or torch.equal(tensor, value)


def unpacked() -> contextlib.AbstractContextManager[None]:
    """Without the hooks of a caller that packs saved tensors (activation checkpointing): it must not see a probe's."""
    if torch._C._autograd._top_saved_tensors_default_hooks(False) is None:
        return contextlib.nullcontext()  # functorch refuses hooks that do nothing, too
    return torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x)


def replaced(tensor: Tensor, data: Tensor) -> bool:
    """Whether a tensor has other memory than it had, as after an assignment to its `data`."""
    if tensor.layout is not torch.strided:
        return tensor.layout is not data.layout
    return tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape or tensor.dtype != data.dtype


_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _suspend_hooks(module: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Take off the user's hooks, which must not be called for a probe; torch's own (sharding, old weight norm) stay."""
    kept = []
    for sub in members.modules(module):
        for name in _HOOKS:
            hooks = getattr(sub, name)
            if hooks and not all(str(getattr(h, "__module__", "")).startswith("torch.") for h in hooks.values()):
                kept.append((sub, name, hooks))
                sub.__dict__[name] = type(hooks)()
    return kept


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy")
    return numpy.random.get_state() if numpy is not None else None


def _numpy_draws() -> Any:
    """Something that changes with every number drawn from numpy's global generator."""
    state = _numpy_state()
    return None if state is None else (state[1].tobytes(), *state[2:])


def _attributes_of(module: nn.Module, kinds: tuple[type, ...]) -> list[Any]:
    """The attributes of some types, those inside lists and dicts included (but not parameters and buffers)."""
    found: dict[int, Any] = {}
    for sub in members.modules(module):
        for name, value in sub.__dict__.items():
            if name not in ("_parameters", "_buffers", "_modules"):
                held = [value, *(v for c in containers(value) for v in (c.values() if isinstance(c, dict) else c))]
                found.update({id(v): v for v in held if isinstance(v, kinds)})
    return list(found.values())


class _Writes(TorchDispatchMode):
    """Keeps the memory that was there before and that an operator is about to write into, whosever it is; few models
    do, so that copying all that they hold in advance would be a waste.

    Args:
        beside: what was there before and is no tensor, with its state.
    """

    def __init__(self, beside: Sequence[State] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.beside = beside
        self.own: set[int] = set()
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func._schema.is_mutable:
            for argument, given in zip(func._schema.arguments, args, strict=False):
                if argument.is_write:
                    self._keep(given)
            for given in (kwargs[a.name] for a in func._schema.arguments if a.is_write and a.name in kwargs):
                self._keep(given)
        out = func(*args, **kwargs)
        if not any(r.alias_info for r in func._schema.returns):
            for x in out if isinstance(out, (tuple, list)) else (out,):
                if isinstance(x, Tensor) and x.layout is torch.strided and is_plain(x):
                    # What was there before stays where it is: memory that is made in the run is never one of those.
                    self.own.add(x.untyped_storage().data_ptr())
        return out

    def _keep(self, given: Any) -> None:
        for x in given if isinstance(given, (tuple, list)) else (given,):
            if isinstance(x, Tensor) and x.layout is torch.strided and x.device.type != "meta" and is_plain(x):
                memory = x.untyped_storage()
                place = memory.data_ptr()
                if place and place not in self.own and place not in self.before:
                    whole = torch.empty(0, dtype=torch.uint8, device=x.device).set_(memory)
                    self.before[place] = whole, whole.clone()

    def has(self, x: Any) -> bool:
        """Whether a value is a tensor in memory that will be put back."""
        fits = isinstance(x, Tensor) and x.layout is torch.strided and is_plain(x)
        return fits and x.untyped_storage().data_ptr() in self.before

    def undo(self) -> None:
        """Write back what was there."""
        for whole, content in self.before.values():
            if whole.untyped_storage().nbytes() == content.nbytes:  # and not given away since, as shards are
                whole.copy_(content)


@contextlib.contextmanager
def attribute_reads(module: nn.Module) -> Iterator[set[str]]:
    """Collect the names of all attributes that are read from a module and its submodules in the block."""
    names: set[str] = set()
    watched: dict[type, type] = {}
    changed: list[tuple[nn.Module, type]] = []

    def watch(cls: Any) -> type:
        def reading(self: Any, name: str) -> Any:
            names.add(name)
            return cls.__getattribute__(self, name)

        return type(cls.__name__, (cls,), {"__getattribute__": reading, "__module__": cls.__module__})

    try:
        for sub in members.modules(module):
            cls = type(sub)
            if cls not in watched:
                watched[cls] = watch(cls)
            try:
                sub.__class__ = watched[cls]
            except TypeError:  # a layout that cannot be exchanged: all its attributes count as read
                names |= set(sub.__dict__)
                continue
            changed.append((sub, cls))
        yield names
    finally:
        for sub, cls in changed:
            sub.__class__ = cls


def resize(leaves: Sequence[Any], dims: Dims, length: int, batch: int | None = None) -> list[Any]:
    """The leaves with every growing dimension cut, or wrapped around, to `length` (plus its offset). Where integers can
    be numbers of steps or positions among them, as the lengths of padded sequences, they are made to fit."""
    out = list(leaves)
    full = length
    for leaf, sizes in dims.items():
        for dim, offset in sizes.items():
            full = out[leaf].shape[dim] - offset
            index = torch.arange(length + offset, device=out[leaf].device) % out[leaf].shape[dim]
            out[leaf] = out[leaf].detach().index_select(dim, index)
    return [_fitting(x.detach().clone(), length, full) if isinstance(x, Tensor) else x for x in out]


def differentiable(short: list[Any], leaves: Sequence[Any]) -> list[Any]:
    """Arguments of other sizes that require gradient where those of the call do; forward may write into them, which no
    leaf allows."""
    made: dict[int, Tensor] = {}
    for x, y in zip(short, leaves, strict=True):
        if isinstance(x, Tensor) and y.requires_grad and id(x) not in made:
            made[id(x)] = x.requires_grad_() * 1
    return [made.get(id(x), x) for x in short]


def has_memory(x: Any) -> bool:
    """Whether a value is a strided tensor."""
    return isinstance(x, Tensor) and x.layout is torch.strided


def _fitting(x: Tensor, length: int, full: int) -> Tensor:
    """Integers up to a number of steps, made smaller where there are fewer: the last step stays the last."""
    if length < full and x.dtype in (torch.int64, torch.int32) and x.numel():
        least, most = x.min(), x.max()
        if least >= 0 and length <= most <= full:
            less = x - (full - length)
            return torch.where(less >= 1, less, x.clamp(max=1))
    return x


def calls_of(forward: Any, spec: Any, leaves: Sequence[Any]) -> Counter[Hashable]:
    """Run `forward`, with all that it does, and count its calls."""
    found = Record()
    args, kwargs = pytree.tree_unflatten(list(leaves), spec)
    with Calls(found, False):
        forward(*args, **kwargs)
    return found.calls


def count_calls(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    log: bool = False,
    left: Callable[[], dict[str, Any]] = dict,
) -> Record:
    """Run `forward` and only count its calls: cheaper than `record`, for long inputs. With `log` also list them.

    It runs in the caller's gradient mode, on which it may base decisions, but what it saves for backward is dropped.
    `left` is asked at the end for what it left behind, before that is undone.
    """
    known = {id(x): f"input {i}" for i, x in enumerate(leaves) if isinstance(x, Tensor)}
    known |= {id(x): name for name, x in members.named_state(module)}
    for pack in (_dropped, _kept):
        found = Record()
        args, kwargs = pytree.tree_unflatten(list(leaves), spec)
        try:
            with (
                undone(module, leaves) as writes,
                torch.autograd.graph.saved_tensors_hooks(pack, _unpacked),
                Calls(found, False, log, known=known),
            ):
                output = forward(*args, **kwargs)
                with torch._C.DisableTorchFunction():
                    found.output, found.left = apart(output, leaves, writes), left()
            break
        except _DroppedError:  # forward takes gradients itself
            continue
    return found


def apart(output: Any, leaves: Sequence[Any], writes: _Writes) -> Any:
    """What a run returned, without its graph and in memory that is not put back afterwards."""
    given = {x.untyped_storage().data_ptr() for x in leaves if isinstance(x, Tensor) and is_plain(x)}

    def own(x: Tensor) -> Tensor:
        if x.layout is not torch.strided or not is_plain(x):
            return x.detach()
        place = x.untyped_storage().data_ptr()
        return x.detach().clone() if place in given or writes.has(x) else x.detach()

    return pytree.tree_map_only(Tensor, own, opened(output))


class _DroppedError(RuntimeError):
    """A saved tensor is asked for that was not kept."""


def _dropped(tensor: Tensor) -> Tensor | None:
    """Keeps nothing of a tensor that is saved for backward."""
    return None


def _kept(tensor: Tensor) -> Tensor | None:
    return tensor


def _unpacked(packed: Tensor | None) -> Tensor:
    if packed is None:
        raise _DroppedError
    return packed


def record(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], per_module: bool = False, watch: bool = False
) -> Record:
    """Run `forward` on the given leaves and record its operators.

    Args:
        per_module: also count what each module runs itself (through global module hooks).
        watch: also note which code of the user's runs.
    """
    found = Record()
    labels: dict[Hashable, Hashable] = {}
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Tensor):
            labels[place(leaf)] = ("input", i)
    for name, p in members.named_state(module):
        labels[place(p)] = ("state", name, str(p.dtype), tuple(p.shape))
    for name, value in named_attributes(module):
        for keys, x in [((), value)] if isinstance(value, Tensor) else held(value):
            labels.setdefault(place(x), ("attribute", name, keys))
    recorder, calls = Recorder(found, labels), Calls(found, True, keep=True)
    every = [(name, t, t.data) for name, t in _named_tensors(module) if is_plain(t)]
    args, kwargs = pytree.tree_unflatten(list(leaves), spec)
    counted = _counted_per_module(recorder, module, found) if per_module else contextlib.nullcontext()
    with counted, undone(module, leaves) as writes, torch.enable_grad(), calls, recorder:
        before = random.getstate(), _numpy_draws()
        drawn = [each for each in writes.beside if draws(each[1]) and not isinstance(each[1], torch.Generator)]
        with code_that_runs() if watch else contextlib.nullcontext() as found.ran:
            out = forward(*args, **kwargs)
        found.drew = (random.getstate(), _numpy_draws()) != before or changed(drawn) is not None
        found.wrote = frozenset(writes.before)
        shown = [*pytree.tree_leaves(opened(out)), *(t for _, t in _named_tensors(module))]
        if any(map(calls.wants_gradient, shown)):
            found.set.add("requires_grad")  # of what others see, who may ask for its gradient
        found.replaced = [name for name, t, data in every if replaced(t, data)]
    out_leaves, out_spec = pytree.tree_flatten(opened(out))
    found.result = (
        str(out_spec),
        tuple(labels.get(place(x)) if isinstance(x, Tensor) else repr(x) for x in out_leaves),
    )
    found.output = out
    return found


def count_operators(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> Record:
    """Run `forward` and only count the operators of each module: cheaper than `record`, for large models."""
    found, counter = Record(), OperatorCounter()
    args, kwargs = pytree.tree_unflatten(list(leaves), spec)
    with (
        _counted_per_module(counter, module, found),
        undone(module, leaves),
        torch.enable_grad(),
        counter,
    ):
        forward(*args, **kwargs)
    return found


def _named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The parameters, buffers and plain attributes of a module by name."""
    yield from members.named_state(module)
    for name, value in named_attributes(module):
        if isinstance(value, Tensor):
            yield name, value
        else:
            yield from ((name, x) for _, x in held(value))


@contextlib.contextmanager
def _counted_per_module(counter: OperatorCounter, root: nn.Module, found: Record) -> Iterator[None]:
    """Note how many operators and child calls each module runs itself in the block, by global hooks of modules."""
    counter.stack.append([root, 0])
    thread = threading.get_ident()
    known = frozenset(map(id, members.modules(root)))

    def enter(module: nn.Module, args: Any) -> None:
        # One that forward makes itself belongs to the module that calls it.
        if threading.get_ident() != thread or id(module) not in known:
            return
        counter.stack[-1][1] += 1
        counter.stack.append([module, 0])

    def leave(module: nn.Module, args: Any, out: Any) -> None:
        if threading.get_ident() != thread or id(module) not in known:
            return
        while counter.stack[-1][0] is not module and len(counter.stack) > 1:
            counter.stack.pop()
        _, count = counter.stack.pop()
        found.own[module] = max(found.own.get(module, 0), count)

    hooks = nn.modules.module
    handles = [hooks.register_module_forward_pre_hook(enter), hooks.register_module_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        if counter.stack:
            found.own[root] = max(found.own.get(root, 0), counter.stack[0][1])
