"""One parallelised model in the company that models keep: copies, functional calls, second derivatives,
checkpoints, threads, odd strides.
"""

from __future__ import annotations

import copy
import io
import pickle
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import linrec

from .cells import WIDTH, CascadeTwo, DiagonalComplex, LmuVector, MambaLike, MinGru
from .drivers import Driven, enumerated_into_buffer, range_stack, reversed_insert

Pair = tuple[nn.Module, nn.Module]


def stack() -> nn.Module:
    """One layer of each lowering, in float64."""
    torch.manual_seed(0)
    return nn.Sequential(
        Driven(range_stack, LmuVector()),
        Driven(range_stack, MinGru()),
        nn.LayerNorm(WIDTH),
        Driven(enumerated_into_buffer, MambaLike()),
        Driven(reversed_insert, DiagonalComplex()),
        Driven(range_stack, CascadeTwo()),
    ).double()


def series(batch: int = 2, length: int = 19, grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(batch * 100 + length)
    return torch.randn(batch, length, WIDTH, dtype=torch.float64, generator=generator).requires_grad_(grad)


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The compiled model and its oracle; no test may change either."""
    compiled = linrec.parallelize(stack())
    compiled(series(2, 12)).sum().backward()
    compiled.zero_grad()
    report = linrec.report(compiled)
    assert report.recurrences
    assert all(each.parallel for each in report.recurrences)
    return compiled, stack()


def agree(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9)


def same_for_both(pair: Pair, observe: Callable[[nn.Module], list[Tensor]]) -> None:
    """What `observe` gives of the compiled model is what it gives of the oracle."""
    compiled, oracle = (observe(model) for model in pair)
    assert len(compiled) == len(oracle)
    for actual, expected in zip(compiled, oracle):
        agree(actual, expected)
    for model in pair:
        model.zero_grad()


def gradients(model: nn.Module, x: Tensor, output: Tensor) -> list[Tensor]:
    weight = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return [output, *torch.autograd.grad((output * weight).sum(), [x, *model.parameters()])]


def test_deepcopy(pair: Pair) -> None:
    twin = copy.deepcopy(pair[0])
    same_for_both((twin, pair[1]), lambda m: gradients(m, x := series(3, 21), m(x)))
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in pair[0].parameters()}


def test_pickle_and_save(pair: Pair) -> None:
    stream = io.BytesIO()
    torch.save(pair[0], stream)
    stream.seek(0)
    for twin in (pickle.loads(pickle.dumps(pair[0])), torch.load(stream, weights_only=False)):
        same_for_both((twin, pair[1]), lambda m: gradients(m, x := series(3, 21), m(x)))


def test_functional_call(pair: Pair) -> None:
    """Other parameters than the module's own, and gradients of those."""

    def observe(model: nn.Module) -> list[Tensor]:
        generator = torch.Generator().manual_seed(5)
        new = {
            name: (p + 0.1 * torch.randn(p.shape, dtype=p.dtype, generator=generator)).detach().requires_grad_()
            for name, p in model.named_parameters()
        }
        output = torch.func.functional_call(model, new, (series(2, 17, grad=False),))
        return [output, *torch.autograd.grad(output.pow(2).sum(), list(new.values()))]

    same_for_both(pair, observe)


def test_func_grad(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        return [torch.func.grad(lambda x: model(x).pow(2).sum())(series(2, 17, grad=False))]

    same_for_both(pair, observe)


def test_func_vmap(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        return [torch.func.vmap(model)(torch.stack([series(2, 17, False), series(2, 17, False) * 2]))]

    same_for_both(pair, observe)


def test_func_jvp(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17, False)
        return list(torch.func.jvp(lambda x: model(x), (x,), (x.cos(),)))

    same_for_both(pair, observe)


def test_second_derivative(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 14)
        (first,) = torch.autograd.grad(model(x).pow(2).sum(), x, create_graph=True)
        return [first, *torch.autograd.grad(first.pow(2).sum(), [x, *model.parameters()], allow_unused=True)]

    compiled, oracle = (observe(model) for model in pair)
    for actual, expected in zip(compiled, oracle):
        assert (actual is None) == (expected is None)
        if actual is not None:
            torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8 * float(expected.abs().max()))


def test_two_backwards_and_accumulation(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17)
        first, second = model(x), model(series(1, 20, False))
        first.sum().backward(retain_graph=True)
        first.pow(2).sum().backward()
        second.sum().backward()
        return [x.grad, *(p.grad.clone() for p in model.parameters())]

    same_for_both(pair, observe)


def test_gradient_of_one_output_only(pair: Pair) -> None:
    """One element of one step; everything after it must get zero."""

    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17)
        return list(torch.autograd.grad(model[1](x)[1, 5, 2], [x, model[1].cell.gate.weight]))

    same_for_both(pair, observe)


def test_backward_of_inputs_or_parameters_alone(pair: Pair) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17)
        some = list(model.parameters())[:3]
        return [*torch.autograd.grad(model(x).sum(), x), *torch.autograd.grad(model(x.detach()).sum(), some)]

    same_for_both(pair, observe)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint(pair: Pair, reentrant: bool) -> None:
    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17)
        checkpoint(model, x, use_reentrant=reentrant).pow(2).sum().backward()
        return [x.grad, *(p.grad.clone() for p in model.parameters())]

    same_for_both(pair, observe)


