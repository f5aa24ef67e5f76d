"""One small training run in a Composer Trainer, an Ignite trainer and a plain loop, each told as a :class:`Record`.

What a loop needs to go on in mid-pass, or at a pass's end, is saved as its users would save it: by Composer's
checkpoints, Ignite's ``Checkpoint.load_objects``, and a dictionary of states; with the global random streams.
"""

from pathlib import Path
from typing import Any

import torch
from composer import Callback, DataSpec, Event, Trainer
from composer.loggers import LoggerDestination
from composer.models import ComposerClassifier
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint

from composer_edba import EDBA
from composer_edba.ignite import EDBAHandler
from composer_edba.plain import SubsetLoader
from tests.support.task import LOSS, SEED, RandomState, Record, Task, begin_streams, indices_of, step_of
from tests.support.torch_runs import CLASSES


class _Recorder(LoggerDestination):
    """Writes down a Trainer's steps, and stops it after ``stop_after`` of them or at the end of their pass."""

    def __init__(self, edba: EDBA, stop_after: int | None, at_pass_end: bool):
        self.edba, self.stop_after, self.at_pass_end = edba, stop_after, at_pass_end
        self.steps: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}

    def see(self, batch):
        """As the Trainer's transform of whole batches, which sees what the loader gave."""
        self.delivered = indices_of(batch[0])
        return batch

    def log_metrics(self, metrics, step=None):
        self.figures |= {name.removeprefix("edba/"): x for name, x in metrics.items() if name.startswith("edba/")}

    def batch_start(self, state, logger):
        self.inputs, self.last = state.batch[0], self.edba.last_selection
        self.number = int(state.timestamp.epoch)

    def batch_end(self, state, logger):
        self.steps.append(step_of(self.number, self.delivered, self.inputs, self.last, self.figures))
        self.figures = {}
        if not self.at_pass_end and int(state.timestamp.batch) == self.stop_after:
            state.stop_training()

    def epoch_end(self, state, logger):
        if self.at_pass_end and int(state.timestamp.batch) == self.stop_after:
            state.stop_training()

    def is_time_to_save(self, state, event):
        """As the ``save_interval`` of a Trainer."""
        moment = Event.EPOCH_CHECKPOINT if self.at_pass_end else Event.BATCH_CHECKPOINT
        return event == moment and int(state.timestamp.batch) == self.stop_after


class _Epochs(Callback):
    """Tells the sampler about the pass that begins, or that is gone on with."""

    def __init__(self, task: Task, sampler: Any):
        self.task, self.sampler = task, sampler

    def after_load(self, state, logger):
        self.task.begin_pass(self.sampler, int(state.timestamp.epoch))

    def epoch_start(self, state, logger):
        self.task.begin_pass(self.sampler, int(state.timestamp.epoch))


