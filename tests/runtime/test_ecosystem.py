"""What people do with models: reparametrise weights, swap layers for adapters, average weights, shard them, feed them
from worker processes, fork, check gradients by differences."""

from __future__ import annotations

import copy
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import linrec

from .samples import WIDTH, Gated, agree, assert_parallel, build, compiled, gradients, same, series, steps_of

Pair = tuple[Gated, Gated]


@pytest.mark.parametrize("mode", ["first", "second"])
@pytest.mark.parametrize("name", ["gated", "lmu"])
def test_gradients_by_differences(name: str, mode: str, request: pytest.FixtureRequest) -> None:
    """Of inputs and weights, through the model as the user calls it."""
    model = request.getfixturevalue(name)[0]
    model(series(2, 7))
    names = [n for n, p in model.named_parameters() if p.requires_grad]

    def run(x: Tensor, *values: Tensor) -> Tensor:
        found: Tensor = torch.func.functional_call(model, dict(zip(names, values)), (x,))
        return found

    inputs = [series(2, 7).requires_grad_(), *(model.get_parameter(n).detach().clone().requires_grad_() for n in names)]
    check = torch.autograd.gradcheck if mode == "first" else torch.autograd.gradgradcheck
    assert check(run, inputs, fast_mode=True)


@pytest.mark.parametrize("method", ["weight_norm", "orthogonal"])
def test_parametrized_weights(method: str) -> None:
    """Their factors are trained."""
    models = []
    for _ in range(2):
        model = build(Gated)
        torch.manual_seed(1)
        getattr(parametrizations, method)(model.drive)
        models.append(model)
    ours, oracle = linrec.parallelize(models[0]), models[1]
    for batch, length in ((2, 12), (3, 20), (2, 12)):
        same(ours, oracle, series(batch, length), tolerance=1e-7)
    agree(ours.state_dict(), oracle.state_dict(), 1e-7)


