"""The library's `Trainer` on a parallelised model: the loss curve of the model as it came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import linrec
from tests.transformers.tiny import build, mamba, tokens


def curve(model: Any, folder: Path, half: bool) -> list[float]:
    """The losses of five steps, with clipping, decay and accumulation of two batches a step."""
    import transformers

    losses: list[float] = []

    class Watched(transformers.Trainer):
        def training_step(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().training_step(*args, **kwargs)
            losses.append(float(loss))
            return loss

    options = transformers.TrainingArguments(
        output_dir=str(folder),
        max_steps=5,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=0.01,
        weight_decay=0.1,
        max_grad_norm=0.5,
        bf16=half,
        use_cpu=True,
        dataloader_pin_memory=False,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in tokens(20, 12)]
    Watched(model=model, args=options, train_dataset=data).train()
    return losses


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bf16"])
def test_the_same_losses(tmp_path: Path, half: bool) -> None:
    pytest.importorskip("accelerate")
    model = linrec.parallelize(build(mamba, torch.float32))
    ours, theirs = curve(model, tmp_path, half), curve(build(mamba, torch.float32), tmp_path, half)
    assert len(ours) == 10
    assert ours == pytest.approx(theirs, rel=1e-2 if half else 1e-4)
    report = linrec.report(model)
    assert [each.parallel for each in report if each.states] == [True, True], str(report)
    assert not report.obstructions