def run_composer(
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
    """Train in a Composer Trainer.

    Args:
        settings: EDBA's, without ``seed``; ``preset`` as in the other loops.
        passes: over the data, from the beginning of the run.
        task: what to train.
        seed: of the run: EDBA's candidates, and torch's global stream.
        stop_after: stop after this many steps of the whole run, and save all that a resumed run needs.
        at_pass_end: the last of these ends a pass: stop when the loop has taken notice of that.
        save_to: file to save it in.
        resume_from: file to begin with.
    """
    model, optimizer, schedule, data = task.parts()
    arguments = dict(settings)
    edba = EDBA.paper(**arguments) if arguments.pop("preset", "default") == "paper" else EDBA(**arguments)
    recorder = _Recorder(edba, stop_after, at_pass_end)
    saving: dict[str, Any] = {}
    if save_to is not None:
        saving = {"save_folder": str(save_to.parent), "save_filename": save_to.name}
        saving["save_interval"] = recorder.is_time_to_save
    trainer = Trainer(
        model=ComposerClassifier(model, num_classes=CLASSES, loss_fn=LOSS),
        train_dataloader=DataSpec(data, batch_transforms=recorder.see),
        train_subset_num_batches=-1 if task.few_batches is None else task.few_batches,
        max_duration=task.duration(passes),
        algorithms=[edba],
        optimizers=optimizer,
        schedulers=schedule,
        step_schedulers_every_batch=True,
        loggers=[recorder],
        callbacks=[_Epochs(task, data.sampler)],
        progress_bar=False,
        device="cpu",
        seed=seed,
        load_path=None if resume_from is None else str(resume_from),
        **saving,
    )
    begin_streams(seed, resume_from)
    trainer.fit()
    return Record(recorder.steps, model.state_dict(), save_to)


def run_ignite(
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
    """Train in an Ignite trainer; the arguments are those of :func:`run_composer`."""
    model, optimizer, schedule, data = task.parts()
    trainer = create_supervised_trainer(model, optimizer, LOSS)
    edba = EDBAHandler(model, LOSS, optimizer, seed=seed, **settings)
    delivered: list[int] = []

    @trainer.on(Events.EPOCH_STARTED)
    def _begins(engine):
        task.begin_pass(data.sampler, engine.state.epoch - 1)

    @trainer.on(Events.GET_BATCH_COMPLETED)
    def _delivered(engine):
        delivered[:] = indices_of(engine.state.batch[0])

    edba.attach(trainer, data)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "edba": edba, "trainer": trainer}
    parts |= {**task.states(data), "random": RandomState()}
    steps: list[dict[str, Any]] = []

    def stop():
        torch.save({name: part.state_dict() for name, part in parts.items()}, save_to)
        trainer.terminate()

    @trainer.on(Events.ITERATION_COMPLETED)
    def _completed(engine):
        schedule.step()
        state, last = engine.state, edba._loop.engine.last_selection
        steps.append(step_of(state.epoch - 1, list(delivered), state.batch[0], last, state.edba))
        if not at_pass_end and state.iteration == stop_after:
            stop()

    @trainer.on(Events.EPOCH_COMPLETED)
    def _pass_completed(engine):
        if at_pass_end and engine.state.iteration == stop_after:
            stop()

    begin_streams(seed, resume_from)
    if resume_from is not None:
        Checkpoint.load_objects(parts, torch.load(resume_from, weights_only=True))
    trainer.run(data, max_epochs=passes)
    return Record(steps, model.state_dict(), save_to)


def run_plain(
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
    """Train in a loop written by hand; the arguments are those of :func:`run_composer`."""
    model, optimizer, schedule, data = task.parts()
    subsets = SubsetLoader(data, model, LOSS, optimizer=optimizer, seed=seed, **settings)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "subsets": subsets}
    parts |= {**task.states(data), "random": RandomState()}
    steps: list[dict[str, Any]] = []
    delivered: list[int] = []
    choose = subsets._loop.choose

    def see(pool):
        delivered[:] = indices_of(pool[0])
        return choose(pool)

    subsets._loop.choose = see
    first, done = 0, 0
    begin_streams(seed, resume_from)
    if resume_from is not None:
        saved = torch.load(resume_from, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, done = saved["pass"], saved["done"]

    def record(number: int) -> Record:
        state = {name: part.state_dict() for name, part in parts.items()}
        torch.save({**state, "pass": number, "done": done}, save_to)
        return Record(steps, model.state_dict(), save_to)

    for number in range(first, passes):
        task.begin_pass(subsets.sampler, number)
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
            last = subsets._loop.engine.last_selection
            steps.append(step_of(number, list(delivered), inputs, last, subsets.figures))
            done += 1
            if not at_pass_end and done == stop_after:
                return record(number)
        if at_pass_end and done == stop_after:
            return record(number + 1)
    return Record(steps, model.state_dict(), save_to)


LOOPS = {"composer": run_composer, "ignite": run_ignite, "plain": run_plain}
