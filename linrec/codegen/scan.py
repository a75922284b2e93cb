"""`CompiledScan`: a scan whose loop runs as generated machine code on a CPU, values and first derivatives, and by the
torch form that it is given everywhere else. ``LINREC_CODEGEN`` says when: "wait" (the default) compiles at the first
call, "background" lets the torch form serve until a thread has compiled, "off" never compiles."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._C._dynamo.guards import GlobalStateGuard, TensorGuards
from torch._subclasses.fake_tensor import FakeTensorMode

from linrec.codegen import arrangement, contraction, pointwise, toolchain
from linrec.codegen.adjoint import everything
from linrec.codegen.axes import Unsupported
from linrec.codegen.lanes import program
from linrec.codegen.launch import Compiled, Run, StaleError
from linrec.codegen.signature import Signature
from linrec.codegen.translate import translate
from linrec.ir.extension import PASSING
from linrec.ir.scan import step_shapes
from linrec.ir.sizes import hint
from linrec.ops.opaque import Opaque, Shape
from linrec.ops.plain import are_plain, guards_of, unwatched
from linrec.ops.precision import own_precision
from linrec.ops.switch import Switch

_RULES = (arrangement, contraction, pointwise)  # imported for the rules that they register
_MOST = 32
"""Shapes of inputs that a scan keeps kernels for; what comes after runs by the torch form."""

_compiling = threading.Lock()


def supported(step: fx.GraphModule, carries: int, xs: int) -> str | None:
    """Whether a kernel can be written for a step.

    Args:
        step: the step's graph, with fake tensors in ``meta["val"]``; symbolic sizes are taken at their hints.
        carries, xs: number of carries and of per-step inputs.

    Returns:
        None, or the reason why not.
    """
    if not toolchain.available():
        return "llvmlite is not installed"
    values = []
    for node in step.graph.nodes:
        if node.op == "placeholder":
            value = node.meta.get("val")
            if isinstance(value, Tensor) and value.device.type not in ("cpu", "meta"):
                return f"a tensor is on a device of type {value.device.type}"
            values.append(_like(value) if isinstance(value, Tensor) else hint(value))
    try:
        compiled, _ = _build(step, carries, xs, values)
        compiled.adjoint(everything(compiled.s, set(compiled.s.inputs)))
    except Unsupported as reason:
        return str(reason)
    return None


def _like(value: Tensor) -> Tensor:
    return torch.empty([hint(s) for s in value.shape], dtype=value.dtype, device="meta")


Outputs = list[tuple[torch.dtype, tuple[int, ...]]]


def _build(step: fx.GraphModule, carries: int, xs: int, values: Sequence[Any]) -> tuple[Compiled, Outputs]:
    """Translate a step for inputs like some values; also what it returns: dtypes and shapes."""
    given = iter(values)
    found: dict[fx.Node, Any] = {}
    outputs: Outputs = []
    with FakeTensorMode(), torch.no_grad():
        for node in step.graph.nodes:
            if node.op == "placeholder":
                value = next(given)
                if isinstance(value, Tensor):
                    with torch._C.DisableTorchFunction():  # a mode may create another dtype than it is asked for
                        value = torch.empty(tuple(value.shape), dtype=value.dtype, device="cpu")
                found[node] = value
            elif node.op == "call_function":
                args, kwargs = fx.map_arg((node.args, node.kwargs), found.__getitem__)
                found[node] = node.target(*args, **kwargs)
            elif node.op == "output":
                outputs = [(found[n].dtype, tuple(found[n].shape)) for n in node.args[0]]
            else:
                raise Unsupported(f"the step holds a node of kind {node.op}")
    signature = Signature.of(program(translate(step, found, carries)), carries, xs)
    return Compiled(signature, carries, xs), outputs


class Like:
    """What tensors were like that kernels could read: of others, torch's guards are quick to tell whether they are."""

    def __init__(self, values: Sequence[Any]) -> None:
        self._count, self._state = len(values), GlobalStateGuard()
        self._numbers = [(k, type(x), x) for k, x in enumerate(values) if not isinstance(x, Tensor)]
        tensors = [x for x in values if isinstance(x, Tensor)]
        self._guards: TensorGuards | None = None
        if len({id(x) for x in tensors}) == len(tensors):  # the guards take each tensor once
            self._guards = guards_of(tensors)

    def serves(self, values: Sequence[Any]) -> bool:
        """Whether these are plain tensors of the same types, sizes and demands, the same numbers, and nothing else
        watches than did."""
        if self._guards is None or len(values) != self._count:
            return False
        tensors = values
        if self._numbers:
            if not all(type(values[k]) is kind and values[k] == x for k, kind, x in self._numbers):
                return False
            tensors = [x for x in values if isinstance(x, Tensor)]
            if len(tensors) != self._count - len(self._numbers):
                return False
        return (
            self._state.check()
            and self._guards.check(*tensors)
            and not torch._C._len_torch_dispatch_stack()
            and not torch._C._len_torch_function_stack()
            and torch.autograd.forward_ad._current_level < 0
            and _mode() != "off"
        )


