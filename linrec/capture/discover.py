"""Find out which dimension of a call is time, and which modules own a loop over it: the same call is run at two short
lengths, and whose operators grow in number owns the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture.probe import Dims, count_operators, differentiable, has_memory, record, resize
from linrec.capture.ran import Ran
from linrec.capture.recorders import Record
from linrec.ir import members

SHORT = 4
"""The shortest length that is ever traced; a loop below it always runs as it was written."""


@dataclass(frozen=True)
class Runs:
    """Two runs, one of two more steps, that show the time dimension of a call.

    Attributes:
        shorter, longer: what they did; memory: where the tensors of the shorter one's arguments lie.
        alike: whether those required gradient that do in the call.
    """

    shorter: Record
    longer: Record
    memory: frozenset[int]
    alike: bool


@dataclass(frozen=True)
class TimeAxis:
    """The time dimension of a call.

    Attributes:
        leaf, dim: where the length is read off.
        dims: all dimensions that grow with it.
        owners: the modules whose own operators grow in number with it, in order of first call.
        tensor_leaves: the positions of tensors among the leaves of the call.
        shown_at: the shortest length at which it shows. A loop that begins after some steps may fail at shorter ones.
        unit: forward takes lengths that are multiples of this.
        ran: the code of the user's that ran; None where that cannot be said.
        forward: what to call, where the number of steps is an argument or an attribute.
        runs: what showed it, at `SHORT` steps, where all else was as in the call and the module itself is an owner; not
            kept once it is compiled.
    """

    leaf: int
    dim: int
    dims: Dims
    owners: tuple[nn.Module, ...]
    tensor_leaves: tuple[int, ...]
    shown_at: int = SHORT
    unit: int = 1
    ran: Ran | None = field(default=None, compare=False, repr=False)
    forward: Following | None = field(default=None, compare=False, repr=False)
    runs: Runs | None = field(default=None, compare=False, repr=False)

    @property
    def short(self) -> tuple[int, int]:
        """Two lengths that forward takes, few steps both."""
        return self.shown_at, self.shown_at + (2 if self.unit == 1 else self.unit)


def candidates(leaves: Sequence[Any]) -> Iterator[tuple[int, int, Dims]]:
    """Ways in which the call could have a time dimension: (leaf, dim, all dimensions that would grow together)."""
    tensors = [(i, x) for i, x in enumerate(leaves) if isinstance(x, Tensor) and x.dim() > 0]
    if not tensors:
        return
    seen: set[Any] = set()
    ranks = max(x.dim() for _, x in tensors)
    order = [d for d in (1, 0, *range(2, ranks)) if d < ranks]
    for i, x in tensors:
        for d in order:
            if d >= x.dim() or x.shape[d] < SHORT:
                continue
            size = x.shape[d]
            groups = (
                {j: {e: 0 for e in range(y.dim()) if y.shape[e] == size} for j, y in tensors},
                {j: {d: 0} for j, y in tensors if d < y.dim() and y.shape[d] == size},
                {i: {d: 0}},
                # With one step more or less, as values have beside rewards.
                {j: {d: y.shape[d] - size} for j, y in tensors if d < y.dim() and abs(y.shape[d] - size) <= 1},
            )
            for group in groups:
                kept = {j: dims for j, dims in group.items() if dims}
                key = tuple((j, tuple(dims.items())) for j, dims in kept.items())
                if key not in seen:
                    seen.add(key)
                    yield i, d, kept


@dataclass
class Following:
    """A forward whose number of steps is an argument or an attribute, called with the number of steps of its input.

    Attributes:
        forward: what is called; spec: the structure of its arguments.
        leaf, dim, offset: where the length is read off, and what is added to it there.
        numbers: the leaves that are this length; attributes: those of modules, by name.
    """

    forward: Any
    spec: Any
    leaf: int
    dim: int
    offset: int
    numbers: tuple[int, ...]
    attributes: tuple[tuple[nn.Module, str], ...]

    @property
    def __func__(self) -> Any:
        return getattr(self.forward, "__func__", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call forward with the number of steps of these arguments."""
        leaves = pytree.tree_flatten((args, kwargs))[0]
        length = int(leaves[self.leaf].shape[self.dim]) - self.offset
        for i in self.numbers:
            leaves[i] = length
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        before = [(module, name, module.__dict__[name]) for module, name in self.attributes]
        for module, name, _ in before:
            module.__dict__[name] = length
        try:
            return self.forward(*args, **kwargs)
        finally:
            for module, name, value in before:
                if module.__dict__.get(name) == length:
                    module.__dict__[name] = value


