"""Numbers that Python computes for every step, or from the number of steps, and gives to operators: ``0.95 ** t``,
``1 / (t + 1)``, ``math.sin(t * dt)``, ``1.0 / T``. A trace holds those of its own length only. At any other length they
are read off the run of the original that is made there in any case (`runtime.validate.check_length`): all numbers
that a run gives to torch's functions make one sequence, in which those of one argument stand at even distances."""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Container, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy
import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor

from linrec.capture.affine import AffineInt, affine_through
from linrec.capture.overloads import tensor_overload
from linrec.capture.trace import Trace
from linrec.ir.nodes import emit, fake_mode, value
from linrec.ir.timeaxis import numbers

aten = torch.ops.aten

Call = tuple[str, tuple[Any, ...], bool]
"""A call of one of torch's functions: its name, the numbers among its arguments, and whether gradient was on."""

_ZEROS = {aten.full_like.default: aten.zeros_like.default, aten.new_full.default: aten.new_zeros.default}


NUMBERS = (int, float, complex, bool)
"""What Python computes for a step and operators compute with; a truth value is a number of them as well."""


def number(x: Any) -> Any:
    """The number that an argument is, or None."""
    if type(x) in NUMBERS:
        return x
    if isinstance(x, numpy.generic):  # also numpy's double, which is a Python float
        x = x.item()
        return x if type(x) in NUMBERS else None
    return None


def takes_tensor(node: fx.Node, index: int) -> bool:
    """Whether the number at this leaf of (args, kwargs) is one of the computation that a tensor can stand in for."""
    target = tensor_overload(node.target)
    if target is aten.full.default:
        return index == len(node.args[0])
    if target is aten.new_full.default:
        return index == 1 + len(node.args[1])
    if target is aten.full_like.default:
        return index == 1
    if any(isinstance(a, (list, tuple)) for a in node.args) or index >= len(node.args):
        return False
    if target is aten.select.int:  # a row of a table, as of the days of a week
        return index == 2
    schema = getattr(target, "_schema", None)
    return schema is not None and str(schema.arguments[index].type) in ("Tensor", "Optional[Tensor]")


@dataclass(frozen=True)
class Places:
    """Where one argument's numbers stand among all that a run gives to torch's functions.

    Attributes:
        start: the first place; stride: the distance between two; count: how many there are.
        apart: the places before `start` that stand at other distances, where a first step gives more numbers, or fewer.
    """

    start: AffineInt
    stride: int
    count: AffineInt
    apart: tuple[AffineInt, ...] = ()

    def at(self, length: int) -> list[int]:
        """The places in a run of this length."""
        first, count = self.start.at(length), self.count.at(length)
        before = [place.at(length) for place in self.apart[:count]]
        return [*before, *range(first, first + self.stride * (count - len(self.apart)), self.stride)]


@dataclass
class Series:
    """Numbers that are the same wherever they are used.

    Attributes:
        kind: the type of the numbers in a run.
        dtype: what the program rounds them to before it computes with them, if it does.
        values: the numbers at the two lengths that were traced.
        places: where they are, for each argument that they are given as.
    """

    kind: type
    dtype: torch.dtype | None
    values: tuple[tuple[Any, ...], tuple[Any, ...]]
    places: list[Places]