class CompiledScan(Opaque):
    """Same call as `linrec.ir.scan.Scan`: ``forward(length, carries, xs, consts) -> (*final_carries, *ys)``.

    Args:
        step: the step's graph: ``(*carries, *xs, *consts) -> (*new_carries, *ys)``.
        carries, xs: number of carries and of per-step inputs.
        fallback: a module with the same call. It runs wherever no kernel can: on other devices, for dtypes other than
            floating point, complex, integers and bools, inside ``torch.func`` transforms, tracing and autocast, with
            tensor subclasses or forward-mode derivatives, and for second derivatives.

    Attributes:
        reason: why no kernel could be written for the last inputs that none could be written for; None if there were
            none.
    """

    def __init__(self, step: fx.GraphModule, carries: int, xs: int, fallback: nn.Module) -> None:
        super().__init__()
        self.step = step
        self.fallback = fallback
        self.carries = carries
        self.xs = xs
        self.reason: str | None = None
        self._kernels: dict[Any, tuple[Compiled, Outputs] | None] = {}
        self._last: tuple[Like, int, Compiled, Outputs, bool] | None = None
        self._last_grads: Like | None = None

    def __getstate__(self) -> dict[str, Any]:
        # Addresses of functions mean nothing elsewhere.
        return self.__dict__ | {"_kernels": {}, "_last": None, "_last_grads": None}

    def shapes(self, length: int, carries: Sequence[Any], xs: Sequence[Tensor], consts: Sequence[Any]) -> list[Shape]:
        """Of `run`."""
        return step_shapes(self.step, self.carries, length, [*carries, *(x[0] for x in xs), *consts])

    def run(self, length: int, carries: Sequence[Any], xs: Sequence[Tensor], consts: Sequence[Any]) -> tuple[Any, ...]:
        """Run the loop: ``(*final_carries, *ys)``, every y of shape (length, ...)."""
        inputs = (*carries, *xs, *consts)
        last = self._last
        if last is None or last[1] != length or not last[0].serves(inputs):
            found = self._find(length, inputs) if _plain(inputs) else None
            if found is None:
                return tuple(self.fallback(length, carries, xs, consts))
            differentiated = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in inputs)
            last = self._last = Like(inputs), length, *found, differentiated
        _, _, compiled, outputs, differentiated = last
        try:
            if differentiated:
                return tuple(_apply(self, compiled, length, outputs, *inputs))
            with torch._C.DisableTorchFunction():
                return tuple(compiled.forward(length, inputs, outputs, keep=False)[0])
        except PASSING:
            raise
        except Exception as error:  # no kernel could be made for them: the torch form is there
            self.reason = f"{type(error).__name__}: {error}"
            return tuple(self.fallback(length, carries, xs, consts))

    def takes(self, grads: Sequence[Tensor]) -> bool:
        """Whether the derivatives by results are such that kernels can read them."""
        if self._last_grads is not None and self._last_grads.serves(grads):
            return True
        plain = _plain(grads)
        self._last_grads = Like(grads) if plain else None
        return plain

    def _find(self, length: int, inputs: Sequence[Any]) -> tuple[Compiled, Outputs] | None:
        first, last = self.carries, self.carries + self.xs
        key = []
        for i, x in enumerate(inputs):
            if not isinstance(x, Tensor):
                key.append(x)
                continue
            shape = x.shape
            if first <= i < last:
                if not shape or shape[0] != length:
                    return None
                shape = shape[1:]
            key.append((x.dtype, shape))
        if length < 1:
            return None
        # A mode may compute in another precision than the step's casts say.
        whole = (tuple(key), torch._C._len_torch_function_stack())
        if whole not in self._kernels:
            if _mode() == "background":
                self._start(whole, inputs)
                return None
            with _compiling:
                self._make(whole, inputs)
        return self._kernels[whole]

    def _make(self, key: Any, inputs: Sequence[Any]) -> None:
        if key in self._kernels:
            return
        if len(self._kernels) >= _MOST:
            self.reason = f"inputs of more than {_MOST} shapes"
            self._kernels[key] = None
            return
        values = [
            x[0] if isinstance(x, Tensor) and self.carries <= i < self.carries + self.xs else x
            for i, x in enumerate(inputs)
        ]
        try:
            if any(isinstance(v, Tensor) and v.numel() == 0 for v in values):
                raise Unsupported("a tensor without elements")
            self._kernels[key] = _build(self.step, self.carries, self.xs, values)
        except Exception as error:  # whatever goes wrong, the torch form is there
            self.reason = str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"
            self._kernels[key] = None

    def _start(self, key: Any, inputs: Sequence[Any]) -> None:
        """Compile in a thread, at a short length; until then the torch form runs."""
        pending = self.__dict__.setdefault("_pending", set())
        if key in pending:
            return
        pending.add(key)
        last = self.carries + self.xs
        short = []
        for i, x in enumerate(inputs):
            x = x[:2] if isinstance(x, Tensor) and self.carries <= i < last else x
            short.append(x.detach().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x)

        def work() -> None:
            with _compiling:
                made = CompiledScan(self.step, self.carries, self.xs, self.fallback)
                made._make(key, short)
                found = made._kernels[key]
                try:
                    if found is not None:
                        _warm_up(made, found, short, self.carries)
                except Exception as error:
                    made.reason, found = f"{type(error).__name__}: {error}", None
                self.reason = made.reason
                self._kernels[key] = found
                pending.discard(key)

        threading.Thread(target=work, name="linrec-codegen", daemon=True).start()