_SHORT = (SHORT, 4 * SHORT, 12 * SHORT)
"""With how few steps forward is tried, one after the other until it runs."""

_LARGE = 16
"""With more modules than these, a loop is expected to be in one of them: their operators are counted first."""

_MORE = 6
"""How many more steps than time is first seen with are left to the rest, where a part of the inputs gets fewer."""


def find_time(
    module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], failures: list[IndexError] | None = None
) -> Iterator[TimeAxis]:
    """All ways in which the number of operators of a call grows with a dimension of its inputs, likeliest first.

    Args:
        module: the module; forward: its own; spec, leaves: of the call; failures: is told where forward looks for steps
            that shorter inputs do not have.
    """
    failures = [] if failures is None else failures
    shorter: list[IndexError] = []
    found: TimeAxis | None = None
    short = part = leaves
    for leaf, dim, dims in candidates(leaves):
        if found is not None and module not in found.owners and _is_part(dims, found.dims):
            continue  # which lets no other loops grow, and this module compiles none
        # Once time is found, the other dimensions are tried with few steps; a part of what it is (inputs without the
        # targets), with fewer than the rest has.
        apart = found is not None and not any(d in found.dims.get(i, ()) for i, own in dims.items() for d in own)
        tried = _SHORT if found is None or apart else (found.shown_at,)
        base = short if apart else part
        for axis in _axis(module, forward, spec, base, leaf, dim, dims, failures, shorter, tried):
            if found is None:
                found, short = axis, resize(leaves, axis.dims, axis.shown_at + 2)
                few = axis.shown_at + _MORE
                if leaves[axis.leaf].shape[axis.dim] - axis.dims[axis.leaf][axis.dim] > few:
                    part = resize(leaves, axis.dims, few)
            elif part is not leaves or apart:
                axis = replace(axis, runs=None)
            yield axis
    if found is None and not shorter:
        chunks = list(_by_chunks(module, forward, spec, leaves))
        yield from chunks or _by_whole_chunks(module, forward, spec, leaves)
    if found is not None or not shorter:
        return
    integers = [
        (sub, name, value)
        for sub in members.modules(module)
        for name, value in sub.__dict__.items()
        if type(value) is int
    ]
    for leaf, dim, dims in candidates(leaves):
        size = leaves[leaf].shape[dim] - dims[leaf][dim]
        numbers = tuple(i for i, x in enumerate(leaves) if type(x) is int and x == size)
        attributes = tuple((sub, name) for sub, name, value in integers if value == size)
        if numbers or attributes:
            follows = Following(forward, spec, leaf, dim, dims[leaf][dim], numbers, attributes)
            yield from _axis(module, follows, spec, leaves, leaf, dim, dims, failures, shorter)


_CHUNKS = 128
"""The most steps that a loop may take at once to be seen as one."""


def _by_chunks(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> Iterator[TimeAxis]:
    """Loops that take many steps at once, so that two more change nothing: their operators become more and more."""
    for leaf, dim, dims in candidates(leaves):
        part = min(_CHUNKS, (leaves[leaf].shape[dim] - dims[leaf][dim]) // 3)
        if part <= SHORT + 2:
            continue
        try:
            few, more, most = (
                count_operators(module, forward, spec, resize(leaves, dims, n)).own for n in (part, 2 * part, 3 * part)
            )
        except Exception:  # as in _axis
            continue
        grown = tuple(m for m, n in most.items() if few.get(m, n) < more.get(m, n) < n)
        if grown:
            yield TimeAxis(leaf, dim, dims, grown, tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor)))


def _by_whole_chunks(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> Iterator[TimeAxis]:
    """Loops over chunks of a fixed size, of which forward takes whole ones only: that size divides the call's length,
    and with the smallest divisor that it takes it runs one chunk."""
    tensors = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor))
    for leaf, dim, dims in candidates(leaves):
        length = leaves[leaf].shape[dim] - dims[leaf][dim]
        for size in (n for n in range(2, min(length, _CHUNKS) + 1) if length % n == 0):
            try:
                few, more, most = (
                    count_operators(module, forward, spec, resize(leaves, dims, n * size)).own for n in (1, 2, 3)
                )
            except Exception:  # as in _axis
                continue
            grown = tuple(m for m, n in most.items() if few.get(m, n) < more.get(m, n) < n)
            if grown and not _takes(module, forward, spec, resize(leaves, dims, size + 1)):
                yield TimeAxis(leaf, dim, dims, grown, tensors, size, size)
            break


