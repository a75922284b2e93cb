"""Calls kernels: chooses how lanes are cut into blocks and where results lie in memory, and remembers for strides that
were seen before all but the addresses."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linrec.codegen import toolchain
from linrec.codegen.adjoint import Adjoint, Factor, Wanted, adjoint, everything, factor_operand, moving
from linrec.codegen.backward import backward_kernel
from linrec.codegen.call import Call
from linrec.codegen.forward import forward_kernel, state_bytes
from linrec.codegen.frame import Kernel
from linrec.codegen.lanes import Operand
from linrec.codegen.memory import Form
from linrec.codegen.program import ancestors
from linrec.codegen.schedule import own_cost
from linrec.codegen.signature import Key, Signature
from linrec.codegen.strides import LINE, Partial, Room, Strides
from linrec.ops import cpu_threads
from linrec.ops.buffers import dense

_NEAR = 1 << 19
"""Bytes that a worker's memory should not be larger than: what the second cache holds, or half of it."""
_PARALLEL = 200_000
"""Instructions from which on it pays to start threads."""
_MOST_CALLS = 256


@dataclass
class Run:
    """What a forward call hands to the backward one.

    Attributes:
        form: the kernel's.
        chunks: of a block.
        segment: steps between checkpoints.
        checkpoints: the states kept; None where the backward step does not need them.
    """

    form: Form
    chunks: int
    segment: int
    checkpoints: Tensor | None


def real_parts(tensor: Tensor) -> dict[str, Tensor]:
    """A tensor as the real tensors that kernels work with: itself, or the two parts of a complex one."""
    if not tensor.is_complex():
        return {"": tensor.resolve_neg()}
    both = torch.view_as_real(tensor.resolve_conj())
    return {"re": both.select(-1, 0), "im": both.select(-1, 1)}


class StaleError(RuntimeError):
    """An input that a backward pass needs has been written into since the forward pass."""

    def __init__(self) -> None:
        super().__init__(
            "one of the variables needed for gradient computation has been modified by an inplace operation: an input "
            "of a loop that linrec has rewritten. Clone it before it is written into."
        )


@dataclass
class Training:
    """What a forward pass keeps for a backward one.

    Attributes:
        keep: whether it writes checkpoints; first_only: whether one, of the beginning, will do.
        read: the results that the backward pass reads, by number.
        fixed: those that do not change with any of the inputs.
        unread: the inputs whose numbers the backward pass does not need.
    """

    keep: bool
    first_only: bool
    read: list[int]
    fixed: list[int]
    unread: frozenset[int]


@dataclass
class _Forward:
    """A prepared forward pass: the call, the memory that it makes, and what `Run` holds."""

    call: Call
    results: list[Room]
    form: Form
    chunks: int
    segment: int
    checkpoints: Room | None


@dataclass
class _Backward:
    """A prepared backward pass.

    Attributes:
        call: the kernel's.
        a: the derivative.
        found: the results, by input; zeros: those parts of them that are zero.
        copies: initial states that have to be laid out anew, by key; factors: of products; partial: the workers'
            sums, by key. Addresses are those of the inputs, gradients and stored states, then of these in this order.
    """

    call: Call
    a: Adjoint
    found: dict[int, Room]
    zeros: list[Key]
    copies: dict[Key, Room]
    factors: list[Room]
    partial: dict[Key, Partial]

    @property
    def results(self) -> Iterable[Room]:
        """Room for the results."""
        return self.found.values()


