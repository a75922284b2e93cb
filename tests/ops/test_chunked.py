"""The chunked forms at the edges: any decay, any chunk, memory, and where a NaN may go; and the semirings' ties."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from linrec import ops
from linrec.ops import reference


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only slow down tensors as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def drawn(*shape: int, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def assert_same(results: tuple[Tensor, ...], expected: tuple[Tensor, ...], inputs: list[Tensor]) -> None:
    """Equal values, and equal gradients of their sum of squares."""
    for one, other in zip(results, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    got, want = (torch.autograd.grad(sum(y.square().sum() for y in ys), inputs) for ys in (results, expected))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("gate", ["zero", "one", "negative", "growing", "underflow", "mixed"])
@pytest.mark.parametrize("reads_old", [False, True])
def test_any_decay(gate: str, width: int, reads_old: bool) -> None:
    length = 70
    decay = {
        "zero": torch.zeros(2, length, width),
        "one": torch.ones(2, length, width),
        "negative": -torch.rand(2, length, width),
        "growing": 1 + 0.1 * torch.rand(2, length, width),
        "underflow": torch.full((2, length, width), 1e-200),
        "mixed": torch.tensor([0.0, 1.0, -1.0, 1e-160, 0.5])[torch.randint(5, (2, length, width))],
    }[gate].double()
    q, k, v = drawn(2, length, 3), drawn(2, length, 3, scale=0.5), drawn(2, length, 2)
    inputs = [x.requires_grad_() for x in (q, k, v, decay, drawn(2, 3, 2))]
    assert_same(*(f(*inputs, reads_old=reads_old) for f in (ops.linear_attention, reference.linear_attention)), inputs)
    rows = [drawn(2, length, 1, 3, scale=0.3).requires_grad_() for _ in range(2)]
    if gate != "growing":
        operands = [q, k.unsqueeze(-2), v.unsqueeze(-2), *rows, decay, inputs[-1]]
        results = (f(*operands, reads_old=reads_old) for f in (ops.dplr_attention, reference.dplr_attention))
        assert_same(*results, inputs + rows)


@pytest.mark.parametrize("chunk", [1, 2, 4, 16, 64, 128])
def test_the_chunk_changes_nothing(chunk: int) -> None:
    q, k, v, decay = drawn(2, 100, 3), drawn(2, 100, 3), drawn(2, 100, 2), drawn(2, 100, 3, scale=0.5)
    for one, other in zip(
        ops.linear_attention(q, k, v, decay, chunk=chunk), reference.linear_attention(q, k, v, decay), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)
    rows = [drawn(2, 100, 2, 3, scale=0.3), drawn(2, 100, 2, 3, scale=0.3)]
    operands = (q, k.unsqueeze(-2), v.unsqueeze(-2), *rows, decay)
    for one, other in zip(ops.dplr_attention(*operands, chunk=chunk), reference.dplr_attention(*operands), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("value_width", [1, 2])
@pytest.mark.parametrize("reads_old", [False, True])
@pytest.mark.parametrize("constant", [False, True])
def test_decay_of_keys_and_of_values(width: int, value_width: int, reads_old: bool, constant: bool) -> None:
    for length in (1, 2, 64, 65):
        steps = 1 if constant else length
        inputs = [
            drawn(2, length, 2, 3),
            drawn(2, length, 2, 3),
            drawn(2, length, 2, 2),
            drawn(2, steps, 2, width, scale=0.5),
        ]
        inputs = [x.requires_grad_() for x in (*inputs, drawn(2, steps, 1, value_width, scale=0.5))]
        *operands, value_decay = inputs
        inputs.append(drawn(2, 2, 3, 2).requires_grad_())
        options = {"h0": inputs[-1], "value_decay": value_decay, "reads_old": reads_old}
        assert_same(*(f(*operands, **options) for f in (ops.linear_attention, reference.linear_attention)), inputs)


def test_a_nan_reaches_no_earlier_chunk() -> None:
    q, k, v, decay = drawn(2, 100, 3), drawn(2, 100, 3), drawn(2, 100, 2), drawn(2, 100, 3, scale=0.5)
    for operand in (q, k, v, decay):
        poisoned = [x.clone() for x in (q, k, v, decay)]
        index = next(i for i, x in enumerate((q, k, v, decay)) if x is operand)
        poisoned[index][0, 70, 1] = float("nan")
        y, state = ops.linear_attention(*poisoned, chunk=16)
        expected, last = reference.linear_attention(*poisoned)
        assert not y[:, :64].isnan().any() and not y[1].isnan().any()
        assert (y.isnan() | ~expected.isnan()).all() and (state.isnan() | ~last.isnan()).all()


@pytest.mark.parametrize("kind", ["attention", "vector", "delta"])
def test_states_of_all_steps_are_never_formed(kind: str) -> None:
    length, keys, values = 2048, 32, 32
    q, k, v = (drawn(1, length, n).float().requires_grad_() for n in (keys, keys, values))
    decay = torch.rand(1, length, 1 if kind == "attention" else keys)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else [result]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // 4)
            return result

    with Watch():
        if kind == "delta":
            rows = torch.nn.functional.normalize(k, dim=-1).unsqueeze(-2)
            y, state = ops.dplr_attention(q, rows, v.unsqueeze(-2), -0.5 * rows, rows, decay)
        else:
            y, state = ops.linear_attention(q, k, v, decay)
        (y.sum() + state.sum()).backward()
    assert largest <= length * keys * values // 8


@pytest.mark.parametrize("chunk", [0, 3, -4])
def test_a_chunk_that_is_no_power_of_two(chunk: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        ops.linear_attention(drawn(1, 4, 2), drawn(1, 4, 2), drawn(1, 4, 2), chunk=chunk)


def test_the_last_axis_is_not_time() -> None:
    with pytest.raises(ValueError, match="axis of the state"):
        ops.linear_attention(drawn(1, 4, 2), drawn(1, 4, 2), drawn(1, 4, 2), dim=2)


def test_autocast_leaves_the_ops_their_precision() -> None:
    q, k, v, decay = (drawn(2, 100, n).float() for n in (3, 3, 2, 1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = ops.linear_attention(q, k, v, decay.sigmoid())
        h = ops.lti_scan(0.1 * drawn(3, 3).float(), k)
    assert y.dtype == h.dtype == torch.float32
    torch.testing.assert_close(y, ops.linear_attention(q, k, v, decay.sigmoid())[0])
    torch.testing.assert_close(h, ops.lti_scan(0.1 * drawn(3, 3).float(), k))


@pytest.mark.parametrize("reverse", [False, True])
def test_ties_share_as_torch_shares(reverse: bool) -> None:
    levels = torch.randint(3, (4, 100, 5), generator=torch.Generator().manual_seed(0)).double()
    for decay in (0.0, -1.0):
        inputs = [torch.full((4, 100, 5), decay).double(), levels, torch.ones(4, 5).double()]
        inputs = [x.requires_grad_() for x in inputs]
        weight = drawn(4, 100, 5)
        results = [f(*inputs, reverse=reverse) for f in (ops.max_plus_scan, reference.max_plus_scan)]
        assert torch.equal(*results)
        got, want = (torch.autograd.grad((m * weight).sum(), inputs) for m in results)
        for one, other in zip(got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_minus_infinity_in_either_semiring() -> None:
    nothing = float("-inf")
    a, b = drawn(2, 100, 3), drawn(2, 100, 3)
    a[:, 40], b[:, :20], b[:, 40:45] = nothing, nothing, nothing
    inputs = [a.requires_grad_(), b.requires_grad_()]
    for op in ("max_plus_scan", "logsumexp_scan"):
        m, expected = getattr(ops, op)(*inputs), getattr(reference, op)(*inputs)
        torch.testing.assert_close(m, expected, rtol=1e-12, atol=1e-12)
        assert (m[:, :20] == nothing).all() and (m[:, 40:45] == nothing).all()
        gradient = torch.autograd.grad(m[:, 50:].sum(), inputs)
        assert all(g.isfinite().all() for g in gradient)
        assert not any(g[:, :40].any() for g in gradient)


def test_semirings_refuse_complex_numbers() -> None:
    with pytest.raises(TypeError, match="order"):
        ops.max_plus_scan(drawn(1, 3, 1).cdouble(), drawn(1, 3, 1))