class Numbers:
    """Finds the numbers of two traces in the sequences of two runs, and makes inputs of their graphs of them.

    Args:
        lengths: of the two runs.
        calls: what each run called, in order.
    """

    def __init__(self, lengths: tuple[int, int], calls: Sequence[Sequence[Call]]) -> None:
        self.lengths = lengths
        self.streams = [[x for _, given, _ in run for x in given] for run in calls]
        self.series: list[Series] = []
        self._inputs: dict[tuple[fx.Graph, int], fx.Node] = {}

    def find(self, shorter: Sequence[Any], longer: Sequence[Any], dtype: torch.dtype | None = None) -> int | None:
        """Which series the numbers of an argument are, at the two lengths; None where it is not in both runs.

        Args:
            dtype: what the numbers have been rounded to, if they have.
        """
        count = affine_through(len(shorter), len(longer), *self.lengths)
        if count is None:
            return None
        values = (tuple(shorter), tuple(longer))
        places = known = None
        for kind in (type(shorter[0]), None):  # as it is in the trace, which may have made another of it
            alike = (k for k, s in enumerate(self.series) if s.values == values and s.dtype is dtype)
            known = next((k for k in alike if kind in (None, self.series[k].kind)), None)
            places = self._places(values, count, dtype, _APART, kind)
            if places is not None or known is not None:
                break
        if places is None:
            return known
        if known is not None:
            self.series[known].places.append(places)
            return known
        kinds = {type(s[i]) for s, n in zip(self.streams, self.lengths, strict=True) for i in places.at(n)}
        if len(kinds) != 1:
            return None
        self.series.append(Series(kinds.pop(), dtype, values, [places]))
        return len(self.series) - 1

    def _places(
        self,
        values: tuple[tuple[Any, ...], ...],
        count: AffineInt,
        dtype: torch.dtype | None,
        most_apart: int,
        kind: type | None,
    ) -> Places | None:
        """Where numbers, of one type where that is given, stand in both runs, and no others that were found."""
        taken = [{i for s in self.series for p in s.places for i in p.at(length)} for length in self.lengths]
        if kind is not None:
            others = ({i for i, x in enumerate(s) if type(x) is not kind} for s in self.streams)
            taken = [own | other for own, other in zip(taken, others, strict=True)]
        streams = [_rounded(s, dtype) for s in self.streams]
        for apart in range(max(min(most_apart, len(values[0]) - 3), 0) + 1):
            rest = [x[apart:] for x in values]
            most = max(len(self.streams[1]) // max(len(rest[1]) - 1, 1), 1)
            for stride in range(1, most + 1):
                starts = [_starts(*each, stride) for each in zip(streams, rest, taken, strict=True)]
                pairs = [(abs(b - a), a, b) for a in starts[0] for b in starts[1]]
                for _, a, b in sorted(pairs):
                    start = affine_through(a, b, *self.lengths)
                    before = self._before(streams, values, taken, (a, b), apart, stride)
                    if start is not None and before is not None:
                        return Places(start, stride, count, before)
        return None

    def _before(
        self,
        streams: Sequence[Sequence[Any]],
        values: Sequence[Sequence[Any]],
        taken: Sequence[set[int]],
        starts: Sequence[int],
        apart: int,
        stride: int,
    ) -> tuple[AffineInt, ...] | None:
        """Where the first numbers stand, going back from the others: each about as far as those are apart."""
        found: list[AffineInt] = []
        for k in reversed(range(apart)):
            both: set[int] | None = None
            for s, own, at, known in zip(streams, taken, starts, values, strict=True):
                kind, x = type(s[at]), known[k]
                back = (d for d in range(1, at + 1) if type(s[at - d]) is kind and s[at - d] == x)
                fits = {d for d in back if at - d not in own}
                both = fits if both is None else both & fits
            if not both:
                return None
            distance = min(both, key=lambda d: abs(d - stride))
            starts = [at - distance for at in starts]
            place = affine_through(starts[0], starts[1], *self.lengths)
            if place is None:
                return None
            found.insert(0, place)
        return tuple(found)

    def input(self, graph: fx.Graph, index: int, which: int) -> fx.Node:
        """The input of a graph that has the numbers of a series, one for each step.

        Args:
            which: 0 for the shorter trace, 1 for the longer.
        """
        found = self._inputs.get((graph, index))
        if found is None:
            last = [n for n in graph.nodes if n.op == "placeholder"][-1]
            with graph.inserting_after(last):
                found = graph.placeholder(f"number_{index}")
            with fake_mode(graph, tuple(value(n) for n in graph.nodes if isinstance(value(n), FakeTensor))):
                found.meta["val"] = torch.empty(
                    len(self.series[index].values[which]), dtype=_DTYPES[self.series[index].kind]
                )
            self._inputs[graph, index] = found
        return found

    def inputs(self, graph: fx.Graph) -> list[int]:
        """The series that a graph takes, in the order of its inputs."""
        return [index for owner, index in self._inputs if owner is graph]


_APART = 2
"""How many steps at the beginning may give other numbers than the rest."""

_DTYPES = {int: torch.int64, float: torch.float64, complex: torch.complex128, bool: torch.bool}


def _rounded(stream: Sequence[Any], dtype: torch.dtype | None) -> Sequence[Any]:
    """Numbers as a tensor of this dtype holds them."""
    if dtype is None or dtype is torch.float64:
        return stream
    try:
        found: list[Any] = torch.tensor(stream, dtype=dtype).tolist()
    except (RuntimeError, OverflowError):  # complex ones among real ones, or too large
        return stream
    return found


def _starts(stream: Sequence[Any], values: Sequence[Any], taken: set[int], stride: int) -> list[int]:
    """Where in a sequence these values stand at this distance."""

    def stands(at: int, x: Any) -> bool:
        return at not in taken and bool(stream[at] == x)

    last = len(stream) - stride * (len(values) - 1)
    return [b for b in range(last) if all(stands(b + stride * k, x) for k, x in enumerate(values))]


def differ(shorter: Trace, longer: Trace) -> bool:
    """Whether operators of two traces are given other numbers, so that some depend on the step or on the length."""
    return _given(shorter) != _given(longer)


def _given(trace: Trace) -> set[Any]:
    found = set()
    for node in trace.graph_module.graph.nodes:
        if node.op == "call_function" and node.target not in _PLACES:
            leaves = torch.utils._pytree.tree_leaves((node.args, dict(node.kwargs)))
            found |= {(type(x), x) for x in leaves if type(x) in (float, complex)}
            whole = (i for i, x in enumerate(leaves) if type(x) in (int, bool) and takes_tensor(node, i))
            found |= {(type(leaves[i]), leaves[i]) for i in whole}
    for source in trace.sources:
        if source.literal and source.value.numel() == 1:
            found.add((Tensor, source.value.item()))
    return found


_PLACES = (aten.select.int, aten.slice.Tensor, operator.getitem)


def factors_apart(graph: fx.Graph, among: Container[Any] | None = None) -> None:
    """Let the factors of sums (`alpha`, `value`) be factors of products; with `among`, those only."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        alpha = node.kwargs.get("alpha", 1)
        if node.target in (aten.add.Tensor, aten.sub.Tensor) and _is_apart(alpha, among):
            product = emit(graph, node, aten.mul.Tensor, (node.args[1], alpha), node)
            _replace(graph, node, node.target, (node.args[0], product))
        elif node.target in (aten.addcmul.default, aten.addcdiv.default):
            factor = node.kwargs.get("value", 1)
            made = aten.mul.Tensor if node.target is aten.addcmul.default else aten.div.Tensor
            if _is_apart(factor, among):
                scaled = emit(graph, node, aten.mul.Tensor, (node.args[1], factor), node)
                product = emit(graph, node, made, (scaled, node.args[2]), node)
                _replace(graph, node, aten.add.Tensor, (node.args[0], product))


def _is_apart(factor: Any, among: Container[Any] | None) -> bool:
    return factor in among if among is not None else factor != 1


def expose(trace: Trace) -> None:
    """Let the numbers of a trace stand where tensors can take their places: factors of sums become products, tensors
    that forward makes of a single number are made where they are read."""
    graph = trace.graph_module.graph
    factors_apart(graph)
    holders = [n for n in graph.nodes if n.op == "placeholder"]
    kept = []
    for node, source in zip(holders, trace.sources, strict=True):
        x = source.value
        single = source.literal and x.numel() == 1
        if not single or any(user.op == "output" for user in node.users):
            kept.append(source)
            continue
        for user in list(node.users):
            made = emit(graph, user, aten.full.default, (list(x.shape), x.item()), user, _factory(x))
            user.replace_input_with(node, made)
        graph.erase_node(node)
    trace.sources[:] = kept


def _factory(x: Tensor) -> dict[str, Any]:
    return {"dtype": x.dtype, "device": x.device}


def _replace(graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...]) -> None:
    new = emit(graph, node, target, args, node)
    node.replace_all_uses_with(new)
    graph.erase_node(node)


def computed_in(node: fx.Node, kind: type) -> torch.dtype:
    """The dtype of a tensor that stands in for a number of an operator, such that no other dtype comes of it."""
    if node.target is aten.full.default:
        own: torch.dtype = value(node).dtype
        return own
    if kind in (int, bool):
        return _DTYPES[kind]
    others = [value(x).dtype for x in node.all_input_nodes if isinstance(value(x), Tensor)]
    dtype = torch.get_default_dtype()
    for k, other in enumerate(others):
        dtype = torch.promote_types(dtype, other) if k else other
    if not (dtype.is_floating_point or dtype.is_complex):
        dtype = torch.get_default_dtype()
    if kind is complex:
        return dtype if dtype.is_complex else dtype.to_complex()
    dtype = dtype.to_real()
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def as_number(graph: fx.Graph, before: fx.Node, held: fx.Node, dtype: torch.dtype, device: torch.device) -> fx.Node:
    """What makes a tensor of the first number of an input."""
    first = emit(graph, before, aten.select.int, (held, 0, 0), before)
    return emit(graph, before, numbers, (first, dtype, device), before)


def with_tensors(node: fx.Node) -> fx.Node:
    """Let an operator compute with the tensors that stand among its arguments in the place of numbers; returns what
    has the result."""
    graph, args = node.graph, node.args
    result = value(node).dtype
    target = tensor_overload(node.target)
    named = [a.name for a in target._schema.arguments]
    by_position = sum(not a.kwarg_only for a in target._schema.arguments)
    if len(args) > by_position:  # what the one with numbers takes by position, this one takes by name only
        node.kwargs = dict(node.kwargs) | dict(zip(named[by_position:], args[by_position:], strict=False))
        args = args[:by_position]
    if target is aten.full.default:
        held = _in_front(graph, node, aten._to_copy.default, (args[1],), {"dtype": result})
        return _instead(node, aten.expand.default, (held, args[0]))
    if target in (aten.full_like.default, aten.new_full.default):
        zeros = _in_front(graph, node, _ZEROS[target], args[:-1], dict(node.kwargs))
        held = _in_front(graph, node, aten._to_copy.default, (args[-1],), {"dtype": result})
        return _instead(node, aten.add.Tensor, (zeros, held))
    if target is aten.masked_fill.Tensor:
        args = (*args[:2], _in_front(graph, node, aten._to_copy.default, (args[2],), {"dtype": result}))
        return _instead(node, target, args)
    if target is aten.rsub.Tensor and not node.kwargs:
        target, args = aten.sub.Tensor, (args[1], args[0])
    if target is aten.select.int:
        at = _in_front(graph, node, aten.unsqueeze.default, (args[2], 0))
        row = _in_front(graph, node, aten.index_select.default, (args[0], args[1], at))
        return _instead(node, aten.squeeze.dim, (row, args[1]))
    if target is aten.clamp.Tensor:
        kind = {"dtype": result, "device": value(node).device}
        bounds = [
            _in_front(graph, node, aten.full.default, ([], a), kind) if number(a) is not None else a for a in args[1:]
        ]
        args = (args[0], *bounds)
    if target is aten.lerp.Tensor:
        weight = _in_front(graph, node, aten._to_copy.default, (args[2],), {"dtype": result})
        args = (*args[:2], weight)
    if result in (torch.float16, torch.bfloat16):
        # With a number torch computes in single precision, and rounds the result.
        args = tuple(
            _in_front(graph, node, aten._to_copy.default, (a,), {"dtype": torch.float32})
            if isinstance(a, fx.Node) and value(a).dtype == result
            else a
            for a in args
        )
        return _instead(node, aten._to_copy.default, (_in_front(graph, node, target, args),), {"dtype": result})
    node.target, node.args = target, args
    return node


def _in_front(
    graph: fx.Graph, node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None
) -> fx.Node:
    return emit(graph, node, target, args, node, kwargs)


def _instead(node: fx.Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> fx.Node:
    new = emit(node.graph, node, target, args, node, kwargs, value(node))
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


@dataclass
class StepNumbers:
    """The numbers of a plan at the lengths that it was checked at.

    Attributes:
        series: where they are, one for each input of the graph.
        found: what they are, by length: one tensor for each series.
    """

    series: list[Series]
    found: dict[int, list[Tensor]] = field(default_factory=dict)

    def at(self, length: int) -> list[Tensor] | None:
        """The numbers at a length, one tensor for each series; None where they are not known. Where torch only works
        out shapes, no numbers are needed."""
        if torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE) is not None:
            return [torch.empty(s.places[0].count.at(length), dtype=_DTYPES[s.kind], device="cpu") for s in self.series]
        return self.found.get(length)

    def take(self, calls: Sequence[Call], length: int) -> bool:
        """Take the numbers out of a run; whether they are where they should be."""
        stream = [x for _, given, _ in calls for x in given]
        taken = []
        for series in self.series:
            found = [p.at(length) for p in series.places]
            if any(len(p) and not (p[0] >= 0 and p[-1] < len(stream)) for p in found):
                return False
            values, *others = [[stream[i] for i in p] for p in found]
            if any(type(x) is not series.kind for x in values) or any(other != values for other in others):
                return False
            if series.kind is int and any(abs(x) >= 2**63 for x in values):
                return False
            held = _rounded(values, series.dtype)
            taken.append(torch.tensor(held, dtype=_DTYPES[series.kind], device="cpu"))
        while len(self.found) >= MOST_LENGTHS:
            del self.found[next(iter(self.found))]
        self.found[length] = taken
        return True

    def counted(self, calls: Sequence[Call], length: int) -> Counter[Hashable]:
        """How often each function was called, with which floating-point numbers besides those of the series."""
        names = [name for name, given, _ in calls for _ in given]
        places = {i for series in self.series for p in series.places for i in _with_unread(p, length, names)}
        counts: Counter[Hashable] = Counter()
        at = 0
        for name, given, grad in calls:
            own = tuple(
                "number" if at + k in places else x for k, x in enumerate(given) if at + k in places or type(x) is float
            )
            at += len(given)
            counts[name, own, grad] += 1
        return counts


def _with_unread(known: Places, length: int, names: Sequence[str]) -> Sequence[int]:
    """The places, and the one after them where the same function is given one more number: the last step may make
    something that nothing reads."""
    places = known.at(length)
    after = places[-1] + known.stride if places else len(names)
    more = after < len(names) and names[after] == names[places[-1]]
    return [*places, after] if more else places


MOST_LENGTHS = 256
"""For how many lengths a plan remembers its numbers."""
