"""Which implementation of an op runs: device, requirements, order, and when the torch form has to."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import linrec
from linrec import ops
from linrec.extend import isolated
from linrec.ops import dispatch, reference


class Bad(torch.autograd.Function):
    """A scan whose value is right and whose derivative is twice what it should be, so that one sees which is used."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, h0: Tensor | None, dim: int, reverse: bool) -> Tensor:
        ctx.save_for_backward(a, b, h0)
        ctx.rest = dim, reverse
        return reference.linear_scan(a, b, h0, dim=dim, reverse=reverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        dim, reverse = ctx.rest
        with torch.enable_grad():
            given = [None if x is None else x.detach().requires_grad_() for x in ctx.saved_tensors]
            h = reference.linear_scan(*given, dim=dim, reverse=reverse)  # type: ignore[arg-type]
            found = iter(torch.autograd.grad(h, [x for x in given if x is not None], 2 * grad.detach()))
        return *(None if x is None else next(found) for x in given), None, None


@pytest.fixture(autouse=True)
def alone() -> Iterator[None]:
    with isolated():
        yield


@pytest.fixture
def used() -> list[str]:
    """The calls that reached an implementation of the scan."""
    found: list[str] = []

    @linrec.implementation("linear_scan", "bad", device="cpu", requires=lambda a, b, h0, *, dim, reverse: dim == 1)
    def bad(a: Tensor, b: Tensor, h0: Tensor | None, *, dim: int, reverse: bool) -> Tensor:
        found.append("bad")
        h: Tensor = Bad.apply(a, b, h0, dim, reverse)  # type: ignore[no-untyped-call]
        return h

    return found


def operands() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(s, dtype=torch.float64, generator=generator) for s in ((2, 5, 3), (2, 5, 3), (2, 3))]


def test_requirements_and_defaults(used: list[str]) -> None:
    a, b, h0 = operands()
    torch.testing.assert_close(ops.linear_scan(a, b, h0), reference.linear_scan(a, b, h0))
    torch.testing.assert_close(ops.linear_scan(a, b, reverse=True), reference.linear_scan(a, b, reverse=True))
    torch.testing.assert_close(ops.linear_scan(a, b=b), reference.linear_scan(a, b))
    assert used == ["bad"] * 3
    ops.linear_scan(a, b, dim=0)
    ops.linear_scan(a.to("meta"), b.to("meta"))
    assert used == ["bad"] * 3


def test_first_derivatives_are_the_implementation_s(used: list[str]) -> None:
    leaves = [x.requires_grad_() for x in operands()]
    got = torch.autograd.grad(ops.linear_scan(*leaves).sum(), leaves)
    want = torch.autograd.grad(reference.linear_scan(*leaves).sum(), leaves)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, 2 * other)
    a, b, h0 = operands()
    (only,) = torch.autograd.grad(ops.linear_scan(a, b.requires_grad_(), h0).sum(), b)
    torch.testing.assert_close(only, 2 * want[1])
    assert not ops.linear_scan(a, b.detach(), h0).requires_grad


@pytest.mark.parametrize("how", ["create_graph", "batched"])
def test_other_derivatives_are_the_torch_form_s(how: str, used: list[str]) -> None:
    leaves = [x.requires_grad_() for x in operands()]
    h, expected = ops.linear_scan(*leaves), reference.linear_scan(*leaves)
    assert used == ["bad"]
    if how == "batched":
        weights = torch.rand(4, *h.shape, dtype=torch.float64)
        got = torch.autograd.grad(h, leaves, weights, is_grads_batched=True)
        want = torch.autograd.grad(expected, leaves, weights, is_grads_batched=True)
    else:
        # A loss that is linear in the result: else the second derivative goes through the first one, twice as large here.
        weight = torch.rand(h.shape, dtype=torch.float64).requires_grad_()
        leaves.append(weight)
        first = [torch.autograd.grad((y * weight).sum(), leaves[:3], create_graph=True) for y in (h, expected)]
        for one, other in zip(*first, strict=True):
            torch.testing.assert_close(one, other)
        got, want = (torch.autograd.grad(sum(g.square().sum() for g in gs), leaves) for gs in first)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


def test_gradgradcheck(used: list[str]) -> None:
    leaves = [x.requires_grad_() for x in operands()]
    assert torch.autograd.gradgradcheck(ops.linear_scan, leaves, fast_mode=True) and used


