"""A compiled model among the machinery of torch: hooks, hand-written derivatives, checkpoints, function transforms,
data-parallel wrappers, exporters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import linrec

from .samples import (
    WIDTH,
    Elman,
    Gated,
    Nested,
    agree,
    assert_parallel,
    build,
    gradients,
    same,
    series,
    small_lmu,
    steps_of,
)

Pair = tuple[Gated, Gated]


@pytest.fixture
def pair(gated: Pair) -> Pair:
    return gated


def test_hooks_inside_the_loop(pair: Pair) -> None:
    """Added after compilation they are called at each step; taken off again, the plan is used as before."""
    seen: list[list[str]] = []
    for each in pair:
        calls: list[str] = []
        seen.append(calls)
        handles = [
            each.gate.register_forward_hook(lambda m, args, y, calls=calls: calls.append("hook") or y + 1),
            each.drive.register_forward_pre_hook(lambda m, args, calls=calls: calls.append("pre") or (2 * args[0],)),
            each.gate.register_full_backward_hook(lambda m, i, o, calls=calls: calls.append("back")),
        ]
        each(series())  # linrec may look at the new call first
        calls.clear()
        gradients(each, series())
        for handle in handles:
            handle.remove()
    assert seen[0] == seen[1]
    assert len(seen[0]) == 36
    same(*pair, series())
    assert steps_of(lambda: pair[0](series())) == 0


def test_hooks_change_the_result(pair: Pair) -> None:
    handles = [each.gate.register_forward_hook(lambda m, args, y: y * 3) for each in pair]
    same(*pair, series())
    for handle in handles:
        handle.remove()
    same(*pair, series())


@pytest.mark.parametrize(
    "register", [nn.modules.module.register_module_forward_hook, nn.modules.module.register_module_forward_pre_hook]
)
def test_hooks_on_all_modules(pair: Pair, register: Callable[..., Any]) -> None:
    counts = []
    for each in pair:
        calls: list[str] = []
        handle = register(lambda m, *args, calls=calls: calls.append(type(m).__name__))
        each(series())
        calls.clear()
        each(series())
        handle.remove()
        counts.append(calls)
    assert counts[0] == counts[1]
    assert steps_of(lambda: pair[0](series())) == 0


def test_hooks_of_parameters_and_tensors(pair: Pair) -> None:
    """A hook on a weight sees its whole gradient, one on the output the output's."""
    results = []
    for each in pair:
        seen: list[Tensor] = []
        handle = each.gate.weight.register_hook(lambda g, seen=seen: seen.append(g.clone()) or 2 * g)
        y = each(series())
        y.register_hook(lambda g, seen=seen: seen.append(g.clone()))
        y.pow(2).sum().backward()
        handle.remove()
        results.append((seen, each.gate.weight.grad))
        each.zero_grad()
    agree(results[0], results[1])