def _takes(module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any]) -> bool:
    try:
        count_operators(module, forward, spec, leaves)
    except Exception:  # as in _axis
        return False
    return True


def _is_part(dims: Dims, whole: Dims) -> bool:
    return all(d in whole.get(i, ()) for i, own in dims.items() for d in own)


def _axis(
    module: nn.Module,
    forward: Any,
    spec: Any,
    leaves: Sequence[Any],
    leaf: int,
    dim: int,
    dims: Dims,
    failures: list[IndexError],
    shorter: list[IndexError],
    tried: tuple[int, ...] = (),
) -> Iterator[TimeAxis]:
    """One way, if the number of operators grows with it. Of what looks for steps that are not there, `failures` is told
    where no other length does, and `shorter` in any case."""
    grown: tuple[nn.Module, ...] | None = None
    runs: Runs | None = None
    missing: list[IndexError] = []
    large = len(members.modules(module)) > _LARGE
    for short in tried or _SHORT:
        if short + 2 > leaves[leaf].shape[dim] + 2 * SHORT:
            break
        try:
            owners = _owners(_two_runs(_counted, module, forward, spec, leaves, dims, short)) if large else (module,)
            if module in owners:
                runs = _two_runs(_recorded, module, forward, spec, leaves, dims, short)
                owners = _owners(runs)
        except IndexError as error:
            missing.append(error)
            continue
        except Exception:  # the model may raise anything at a size that is not its own: then this is not time
            continue
        grown = owners
        break
    if grown is None:
        failures += missing[:1]
    if not grown:
        shorter += missing[:1]
    if grown:
        tensors = tuple(i for i, x in enumerate(leaves) if isinstance(x, Tensor))
        follows = forward if isinstance(forward, Following) else None
        kept = runs if runs is not None and short == SHORT and runs.alike else None
        ran = None if runs is None else runs.longer.ran
        yield TimeAxis(leaf, dim, dims, grown, tensors, short, 1, ran, follows, kept)


_Run = Callable[[nn.Module, Any, Any, list[Any], bool], Record]


def _counted(module: nn.Module, forward: Any, spec: Any, leaves: list[Any], longer: bool) -> Record:
    return count_operators(module, forward, spec, leaves)


def _recorded(module: nn.Module, forward: Any, spec: Any, leaves: list[Any], longer: bool) -> Record:
    found = record(module, forward, spec, leaves, True, watch=longer)
    found.output = None
    return found


def _two_runs(
    run: _Run, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], dims: Dims, short: int
) -> Runs:
    """What forward does with `short` steps and with two more."""
    try:
        return _both(run, module, forward, spec, leaves, dims, short, True)
    except IndexError:
        raise
    except Exception:  # what is done with an argument that a leaf alone allows, such as a deep copy
        if not any(isinstance(x, Tensor) and x.requires_grad for x in leaves):
            raise
        return _both(run, module, forward, spec, leaves, dims, short, False)


def _both(
    run: _Run, module: nn.Module, forward: Any, spec: Any, leaves: Sequence[Any], dims: Dims, short: int, alike: bool
) -> Runs:
    records, memory = [], frozenset[int]()
    for length in (short, short + 2):
        own = resize(leaves, dims, length)
        own = differentiable(own, leaves) if alike else own
        memory = memory or frozenset(x.untyped_storage().data_ptr() for x in own if has_memory(x))
        records.append(run(module, forward, spec, own, length > short))
    return Runs(records[0], records[1], memory, alike)


_IN_ONE_CALL = (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)
"""torch's recurrent layers loop inside one operator, not in Python."""


def _owners(runs: Runs) -> tuple[nn.Module, ...]:
    before = runs.shorter.own
    grown = (m for m, count in runs.longer.own.items() if count > before.get(m, count))
    return tuple(m for m in grown if type(m).forward not in _IN_ONE_CALL)