def _warm_up(scan: CompiledScan, found: tuple[Compiled, Outputs], inputs: Sequence[Any], carries: int) -> None:
    """Compile the kernels of a training step."""
    length = 2
    results = _Loop.apply(scan, found[0], length, found[1], *inputs)  # type: ignore[no-untyped-call]
    moving = [r for r in results[carries:] if r.requires_grad] or [r for r in results if r.requires_grad]
    leaves = [x for x in inputs if isinstance(x, Tensor) and x.requires_grad]
    if moving:
        torch.autograd.grad(moving, leaves, [torch.zeros_like(r) for r in moving], allow_unused=True)


_kernels = Switch()


def torch_forms() -> contextlib.AbstractContextManager[None]:
    """In the block, this thread runs the torch form of every loop."""
    return _kernels.off()


def _mode() -> str:
    if _kernels.is_off:
        return "off"
    return os.environ.get("LINREC_CODEGEN", "wait")


def _plain(values: Sequence[Any]) -> bool:
    """Whether all are numbers or plain tensors in memory, with nothing watching torch's operators."""
    if _mode() == "off" or not toolchain.available() or torch.is_autocast_enabled("cpu") or not unwatched():
        return False
    tensors = []
    for x in values:
        if isinstance(x, Tensor):
            tensors.append(x)
        elif type(x) not in _NUMBERS:
            return False
    return are_plain(tensors, ("cpu",))


_NUMBERS = (int, float, bool)