def test_backward_twice_and_checkpointing(used: list[str]) -> None:
    leaves = [x.requires_grad_() for x in operands()]
    y = ops.linear_scan(*leaves).sum()
    first, second = (torch.autograd.grad(y, leaves, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second)
    again = checkpoint(ops.linear_scan, *leaves, use_reentrant=False)
    torch.testing.assert_close(torch.autograd.grad(again.sum(), leaves), first)
    # A derivative of the derivative, then the derivative alone: what the one left behind must not reach the other.
    torch.autograd.grad(y, leaves, create_graph=True)
    torch.testing.assert_close(torch.autograd.grad(y, leaves), first)


def test_an_operand_that_is_written_to_is_noticed(used: list[str]) -> None:
    a, b, h0 = operands()
    a = a.requires_grad_() * 1
    h = ops.linear_scan(a, b, h0)
    a.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        h.sum().backward()
    # What the derivative does not read may be written to, and so may the result.
    b = b.requires_grad_() * 1
    h = ops.linear_scan(a.detach(), b, h0)
    h += 1
    torch.testing.assert_close(h.detach(), reference.linear_scan(a, b, h0).detach() + 1)


def test_what_an_implementation_does_not_see(used: list[str]) -> None:
    a, b, _ = operands()
    torch.func.vmap(ops.linear_scan)(a.unsqueeze(0), b.unsqueeze(0))
    torch.func.jvp(ops.linear_scan, (a, b), (a, b))
    torch.func.grad(lambda x: ops.linear_scan(x, b).sum())(a)
    with torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True) as mode:
        ops.linear_scan(mode.from_tensor(a), mode.from_tensor(b))
    torch.fx.experimental.proxy_tensor.make_fx(lambda a, b: ops.linear_scan(a, b))(a, b)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(a, a)
        assert torch.autograd.forward_ad.unpack_dual(ops.linear_scan(dual, b)).tangent is not None

    class Wrapped(torch.Tensor):
        pass

    ops.linear_scan(a.as_subclass(Wrapped), b)
    assert used == []


def test_the_last_registered_comes_first(used: list[str]) -> None:
    a, b, h0 = operands()

    @linrec.implementation("linear_scan", "newer", device="cpu", requires=lambda a, *rest, **options: a.shape[0] == 2)
    def newer(a: Tensor, b: Tensor, h0: Tensor | None, *, dim: int, reverse: bool) -> Tensor:
        used.append("newer")
        return reference.linear_scan(a, b, h0, dim=dim, reverse=reverse)

    ops.linear_scan(a, b, h0)
    ops.linear_scan(a[:1], b[:1])
    assert used == ["newer", "bad"]


def test_ours_are_registered_by_the_same_call() -> None:
    found = {(x.op, x.name, x.device) for x in dispatch.IMPLEMENTATIONS}
    assert {("linear_scan", "triton", "cuda"), ("scan_readout", "triton", "cuda")} <= found
    attention = {(op, "flash-linear-attention", "cuda") for op in ("linear_attention", "delta_rule", "dplr_attention")}
    assert attention <= found and all(x.op in dispatch.OPS for x in dispatch.IMPLEMENTATIONS)


def test_mistakes() -> None:
    with pytest.raises(linrec.ExtensionError, match="no op is called 'scan'"):
        linrec.implementation("scan", "mine")(lambda a, b: a)
    with pytest.raises(linrec.ExtensionError, match="there is a implementation 'triton for linear_scan on cuda'"):
        linrec.implementation("linear_scan", "triton")(lambda a, b, h0, *, dim, reverse: b)

    @linrec.implementation("linear_scan", "broken", device="cpu")
    def broken(a: Tensor, b: Tensor, h0: Tensor | None, *, dim: int, reverse: bool) -> Tensor:
        raise ZeroDivisionError("oh")

    with pytest.raises(linrec.ExtensionError, match=r"broken for linear_scan on cpu.*ZeroDivisionError: oh"):
        ops.linear_scan(torch.rand(1, 2), torch.rand(1, 2))


def test_isolated_forgets_and_a_parallel_model_uses_it(used: list[str]) -> None:
    class Gated(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h, out = torch.zeros_like(x[:, 0]), []
            for t in range(x.shape[1]):
                h = torch.sigmoid(x[:, t]) * h + x[:, t]
                out.append(h)
            return torch.stack(out, 1)

    seen: list[int] = []

    @linrec.implementation("linear_scan", "seen", device="cpu")
    def scan(a: Tensor, b: Tensor, h0: Tensor | None, *, dim: int, reverse: bool) -> Tensor:
        seen.append(b.shape[dim])
        return reference.linear_scan(a, b, h0, dim=dim, reverse=reverse)

    from linrec.codegen import torch_forms

    x = torch.randn(2, 40, 3)
    model = linrec.parallelize(Gated())
    with torch_forms():
        y = model(x)
    assert 40 in seen
    torch.testing.assert_close(y, Gated()(x))
