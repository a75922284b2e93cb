"""Every op, listed once with its sequential reference, in every test that applies to all of them.

Values at many lengths, first and second derivatives, forward-mode derivatives, complex and half precision, strides,
vmap.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from linrec import ops
from linrec.ops import reference

LENGTHS = (0, 1, 2, 3, 16, 17, 63, 64, 65, 300)


class Draw:
    """Random tensors of one dtype, the same in every run."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype, self.generator = dtype, torch.Generator().manual_seed(0)

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        wide = torch.complex128 if self.dtype.is_complex else torch.float64
        return (scale * torch.randn(*shape, dtype=wide, generator=self.generator)).to(self.dtype)

    def stable(self, *shape: int) -> Tensor:
        """A square matrix of spectral norm about 0.8."""
        matrix = self(*shape)
        return (0.8 * matrix / torch.linalg.matrix_norm(matrix.cfloat(), 2)[..., None, None]).to(self.dtype)


@dataclass(frozen=True)
class Case:
    """`make(draw, T)` gives the tensor operands; `kwargs` go to the op and its reference alike."""

    name: str
    op: Callable[..., Any]
    expected: Callable[..., Any]
    make: Callable[[Draw, int], tuple[Tensor, ...]]
    kwargs: dict[str, Any]
    empty: bool = True  # T = 0 has a meaning
    real: bool = False  # complex numbers have none

    def run(self, *operands: Tensor) -> Tensor:
        return one_tensor(self.op(*operands, **self.kwargs))

    def reference(self, *operands: Tensor) -> Tensor:
        return one_tensor(self.expected(*operands, **self.kwargs))