class _Loop(torch.autograd.Function):
    """The compiled loop as one operation, whose derivative is the compiled loop back."""

    @staticmethod
    def forward(
        ctx: Any, scan: CompiledScan, compiled: Compiled, length: int, outputs: Outputs, *inputs: Any
    ) -> tuple[Tensor, ...]:
        needs = ctx.needs_input_grad
        needed = tuple([i for i, x in enumerate(inputs) if needs[4 + i] and isinstance(x, Tensor)])
        with torch._C.DisableTorchFunction():
            t = compiled.training(needed)
            results, run = compiled.forward(length, inputs, outputs, t.keep, t.first_only)
        ctx.set_materialize_grads(False)
        ctx.notices_writes = True  # so that results need not be copied for a caller that may write into them
        if t.fixed:
            ctx.mark_non_differentiable(*[results[i] for i in t.fixed])
        ctx.scan, ctx.compiled, ctx.length, ctx.needed, ctx.run = scan, compiled, length, needed, run
        ctx.numbers = {i: x for i, x in enumerate(inputs) if not isinstance(x, Tensor)}
        ctx.count = len(inputs)
        # States are read from the results; whether somebody has written into these shows in their versions.
        ctx.stored = {i: results[i].detach() for i in t.read}
        ctx.versions = [results[i]._version for i in t.read]
        # What is not needed is not saved either: its owner may write into it.
        apart = t.unread if torch._C._autograd._top_saved_tensors_default_hooks(False) is None else ()
        held = [(i, x) for i, x in enumerate(inputs) if isinstance(x, Tensor) and i in apart]
        ctx.save_for_backward(
            *[x for i, x in enumerate(inputs) if isinstance(x, Tensor) and i not in apart], _with(held)
        )
        return tuple(results)

    @staticmethod
    @own_precision
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        *inputs, holder = ctx.saved_tensors
        held = {i: (x, version) for i, x, version in getattr(holder, "held", ())}
        for i, x in sorted({**ctx.numbers, **{i: x for i, (x, _) in held.items()}}.items()):
            inputs.insert(i, x)
        stale = frozenset(i for i, (x, version) in held.items() if x._version != version)
        changed = [x._version for x in ctx.stored.values()] != ctx.versions
        plain = ctx.scan.takes([g for g in grads if g is not None])
        if torch.is_grad_enabled() or changed or not plain:
            if stale:
                raise StaleError
            found = _by_torch(ctx.scan, ctx.length, inputs, grads, ctx.needed)
        else:
            run: Run = ctx.run
            try:
                with torch._C.DisableTorchFunction():
                    found = ctx.compiled.backward(ctx.length, inputs, grads, ctx.stored, ctx.needed, run, stale)
            except (*PASSING, StaleError):
                raise
            except Exception as error:  # no kernel could be made: the torch form is there
                ctx.scan.reason = f"{type(error).__name__}: {error}"
                if stale:
                    raise StaleError from None
                found = _by_torch(ctx.scan, ctx.length, inputs, grads, ctx.needed)
        return (None, None, None, None, *[found.get(i) for i in range(ctx.count)])


_apply: Any = super(torch.autograd.Function, _Loop).apply
"""What is left of `_Loop.apply` for plain tensors, with which transforms of functions have nothing to do."""


def _with(held: list[tuple[int, Tensor]]) -> Tensor:
    """A tensor without elements that holds others, and how often they had been written into: saved for backward it lets
    go of them when that is over, but nobody minds if they change."""
    holder = torch.empty(0, device="cpu")
    holder.held = [(i, x, x._version) for i, x in held]  # type: ignore[attr-defined]
    return holder


def _by_torch(
    scan: CompiledScan, length: int, inputs: Sequence[Any], grads: Sequence[Tensor | None], needed: Sequence[int]
) -> dict[int, Tensor]:
    """The derivatives by the torch form, with a graph of their own where one is wanted."""
    again = torch.is_grad_enabled()
    # Aliases, so that an input computed from another one does not lead there.
    own = [
        (x.view_as(x) if again else x.detach().requires_grad_(i in needed)) if isinstance(x, Tensor) else x
        for i, x in enumerate(inputs)
    ]
    first, last = scan.carries, scan.carries + scan.xs
    with torch.enable_grad():
        results = scan.fallback(length, own[:first], own[first:last], own[last:])
        pairs = [(r, g) for r, g in zip(results, grads, strict=True) if g is not None and r.requires_grad]
        if not pairs:
            return {}
        leaves = [own[i] for i in needed]
        found = torch.autograd.grad(
            [r for r, _ in pairs], leaves, [g for _, g in pairs], create_graph=again, allow_unused=True
        )
    return {i: g for i, g in zip(needed, found, strict=True) if g is not None}
