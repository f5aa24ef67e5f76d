"""The run of :mod:`tests.support.loops` in a Lightning Trainer."""

import logging
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from composer_edba.lightning import EDBACallback
from tests.support.task import LOSS, SEED, RandomState, Record, Task, begin_streams, indices_of, step_of

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Module(LightningModule):
    """A network that is trained as users train it."""

    def __init__(self, network, optimizer, schedule=None):
        super().__init__()
        self.network, self.optimizer, self.schedule = network, optimizer, schedule

    def training_step(self, batch, batch_idx):
        inputs, target = batch
        loss = LOSS(self.network(inputs), target)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        if self.schedule is None:
            return self.optimizer
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": self.schedule, "interval": "step"}}


class _Recorder(Callback):
    def __init__(self, edba, task, schedule, sampler, stop_after, at_pass_end, save_to):
        self.edba, self.task, self.schedule, self.sampler = edba, task, schedule, sampler
        self.stop_after, self.at_pass_end, self.save_to = stop_after, at_pass_end, save_to
        self.steps: list[dict[str, Any]] = []

    def state_dict(self):
        return {"random": RandomState().state_dict(), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state):
        RandomState().load_state_dict(state["random"])
        self.schedule.load_state_dict(state["schedule"])

    def on_train_epoch_start(self, trainer, pl_module):
        self.task.begin_pass(self.sampler, trainer.current_epoch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.schedule.step()
        last = self.edba._engine.last_selection
        self.steps.append(step_of(trainer.current_epoch, self.delivered, batch[0], last, self.edba.figures))
        if not self.at_pass_end and trainer.global_step == self.stop_after:
            self.stop(trainer)

    def on_train_epoch_end(self, trainer, pl_module):
        if self.at_pass_end and trainer.global_step == self.stop_after:
            self.stop(trainer)

    def stop(self, trainer):
        trainer.save_checkpoint(self.save_to)
        trainer.should_stop = True


def run_lightning(
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
    """Train in a Lightning Trainer; the arguments are those of :func:`tests.support.loops.run_composer`."""
    network, optimizer, schedule, data = task.parts()
    edba = EDBACallback(seed=seed, **settings)
    recorder = _Recorder(edba, task, schedule, data.sampler, stop_after, at_pass_end, save_to)
    choose = edba._loop.choose

    def see(pool, *args):
        recorder.delivered = indices_of(pool[0])
        return choose(pool, *args)

    edba._loop.choose = see
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        trainer = Trainer(max_epochs=passes, callbacks=[edba, recorder], **QUIET)
        begin_streams(seed, resume_from)
        trainer.fit(Module(network, optimizer), data, ckpt_path=resume_from)
    return Record(recorder.steps, network.state_dict(), save_to)
