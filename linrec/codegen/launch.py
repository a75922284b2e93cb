"""Calls kernels: chooses the lane that vectors run along, how lanes are cut into blocks, where results lie in memory,
and fills the table of addresses and strides."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linrec.codegen import toolchain
from linrec.codegen.adjoint import Adjoint, Factor, Wanted, adjoint, factor_operand, moving, partial_dtype
from linrec.codegen.backward import backward_kernel
from linrec.codegen.elements import KINDS
from linrec.codegen.forward import forward_kernel
from linrec.codegen.frame import Kernel, padded
from linrec.codegen.lanes import Operand
from linrec.codegen.llvm import size_of
from linrec.codegen.memory import HEADER, Form
from linrec.codegen.program import ancestors
from linrec.codegen.schedule import own_cost
from linrec.codegen.signature import Signature
from linrec.ops import cpu_threads
from linrec.ops.buffers import buffers

_NEAR = 1 << 19
"""Bytes that a worker's memory should not be larger than: what the second cache holds, or half of it."""
_PARALLEL = 200_000
"""Instructions from which on it pays to start threads."""
_MOST_LAYOUTS = 256


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


@dataclass
class Compiled:
    """The kernels of a step for inputs of some shapes and dtypes.

    Attributes:
        s: the step.
        carries, xs: how many of each it has; the rest are constants.
        layouts: what was found out about strides that were seen before.
    """

    s: Signature
    carries: int
    xs: int
    _kernels: dict[Any, tuple[Kernel, int]] = field(default_factory=dict)
    _adjoints: dict[Wanted, Adjoint] = field(default_factory=dict)
    _moving: dict[frozenset[int], set[int]] = field(default_factory=dict)
    layouts: dict[Any, tuple[dict[Any, dict[int, int]], dict[Any, list[int]], Form]] = field(default_factory=dict)

    def adjoint(self, wanted: Wanted) -> Adjoint:
        """The derivative of the step for some inputs and results."""
        if wanted not in self._adjoints:
            self._adjoints[wanted] = adjoint(self.s, wanted)
        return self._adjoints[wanted]

    def moving(self, needed: frozenset[int]) -> set[int]:
        """The results that change with some inputs, by number."""
        if needed not in self._moving:
            self._moving[needed] = moving(self.s, [k for k in self.s.inputs if k[0] in needed])
        return self._moving[needed]

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
        tensors = self.named(inputs)
        results = []
        for i, (dtype, shape) in enumerate(outputs):
            if i < self.carries:
                results.append(buffers.empty(shape, dtype))
            else:
                results.append(self._series(length, dtype, shape, tensors))
        for i, result in enumerate(results):
            for part, tensor in real_parts(result).items():
                tensors["final" if i < self.carries else "y", (i, part)] = tensor
        layout = _Layout(self, tensors)
        form = layout.form
        along = layout.along(form.simd)
        kernel, address = self._kernel(
            ("forward", form, tuple(sorted(along.items())), keep), lambda: forward_kernel(self.s, form, along, keep)
        )
        chunks = self._chunks(layout, length, kernel.state)
        workers = self._workers(layout, length, chunks)
        segment = self._segment(length, chunks, kernel.state) if keep and not first_only else max(length, 1)
        segments = -(-length // segment)
        blocks = layout.blocks(chunks)
        checkpoints = buffers.empty([blocks * segments * chunks * kernel.state], torch.uint8) if keep else None
        _call(kernel, address, layout, tensors, length, chunks, segment, workers, checkpoints, {})
        return results, Run(form, chunks, segment, checkpoints)

    def backward(
        self,
        length: int,
        inputs: Sequence[Any],
        grads: Sequence[Tensor | None],
        stored: Mapping[int, Tensor],
        needed: Sequence[int],
        run: Run,
    ) -> dict[int, Tensor]:
        """The derivatives by inputs.

        Args:
            length, inputs: as in `forward`.
            grads: by the results; None for zeros.
            stored: outputs of the forward pass that hold states, by number.
            needed: the inputs whose derivatives are wanted, by number.
            run: from `forward`.

        Returns:
            The derivatives, by number; one that is missing is zero.
        """
        keys = frozenset(k for k in self.s.inputs if k[0] in needed)
        results = [i for i, g in enumerate(grads) if g is not None]
        wanted = Wanted(
            keys,
            frozenset(k for k in self.s.updates if k[0] in results),
            frozenset(k for k in self.s.ys if k[0] in results),
        )
        a = self.adjoint(wanted)
        tensors = self.named(inputs)
        for i, g in enumerate(grads):
            if g is not None:
                for part, tensor in real_parts(g).items():
                    tensors["grad_final" if i < self.carries else "grad", (i, part)] = tensor
        if a.reads_outputs:
            for key in {*a.needed, *a.later}:
                y = a.stored[key]
                tensors["stored", key] = real_parts(stored[y[0]])[y[1]]
        found: dict[int, Tensor] = {}
        for i in needed:
            if any(a.has_change(k) for k in self.s.inputs if k[0] == i):
                found[i] = _like(inputs[i])
                for part, tensor in real_parts(found[i]).items():
                    if not a.has_change((i, part)):
                        tensor.zero_()
                    elif len(self.s.inputs[i, part][0].lanes) == len(self.s.program.lanes):
                        tensors["change", (i, part)] = tensor
        factors = self._factors(a, length)
        tensors |= factors
        layout = _Layout(self, tensors, run.form.simd, a)
        layout.fit_states()
        workers = self._workers(layout, length, run.chunks)
        partial: dict[Any, Tensor] = {}
        owned = set()
        for i in found:
            for key in (k for k in keys if k[0] == i and ("change", k) not in tensors and a.changes.get(k) is not None):
                name = "change", key
                if layout.owns(name, real_parts(found[i])[key[1]], run.chunks):
                    owned.add(key)
                    continue
                partial[name] = layout.partial(name, [workers, length] if self.group(i) == "x" else [workers])
        along = layout.along(run.form.simd)
        kernel, address = self._kernel(
            ("backward", run.form, wanted, tuple(sorted(along.items())), frozenset(owned)),
            lambda: backward_kernel(self.s, a, wanted, run.form, along, frozenset(owned)),
        )
        _call(kernel, address, layout, tensors, length, run.chunks, run.segment, workers, run.checkpoints, partial)
        for (_, (i, part)), tensor in partial.items():
            real_parts(found[i])[part].copy_(tensor.sum(0) if workers > 1 else tensor[0])
        for (i, part), pairs in a.products.items():
            real_parts(found[i])[part].copy_(self._product(a, pairs, factors))
        return found

    def _factors(self, a: Adjoint, length: int) -> dict[Any, Tensor]:
        """Room for the factors of all steps."""
        found = {}
        for i, node in enumerate(a.factors):
            operand = factor_operand(node, self.s.program.lanes)
            sizes = [leaf.size for dim in operand.dims for leaf in dim]
            found["factor", i] = buffers.empty([length, *sizes], operand.dtype)
        return found

    def _product(self, a: Adjoint, pairs: Sequence[tuple[Factor, Factor]], given: Mapping[Any, Tensor]) -> Tensor:
        """A sum of outer products over all steps and lanes."""
        total: Tensor | None = None
        for pair in pairs:
            sides, terms = [], []
            for number, where in pair:
                lanes = sorted(a.factors[number].lanes)
                sides.append([0, *(1 + lane for lane in lanes), *(1 + len(self.s.program.lanes) + p for p in where)])
                terms.append(given["factor", number])
            out = sorted(p for (_, where) in pair for p in where)
            result = [1 + len(self.s.program.lanes) + p for p in out]
            value = torch.einsum(terms[0], sides[0], terms[1], sides[1], result)
            total = value if total is None else total + value
        assert total is not None
        return total

    def _series(self, length: int, dtype: torch.dtype, shape: tuple[int, ...], given: Mapping[Any, Tensor]) -> Tensor:
        """An output for all steps, with time where the largest of the per-step inputs has it."""
        largest = max((t for (g, _), t in given.items() if g == "x"), key=lambda t: t.numel(), default=None)
        sizes = (length, *shape)
        if largest is None or largest.dim() < 2 or not shape or largest.shape[1] != shape[0] or shape[0] < 2:
            return buffers.empty(sizes, dtype)
        if largest.stride(1) <= largest.stride(0):
            return buffers.empty(sizes, dtype)
        # Not a view: whoever takes the result may write into it.
        inner = math.prod(shape[1:])
        rest = [math.prod(shape[d + 1 :]) for d in range(1, len(shape))]
        return buffers.empty(sizes, dtype, (inner, length * inner, *rest))

    def _threads(self, layout: _Layout, length: int) -> int:
        vectors = -(-layout.size // layout.form.width)
        work = length * vectors * layout.outer * self.cost
        return cpu_threads.thread_count() if work > _PARALLEL else 1

    def _workers(self, layout: _Layout, length: int, chunks: int) -> int:
        """How many workers share the blocks."""
        return min(self._threads(layout, length), layout.blocks(chunks))

    def _chunks(self, layout: _Layout, length: int, state: int) -> int:
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


def _like(tensor: Tensor) -> Tensor:
    """Memory for a derivative, laid out as the tensor where that has no overlaps."""
    return buffers.like(tensor.resolve_conj().resolve_neg())


class _Layout:
    """Sizes of the lanes, and each tensor's strides along them."""

    def __init__(
        self, compiled: Compiled, tensors: dict[Any, Tensor], simd: int | None = -1, a: Adjoint | None = None
    ) -> None:
        self.compiled = compiled
        self.adjoint = a
        self.tensors = tensors
        self.sizes = list(compiled.s.program.lanes)
        self.lanes: dict[Any, dict[int, int]] = {}
        self.inner: dict[Any, list[int]] = {}
        key = (id(a), simd, tuple((name, tensor.stride()) for name, tensor in tensors.items()))
        known = compiled.layouts.get(key)
        if known is None:
            for name, tensor in tensors.items():
                self._read(name, tensor)
            form = self._form(self._best() if simd == -1 else simd)
            if len(compiled.layouts) < _MOST_LAYOUTS:
                compiled.layouts[key] = dict(self.lanes), dict(self.inner), form
        else:
            self.lanes, self.inner, form = dict(known[0]), dict(known[1]), known[2]
        self.form = form
        self.size = self.sizes[self.form.simd] if self.form.simd is not None else 1
        self.outer = math.prod(self.sizes) // self.size

    def _read(self, name: Any, tensor: Tensor) -> None:
        if name[0] == "factor" and self.adjoint is not None:
            operand = factor_operand(self.adjoint.factors[name[1]], self.compiled.s.program.lanes)
        else:
            operand = self.compiled.operand(name)
        strides = tensor.stride()[tensor.dim() - len(operand.dims) :]
        lanes, inner = {}, []
        for dim, stride in zip(operand.dims, strides, strict=True):
            own = []
            for leaf in reversed(dim):
                own.append((leaf, stride))
                stride *= leaf.size
            for leaf, s in reversed(own):
                if leaf.lane is None:
                    inner.append(s)
                else:
                    lanes[leaf.lane] = s
        self.lanes[name], self.inner[name] = lanes, inner

    def fit_states(self) -> None:
        """Copy initial states whose strides along the vectors are of another kind than those of the states put out."""
        simd = self.form.simd
        for name in [n for n in self.tensors if n[0] == "stored"]:
            first = "initial", name[1]
            if simd is None or simd not in self.lanes[name] or first not in self.tensors:
                continue
            if (self.lanes[name][simd] == 1) != (self.lanes[first][simd] == 1):
                like = torch.empty_like(self.tensors[name][0])
                if like.stride() != self.tensors[name][0].stride():
                    like = torch.empty_strided(like.shape, self.tensors[name][0].stride(), dtype=like.dtype)
                self.tensors[first] = like.copy_(self.tensors[first])
                self._read(first, self.tensors[first])

    def along(self, simd: int | None) -> dict[Any, str]:
        """Whether each tensor's elements are next to each other along a lane."""
        return {
            n: "unit" if s[simd] == 1 else "strided" for n, s in self.lanes.items() if simd is not None and simd in s
        }

    def _best(self) -> int | None:
        """The lane along which vectors cost least."""
        if not self.sizes:
            return None
        return min(range(len(self.sizes)), key=self._cost)

    def _cost(self, lane: int) -> float:
        width = self._width(lane)
        total = float(self.compiled.cost)
        for name, strides in self.lanes.items():
            if name[0] in ("x", "y"):
                size = math.prod(self.compiled.operand(name).shape)
                total += size * (0.5 if lane not in strides else 1 if strides[lane] == 1 else 2 * width)
        return total * -(-self.sizes[lane] // width) / self.sizes[lane]

    def _width(self, lane: int | None) -> int:
        if lane is None:
            return 1
        operands = [o for group in self.compiled.s.inputs.values() for o in group[:1]]
        most = max((size_of(KINDS[o.dtype]) for o in operands if o.dtype.is_floating_point), default=4)
        widest = toolchain.vector_bytes() // most
        return min(widest, 1 << (self.sizes[lane] - 1).bit_length())

    def _form(self, simd: int | None) -> Form:
        width = self._width(simd)
        masked = simd is not None and self.sizes[simd] % width != 0
        return Form(width, simd, masked, len(self.sizes))

    def partial(self, name: Any, lead: Sequence[int]) -> Tensor:
        """Zeros for sums of a derivative, `lead` sizes first; the lane along the vectors is the fast dimension."""
        operand = self.compiled.operand(name)
        shape = [math.prod(leaf.size for leaf in dim) for dim in operand.dims]
        last = [d for d, dim in enumerate(operand.dims) if any(x.lane == self.form.simd for x in dim)]
        order = [d for d in range(len(shape)) if d not in last] + last
        tensor = torch.zeros([*lead, *(shape[d] for d in order)], dtype=partial_dtype(operand.dtype))
        back = [len(lead) + order.index(d) for d in range(len(shape))]
        tensor = tensor.permute(*range(len(lead)), *back)
        self._read(name, tensor)
        return tensor

    def owns(self, name: Any, tensor: Tensor, chunks: int) -> bool:
        """Whether one block makes each element of a derivative: it lacks the lane along the vectors, and no other, and
        a block has all of that lane. The tensor is then where it goes."""
        operand, simd = self.compiled.operand(name), self.form.simd
        if set(range(len(self.sizes))) - operand.lanes != {simd} or self.size > self.form.width * chunks:
            return False
        self._read(name, tensor)
        if self.inner[name] and self.inner[name][-1] != 1:
            return False
        self.tensors[name] = tensor
        return True

    def blocks(self, chunks: int) -> int:
        """Number of blocks of so many vectors."""
        return self.outer * -(-self.size // (self.form.width * chunks))


def _call(
    kernel: Kernel,
    address: int,
    layout: _Layout,
    tensors: Mapping[Any, Tensor],
    length: int,
    chunks: int,
    segment: int,
    workers: int,
    checkpoints: Tensor | None,
    partial: Mapping[Any, Tensor],
) -> None:
    """Fill a kernel's table and run it."""
    need = kernel.fixed + chunks * (kernel.per_chunk + (segment + 1) * kernel.per_step)
    need = padded(need)
    memory = buffers.empty([workers * need + 64], torch.uint8)
    head = {
        "ticket": 0,
        "workers": workers,
        "blocks": layout.blocks(chunks),
        "chunks": chunks,
        "lanes": layout.size,
        "lane_blocks": -(-layout.size // (kernel.form.width * chunks)),
        "steps": length,
        "segment": segment,
        "segments": -(-length // segment),
        "workspace": -(-memory.data_ptr() // 64) * 64,
        "workspace_bytes": need,
        "checkpoints": 0 if checkpoints is None else checkpoints.data_ptr(),
    }
    table = [head[name] for name in HEADER] + layout.sizes
    for slot in kernel.slots:
        tensor = partial[slot.name] if slot.partial else tensors[slot.name]
        lanes, inner = layout.lanes[slot.name], layout.inner[slot.name]
        table.append(tensor.data_ptr())
        if slot.partial:
            table.append(tensor.stride(0))
        if slot.timed:
            table.append(tensor.stride(1 if slot.partial else 0))
        table += [lanes[lane] for lane in slot.lanes] + inner
    packed = torch.tensor(table, dtype=torch.int64)
    cpu_threads.run(address, packed.data_ptr(), workers)