def one_tensor(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A result of several tensors as one."""
    return result if isinstance(result, Tensor) else torch.cat([x.flatten() for x in result])


CASES: list[Case] = []


def case(
    name: str,
    op: str,
    make: Callable[[Draw, int], tuple[Tensor, ...]],
    empty: bool = True,
    real: bool = False,
    **kwargs: Any,
) -> None:
    CASES.append(Case(name, getattr(ops, op), getattr(reference, op), make, kwargs, empty, real))


def length_argument(op: Callable[..., Tensor], *operands: Tensor) -> Tensor:
    """Call an op whose last argument is a length, given a tensor that has that many elements."""
    return op(*operands[:-1], operands[-1].numel())


for rev in (False, True):
    tag = "-reverse" if rev else ""
    case(f"scan{tag}", "linear_scan", lambda d, T: (d(2, T, 3, scale=0.8), d(2, T, 3)), reverse=rev)
    case(f"scan-h0{tag}", "linear_scan", lambda d, T: (d(2, T, 3, scale=0.8), d(2, T, 3), d(2, 3)), reverse=rev)
    case(f"scan-time-first{tag}", "linear_scan", lambda d, T: (d(T, 2, 2, scale=0.8), d(T, 2, 2)), dim=0, reverse=rev)
    case(f"scan-time-last{tag}", "linear_scan", lambda d, T: (d(2, 3, T, scale=0.8), d(3, T), d(3)), dim=2, reverse=rev)
    case(f"scan-constant{tag}", "linear_scan", lambda d, T: (d(1, 1, 3, scale=0.5), d(2, T, 3), d(1, 3)), reverse=rev)
    case(f"max-plus{tag}", "max_plus_scan", lambda d, T: (d(2, T, 3), d(2, T, 3), d(2, 3)), real=True, reverse=rev)
    case(f"logsumexp{tag}", "logsumexp_scan", lambda d, T: (d(2, T, 3), d(2, T, 3), d(2, 3)), real=True, reverse=rev)
    case(f"lti-scan{tag}", "lti_scan", lambda d, T: (d.stable(3, 3), d(2, T, 3)), reverse=rev)
    case(f"lti-scan-h0{tag}", "lti_scan", lambda d, T: (d.stable(3, 3), d(2, T, 2, 3), d(2, 2, 3)), reverse=rev)
    case(
        f"matrix-scan{tag}", "matrix_scan", lambda d, T: (d.stable(2, T, 2, 2), d(2, T, 2, 1), d(2, 2, 1)), reverse=rev
    )
    case(
        f"readout{tag}",
        "scan_readout",
        lambda d, T: (d(2, T, 3, 2, scale=0.8), d(2, T, 3, 2), d(2, T, 1, 2)),
        reverse=rev,
    )
case("readout-h0", "scan_readout", lambda d, T: (d(3, 1, 2, scale=0.5), d(3, T, 2), d(2), d(3, 2)))
case("readout-time-first", "scan_readout", lambda d, T: (d(T, 2, 2, scale=0.8), d(T, 1, 2), d(1, 2, 2), d(2)), dim=0)
case("matrix-scan-broadcast", "matrix_scan", lambda d, T: (d.stable(T, 2, 1, 2, 2), d(3, 2, 3)), dim=0)
case("scan-constant-drive", "linear_scan", lambda d, T: (d(2, T, 3, scale=0.8), d(1, 1, 3)))
case("scan-broadcast-state", "linear_scan", lambda d, T: (d(2, T, 1, 3, scale=0.8), d(T, 2, 1), d(2, 3)))
case("lti-scan-time-first", "lti_scan", lambda d, T: (d.stable(3, 3), d(T, 2, 3), d(2, 3)), dim=0)
case("max-times", "max_times_scan", lambda d, T: (d(2, T, 3).abs(), d(2, T, 3), d(2, 3)), real=True)
case("max-times-signed", "max_times_scan", lambda d, T: (d(2, T, 3), d(2, T, 3), d(2, 3)), real=True)
case("max-times-gates", "max_times_scan", lambda d, T: (d(2, T, 3).clamp(min=0), d(2, T, 3), d(2, 3)), real=True)
case("max-plus-constant", "max_plus_scan", lambda d, T: (d(3), d(2, T, 3)), real=True)
case("lti-fft", "lti_fft", lambda d, T: (d.stable(3, 3), d(3, 2), d(2, T, 2)))
case("lti-fft-h0", "lti_fft", lambda d, T: (d.stable(3, 3), d(3, 1), d(2, T, 2, 1), d(2, 2, 3)))
case("lti-fft-time-first", "lti_fft", lambda d, T: (d.stable(3, 3), d(3, 2), d(T, 2, 2), d(3)), dim=0)
case("lti-last", "lti_last", lambda d, T: (d.stable(3, 3), d(3, 2), d(2, T, 2)), empty=False)
case("lti-last-h0", "lti_last", lambda d, T: (d.stable(3, 3), d(3, 1), d(2, 2, T, 1), d(2, 2, 3)), empty=False, dim=2)
case("lti-readout", "lti_readout", lambda d, T: (d.stable(3, 3), d(3, 2), d(2, 3), d(2, T, 2)))
case("lti-readout-narrow", "lti_readout", lambda d, T: (d.stable(3, 3), d(3, 1), d(2, 3), d(2, T, 2, 1), d(2, 2, 3)))
case("convolution", "causal_convolution", lambda d, T: (d(T, 3, scale=0.3), d(2, T, 3)), empty=False)
case("convolution-fir", "causal_convolution", lambda d, T: (d(4), d(2, 3, T)), empty=False, dim=-1)
case("convolution-long", "causal_convolution", lambda d, T: (d(T + 20, 2, 1, scale=0.3), d(T, 3)), empty=False, dim=0)
for old in (False, True):
    tag = "-old" if old else ""
    case(
        f"attention{tag}",
        "linear_attention",
        lambda d, T: (d(2, T, 2, 3), d(2, T, 2, 3), d(2, T, 2, 4)),
        reads_old=old,
        chunk=16,
    )
    case(
        f"attention-scalar{tag}",
        "linear_attention",
        lambda d, T: (d(2, T, 3), d(2, T, 3), d(2, T, 2), d(2, T, 1, scale=0.6), d(2, 3, 2)),
        reads_old=old,
        chunk=8,
    )
    case(
        f"attention-vector{tag}",
        "linear_attention",
        lambda d, T: (d(T, 2, 3), d(T, 1, 3), d(T, 2, 2), d(T, 2, 3, scale=0.6), d(3, 2)),
        reads_old=old,
        dim=0,
    )
    case(
        f"delta{tag}",
        "dplr_attention",
        lambda d, T: (d(2, T, 3), d(2, T, 1, 3), d(2, T, 1, 2), d(2, T, 1, 3, scale=0.3), d(2, T, 1, 3, scale=0.3)),
        reads_old=old,
        chunk=16,
    )
    case(
        f"delta-vector{tag}",
        "dplr_attention",
        lambda d, T: (
            *(d(2, T, 2, 3), d(T, 2, 2, 3), d(2, T, 1, 2, 4), d(2, T, 2, 2, 3, scale=0.2), d(2, T, 2, 2, 3, scale=0.2)),
            *(d(2, T, 2, 3, scale=0.5), d(2, 2, 3, 4)),
        ),
        reads_old=old,
    )
case(
    "attention-constant",
    "linear_attention",
    lambda d, T: (d(2, T, 2, 3), d(2, T, 2, 3), d(2, T, 2, 2), d(2, 1, scale=0.5)),
    chunk=1,
)
case(
    "delta-scalar",
    "dplr_attention",
    lambda d, T: (
        *(d(2, T, 3), d(2, T, 1, 3), d(2, T, 1, 2), d(2, T, 1, 3, scale=0.3), d(2, T, 1, 3, scale=0.3)),
        d(2, T, 1, scale=0.5),
    ),
    chunk=8,
)
case(
    "delta-rule",
    "delta_rule",
    lambda d, T: (d(2, T, 3), d(2, T, 3, scale=0.5), d(2, T, 2), d(2, T, 1, scale=0.5)),
    chunk=16,
)
case(
    "delta-rule-decay",
    "delta_rule",
    lambda d, T: (
        *(d(T, 2, 3), d(T, 1, 3, scale=0.5), d(T, 2, 2), d(T, 2, 1, scale=0.5)),
        *(d(1, 2, 3, scale=0.5), d(3, 2)),
    ),
    dim=0,
)
for name, make in (
    ("matrix_powers", lambda d, T: (d.stable(2, 3, 3), d(T))),
    ("impulse_response", lambda d, T: (d.stable(3, 3), d(2, 3, 2), d(T))),
    ("impulse_response_diagonal", lambda d, T: (d(3, scale=0.4), d(T))),
):
    op, expected = (functools.partial(length_argument, getattr(module, name)) for module in (ops, reference))
    CASES.append(Case(name, op, expected, make, {}))

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """More threads only slow down tensors as small as these."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def skip_complex(case: Case, dtype: torch.dtype) -> None:
    if case.real and dtype.is_complex:
        pytest.skip("has no meaning for complex numbers")


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_values(case: Case, dtype: torch.dtype) -> None:
    skip_complex(case, dtype)
    for length in LENGTHS:
        if length or case.empty:
            operands = case.make(Draw(dtype), length)
            torch.testing.assert_close(case.run(*operands), case.reference(*operands), rtol=1e-10, atol=1e-11)


@every_case
@pytest.mark.parametrize("length", [1, 3, 65])
def test_gradients_equal_those_of_the_loop(case: Case, length: int) -> None:
    operands = [x.requires_grad_() for x in case.make(Draw(torch.float64), length)]
    y = case.run(*operands)
    weight = Draw(torch.float64)(*y.shape)
    wanted = list(operands)

    def gradients(y: Tensor) -> tuple[Tensor, ...]:
        unused = sum(x.sum() * 0 for x in wanted)  # A^0 depends on nothing, yet has a derivative of zero
        return torch.autograd.grad((y * weight).sum() + unused, wanted)

    got, want = gradients(y), gradients(case.reference(*operands))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@every_case
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_derivatives_of_first_and_second_order(case: Case, dtype: torch.dtype) -> None:
    skip_complex(case, dtype)
    forward = case.name.startswith(("scan", "lti-scan", "matrix-scan", "max-plus", "logsumexp"))
    operands = [x.requires_grad_() for x in case.make(Draw(dtype), 19)]
    assert torch.autograd.gradcheck(case.run, operands, fast_mode=True, check_forward_ad=forward)
    assert torch.autograd.gradgradcheck(case.run, operands, fast_mode=True)


@every_case
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_lower_precision_keeps_its_dtype(case: Case, dtype: torch.dtype, tolerance: float) -> None:
    operands = case.make(Draw(dtype), 65)
    y = case.run(*operands)
    exact = case.reference(*(x.double() for x in operands))
    assert y.dtype == dtype
    assert (y.double() - exact).abs().max() <= tolerance * exact.abs().max()


@every_case
def test_many_gradients_at_once(case: Case) -> None:
    operands = [x.requires_grad_() for x in case.make(Draw(torch.float64), 19)]
    y = case.run(*operands)
    weights = Draw(torch.float64)(3, *y.shape)
    options: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    together = torch.autograd.grad(y, operands, weights, is_grads_batched=True, **options)
    apart = [torch.autograd.grad(y, operands, weight, **options) for weight in weights]
    for one, other in zip(together, zip(*apart, strict=True), strict=True):
        if one is None:
            assert other == (None,) * 3
            continue
        torch.testing.assert_close(one, torch.stack(other), rtol=1e-10, atol=1e-10)


@every_case
def test_strides_do_not_matter(case: Case) -> None:
    operands = case.make(Draw(torch.float64), 65)
    scattered = [torch.stack((x, x), -1).mT.contiguous().mT[..., 0] for x in operands]
    scattered = [x.transpose(0, -1).contiguous().transpose(0, -1) for x in scattered]
    torch.testing.assert_close(case.run(*scattered), case.run(*operands), rtol=1e-12, atol=1e-12)


@every_case
def test_inputs_are_left_alone(case: Case) -> None:
    operands = case.make(Draw(torch.float64), 65)
    before = [x.clone() for x in operands]
    case.run(*operands)
    for one, other in zip(operands, before, strict=True):
        assert torch.equal(one, other)


class OnlyOn(TorchDispatchMode):
    """Notes operators that give a tensor on another device; one number there is harmless."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device, self.elsewhere = device, set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.device.type != self.device and x.dim():
                self.elsewhere.add(str(func))
        return result


@every_case
def test_everything_is_made_where_the_operands_are(case: Case) -> None:
    """On the meta device, which like a GPU takes no tensor in main memory."""
    if case.name.startswith("max-times"):
        pytest.skip("looks at values")
    operands = [x.to("meta").requires_grad_() for x in case.make(Draw(torch.float32), 65)]
    with OnlyOn("meta") as watch:
        y = case.run(*operands)
        y.square().sum().backward()
    assert y.device.type == "meta" and watch.elsewhere <= HARMLESS


HARMLESS = {"aten.arange.start", "aten.arange.default"}
"""Indices may be in main memory."""


@every_case
def test_vmap_and_its_gradient(case: Case) -> None:
    operands = case.make(Draw(torch.float64), 19)
    batched = [torch.stack((x, 0.5 * x), -1) for x in operands]
    mapped = torch.func.vmap(case.run, in_dims=-1)(*batched)
    looped = torch.stack([case.run(*(x[..., i] for x in batched)) for i in range(2)])
    torch.testing.assert_close(mapped, looped, rtol=1e-10, atol=1e-11)

    def loss(*one: Tensor) -> Tensor:
        return case.run(*one).square().sum()

    last = len(batched) - 1
    gradient = torch.func.vmap(torch.func.grad(loss, argnums=last), in_dims=-1)(*batched)
    for i in range(2):
        wanted = torch.func.grad(loss, argnums=last)(*(x[..., i] for x in batched))
        torch.testing.assert_close(gradient[i], wanted, rtol=1e-10, atol=1e-11)