class Adapter(nn.Module):
    """A frozen layer with a trained correction of rank one, as LoRA wraps it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        generator = torch.Generator().manual_seed(2)
        self.down = nn.Parameter(torch.randn(1, WIDTH, generator=generator, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(WIDTH, 1, generator=generator, dtype=base.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.down.T @ self.up.T


def test_an_adapter_takes_the_place_of_a_layer() -> None:
    """After the model was compiled; then it is taken off again, its product added to the weight."""
    model, oracle = compiled(Gated), build(Gated)
    for each in (model, oracle):
        each.drive = Adapter(each.drive)
    for length in (12, 20):
        same(model, oracle, series(2, length))
    assert model.drive.base.weight.grad is None
    assert steps_of(lambda: model(series())) == 0
    for each in (model, oracle):
        adapter = each.drive
        each.drive = adapter.base
        with torch.no_grad():
            each.drive.weight += adapter.up @ adapter.down
    same(model, oracle, series())
    assert steps_of(lambda: model(series())) == 0


def test_averages_of_weights() -> None:
    """An exponential average beside the training, evaluated and trained on itself."""
    losses = []
    for model in (linrec.parallelize(build(Gated)), build(Gated)):
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        optimiser = torch.optim.Adam(model.parameters(), lr=0.05)
        found = []
        for step in range(4):
            optimiser.zero_grad()
            loss = model(series(2, 12 + step)).pow(2).mean()
            loss.backward()
            optimiser.step()
            average.update_parameters(model)
            found.append(loss.detach())
        found += [average.eval()(series()), average.train()(series())]
        losses.append(found)
    agree(*losses)


class Sequences(torch.utils.data.Dataset[Tensor]):
    """Made by a parallelised model, in the process that asks for them."""

    def __init__(self, model: nn.Module | None = None) -> None:
        self.model = model

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        x = series(1, 12, seed=index)[0]
        return x if self.model is None else self.model(x.unsqueeze(0))[0].detach()


@pytest.mark.parametrize("inside", [False, True], ids=["beside", "inside"])
def test_workers_that_load_data(pair: Pair, inside: bool) -> None:
    """Forked after a parallel step, with its threads running; they may even call the model."""
    model, oracle = pair
    model(series(1, 12)).sum().backward()
    for each in (model, oracle):
        each.zero_grad()
    loader = torch.utils.data.DataLoader(Sequences(model if inside else None), batch_size=2, num_workers=1)
    for k, batch in enumerate(loader):
        x = torch.cat([series(1, 12, seed=i) for i in (2 * k, 2 * k + 1)])
        agree(batch, oracle(x) if inside else x)
        same(model, oracle, x)


def test_a_forked_process(pair: Pair) -> None:
    """A child trains on, at a length that is new to it, while the parent does too."""
    model, oracle = pair
    model(series()).sum()
    expected = gradients(oracle, series(2, 23))
    child = os.fork()
    if child == 0:
        try:
            agree(gradients(model, series(2, 23)), expected)
            os._exit(0)
        except BaseException:
            os._exit(1)
    agree(gradients(model, series(2, 23)), expected)
    assert os.waitpid(child, 0)[1] == 0


def test_a_process_forked_while_a_thread_compiles() -> None:
    """The child has the lock's state but not the thread that holds it: it runs the original, or compiles itself."""
    reached, go_on = threading.Event(), threading.Event()
    parent = os.getpid()

    class Slow(Gated):
        def forward(self, x: Tensor) -> Tensor:
            if os.getpid() == parent and threading.current_thread() is not threading.main_thread():
                reached.set()
                go_on.wait(60)
            return super().forward(x)

    model, oracle = linrec.parallelize(build(Slow)), build(Gated)
    expected = oracle(series())
    thread = threading.Thread(target=lambda: model(series()))
    thread.start()
    assert reached.wait(60)
    child = os.fork()
    if child == 0:
        try:
            agree(model(series()), expected)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitpid(child, 0)[1]
    go_on.set()
    thread.join()
    assert status == 0
    agree(model(series()), expected)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_processes(kind: str) -> None:
    """Data parallel, and with sharded parameters: the same losses and weights after two steps."""
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("gloo is not built in")
    port, root = str(_free_port()), Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.runtime.two_processes"]
    running = [
        subprocess.Popen([*command, str(rank), port, kind], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=240)[0].decode() for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs[0] + outputs[1]


@pytest.fixture
def pair(gated: Pair) -> Pair:
    return gated


def same_numbers(model: nn.Module, oracle: nn.Module, *lengths: int) -> None:
    """The same results for the same seed, and the generator in the same state afterwards."""
    for length in lengths:
        found = []
        for each in (model, oracle):
            torch.manual_seed(3)
            found.append((each(series(2, length)), torch.rand(2)))
        agree(*found)


def test_dropout_in_the_step() -> None:
    """With the loop's numbers for the same seed, and the generator in the loop's state afterwards."""

    class Dropped(Gated):
        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return super().step(nn.functional.dropout(x, 0.5, self.training), h)

    model, oracle = linrec.parallelize(build(Dropped)), build(Dropped)
    same_numbers(model, oracle, 12, 12, 20, 60)
    assert linrec.report(model).parallel
    assert not linrec.report(model).obstructions
    same(model.eval(), build(Dropped).eval(), series())


def test_noise_that_fills_tensors_in_place() -> None:
    class Noisy(Gated):
        def step(self, x: Tensor, h: Tensor) -> Tensor:
            kept = torch.empty_like(h).bernoulli_(0.7)
            noise = torch.empty_like(x).normal_(0.0, 0.1) + torch.empty_like(x).uniform_(-1, 1).exponential_(3.0)
            return super().step(nn.functional.dropout(x, 0.2, inplace=False) + noise, h * kept)

    model, oracle = linrec.parallelize(build(Noisy)), build(Noisy)
    same_numbers(model, oracle, 12, 20, 60)
    assert linrec.report(model).parallel, str(linrec.report(model))


def test_numbers_that_depend_on_the_state_stay() -> None:
    class Noisy(Gated):
        def step(self, x: Tensor, h: Tensor) -> Tensor:
            return super().step(x, h) + torch.bernoulli(torch.sigmoid(h))

    model, oracle = linrec.parallelize(build(Noisy)), build(Noisy)
    found = []
    for each in (model, oracle):
        torch.manual_seed(3)
        found.append((each(series(2, 20)), torch.rand(2)))
    agree(*found)
    assert [each.id for each in linrec.report(model).obstructions] == ["LR009"]


def test_noise_before_the_loop() -> None:
    class Jittered(Gated):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.randn_like(x))

    model, oracle = linrec.parallelize(build(Jittered)), build(Jittered)
    same_numbers(model, oracle, 12, 12, 20)
    assert_parallel(model)


def test_parameters_can_be_swapped() -> None:
    """As `Module.to` and `load_state_dict` do where they are told to: it minds references that others keep."""
    model: Any = linrec.parallelize(build(Gated))
    model(series()).sum().backward()
    model.zero_grad()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.load_state_dict(copy.deepcopy(model.state_dict()))
        model.float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert all(p.dtype is torch.float32 for p in model.parameters())