class Straight(torch.autograd.Function):
    """Rounds forward, and passes three times the gradient backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.round()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return ctx.factor * grads[0], None


class Custom(Gated):
    """With hand-written derivatives before, inside and after the loop."""

    def forward(self, x: Tensor) -> Tensor:
        x = Straight.apply(3 * x, 3.0)
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = self.step(Straight.apply(2 * x[:, t], 5.0), h)
            out.append(h)
        return Straight.apply(torch.stack(out, 1), 0.5)


class CustomState(Gated):
    """With a hand-written derivative on the state itself."""

    def forward(self, x: Tensor) -> Tensor:
        h, out = x.new_zeros(x.shape[0], WIDTH), []
        for t in range(x.shape[1]):
            h = Straight.apply(self.step(x[:, t], h), 0.5)
            out.append(h)
        return torch.stack(out, 1)


@pytest.mark.parametrize("model", [Custom, CustomState])
def test_hand_written_derivatives(model: type[Gated]) -> None:
    ours, oracle = linrec.parallelize(build(model)), build(model)
    for batch, length in ((2, 12), (3, 20), (1, 2)):
        same(ours, oracle, series(batch, length))
    if model is Custom:
        assert [each.parallel for each in linrec.report(ours).recurrences if each.states] == [True]


class Checkpointed(Nested):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = x + checkpoint(layer, x, use_reentrant=False)
        return self.norm(x)


def test_checkpoint_around_layers_from_the_first_call_on() -> None:
    model, oracle = linrec.parallelize(build(Checkpointed)), build(Checkpointed)
    for length in (12, 12, 20, 3):
        same(model, oracle, series(2, length))


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoint_around_the_model(pair: Pair, reentrant: bool) -> None:
    found = []
    for each in pair:
        x = series(2, 17).requires_grad_()
        checkpoint(each, x, use_reentrant=reentrant).pow(2).sum().backward()
        found.append([x.grad, *(p.grad for p in each.parameters())])
        each.zero_grad()
    agree(*found)


def of_parameters(call: Callable[..., Any], model: nn.Module) -> Any:
    """The transform of the loss as a function of the parameters, which then are no plain tensors."""
    values, x = {name: p.detach() for name, p in model.named_parameters()}, series()
    return call(lambda state: torch.func.functional_call(model, state, (x,)).pow(2).sum((0, 1)), values)


def ensemble(function: Callable[..., Any], values: dict[str, Tensor]) -> Any:
    return torch.func.vmap(function)({name: torch.stack([v, 2 * v]) for name, v in values.items()})


TRANSFORMS: dict[str, Callable[[nn.Module], Any]] = {
    "grad of parameters": lambda m: of_parameters(lambda f, v: torch.func.grad(lambda s: f(s).sum())(v), m),
    "vmap over parameters": lambda m: of_parameters(ensemble, m),
    "jvp of parameters": lambda m: of_parameters(lambda f, v: torch.func.jvp(f, (v,), (v,)), m),
    "grad of the input": lambda m: torch.func.grad(lambda x: m(x).pow(2).sum())(series()),
    "vmap over inputs": lambda m: torch.func.vmap(m)(torch.stack([series(), 2 * series()])),
    "jacrev": lambda m: torch.func.jacrev(lambda x: m(x)[:, -1])(series(1, 6)),
    "jacfwd": lambda m: torch.func.jacfwd(lambda x: m(x)[:, -1])(series(1, 6)),
    "jacobian": lambda m: torch.autograd.functional.jacobian(lambda x: m(x)[:, -1], series(1, 6)),
}


@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_function_transforms(pair: Pair, transform: Callable[[nn.Module], Any]) -> None:
    """By the plan that is there for calls of this size."""
    expected = transform(pair[1])
    pair[0](series(1, 6))
    found = []
    assert steps_of(lambda: found.append(transform(pair[0]))) == 0
    agree(found[0], expected)
    assert steps_of(lambda: pair[0](series())) == 0


@pytest.mark.parametrize("factory", [Gated, small_lmu], ids=["gated", "lmu"])
def test_an_ensemble(factory: Callable[[], nn.Module], request: pytest.FixtureRequest) -> None:
    """Three models at once and the gradient of each, with one input for all and with one each."""
    pair = request.getfixturevalue("gated" if factory is Gated else "lmu")
    pair[0](series())
    models = [build(factory) for _ in range(3)]
    for k, each in enumerate(models):
        for p in each.parameters():
            p.data.mul_(1 + 0.1 * k)
    state, buffers = torch.func.stack_module_state(models)
    state = {name: p.detach() for name, p in state.items()}
    inputs = torch.stack([series(seed=k) for k in range(3)])

    def gradient(model: nn.Module, own: Any, rest: Any, x: Tensor) -> Any:
        def loss(values: Any) -> Tensor:
            return torch.func.functional_call(model, (values, rest), (x,)).pow(2).sum()

        return torch.func.grad_and_value(loss)(own)

    for x, dims in ((series(), None), (inputs, 0)):
        results = [
            torch.func.vmap(lambda o, r, y, model=model: gradient(model, o, r, y), in_dims=(0, 0, dims))(
                state, buffers, x
            )
            for model in pair
        ]
        agree(*results)
    if factory is Gated:
        assert steps_of(lambda: torch.func.vmap(pair[0])(inputs)) == 0


class Choosy(Gated):
    """One of its operators knows no batching, so that the loop is what runs under a transform."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return torch.where(y.isfinite(), y, 0.0)