@pytest.mark.parametrize(
    "layout",
    [
        lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
        lambda x: x[:, ::2],
        lambda x: x[:1].expand(3, -1, -1),
        lambda x: x.flip(1)[:, :13],
        lambda x: x.to(torch.complex128).real,
        lambda x: nn.Parameter(x.detach()),
        lambda x: (x * 2).requires_grad_(),
    ],
    ids=["time-first-storage", "every-second", "expanded", "flipped", "real-view", "parameter", "non-leaf"],
)
def test_strides(pair: Pair, layout: Callable[[Tensor], Tensor]) -> None:
    same_for_both(pair, lambda m: gradients(m, x := layout(series(2, 40)), m(x)))


def test_default_dtype(pair: Pair) -> None:
    torch.set_default_dtype(torch.float64)
    try:
        same_for_both(pair, lambda m: gradients(m, x := series(2, 18), m(x)))
    finally:
        torch.set_default_dtype(torch.float32)


def test_output_is_written_afterwards(pair: Pair) -> None:
    """In place on what came out, as an activation does."""

    def observe(model: nn.Module) -> list[Tensor]:
        x = series(2, 17)
        output = model[3](x)
        output += 1
        output[:, 3] = 0
        return gradients(model[3], x, output)

    same_for_both(pair, observe)


def test_input_is_written_afterwards(pair: Pair) -> None:
    """Where the loop's backward notices, the rewritten one must too, or give the right gradient."""
    for model in pair:
        x = series(2, 17, False).clone()
        leaf = x.requires_grad_()
        moved = leaf * 1
        output = model(moved)
        with torch.no_grad():
            moved.zero_()
        try:
            got = torch.autograd.grad(output.pow(2).sum(), leaf)[0]
        except RuntimeError:
            continue
        clean = series(2, 17)
        agree(got, torch.autograd.grad(pair[1](clean).pow(2).sum(), clean)[0])


def test_threads(pair: Pair) -> None:
    """Several at once, at lengths that are new to the model, each with its own input."""
    compiled, oracle = linrec.parallelize(stack()), pair[1]
    failures: list[BaseException] = []

    def work(index: int) -> None:
        try:
            for length in (12 + index, 30):
                x, y = series(1 + index, length), series(1 + index, length)
                got, expected = compiled(x), oracle(y)
                agree(got, expected)
                agree(*(torch.autograd.grad(o.pow(2).sum(), i)[0] for o, i in ((got, x), (expected, y))))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def test_parallelize_again_and_from_within() -> None:
    """A part first, then the whole, then the whole again; one revert gives everything back."""
    model, oracle = stack(), stack()
    linrec.parallelize(model[1])
    assert linrec.parallelize(linrec.parallelize(model)) is model
    same_for_both((model, oracle), lambda m: gradients(m, x := series(2, 15), m(x)))
    linrec.revert(model)
    assert torch.equal(model(series()), oracle(series()))


def test_training_of_a_few_steps() -> None:
    """Adam on both, with clipping and weight decay, from the first call on: the losses stay together."""
    losses: list[list[float]] = []
    for model in (linrec.parallelize(stack()), stack()):
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        losses.append([])
        for step in range(6):
            optimiser.zero_grad(set_to_none=step % 2 == 0)
            loss = (model(series(2, 12 + 3 * step, False)) - 1).pow(2).mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses[-1].append(float(loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-7)


def test_hooks_of_the_model_itself() -> None:
    """Hooks on what was parallelised fire once a call, and may replace what they see."""
    results = []
    for model in (stack(), stack()):
        calls: list[str] = []
        model[0].register_forward_pre_hook(lambda module, args, calls=calls: calls.append("before"))
        model[0].register_forward_hook(lambda module, args, output, calls=calls: calls.append("after") or output * 2)
        model[1].register_full_backward_hook(lambda module, inputs, outputs, calls=calls: calls.append("back"))
        if not results:
            linrec.parallelize(model)
        for length in (12, 20):
            x = series(2, length)
            results.append([*gradients(model, x, model(x)), calls[:]])
    for actual, expected in zip(results[:2], results[2:]):
        assert actual[-1] == expected[-1]
        for one, other in zip(actual[:-1], expected[:-1]):
            agree(one, other)


def test_a_part_in_eval_mode() -> None:
    """Training mode of the whole, eval of one layer, and changed between calls."""
    model, oracle = linrec.parallelize(stack()), stack()
    for frozen in (None, 1, 3, None):
        for each in (model, oracle):
            each.train()
            if frozen is not None:
                each[frozen].eval()
        same_for_both((model, oracle), lambda m: gradients(m, x := series(2, 16), m(x)))


def test_always_also_in_eval_mode() -> None:
    model, oracle = linrec.parallelize(stack(), when="always").eval(), stack().eval()
    for length in (12, 25, 3):
        same_for_both((model, oracle), lambda m, length=length: gradients(m, x := series(2, length), m(x)))
    with torch.no_grad():
        agree(model(series(2, 30)), oracle(series(2, 30)))
