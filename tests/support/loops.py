"""One small training run in a Composer Trainer, an Ignite trainer and a plain loop, each told as a :class:`Record`.

What a loop needs to go on in mid-pass is saved as its users would save it: by Composer's checkpoints, Ignite's
``Checkpoint.load_objects``, and a dictionary of states.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer import Trainer
from composer.loggers import LoggerDestination
from composer.models import ComposerClassifier
from ignite.engine import Events, create_supervised_trainer
from ignite.handlers import Checkpoint
from torch import Tensor, nn

from composer_edba import EDBA
from composer_edba.ignite import EDBAHandler
from composer_edba.plain import SubsetLoader
from tests.support.torch_runs import CLASSES, loader, net, sgd

LOSS = nn.CrossEntropyLoss()
SEED = 5
SAMPLES, BATCH = 200, 32
# Wall-clock time differs from run to run, and the size of the cache is logged once in a Trainer.
_OUTSIDE = {"overhead", "cache_bytes"}


@dataclass(frozen=True)
class Task:
    """What is trained, and on batches in which order.

    Attributes:
        shuffle: a new order in every pass, from torch's global stream; False: one permutation in all of them.
        dropout: share of the features that are left out, drawn from torch's global stream.
        decay: what a schedule multiplies the learning rate by after every step.
        workers: of the loader.
        drop_last: whether the loader leaves out a smaller last batch.
    """

    shuffle: bool = False
    dropout: float = 0.0
    decay: float = 1.0
    workers: int = 0
    drop_last: bool = False

    def parts(self) -> tuple[nn.Module, torch.optim.Optimizer, Any, Any]:
        """Model, optimizer, learning-rate schedule and loader, new and always the same."""
        model = net(dropout=self.dropout)
        optimizer = sgd(model)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self.decay**step)
        order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(11)).tolist()
        drawn = {"shuffle": True} if self.shuffle else {"shuffle": False, "sampler": order}
        data = loader(SAMPLES, BATCH, num_workers=self.workers, drop_last=self.drop_last, **drawn)
        return model, optimizer, schedule, data


@dataclass
class Record:
    """What a run did.

    Attributes:
        steps: for each step ``pass`` (its number from 0), ``indices`` (of the data set, in the order of training) and
            ``figures`` (EDBA's, by name).
        weights: the network's parameters and buffers at the end.
        state: file to resume from; None if the run was not stopped.
    """

    steps: list[dict[str, Any]]
    weights: dict[str, Tensor]
    state: Path | None


def _step(number: int, inputs: Tensor, figures: dict[str, float]) -> dict[str, Any]:
    told = {name: value for name, value in figures.items() if name not in _OUTSIDE}
    return {"pass": number, "indices": inputs[:, 0].long().tolist(), "figures": told}


def _begin_stream(seed: int, resume_from: Path | None) -> None:
    """Have torch's global stream begin at ``seed``; in a process that resumes it is elsewhere until it is restored."""
    torch.manual_seed(seed if resume_from is None else seed + 1)


class _Recorder(LoggerDestination):
    """Writes down a Trainer's steps, and stops it after ``stop_after`` of them."""

    def __init__(self, stop_after: int | None):
        self.steps: list[dict[str, Any]] = []
        self.figures: dict[str, float] = {}
        self.stop_after = stop_after

    def log_metrics(self, metrics, step=None):
        self.figures |= {name.removeprefix("edba/"): x for name, x in metrics.items() if name.startswith("edba/")}

    def batch_start(self, state, logger):
        self.inputs = state.batch[0]
        self.number = int(state.timestamp.epoch)

    def batch_end(self, state, logger):
        self.steps.append(_step(self.number, self.inputs, self.figures))
        self.figures = {}
        if int(state.timestamp.batch) == self.stop_after:
            state.stop_training()


def run_composer(
    settings: dict[str, Any],
    passes: int,
    task: Task,
    *,
    seed: int = SEED,
    stop_after: int | None = None,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> Record:
    """Train in a Composer Trainer.

    Args:
        settings: EDBA's, without ``seed``; ``preset`` as in the other loops.
        passes: over the data, from the beginning of the run.
        task: what to train.
        seed: of the run: EDBA's candidates, and torch's global stream.
        stop_after: stop after this many steps, inside of a pass, and save all that a resumed run needs.
        save_to: file to save it in.
        resume_from: file to begin with.
    """
    model, optimizer, schedule, data = task.parts()
    arguments = dict(settings)
    edba = EDBA.paper(**arguments) if arguments.pop("preset", "default") == "paper" else EDBA(**arguments)
    recorder = _Recorder(stop_after)
    saving: dict[str, Any] = {}
    if save_to is not None:
        saving = {"save_folder": str(save_to.parent), "save_filename": save_to.name, "save_interval": f"{stop_after}ba"}
    trainer = Trainer(
        model=ComposerClassifier(model, num_classes=CLASSES, loss_fn=LOSS),
        train_dataloader=data,
        max_duration=f"{passes}ep",
        algorithms=[edba],
        optimizers=optimizer,
        schedulers=schedule,
        step_schedulers_every_batch=True,
        loggers=[recorder],
        progress_bar=False,
        device="cpu",
        seed=seed,
        load_path=None if resume_from is None else str(resume_from),
        **saving,
    )
    _begin_stream(seed, resume_from)
    trainer.fit()
    return Record(recorder.steps, model.state_dict(), save_to)


class _RandomState:
    """torch's global stream as a part of an Ignite checkpoint."""

    def state_dict(self):
        return {"torch": torch.get_rng_state()}

    def load_state_dict(self, state):
        torch.set_rng_state(state["torch"])


def run_ignite(
    settings: dict[str, Any],
    passes: int,
    task: Task,
    *,
    seed: int = SEED,
    stop_after: int | None = None,
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> Record:
    """Train in an Ignite trainer; the arguments are those of :func:`run_composer`."""
    model, optimizer, schedule, data = task.parts()
    trainer = create_supervised_trainer(model, optimizer, LOSS)
    edba = EDBAHandler(model, LOSS, optimizer, seed=seed, **settings)
    edba.attach(trainer, data)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "edba": edba, "trainer": trainer}
    parts["random"] = _RandomState()
    steps: list[dict[str, Any]] = []

    @trainer.on(Events.ITERATION_COMPLETED)
    def _completed(engine):
        schedule.step()
        steps.append(_step(engine.state.epoch - 1, engine.state.batch[0], engine.state.edba))
        if engine.state.iteration == stop_after:
            torch.save({name: part.state_dict() for name, part in parts.items()}, save_to)
            engine.terminate()

    _begin_stream(seed, resume_from)
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
    save_to: Path | None = None,
    resume_from: Path | None = None,
) -> Record:
    """Train in a loop written by hand; the arguments are those of :func:`run_composer`."""
    model, optimizer, schedule, data = task.parts()
    subsets = SubsetLoader(data, model, LOSS, optimizer=optimizer, seed=seed, **settings)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "subsets": subsets}
    steps: list[dict[str, Any]] = []
    first, done = 0, 0
    _begin_stream(seed, resume_from)
    if resume_from is not None:
        saved = torch.load(resume_from, weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first, done = saved["pass"], saved["done"]
        torch.set_rng_state(saved["random"])
    for number in range(first, passes):
        for inputs, target in subsets:
            optimizer.zero_grad()
            LOSS(model(inputs), target).backward()
            optimizer.step()
            schedule.step()
            steps.append(_step(number, inputs, subsets.figures))
            done += 1
            if done == stop_after:
                state = {name: part.state_dict() for name, part in parts.items()}
                torch.save({**state, "pass": number, "done": done, "random": torch.get_rng_state()}, save_to)
                return Record(steps, model.state_dict(), save_to)
    return Record(steps, model.state_dict(), save_to)


LOOPS = {"composer": run_composer, "ignite": run_ignite, "plain": run_plain}
