"""Outline: a loop becomes one module whose implementation on a CPU is a compiled loop, with everything light around the
recurrence in it, and whose torch form everywhere else is what the other passes make of the same loop. Operators that
are worth running for all steps at once (products with weights, convolutions, norms) stay outside, before or after."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from linrec.analysis.stategraph import components
from linrec.codegen import CompiledScan, supported
from linrec.codegen.translate import has_rule
from linrec.ir.extension import REGISTERED
from linrec.ir.names import operator_name
from linrec.ir.nodes import emit, shape_of, value
from linrec.ir.recurrence import Recurrence
from linrec.ir.scan import is_random, scan_nodes, scan_of
from linrec.ir.sizes import element_count
from linrec.ir.timeaxis import unsteps
from linrec.passes.base import Pass, PassResult, Pipeline
from linrec.passes.hoist import Hoist
from linrec.passes.lower import Lower
from linrec.passes.place import placed
from linrec.passes.rewrite import ScanView, erase_scan, insert_scan, repeat_steps, stacked, step_graph
from linrec.passes.split import Split

aten = torch.ops.aten

_PRODUCTS = frozenset(
    (
        aten.linear.default,
        aten.mm.default,
        aten.matmul.default,
        aten.bmm.default,
        aten.mv.default,
        aten.addmm.default,
        aten.addmv.default,
        aten.baddbmm.default,
        aten.einsum.default,
    )
)
"""Heavy where an operand is the same in every step: a product with weights."""

# fmt: off
_HEAVY = frozenset((
    "conv1d", "conv2d", "conv3d", "convolution", "embedding", "layer_norm", "native_layer_norm", "group_norm",
    "native_group_norm", "rms_norm", "batch_norm", "scaled_dot_product_attention", "cumsum", "sort", "topk",
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "linalg_solve", "linalg_inv", "linalg_cholesky",
    "autograd_function",
))
# fmt: on
"""Operators that are heavy whatever they read, as those are that no kernel knows."""

# fmt: off
_COSTLY = frozenset((
    "exp", "expm1", "log", "log1p", "sigmoid", "log_sigmoid", "log_sigmoid_forward", "softplus", "tanh", "silu",
    "gelu", "pow", "sin", "cos", "erf", "softmax", "_softmax", "log_softmax", "logsumexp", "elu", "mish", "atan",
    "reciprocal",
))
# fmt: on
READOUT = 4
"""A product that makes a state this many times smaller is a readout: in the loop, the states need not be kept."""

SMALL = 8
"""A costly function of the inputs is worth a pass of its own where it is this many times smaller than the state: in the
loop it would be computed once for each element of the state that shares it."""

WIDE = 32
"""Up to this width a dense transition that never changes is run step by step; beyond it the torch forms win."""

COMPILED = "compiled loop"
"""The name by which a compiled loop is asked for."""

_BY_TORCH = ("FFT", "convolution", "powers", "last state")


@dataclass(frozen=True)
class Outline(Pass):
    """Give every loop that a kernel can be generated for a module of its own.

    Before::

        hs, ys = loop(h; x, W: a = sigmoid(W x); h' = a * h + x; y = W' h')

    After::

        us = steps(x: W x)
        hs = compiled(h; us, x: a = sigmoid(u); h' = a * h + x)
        ys = steps(hs: W' h')
    """

    module: str = ""
    pin: str = ""
    name: str = "outline"

    def run(self, graph_module: fx.GraphModule) -> PassResult:
        """Outline the scans of a graph."""
        found: list[Recurrence] = []
        for node in scan_nodes(graph_module):
            if scan_of(graph_module, node).carries:
                found += self._outlined(graph_module, node) or self._by_components(graph_module, node)
        graph_module.graph.eliminate_dead_code()
        for node in graph_module.graph.nodes:
            if node.target is unsteps and _is_result(graph_module, node.args[0]) and len(node.args[0].users) == 1:
                node.kwargs = {**node.kwargs, "fresh": True}
        return PassResult(graph_module, bool(found), found)

    def _outlined(self, graph_module: fx.GraphModule, node: fx.Node) -> list[Recurrence]:
        return _Outliner(graph_module, node, self.module, self.pin == COMPILED).run()

    def _by_components(self, graph_module: fx.GraphModule, node: fx.Node) -> list[Recurrence]:
        """Where a loop cannot be compiled as a whole, each of its recurrences may be."""
        scan = scan_of(graph_module, node)
        if sum(c.recurrent for c in components(scan.step, scan.carries)) < 2:
            return []
        before = set(scan_nodes(graph_module))
        found = Split(self.module).apart(graph_module, node)
        for part in scan_nodes(graph_module):
            if part in before:
                continue
            if scan_of(graph_module, part).carries:
                found += self._outlined(graph_module, part)
            else:
                part.meta["part"] = True  # of a loop that is reported already
        return found


class TorchForm(nn.Module):
    """What the passes make of a loop, with the call of a scan: ``(length, carries, xs, consts)``."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__()
        self.graph_module = graph_module

    def forward(self, length: int, carries: Sequence[Any], xs: Sequence[Any], consts: Sequence[Any]) -> Any:
        """``(*final_carries, *ys)``."""
        return self.graph_module(length, *carries, *xs, *consts)


class _Outliner:
    """Takes one scan apart into what goes before, the loop itself, and what goes after."""

    def __init__(self, graph_module: fx.GraphModule, node: fx.Node, module: str, pinned: bool) -> None:
        self.graph_module, self.module, self.pinned = graph_module, module, pinned
        self.view = ScanView.of(graph_module, node)
        self.nodes = [n for n in self.view.step.nodes if n.op == "call_function"]
        self.order = {n: i for i, n in enumerate(self.view.step.nodes)}
        self.moving = self._dependent([*self.view.carries, *self.view.xs])
        self.stateful = self._dependent(self.view.carries)
        self.series: dict[fx.Node, fx.Node] = dict(zip(self.view.xs, self.view.series, strict=True))
        self.constants: dict[fx.Node, fx.Node] = dict(zip(self.view.consts, self.view.constants, strict=True))

    def run(self) -> list[Recurrence]:
        """Rewrite the scan; what was found about its recurrences, or nothing where it stays as it is."""
        parts = self._parts()
        if parts is None:
            return []
        before, core, after = parts
        view = self.view
        inner = set(core)
        seen = [
            n
            for n in [*core, *view.carries]
            if isinstance(value(n), torch.Tensor) and (n in view.ys or any(u in after for u in n.users))
        ]
        inputs = self._inputs(core, inner)
        for y in seen:
            if y not in inner and y not in view.carries and y not in inputs:
                inputs.append(y)
        early = {n for n in before if n in inputs or n in view.ys or any(u in after for u in n.users)}
        if any(not isinstance(value(n), torch.Tensor) for n in early):
            return []
        xs = [n for n in inputs if n in self.series or n in early]
        consts = [n for n in inputs if n in self.constants]
        step = step_graph(core, view.carries, xs, consts, [*view.updates, *seen])
        if supported(step, len(view.carries), len(xs)) is not None:
            return []
        torch_form, entries = self._torch_form(step, xs)
        if not self.pinned and _better_by_torch(entries, step, view):
            return []
        self._outside([n for n in before if n in self._ancestors(early)], sorted(early, key=self.order.__getitem__))
        finals = self._insert(step, torch_form, xs, consts, seen)
        self._outside(after, [n for n in after if n in view.ys])
        self._replace(finals)
        return entries

    def _dependent(self, roots: Sequence[fx.Node]) -> set[fx.Node]:
        found = set(roots)
        for node in self.view.step.nodes:
            if any(n in found for n in node.all_input_nodes):
                found.add(node)
        return found

    def _ancestors(self, roots: Any) -> set[fx.Node]:
        seen: set[fx.Node] = set()
        stack = list(roots)
        while stack:
            node = stack.pop()
            if node not in seen:
                seen.add(node)
                stack.extend(node.all_input_nodes)
        return seen

    def _heavy(self, node: fx.Node) -> bool:
        if node.target in _PRODUCTS:
            read = max((_numel(n) for n in node.all_input_nodes if n in self.stateful), default=0)
            if READOUT * _numel(node) <= read:
                return False
            return any(n not in self.moving for n in node.all_input_nodes if isinstance(value(n), torch.Tensor))
        name = getattr(node.target, "__name__", "").partition(".")[0]
        return name in _HEAVY or not has_rule(node.target)

    def _parts(self) -> tuple[list[fx.Node], list[fx.Node], list[fx.Node]] | None:
        """The nodes before, inside and after the loop; None where a heavy operator lies between two recurrences."""
        view = self.view
        if any(is_random(n) for n in self.nodes):
            return None
        recurrent = [c for c in components(view.scan.step, view.scan.carries) if c.recurrent]
        if not recurrent:
            return None
        cores = set().union(*(c.core for c in recurrent))
        needed = self._ancestors(view.updates)
        heavy = {n for n in self.nodes if self._heavy(n)}
        if any(n in heavy and n in self.stateful and n in needed and n not in cores for n in self.nodes):
            return None
        if any(_numel(n) > WIDE * WIDE * 16 for c in heavy & cores for n in c.all_input_nodes if n not in self.moving):
            return None
        after = {n for n in heavy if n in self.stateful and n not in needed}
        for node in self.nodes:
            if node not in needed and any(n in after for n in node.all_input_nodes):
                after.add(node)
        largest = max(_numel(c) for c in view.carries)
        costly = [
            n
            for n in self.nodes
            if n not in self.stateful and operator_name(n) in _COSTLY and SMALL * _numel(n) <= largest
        ]
        early = [n for n in heavy if n not in self.stateful]
        before = {n for n in self._ancestors([*early, *costly]) if n in self.moving}
        before = {n for n in before if n.op == "call_function"}
        stateful_results = [n for n in self.nodes if n in self.stateful and n not in after]
        inside = self._ancestors([*view.updates, *stateful_results])
        core = {n for n in self.nodes if n in inside and n not in before and n not in after}
        rest = {n for n in self.nodes if n not in core and n not in before and n not in after}
        if any(n not in self.moving for n in (*core, *rest)):
            return None
        # What reads no state and leads to no state runs for all steps at once, wherever its readers are.
        late = {n for n in rest if any(m in after for m in self._ancestors([n]))}
        groups = (before | (rest - late), core, after | late)
        first, second, third = (sorted(g, key=self.order.__getitem__) for g in groups)
        if any(m in groups[2] or m in groups[1] for n in first for m in n.all_input_nodes):
            return None
        return first, second, third

    def _inputs(self, body: Sequence[fx.Node], inside: set[fx.Node]) -> list[fx.Node]:
        carries = set(self.view.carries)
        found: dict[fx.Node, None] = {}
        for node in [*(n for b in body for n in b.all_input_nodes), *self.view.updates]:
            if node not in inside and node not in carries:
                found.setdefault(node)
        return list(found)

    def _torch_form(self, step: fx.GraphModule, xs: list[fx.Node]) -> tuple[TorchForm, list[Recurrence]]:
        """The loop alone, as the other passes rewrite it."""
        graph = fx.Graph()
        length = graph.placeholder("length")
        length.meta["val"] = value(self.view.length)
        inputs = []
        for i, node in enumerate(n for n in step.graph.nodes if n.op == "placeholder"):
            new = graph.placeholder(node.name)
            new.meta = dict(node.meta)
            if len(self.view.carries) <= i < len(self.view.carries) + len(xs):
                new.meta["val"] = stacked(value(node), value(self.view.length))
            inputs.append(new)
        output = graph.output(())
        graph_module = fx.GraphModule(nn.Module(), graph)
        first, last = len(self.view.carries), len(self.view.carries) + len(xs)
        copy = fx.GraphModule(nn.Module(), fx.Graph())
        copy.graph = fx.Graph()
        results = copy.graph.graph_copy(step.graph, {})
        copy.graph.output(results)
        for old, new in zip(step.graph.nodes, copy.graph.nodes, strict=True):
            new.meta = dict(old.meta)
        copy.recompile()
        found = insert_scan(
            graph_module, output, "loop", length, copy, inputs[:first], inputs[first:last], inputs[last:]
        )
        output.args = (tuple(found),)
        result = Pipeline(placed((Split(self.module), Hoist(self.module), Lower(self.module, loops=False)))).run(
            graph_module
        )
        return TorchForm(result.graph_module), list(result.recurrences)

    def _insert(
        self, step: fx.GraphModule, torch_form: nn.Module, xs: list[fx.Node], consts: list[fx.Node], seen: list[fx.Node]
    ) -> list[fx.Node]:
        """Write the loop; return the final states."""
        series = [self.series[n] for n in xs]
        constants = [self.constants[n] for n in consts]
        count = len(self.view.carries)
        module = CompiledScan(step, count, len(xs), torch_form)
        found = insert_scan(
            self.graph_module,
            self.view.node,
            "recurrence",
            self.view.length,
            step,
            self.view.initial,
            series,
            constants,
        )
        name = str(found[0].args[0].target)
        setattr(self.graph_module, name, module)
        self.series.update(zip(seen, found[count:], strict=True))
        return found[:count]

    def _outside(self, body: list[fx.Node], results: list[fx.Node]) -> None:
        """Compute nodes for all steps in a scan without carries."""
        results = [n for n in results if isinstance(value(n), torch.Tensor)]
        if not body or not results:
            return
        inside = set(body)
        inputs = list(dict.fromkeys(n for b in body for n in b.all_input_nodes if n not in inside))
        xs = [n for n in inputs if n in self.series]
        consts = [n for n in inputs if n in self.constants]
        step = step_graph(body, [], xs, consts, results)
        series, constants = [self.series[n] for n in xs], [self.constants[n] for n in consts]
        found = insert_scan(self.graph_module, self.view.node, "steps", self.view.length, step, [], series, constants)
        found[0].args[0].meta["part"] = True  # of a loop that is reported already
        self.series.update(zip(results, found, strict=True))

    def _replace(self, finals: list[fx.Node]) -> None:
        for i, users in self.view.taken().items():
            result = self.view.results[i]
            if i < len(finals):
                new = finals[i]
            elif result in self.constants:
                args = (self.constants[result], self.view.length)
                new = emit(self.graph_module.graph, self.view.node, repeat_steps, args, result)
            else:
                new = self.series[result]
            for user in users:
                user.replace_all_uses_with(new)
        erase_scan(self.graph_module, self.view.node)


def _is_result(graph_module: fx.GraphModule, node: Any) -> bool:
    """Whether a value is what a compiled loop returns."""
    if node.target is not operator.getitem or node.args[0].op != "call_module":
        return False
    return isinstance(graph_module.get_submodule(str(node.args[0].target)), CompiledScan)


def _numel(node: fx.Node) -> int:
    return element_count(value(node))


def _better_by_torch(entries: list[Recurrence], step: fx.GraphModule, view: ScanView) -> bool:
    """Whether the torch forms beat any loop: wide transitions that never change, sums, and only the last state read."""
    others = tuple(x.name for x in REGISTERED if x.kind in ("lowering", "semiring"))
    if any(e.lowering.startswith(others) for e in entries if e.states):
        return True  # somebody's extension: it was registered to be used
    affine = [e for e in entries if e.states and e.parallel]
    if not affine or len(affine) < len([e for e in entries if e.states]):
        return False
    if all(e.lowering == "cumulative sum" for e in affine):
        return True
    widest = max((s for c in view.carries for s in shape_of(c) if isinstance(s, int)), default=1)
    by_torch = [any(word in e.lowering for word in _BY_TORCH) for e in affine]
    only_last = all(i < len(view.carries) for i in view.taken())
    return any(by_torch) and (widest > WIDE or only_last)