def test_a_plan_that_does_not_know_the_transform(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the original runs, as it does without linrec."""
    model, oracle = linrec.parallelize(build(Choosy)), build(Choosy)
    model(series())
    plan = model.__dict__["forward"].last_plan

    def fails(*args: Any) -> Any:
        raise RuntimeError("Batching rule not implemented")

    monkeypatch.setattr(plan.graph_module, "forward", fails)
    x = torch.stack([series(), 2 * series()])
    agree(torch.func.vmap(model)(x), torch.func.vmap(oracle)(x))


def test_a_function_transform_comes_first() -> None:
    """The very first call is one of functorch's; a plain one compiles afterwards."""
    model, oracle = linrec.parallelize(build(Gated)), build(Gated)
    for name in ("grad of parameters", "vmap over inputs"):
        agree(TRANSFORMS[name](model), TRANSFORMS[name](oracle))
    same(model, oracle, series())
    assert_parallel(model)


def test_functional_call_with_other_values(pair: Pair) -> None:
    found = []
    for each in pair:
        values = {name: (2 * p).detach().requires_grad_() for name, p in each.named_parameters()}
        y = torch.func.functional_call(each, values, (series(),))
        found.append([y, *torch.autograd.grad(y.pow(2).sum(), list(values.values()))])
    agree(*found)
    same(*pair, series())


@pytest.fixture(scope="module")
def group() -> Iterator[None]:
    distributed = pytest.importorskip("torch.distributed")
    if not distributed.is_available() or not distributed.is_gloo_available():
        pytest.skip("gloo is not built in")
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("outside", [False, True], ids=["wrapped", "wrapping"])
def test_distributed_data_parallel(group: None, outside: bool) -> None:
    """Parallelised and then wrapped, or wrapped and then parallelised: a few steps of training, gradients reduced."""
    from torch.nn.parallel import DistributedDataParallel

    model, oracle = build(Nested), build(Nested)
    if outside:
        wrapped = linrec.parallelize(DistributedDataParallel(model))
    else:
        wrapped = DistributedDataParallel(linrec.parallelize(model))
    assert list(wrapped.module.state_dict()) == list(oracle.state_dict())
    for length in (12, 12, 20):
        for each in (wrapped, oracle):
            each(series(2, length)).pow(2).sum().backward()
        agree([p.grad for p in model.parameters()], [p.grad for p in oracle.parameters()])
        with torch.no_grad():
            for p in (*model.parameters(), *oracle.parameters()):
                p -= 0.1 * p.grad
                p.grad = None
    assert_parallel(wrapped if outside else model)


def test_a_replica_of_data_parallel(pair: Pair) -> None:
    """What `nn.DataParallel` makes for each device has its own weights and must compute with them."""
    replica = pair[0]._replicate_for_data_parallel()
    replica.gate, replica.drive = (nn.Linear(WIDTH, WIDTH, dtype=torch.float64) for _ in range(2))
    expected = build(Gated)
    expected.gate, expected.drive = replica.gate, replica.drive
    agree(replica(series()), expected(series()))


def test_export_sees_the_original(pair: Pair) -> None:
    """Exporting a parallelised model gives the loop, unrolled, as before."""
    program, expected = (torch.export.export(each, (series(2, 5),), strict=False) for each in pair)
    assert [n.target for n in program.graph.nodes] == [n.target for n in expected.graph.nodes]


def test_tensor_subclasses(pair: Pair) -> None:
    class Tagged(Tensor):
        pass

    x = series().as_subclass(Tagged)
    left, right = (each(x) for each in pair)
    assert type(left) is type(right)
    agree(left.as_subclass(Tensor), right.as_subclass(Tensor))


def test_a_part_stays_a_loop() -> None:
    """In one model with a layer that has to stay sequential."""

    def stack() -> nn.Module:
        return nn.Sequential(Gated(), Elman(), Gated())

    model, oracle = linrec.parallelize(build(stack)), build(stack)
    for length in (12, 20):
        same(model, oracle, series(2, length))
    kinds = {each.module: each.parallel for each in linrec.report(model).recurrences}
    assert kinds == {"0": True, "1": False, "2": True}


def test_backward_twice_and_higher_derivatives(pair: Pair) -> None:
    found = []
    for each in pair:
        x = series().requires_grad_()
        loss = each(x).pow(2).sum()
        (first,) = torch.autograd.grad(loss, x, create_graph=True)
        second = torch.autograd.grad(first.pow(2).sum(), [x, *each.parameters()], retain_graph=True, allow_unused=True)
        loss.backward()
        found.append([first.detach(), x.grad, *(torch.zeros(1) if g is None else g for g in second)])
        each.zero_grad()
    agree(*found, 1e-7)
