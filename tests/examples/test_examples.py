"""Each example in a tiny size, as a user starts it: it ends with the facts it promises, and its picture is there."""

import json
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

import linrec
from examples import _shared, custom_recurrence, hf_mamba, mackey_glass, psmnist, trainer

EXAMPLES = Path(__file__).parents[2] / "examples"
TINY = {
    "mackey_glass": "--length 60 --series 4 --held-out 2 --batch 3 --epochs 2 --loop-steps 3 --width 4",
    "hf_mamba": "--hidden 16 --layers 1 --length 24 --batch 2 --steps 4 --loop-steps 3 --sample 4",
    "psmnist": "--small --side 8 --order 8 --hidden 8 --images 96 --batch 20 --epochs 1 --loop-steps 3",
    "trainer": "--hidden 16 --layers 1 --length 24 --batch 2 --steps 4 --loop-steps 3",
    "custom_recurrence": "--length 60 --width 4 --batch 3 --steps 4 --loop-steps 3",
    "hf_recurrentgemma": "--model recurrentgemma --hidden 16 --length 24 --batch 2 --steps 4 --loop-steps 3 --sample 4",
}
NEEDS = {
    "hf_mamba": ("transformers",),
    "hf_recurrentgemma": ("transformers",),
    "psmnist": ("sklearn",),
    "trainer": ("transformers", "accelerate"),
}


def start(script: str, options: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / script), *options.split(), "--threads", "1"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8", timeout=120)


@pytest.mark.parametrize("stem", TINY)
def test_an_example_ends_with_its_facts(stem: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    for package in NEEDS.get(stem, ()):
        pytest.importorskip(package)
    script = "hf_mamba.py" if stem.startswith("hf_") else f"{stem}.py"
    done = start(script, f"{TINY[stem]} --out results", tmp_path)
    assert done.returncode == 0, done.stderr

    numbers = json.loads((tmp_path / "results" / f"{stem}.json").read_text(encoding="utf-8"))
    picture = (tmp_path / "results" / f"{stem}.png").resolve()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert f"picture          {picture}" in done.stdout
    assert float(re.search(r"^speed-up +([\d.]+) times", done.stdout, re.M)[1]) > 0
    assert float(re.search(r"^loss difference +(\S+) at most", done.stdout, re.M)[1]) < 1e-4
    assert numbers["largest_loss_difference"] < 1e-4
    assert [len(numbers["runs"][name]["losses"]) for name in ("loop", "parallel")] == [3, 4]
    assert re.search(r"^(NRMSE|held-out( text)?) ", done.stdout, re.M)
    # Equal losses prove nothing where the original ran after all.
    assert numbers["left_as_they_are"] == [], done.stdout
    assert numbers["recurrences_parallel"] == numbers["recurrences"] > 0, done.stdout


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (mackey_glass.arguments, "--epochs 0", "start at 1"),
        (mackey_glass.arguments, "--loop-steps 1", "at least 2"),
        (hf_mamba.arguments, "--hidden 20", "multiple of 16"),
        (hf_mamba.arguments, "--threads 0", "starts at 1"),
        (psmnist.arguments, "--side 7", "starts at 8"),
        (trainer.arguments, "--steps 1", "at least 2"),
        (custom_recurrence.arguments, "--width 0", "start at 1"),
    ],
)
def test_a_wrong_option_is_named(arguments, options: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        arguments(options.split())
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_text_that_is_missing_or_short_is_one_line(tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    for path in (tmp_path / "absent.txt", short):
        with pytest.raises(SystemExit) as stop:
            hf_mamba.training_text(path, shortest=100)
        assert path.name in stop.value.code and "\n" not in stop.value.code


def test_this_python_has_text_to_learn_from() -> None:
    text = hf_mamba.training_text(None, shortest=hf_mamba.TEXT_BYTES)
    assert text.shape == (hf_mamba.TEXT_BYTES,) and text.dtype == torch.int64
    assert text.min() >= 0 and text.max() < hf_mamba.VOCABULARY


def test_a_missing_package_is_one_line_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r'^This example needs matplotlib: pip install "linrec\[plot\]"$'):
        _shared.require("matplotlib")


def test_the_series_is_mackey_and_glass() -> None:
    """The integrated series satisfies the delay equation, by central differences, and stays on the known attractor."""
    x = mackey_glass.mackey_glass(series=2, length=400, seed=0)
    assert x.shape == (2, 400) and x.dtype == torch.float64
    assert not torch.equal(x[0], x[1])
    lag = mackey_glass.DELAY
    now, past = x[:, 200:-2], x[:, 200 - lag : -2 - lag]
    slope = (8 * (x[:, 201:-1] - x[:, 199:-3]) - (x[:, 202:] - x[:, 198:-4])) / 12
    residual = slope - (0.2 * past / (1 + past**10) - 0.1 * now)
    assert residual.abs().max() < 0.05 * slope.abs().max()
    assert 0.2 < x[:, 100:].min() < 0.6 and 1.2 < x[:, 100:].max() < 1.45


def test_the_digits_are_all_there_in_one_shuffled_order() -> None:
    pytest.importorskip("sklearn")
    args = psmnist.arguments(["--small", "--data", "/nowhere"])
    source, pixels, classes = psmnist.task(args)
    assert source.startswith("scikit-learn") and pixels.shape == (1797, 14 * 14, 1)
    assert classes.bincount(minlength=10).min() > 150
    assert 0 <= pixels.min() and pixels.max() == 1
    _, images, targets = psmnist.small_digits(28)
    assert images.shape == (1797, 28, 28)
    assert torch.equal(images[:, 2:26:3, 2:26:3], images[:, 4:28:3, 4:28:3])
    assert (images[:, :2] == 0).all() and (images[:, -2:] == 0).all()
    one = pixels[(classes == targets[0]).nonzero()[0, 0]]
    assert not torch.equal(one.flatten(), one.sort(0).values.flatten())


def test_mnist_is_taken_where_torchvision_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dataset(folder: str, train: bool, download: bool) -> types.SimpleNamespace:
        assert train and not download
        if folder != str(tmp_path):
            raise RuntimeError("Dataset not found.")
        return types.SimpleNamespace(
            data=torch.full((12, 28, 28), 255, dtype=torch.uint8), targets=torch.arange(12) % 10
        )

    monkeypatch.setattr(psmnist.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", types.SimpleNamespace(MNIST=dataset))
    source, pixels, _ = psmnist.task(psmnist.arguments(["--side", "14", "--data", str(tmp_path)]))
    assert source.startswith("MNIST") and pixels.shape == (12, 196, 1) and (pixels == 1).all()
    assert psmnist.mnist(tmp_path / "elsewhere") is None


def test_a_recurrence_of_ones_own_is_the_loop() -> None:
    """Values and gradients, with the rule and the pass; neither alone is enough."""
    with linrec.extend.isolated():
        torch.manual_seed(0)
        model = custom_recurrence.Population(3, 5).double()
        x = torch.randn(2, 70, 3, dtype=torch.float64)
        linrec.add_pass(custom_recurrence.OutOfLogSpace(), before="simplify")
        assert not linrec.explain(model, x).parallel
        custom_recurrence.register()
        runs = []
        for _ in ("loop", "parallel"):
            model.zero_grad()
            y = model(x)
            y.square().sum().backward()
            runs.append([y.detach(), *(p.grad.clone() for p in model.parameters())])
            linrec.parallelize(model)
        report = linrec.report(linrec.parallelize(model, x))
        assert report.parallel and "blend" in report.recurrences[0].proof
    loop, parallel = runs
    for ours, theirs in zip(parallel, loop, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
