"""flash-linear-attention behind the chunked ops, with a stand-in for the package that computes what its documentation
says: its layout, logarithms of decays, no second derivative."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from linrec import ops
from linrec.extend import isolated
from linrec.lowering.implementation import implementation
from linrec.ops import fla, reference


class Opaque(torch.autograd.Function):
    """A function whose derivative is right, and carries no derivative of its own."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], *tensors: Tensor) -> Any:
        ctx.function = function
        ctx.save_for_backward(*tensors)
        return function(*tensors)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            found = torch.autograd.grad(ctx.function(*leaves), leaves, [g.detach() for g in grads], allow_unused=True)
        return None, *(None if g is None else g.detach() for g in found)


class Package:
    """The functions of ``fla.ops`` that are used, and which of them were called."""

    def __init__(self) -> None:
        self.called: list[str] = []

    def chunk_linear_attn(
        self, q: Tensor, k: Tensor, v: Tensor, *, normalize: bool = True, **options: Any
    ) -> tuple[Tensor, Tensor]:
        assert not normalize
        return self._run("chunk_linear_attn", (q, k, v, None), options)

    def chunk_simple_gla(self, q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        assert g.shape == q.shape[:3]
        return self._run("chunk_simple_gla", (q, k, v, g.unsqueeze(-1)), options)

    def chunk_gla(self, q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        assert g.shape == q.shape
        return self._run("chunk_gla", (q, k, v, g), options)

    def chunk_delta_rule(self, q: Tensor, k: Tensor, v: Tensor, *, beta: Tensor, **options: Any) -> Any:
        assert beta.shape == q.shape[:3]
        return self._delta("chunk_delta_rule", q, k, v, beta, None, options)

    def chunk_gated_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, *, g: Tensor, beta: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        assert g.shape == q.shape[:3]
        return self._delta("chunk_gated_delta_rule", q, k, v, beta, g.unsqueeze(-1), options)

    def _delta(
        self, name: str, q: Tensor, k: Tensor, v: Tensor, beta: Tensor, g: Tensor | None, options: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        self.called.append(name)

        def run(q: Tensor, k: Tensor, v: Tensor, beta: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            q, k, v, beta = (x.float() for x in (q, k, v, beta))
            given = iter(rest)
            decay = None if g is None else next(given).float().exp()
            return reference.delta_rule(q, k, v, beta.unsqueeze(-1), decay, next(given, None))

        return self._opaque(run, [q, k, v, beta, *([] if g is None else [g])], options)

    def chunk_dplr_delta_rule(
        self, q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, gk: Tensor, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """S = diag(exp gk) S + b (a^T S) + k v^T."""
        self.called.append("chunk_dplr_delta_rule")
        assert gk.shape == q.shape

        def run(
            q: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, gk: Tensor, start: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:  # fmt: skip
            q, k, v, a, b, gk = (x.float() for x in (q, k, v, a, b, gk))
            rows = [x.unsqueeze(-2) for x in (k, v, b, a)]
            return reference.dplr_attention(q, *rows, gk.exp(), start)

        return self._opaque(run, [q, k, v, a, b, gk], options)

    def _run(self, name: str, operands: tuple[Tensor | None, ...], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        self.called.append(name)

        def run(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
            given = iter(rest)
            decay = None if operands[3] is None else next(given).float().exp()
            return reference.linear_attention(*(x.float() for x in (q, k, v)), decay, next(given, None))

        return self._opaque(run, [x for x in operands if x is not None], options)

    def _opaque(self, run: Callable[..., Any], given: list[Tensor], options: dict[str, Any]) -> tuple[Tensor, Tensor]:
        assert options["scale"] == 1.0 and options["output_final_state"]
        assert all(x.is_contiguous() and x.dim() in (3, 4) for x in given)
        start = options["initial_state"]
        assert start is None or (start.dtype == torch.float32 and start.dim() == 4)
        y, state = Opaque.apply(run, *given, *([] if start is None else [start]))  # type: ignore[no-untyped-call]
        return y.to(given[0].dtype), state


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Package]:
    """The stand-in, registered for the CPU as the package is for GPUs, by the same call."""
    made = Package()
    monkeypatch.setattr(fla, "library", lambda: made)
    with isolated():
        for name in ("linear_attention", "delta_rule", "dplr_attention"):
            requires = getattr(fla, f"{name}_fits")
            implementation(name, "fla", device="cpu", requires=requires, reads_values=True)(getattr(fla, name))
        yield made


def drawn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.to(dtype).requires_grad_()


def gate(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    x = 0.5 + 0.5 * torch.rand(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return x.to(dtype).requires_grad_()


def key(*shape: int) -> Tensor:
    return torch.nn.functional.normalize(drawn(*shape).float().detach(), dim=-1).bfloat16().requires_grad_()


Arguments = tuple[list[Tensor | None], dict[str, Any]]

CALLS: dict[str, tuple[str, str, Callable[[], Arguments]]] = {
    "none": (
        "linear_attention", "chunk_linear_attn",
        lambda: ([drawn(2, 9, 3, 4), drawn(2, 9, 3, 4), drawn(2, 9, 3, 5)], {}),
    ),
    "scalar": (
        "linear_attention", "chunk_simple_gla",
        lambda: ([drawn(2, 9, 3, 4), drawn(9, 1, 4), drawn(2, 9, 3, 5), gate(2, 9, 3, 1), drawn(3, 4, 5)], {}),
    ),
    "constant": (
        "linear_attention", "chunk_simple_gla",
        lambda: ([drawn(2, 9, 3, 4), drawn(2, 9, 3, 4), drawn(2, 9, 3, 5), gate(1, 1, 3, 1)], {}),
    ),
    "vector": (
        "linear_attention", "chunk_gla",
        lambda: ([drawn(9, 2, 4), drawn(9, 2, 4), drawn(9, 2, 5), gate(9, 1, 4), drawn(2, 4, 5)], {"dim": 0}),
    ),
    "no-batch": (
        "linear_attention", "chunk_gla",
        lambda: ([drawn(9, 4), drawn(9, 4), drawn(9, 5), gate(9, 4), drawn(4, 5)], {"dim": 0}),
    ),
    "time-inside": (
        "linear_attention", "chunk_gla",
        lambda: ([drawn(2, 3, 9, 4), drawn(2, 3, 9, 4), drawn(2, 3, 9, 5), gate(2, 3, 9, 4)], {"dim": -2}),
    ),
    "delta": (
        "delta_rule", "chunk_delta_rule",
        lambda: ([drawn(2, 9, 3, 4), key(2, 9, 3, 4), drawn(2, 9, 3, 5), gate(2, 9, 3, 1), None, drawn(2, 3, 4, 5)], {}),
    ),
    "gated-delta": (
        "delta_rule", "chunk_gated_delta_rule",
        lambda: ([drawn(2, 9, 3, 4), key(2, 9, 3, 4), drawn(2, 9, 3, 5), gate(2, 9, 3, 1), gate(2, 9, 1, 1)], {}),
    ),
    "dplr": (
        "dplr_attention", "chunk_dplr_delta_rule",
        lambda: ([drawn(2, 9, 4), drawn(2, 9, 1, 4), drawn(2, 9, 1, 5), key(2, 9, 1, 4), key(9, 1, 4), gate(2, 9, 4)], {}),
    ),
    "dplr-no-decay": (
        "dplr_attention", "chunk_dplr_delta_rule",
        lambda: ([drawn(2, 9, 4), drawn(2, 9, 1, 4), drawn(2, 9, 1, 5), key(2, 9, 1, 4), key(9, 1, 4)], {}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_values_and_gradients(name: str, package: Package) -> None:
    op, kernel, make = CALLS[name]
    operands, options = make()
    results = getattr(ops, op)(*operands, **options)
    assert package.called == [kernel]
    wide = [None if x is None else x.detach().double().requires_grad_() for x in operands]
    expected = getattr(reference, op)(*wide, **options)
    leaves = [[x for x in xs if x is not None] for xs in (operands, wide)]
    weights = [torch.rand(x.shape, dtype=torch.float64) for x in expected]
    gradients = [
        torch.autograd.grad(sum((y * w.to(y.dtype)).sum() for y, w in zip(ys, weights, strict=True)), xs)
        for ys, xs in zip((results, expected), leaves, strict=True)
    ]
    for one, other in zip((*results, *gradients[0]), (*expected, *gradients[1]), strict=True):
        assert one.dtype == torch.bfloat16 and one.shape == other.shape
        assert (one.double() - other).abs().max() <= 2e-2 * other.abs().max()


def changed(x: Tensor, value: float) -> Tensor:
    x = x.detach().clone()
    x[0, 0] = value
    return x


UNFIT: dict[str, tuple[str, Callable[[list[Tensor | None]], Arguments]]] = {
    "zero": ("scalar", lambda xs: ([*xs[:3], changed(gate(2, 9, 3, 1), 0.0)], {})),
    "tiny": ("scalar", lambda xs: ([*xs[:3], changed(gate(2, 9, 3, 1), 1e-3)], {})),
    "negative": ("scalar", lambda xs: ([*xs[:3], changed(gate(2, 9, 3, 1), -0.5)], {})),
    "growing": ("vector", lambda xs: ([*xs[:3], changed(gate(9, 2, 4), 1.5)], {"dim": 0})),
    "nan": ("scalar", lambda xs: ([*xs[:3], changed(gate(2, 9, 3, 1), float("nan"))], {})),
    "double": ("none", lambda xs: ([x.double() for x in xs if x is not None], {})),
    "single": ("none", lambda xs: ([x.float() for x in xs if x is not None], {})),
    "complex": ("none", lambda xs: ([x.cfloat() for x in xs if x is not None], {})),
    "reads-old": ("none", lambda xs: (xs, {"reads_old": True})),
    "value-decay": ("none", lambda xs: (xs, {"value_decay": gate(2, 9, 3, 5)})),
    "no-steps": ("none", lambda xs: ([x[:, :0] for x in xs if x is not None], {})),
    "long-keys": ("delta", lambda xs: ([xs[0], 2 * xs[1], *xs[2:]], {})),  # type: ignore[operator]
    "negative-rate": ("delta", lambda xs: ([*xs[:3], -xs[3], *xs[4:]], {})),  # type: ignore[operator]
    "vector-decay": ("delta", lambda xs: ([*xs[:4], gate(2, 9, 3, 4)], {})),
    "two-rows": ("dplr", lambda xs: ([xs[0], *(torch.cat((x, x), -2) for x in xs[1:5] if x is not None)], {})),
    "large-rows": ("dplr", lambda xs: ([*xs[:3], 3 * xs[3], *xs[4:]], {})),  # type: ignore[operator]
}


@pytest.mark.parametrize("what", UNFIT)
def test_what_is_left_to_the_torch_form(what: str, package: Package) -> None:
    name, change = UNFIT[what]
    op, _, make = CALLS[name]
    operands, options = change(make()[0])
    results = getattr(ops, op)(*operands, **options)
    assert package.called == [] and results[0].dtype == (operands[0].dtype if operands[0] is not None else None)


def test_single_precision_where_tf32_is_allowed(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    operands = [x.float() for x in CALLS["scalar"][2]()[0] if x is not None]
    ops.linear_attention(*operands)
    assert package.called == ["chunk_simple_gla"]
    ops.delta_rule(*(x.float() for x in CALLS["gated-delta"][2]()[0] if x is not None))
    assert package.called == ["chunk_simple_gla"]  # the delta rules are for half precision alone


def test_second_derivatives_come_from_the_torch_form(package: Package) -> None:
    operands = [x.detach().requires_grad_() for x in CALLS["scalar"][2]()[0] if x is not None]
    wide = [x.detach().float().requires_grad_() for x in operands]
    found = []
    for xs in (operands, wide):
        y, state = ops.linear_attention(*xs)
        first = torch.autograd.grad(y.float().square().sum() + state.float().sum(), xs, create_graph=True)
        found.append(torch.autograd.grad(sum(g.float().square().sum() for g in first), xs))
    assert package.called == ["chunk_simple_gla"]  # the wide one is float32
    for one, other in zip(*found, strict=True):
        assert (one.float() - other).abs().max() <= 5e-2 * other.abs().max()


def test_a_package_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> types.ModuleType:
        raise RuntimeError("no driver")

    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(fla.importlib, "import_module", broken)
    with pytest.warns(UserWarning, match="torch forms run instead: no driver"):
        assert fla.library.__wrapped__() is None
    monkeypatch.setattr(fla.importlib.util, "find_spec", lambda name: None)
    assert fla.library.__wrapped__() is None


@pytest.mark.parametrize(
    ("capability", "version", "sound"),
    [((9, 0), "3.6.0", False), ((9, 0), "3.7.1", True), ((9, 0), "3.3.1", True), ((8, 0), "3.6.0", True)],
)
def test_kernels_that_triton_compiles_wrongly(
    capability: tuple[int, int], version: str, sound: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """flash-linear-attention raises there, in the backward pass."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(fla.metadata, "version", lambda package: version)
    assert fla._sound.__wrapped__(torch.device("cuda:0")) is sound