@dataclass
class Compiled:
    """The kernels of a step for inputs of some shapes and dtypes.

    Attributes:
        s: the step.
        carries, xs: how many of each it has; the rest are constants.
    """

    s: Signature
    carries: int
    xs: int
    _kernels: dict[Any, tuple[Kernel, int]] = field(default_factory=dict)
    _adjoints: dict[Wanted, Adjoint] = field(default_factory=dict)
    _training: dict[tuple[int, ...], Training] = field(default_factory=dict)
    _calls: dict[Any, Any] = field(default_factory=dict)

    def adjoint(self, wanted: Wanted) -> Adjoint:
        """The derivative of the step for some inputs and results."""
        if wanted not in self._adjoints:
            self._adjoints[wanted] = adjoint(self.s, wanted)
        return self._adjoints[wanted]

    def training(self, needed: tuple[int, ...]) -> Training:
        """What the forward pass has to keep for the derivatives by some inputs."""
        found = self._training.get(needed)
        if found is None:
            keys = [k for k in self.s.inputs if k[0] in needed]
            a, changing = self.adjoint(everything(self.s, keys)), moving(self.s, keys)
            read = {a.stored[k][0] for k in (*a.needed, *a.later)} if a.reads_outputs else set()
            results = {k[0] for k in (*self.s.updates, *self.s.ys)}
            unread = frozenset(k[0] for k in self.s.inputs) - a.reads(self.s)
            found = Training(bool(a.recomputed), not a.keeps_states, sorted(read), sorted(results - changing), unread)
            self._training[needed] = found
        return found

    def _kernel(self, key: Any, make: Callable[[], Kernel]) -> tuple[Kernel, int]:
        if key not in self._kernels:
            kernel = make()
            self._kernels[key] = kernel, toolchain.function(kernel.text, "kernel")
        return self._kernels[key]

    def group(self, i: int) -> str:
        """What an input is."""
        return "initial" if i < self.carries else "x" if i < self.carries + self.xs else "const"

    def named(self, inputs: Sequence[Any]) -> dict[Any, Tensor]:
        """The inputs' real tensors by the names that kernels know them by."""
        found = {}
        for i, value in enumerate(inputs):
            if isinstance(value, Tensor):
                for part, tensor in real_parts(value).items():
                    found[self.group(i), (i, part)] = tensor
        return found

    def operand(self, name: Any) -> Operand:
        """The operand of a named tensor."""
        group, key = name
        if group in ("y", "grad"):
            return self.s.ys[key][0]
        if group in ("final", "grad_final", "initial", "stored"):
            return self.s.carries[key][0]
        return self.s.inputs[key][0]

    def forward(
        self,
        length: int,
        inputs: Sequence[Any],
        outputs: Sequence[tuple[torch.dtype, tuple[int, ...]]],
        keep: bool,
        first_only: bool = False,
    ) -> tuple[list[Tensor], Run]:
        """Run the loop.

        Args:
            length: number of steps.
            inputs: of the step, the per-step ones with a leading dimension of steps.
            outputs: dtype and shape of what the step returns.
            keep: whether to keep checkpoints.
            first_only: whether one, of the beginning, will do.

        Returns:
            The final carries, then the ys; what `backward` needs.
        """
        given = _settled(inputs)
        key: Any = (length, keep, first_only, cpu_threads.thread_count(), *[x.stride() for x in given])
        p, results = self._prepared(
            key, lambda streams: self._prepare_forward(length, inputs, outputs, keep, first_only, streams)
        )
        addresses = [x.data_ptr() for x in (*given, *results)]
        checkpoints = p.checkpoints.make() if p.checkpoints else None
        p.call.run(addresses, checkpoints)
        return results, Run(p.form, p.chunks, p.segment, checkpoints)

    def _prepare_forward(
        self,
        length: int,
        inputs: Sequence[Any],
        outputs: Sequence[tuple[torch.dtype, tuple[int, ...]]],
        keep: bool,
        first_only: bool,
        streams: bool,
    ) -> _Forward:
        tensors, where, count = self._placed(inputs)
        results = []
        for i, (dtype, shape) in enumerate(outputs):
            room = Room(shape, dtype) if i < self.carries else self._series(length, dtype, shape, tensors)
            results.append(room)
        for i, room in enumerate(results):
            for part, tensor in real_parts(room.shadow()).items():
                name = "final" if i < self.carries else "y", (i, part)
                tensors[name], where[name] = tensor, (count + i, _offset(name[1], tensor))
        layout = Strides(self, tensors)
        form, size = layout.form, state_bytes(self.s, layout.form)
        chunks = self._chunks(layout, length, size)
        along = layout.along(chunks, streams)
        kernel, address = self._kernel(
            ("forward", form, tuple(sorted(along.items())), keep), lambda: forward_kernel(self.s, form, along, keep)
        )
        workers = self._workers(layout, length, chunks)
        segment = self._segment(length, chunks, size) if keep and not first_only else max(length, 1)
        room = Room((layout.blocks(chunks) * -(-length // segment) * chunks * size,), torch.uint8)
        call = Call(kernel, address, layout, length, chunks, segment, workers, tensors, where)
        return _Forward(call, results, form, chunks, segment, room if keep else None)

    def backward(
        self,
        length: int,
        inputs: Sequence[Any],
        grads: Sequence[Tensor | None],
        stored: Mapping[int, Tensor],
        needed: Sequence[int],
        run: Run,
        stale: frozenset[int] = frozenset(),
    ) -> dict[int, Tensor]:
        """The derivatives by inputs.

        Args:
            length, inputs: as in `forward`.
            grads: by the results; None for zeros.
            stored: outputs of the forward pass that hold states, by number.
            needed: the inputs whose derivatives are wanted, by number.
            run: from `forward`.
            stale: the inputs that have been written into since.

        Returns:
            The derivatives, by number; one that is missing is zero.

        Raises:
            StaleError: where the numbers of one of these are needed.
        """
        given = _settled([*inputs, *grads, *stored.values()])
        pattern = tuple(g is not None for g in grads), tuple(needed), run.form, run.chunks, run.segment
        strides = [x.stride() for x in given]
        key: Any = ("back", length, pattern, cpu_threads.thread_count(), *strides)
        p, results = self._prepared(
            key, lambda streams: self._prepare_backward(length, inputs, grads, stored, needed, run, streams)
        )
        if stale and stale & p.a.reads(self.s):
            raise StaleError
        found = dict(zip(p.found, results, strict=True))
        addresses = [x.data_ptr() for x in (*given, *results)]
        for i, part in p.zeros:
            real_parts(found[i])[part].zero_()
        copies = [room.make().copy_(real_parts(inputs[i])[part]) for (i, part), room in p.copies.items()]
        factors = [room.make() for room in p.factors]
        partial = [room.make() for room in p.partial.values()]
        addresses += [x.data_ptr() for group in (copies, factors, partial) for x in group]
        p.call.run(addresses, run.checkpoints)
        for (i, part), tensor in zip(p.partial, partial, strict=True):
            real_parts(found[i])[part].copy_(tensor.sum(0) if p.call.workers > 1 else tensor[0])
        for (i, part), pairs in p.a.products.items():
            real_parts(found[i])[part].copy_(self._product(p.a, pairs, factors))
        return found

    def _prepare_backward(
        self,
        length: int,
        inputs: Sequence[Any],
        grads: Sequence[Tensor | None],
        stored: Mapping[int, Tensor],
        needed: Sequence[int],
        run: Run,
        streams: bool,
    ) -> _Backward:
        keys = frozenset(k for k in self.s.inputs if k[0] in needed)
        results = [i for i, g in enumerate(grads) if g is not None]
        wanted = Wanted(
            keys,
            frozenset(k for k in self.s.updates if k[0] in results),
            frozenset(k for k in self.s.ys if k[0] in results),
        )
        a = self.adjoint(wanted)
        tensors, where, count = self._placed(inputs)
        for i, g in enumerate(grads):
            for part, tensor in real_parts(g).items() if g is not None else ():
                name = "grad_final" if i < self.carries else "grad", (i, part)
                tensors[name], where[name] = tensor, (count + _position(grads, i), _offset(name[1], tensor))
        count += len(results)
        if a.reads_outputs:
            for key in {*a.needed, *a.later}:
                y = a.stored[key]
                tensor = real_parts(stored[y[0]])[y[1]]
                tensors["stored", key] = tensor
                where["stored", key] = count + list(stored).index(y[0]), _offset(y, tensor)
        count += len(stored)
        found = {i: _like(inputs[i]) for i in needed if any(a.has_change(k) for k in self.s.inputs if k[0] == i)}
        shadows = {i: real_parts(room.shadow()) for i, room in found.items()}
        zeros = []
        for number, i in enumerate(found):
            for part, tensor in shadows[i].items():
                if not a.has_change((i, part)):
                    zeros.append((i, part))
                    continue
                where["change", (i, part)] = count + number, _offset((i, part), tensor)
                if len(self.s.inputs[i, part][0].lanes) == len(self.s.program.lanes):
                    tensors["change", (i, part)] = tensor
        count += len(found)
        factors = self._factors(a, length)
        tensors |= {("factor", i): room.shadow() for i, room in enumerate(factors)}
        layout = Strides(self, tensors, run.form.simd, a)
        copies = layout.fit_states()
        where |= {name: (count + n, 0) for n, name in enumerate(copies)}
        count += len(copies)
        where |= {("factor", i): (count + i, 0) for i in range(len(factors))}
        count += len(factors)
        workers = self._workers(layout, length, run.chunks)
        partial: dict[Any, Partial] = {}
        owned = set()
        for i in found:
            for key in (k for k in keys if k[0] == i and ("change", k) not in tensors and a.changes.get(k) is not None):
                name = "change", key
                if layout.owns(name, shadows[i][key[1]], run.chunks):
                    owned.add(key)
                    continue
                partial[name] = layout.partial(name, [workers, length] if self.group(i) == "x" else [workers])
                where[name] = count + len(partial) - 1, 0
        along = layout.along(run.chunks, streams)
        kernel, address = self._kernel(
            ("backward", run.form, wanted, tuple(sorted(along.items())), frozenset(owned)),
            lambda: backward_kernel(self.s, a, wanted, run.form, along, frozenset(owned)),
        )
        given = {**tensors, **{name: room.shadow() for name, room in partial.items()}}
        call = Call(kernel, address, layout, length, run.chunks, run.segment, workers, given, where)
        of_inputs = {name[1]: room for name, room in copies.items()}
        return _Backward(call, a, found, zeros, of_inputs, factors, {name[1]: room for name, room in partial.items()})

    def _prepared(self, key: Any, make: Callable[[bool], Any]) -> tuple[Any, list[Tensor]]:
        """What is prepared for a key, and memory for its results; where that begins within a line, what is prepared
        without writing past the caches."""
        found = self._known_call((key, True), make)
        results = [room.make() for room in found.results]
        if found.call.streams and any(x.data_ptr() % LINE for x in results):
            found = self._known_call((key, False), make)
        return found, results

    def _known_call(self, key: tuple[Any, bool], make: Callable[[bool], Any]) -> Any:
        found = self._calls.get(key)
        if found is None:
            if len(self._calls) >= _MOST_CALLS:
                self._calls.clear()
            found = self._calls[key] = make(key[1])
        return found

    def _placed(self, inputs: Sequence[Any]) -> tuple[dict[Any, Tensor], dict[Any, tuple[int, int]], int]:
        """The inputs' real tensors by name, where they are among the addresses of a call, and how many these are."""
        tensors = self.named(inputs)
        where = {name: (_position(inputs, name[1][0]), _offset(name[1], x)) for name, x in tensors.items()}
        return tensors, where, sum(isinstance(x, Tensor) for x in inputs)

    def _factors(self, a: Adjoint, length: int) -> list[Room]:
        """Room for the factors of all steps."""
        found = []
        for node in a.factors:
            operand = factor_operand(node, self.s.program.lanes)
            found.append(Room((length, *(leaf.size for dim in operand.dims for leaf in dim)), operand.dtype))
        return found

    def _product(self, a: Adjoint, pairs: Sequence[tuple[Factor, Factor]], given: Sequence[Tensor]) -> Tensor:
        """A sum of outer products over all steps and lanes."""
        total: Tensor | None = None
        for pair in pairs:
            sides, terms = [], []
            for number, where in pair:
                lanes = sorted(a.factors[number].lanes)
                sides.append([0, *(1 + lane for lane in lanes), *(1 + len(self.s.program.lanes) + p for p in where)])
                terms.append(given[number])
            out = sorted(p for (_, where) in pair for p in where)
            result = [1 + len(self.s.program.lanes) + p for p in out]
            value = torch.einsum(terms[0], sides[0], terms[1], sides[1], result)
            total = value if total is None else total + value
        assert total is not None
        return total

    def _series(self, length: int, dtype: torch.dtype, shape: tuple[int, ...], given: Mapping[Any, Tensor]) -> Room:
        """An output for all steps, with time where the largest of the per-step inputs has it."""
        largest = max((t for (g, _), t in given.items() if g == "x"), key=lambda t: t.numel(), default=None)
        sizes = (length, *shape)
        if largest is None or largest.dim() < 2 or not shape or largest.shape[1] != shape[0] or shape[0] < 2:
            return Room(sizes, dtype)
        if largest.stride(1) <= largest.stride(0):
            return Room(sizes, dtype)
        # Not a view: whoever takes the result may write into it.
        inner = math.prod(shape[1:])
        rest = [math.prod(shape[d + 1 :]) for d in range(1, len(shape))]
        return Room(sizes, dtype, (inner, length * inner, *rest))

    def _threads(self, layout: Strides, length: int) -> int:
        vectors = -(-layout.size // layout.form.width)
        work = length * vectors * layout.outer * self.cost
        return cpu_threads.thread_count() if work > _PARALLEL else 1

    def _workers(self, layout: Strides, length: int, chunks: int) -> int:
        """How many workers share the blocks."""
        return min(self._threads(layout, length), layout.blocks(chunks))

    def _chunks(self, layout: Strides, length: int, state: int) -> int:
        """How many vectors a block has: few enough for their states to stay in the cache, and for all workers to have
        as many blocks."""
        threads = self._threads(layout, length)
        vectors, outer = -(-layout.size // layout.form.width), layout.outer
        chunks = max(1, min(vectors, _NEAR // max(state * 36, 64), 64))
        parts = -(-vectors // chunks)
        if outer * parts % threads and outer * parts < 8 * threads:
            parts = -(-outer * parts // threads) * threads // outer
        return -(-vectors // min(max(parts, 1), vectors))

    @functools.cached_property
    def cost(self) -> int:
        """Instructions of a step for one vector, roughly."""
        nodes = ancestors(a.node for group in (self.s.updates, self.s.ys) for _, a in group.values())
        return 4 + sum(own_cost(n) * math.prod(n.shape + n.red) for n in nodes if n.op in ("map", "reduce"))

    def _segment(self, length: int, chunks: int, state: int) -> int:
        """Steps between two checkpoints: as many as have room in the cache."""
        room = _NEAR // max(1, 2 * chunks * state)
        return max(4, min(room, 128, max(length, 1)))


def _settled(values: Sequence[Any]) -> list[Tensor]:
    """The tensors among some values, their numbers in memory as they are."""
    found = []
    for x in values:
        if isinstance(x, Tensor):
            found.append(x.resolve_conj().resolve_neg() if x.is_conj() or x.is_neg() else x)
    return found


def _position(values: Sequence[Any], i: int) -> int:
    """The number of a value among those that are tensors."""
    return sum(isinstance(x, Tensor) for x in values[:i])


def _offset(key: Key, part: Tensor) -> int:
    """Bytes from where a complex tensor begins to one of its parts."""
    return part.element_size() if key[1] == "im" else 0


def _like(tensor: Tensor) -> Room:
    """Room for a derivative, laid out as the tensor where that has no overlaps."""
    size = tuple(tensor.shape)
    return Room(size, tensor.dtype, None if tensor.is_contiguous() else dense(size, tensor.stride()))
