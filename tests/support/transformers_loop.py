"""The run of :mod:`tests.support.loops` in the Trainer of Transformers."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, RandomSampler
from transformers import TrainerCallback, TrainingArguments

from composer_edba.transformers import EDBATrainer
from tests.support.task import LOSS, SEED, Record, Task, begin_streams, indices_of, step_of


class Named(Dataset):
    """Points by name."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, index):
        x, y = self.points[index]
        return {"points": x, "labels": y}


class Net(nn.Module):
    """A network that gives its loss, as those of Transformers do."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, points, labels):
        logits = self.network(points)
        return {"loss": LOSS(logits, labels), "logits": logits}


class Runner(EDBATrainer):
    """Draws in the order of the task, and tells of what it trains on."""

    sampler: Any = None

    def _get_train_sampler(self, *args):
        return RandomSampler(self.train_dataset) if self.sampler is None else self.sampler


class _Recorder(TrainerCallback):
    def __init__(self, runner, schedule, stop_after, at_pass_end):
        self.runner, self.schedule = runner, schedule
        self.stop_after, self.at_pass_end = stop_after, at_pass_end
        self.steps: list[dict[str, Any]] = []

    def on_train_begin(self, args, state, control, **kwargs):
        for _ in range(state.global_step):
            self.schedule.step()

    def on_step_end(self, args, state, control, **kwargs):
        self.schedule.step()
        last = self.runner._edba.engine.last_selection
        number = self.runner._pass_number
        self.steps.append(step_of(number, self.delivered, self.inputs, last, self.runner.edba_figures))
        if not self.at_pass_end and state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.at_pass_end and state.global_step == self.stop_after:
            control.should_save = control.should_training_stop = True


def arguments(folder: Path, **given: Any) -> TrainingArguments:
    """Of a run that is only what it is told to be."""
    quiet = {"report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "logging_steps": 1000}
    plain = {"max_grad_norm": 0.0, "accelerator_config": {"use_seedable_sampler": False}}
    return TrainingArguments(output_dir=str(folder), **{**quiet, **plain, **given})


def run_transformers(
    settings: dict[str, Any],
    passes: int,
    task: Task,
    *,
    seed: int = SEED,
    stop_after: int | None = None,
    at_pass_end: bool = False,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> Record:
    """Train in a Transformers Trainer; the arguments are those of :func:`tests.support.loops.run_composer`.

    ``resume_from`` is the folder of a checkpoint.
    """
    network, optimizer, schedule, data = task.parts()
    folder = Path(tempfile.mkdtemp()) if save_to is None else save_to.parent / "runs"
    args = arguments(
        folder,
        num_train_epochs=passes,
        per_device_train_batch_size=data.batch_size,
        dataloader_num_workers=task.workers,
        dataloader_drop_last=task.drop_last,
    )
    # The Trainer's own schedule would keep up with the data, which no other loop's here does.
    constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    edba = {"seed": seed, **settings}
    runner = Runner(Net(network), args, train_dataset=Named(data.dataset), optimizers=(optimizer, constant), edba=edba)
    runner.sampler = None if task.shuffle else data.sampler
    recorder = _Recorder(runner, schedule, stop_after, at_pass_end)
    runner.add_callback(recorder)
    choose = runner._edba.choose

    def see(pool, *more):
        recorder.delivered = indices_of(pool["points"])
        batch = choose(pool, *more)
        recorder.inputs = batch["points"]
        return batch

    runner._edba.choose = see
    begin_streams(seed, resume_from)
    runner.train(resume_from_checkpoint=None if resume_from is None else str(resume_from))
    saved = folder / f"checkpoint-{stop_after}"
    return Record(recorder.steps, network.state_dict(), saved if saved.is_dir() else None)
