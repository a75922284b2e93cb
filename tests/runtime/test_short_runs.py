"""What short runs of a module tell before it is traced, question by question, without tracing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from linrec.capture import probe
from linrec.capture.discover import SHORT, TimeAxis
from linrec.capture.snapshot import Memos
from linrec.ir.obstruction import Refused
from linrec.runtime import shortruns

ELSEWHERE = torch.zeros(3, dtype=torch.float64)
X = torch.ones(2, 9, 3, dtype=torch.float64)
Do = Callable[[Any, Tensor], Any]


class Short(nn.Module):
    """A loop over time after whatever is to be looked at."""

    def __init__(self, do: Do = lambda m, x: None) -> None:
        super().__init__()
        self.do = do
        self.sparse: Any = torch.zeros(3).to_sparse()
        self.first = torch.zeros(3, dtype=torch.float64)
        self.weight = nn.Parameter(torch.ones(3, dtype=torch.float64))
        self.box: Any = {"a": [torch.zeros(3, dtype=torch.float64)]}
        self.gain = 1.0
        self.memo: Any = {}
        self.seen: Any = set()
        self.register_buffer("empty", torch.zeros(3).to_sparse())
        self.register_buffer("total", torch.zeros(3, dtype=torch.float64))

    def forward(self, x: Tensor, scale: Any = 1, other: Tensor | None = None) -> Tensor:
        self.do(self, x)
        h = x[:, 0] * scale
        for t in range(x.shape[1]):
            h = 0.5 * h + x[:, t]
        return h


def called(module: nn.Module, *args: Any) -> tuple[Any, ...]:
    """What the functions are given of a call: module, forward, structure, leaves, time."""
    leaves, spec = pytree.tree_flatten((args or (X,), {}))
    axis = TimeAxis(leaf=0, dim=1, dims={0: {1: 0}}, owners=(module,), tensor_leaves=(0,))
    return module, module.forward, spec, leaves, axis


def test_which_attributes_are_read() -> None:
    module = Short(lambda m, x: (m.gain, m.box))
    found = shortruns.read_by(*called(module, X, 2))
    assert {"gain", "box", "do"} <= found and not {"first", "total", "memo"} & found
    assert shortruns.read_by(*called(Short(lambda m, x: m.nothing))) >= set(vars(module))


def test_what_is_read_is_not_changed() -> None:
    def change(m: Any, x: Tensor) -> None:
        m.gain = 2.0
        m.total.add_(1)
        x.add_(1)

    module, x = Short(change), X.clone()
    assert "total" in shortruns.read_by(*called(module, x))
    assert module.gain == 1.0 and not module.total.any() and torch.equal(x, X)


def test_dimensions_that_become_symbols() -> None:
    axis = TimeAxis(leaf=1, dim=1, dims={1: {1: 0}, 2: {0: 2}}, owners=(), tensor_leaves=(1, 2, 3))
    leaves = [2, torch.zeros(4, 5, 6), torch.zeros(7, 2, 2), torch.zeros(3, 3), torch.zeros(())]
    assert shortruns.free_dims(leaves, axis, []) == [{0}, {1}, {0}, set()]
    assert shortruns.free_dims(leaves, axis, [{2}, {0, 2}, set(), set()]) == [{0, 2}, {1, 2}, {0}, set()]


def fingerprint(module: nn.Module, *args: Any, varied: Any = ()) -> Any:
    return shortruns.fingerprint(*called(module, *args), list(varied))


def test_what_two_modules_share_to_share_a_plan() -> None:
    usual = fingerprint(Short())
    assert usual is not None and usual == fingerprint(Short())
    assert usual == fingerprint(Short(), X[:1]) == fingerprint(Short(), torch.ones(2, 12, 3, dtype=torch.float64))
    wide = torch.ones(2, 9, 6, dtype=torch.float64)
    assert usual != fingerprint(Short(), wide)
    assert fingerprint(Short(), X, varied=[{2}]) == fingerprint(Short(), wide, varied=[{2}]) != usual
    others = [
        fingerprint(Short(), X.float()),
        fingerprint(Short(), X, 2),
        fingerprint(Short(), X, 3),
        fingerprint(Short(lambda m, x: x.neg())),
        fingerprint(Short(lambda m, x: x.neg() if x.shape[1] > SHORT else None)),
        fingerprint(Short().eval()),
    ]
    with torch.no_grad():
        others.append(fingerprint(Short()))
    with torch.autocast("cpu"):
        others.append(fingerprint(Short()))
    assert len({usual, *others}) == 1 + len(others)


def _fails_at(*lengths: int) -> Do:
    def do(m: Any, x: Tensor) -> None:
        if x.shape[1] in lengths:
            raise ValueError("not this length")

    return do


def test_nothing_is_shared_at_a_length_that_fails() -> None:
    assert fingerprint(Short(_fails_at(SHORT))) is None
    assert fingerprint(Short(_fails_at(SHORT + 2))) is None
    assert fingerprint(Short(_fails_at(2))) is not None


def asks(do: Do, *args: Any) -> tuple[bool, bool]:
    return shortruns.asks_tensors(*called(Short(do), *args))


def _asks_gradient(m: Any, x: Tensor) -> None:
    assert isinstance(x.requires_grad, bool)


def _asks_layout(m: Any, x: Tensor) -> None:
    assert isinstance(x.is_contiguous(), bool)


def test_what_forward_asks_of_tensors() -> None:
    assert asks(lambda m, x: None) == (False, False)
    assert asks(_asks_gradient) == (True, False)
    assert asks(_asks_layout) == (False, True)
    assert asks(lambda m, x: (_asks_layout(m, x), _asks_gradient(m, x)), X, 2.5) == (True, True)
    assert asks(lambda m, x: (_asks_gradient(m, x), m.nothing)) == (False, False)


def test_it_is_asked_as_in_the_call() -> None:
    hooked: Do = lambda m, x: x.register_hook(lambda g: g) if x.requires_grad else None  # noqa: E731
    assert asks(hooked, X, 2) == (True, False)
    with pytest.raises(Refused, match="register_hook"):
        asks(hooked, X.clone().requires_grad_(), 2)
    leaf = X.clone().requires_grad_()
    assert asks(lambda m, x: (x.mul_(2), _asks_gradient(m, x)), leaf) == (True, False)
    assert asks(lambda m, x: _asks_gradient(m, x) if x.max() < 1.5 else None, leaf) == (True, False)
    assert torch.equal(leaf, X)


def test_layouts_are_asked_where_all_are_contiguous() -> None:
    turned = X.transpose(0, 2).contiguous().transpose(0, 2)
    assert asks(_asks_layout, X, 2) == (False, True)
    assert asks(_asks_gradient, turned) == (True, False)
    for args in ((turned,), (X, 1, turned), (turned, 1, X)):
        with pytest.raises(Refused, match="an input is not"):
            asks(_asks_layout, *args)


def _sets(m: Any, x: Tensor) -> None:
    x.requires_grad = True


REFUSED: dict[str, tuple[str, str, Do]] = {
    "python draws": ("LR009", "random generator", lambda m, x: random.random()),
    "numpy draws": ("LR009", "random generator", lambda m, x: numpy.random.rand()),
    "data of a parameter": ("LR013", r"self\.weight\.data", lambda m, x: setattr(m.weight, "data", m.weight.data * 2)),
    "a property": ("LR013", "requires_grad of a tensor", _sets),
    "a parameter": ("LR013", r"writes into the parameter self\.weight\.", lambda m, x: m.weight.detach().add_(1)),
    "an attribute": ("LR013", r"writes into self\.first\.", lambda m, x: m.first.add_(1)),
    "in a container": ("LR013", r"writes into self\.box\['a'\]\[0\]\.", lambda m, x: m.box["a"][0].add_(1)),
    "elsewhere": ("LR013", "that it has from elsewhere", lambda m, x: ELSEWHERE.add_(1)),
    "requests gradient": ("LR014", "requires_grad_", lambda m, x: x.requires_grad_()),
    "hook": ("LR014", "register_hook", lambda m, x: (m.weight * 1).register_hook(lambda g: g)),
    "retains": ("LR014", "retain_grad", lambda m, x: (m.weight * 1).retain_grad()),
    "asks for strides": ("LR014", "stride of a tensor", lambda m, x: x.stride()),
    "asks for versions": ("LR014", "_version of a tensor", lambda m, x: x._version),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_trace_shows(what: str) -> None:
    kind, text, do = REFUSED[what]
    with pytest.raises(Refused, match=text) as error:
        asks(do)
    assert error.value.obstruction.id == kind
    assert not ELSEWHERE.any()


def test_buffers_and_inputs_may_be_written() -> None:
    assert asks(lambda m, x: (m.total.add_(1), x.add_(1)), X.clone(), 2) == (False, False)


def test_whose_memory_it_is() -> None:
    module = Short()
    for name, x in (("first", module.first), ("box['a'][0]", module.box["a"][0]), ("total", module.total)):
        assert shortruns._whose(module, frozenset([x.untyped_storage().data_ptr()])) == f"self.{name}"
    memory = frozenset([module.weight.untyped_storage().data_ptr()])
    assert shortruns._whose(module, memory) == "the parameter self.weight"
    assert shortruns._whose(module, frozenset([1])) == "a tensor that it has from elsewhere"
    assert probe.has_memory(X) and not probe.has_memory(2) and not probe.has_memory(module.sparse)


def memos(do: Do, x: Tensor = X) -> bool:
    """Whether what the module adds to its dict and its set are memos."""
    module = Short(do)
    found = shortruns.find_memos(*called(module, x))
    assert module.memo == {} and module.seen == set()  # as before
    return {id(module.memo), id(module.seen)} <= found.containers


def _once(m: Any, x: Tensor) -> None:
    if not m.seen:
        m.seen.add("said")
        x.neg()


def test_what_is_found_out_once() -> None:
    put: Do = lambda m, x: (m.memo.setdefault("kind", type(x)), m.seen.add("said"))  # noqa: E731
    assert memos(put)
    assert memos(lambda m, x: m.seen.add("said"))
    assert not memos(_once)  # other operators at the first call
    assert not memos(lambda m, x: (put(m, x), m.nothing))
    assert not memos(lambda m, x: m.memo.setdefault("mean", x.mean()))
    module = Short()
    module.seen.add(1)
    module.do = lambda m, x: m.seen.discard(1)  # type: ignore[assignment]
    assert id(module.seen) not in shortruns.find_memos(*called(module)).containers
    assert shortruns.find_memos(*called(Short(_once))) == Memos()


def test_what_is_kept_for_a_length_is_no_memo() -> None:
    assert not memos(lambda m, x: m.seen.add(f"{x.shape[1]}"))
    assert not memos(lambda m, x: m.seen.add(f"{max(SHORT, x.shape[1])}"))
    assert memos(lambda m, x: m.seen.add(f"{min(SHORT, x.shape[1])}"))
    assert not memos(lambda m, x: (_fails_at(SHORT + 2)(m, x), m.seen.add("said")))


def test_each_run_has_inputs_of_its_own() -> None:
    def do(m: Any, x: Tensor) -> None:
        m.seen.add("said")
        if x.max() > 1.5:
            x.neg()
        x.mul_(2)

    x = X.clone()
    assert memos(do, x) and torch.equal(x, X)


def test_runs_are_counted() -> None:
    module, forward, spec, leaves, _ = called(Short())
    found = shortruns.counted(module, forward, spec, leaves)
    assert found.calls and not found.log and torch.equal(found.output, module(X))
    assert shortruns.counted(module, forward, spec, leaves, log=True).log
    failing = called(Short(_fails_at(9)))
    with pytest.raises(Refused, match="raises ValueError with another number of steps: not this length") as error:
        shortruns.counted(*failing[:4])
    assert error.value.obstruction.id == "LR002" and "test_short_runs.py" in error.value.obstruction.location
