"""EDBA for the Trainer of Hugging Face Transformers."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from composer_edba.loading.pools import planned_updates
from composer_edba.loops.stepping import Passes, SteppingLoop, replaced
from composer_edba.loops.summary import summary_of
from composer_edba.settings import checked

try:
    from transformers import TrainerCallback
    from transformers.trainer import Trainer
    from transformers.trainer_utils import get_last_checkpoint

    from composer_edba.loops.prepared import own_loader
except (ModuleNotFoundError, ImportError) as error:
    raise ImportError(
        f"composer_edba.transformers needs Transformers and Accelerate ({error}): "
        "pip install 'composer-edba[transformers]'"
    ) from error

__all__ = ["EDBAMixin", "EDBATrainer"]

STATE_NAME = "edba.pt"
"""The file in a checkpoint's folder that holds EDBA's state."""

if TYPE_CHECKING:
    from transformers.trainer import Trainer as _Base
else:
    _Base = object


class EDBAMixin(_Base):
    """Makes a Transformers Trainer train on the subset of each batch that EDBA chooses, and size its batches.

    ``class MyTrainer(EDBAMixin, Trainer)``; the Trainer's ``compute_loss`` is what is scored and watched, so nothing
    else has to be said. Figures are logged with the loss, as ``edba/...``.

    **Epochs.** ``num_train_epochs`` are passes over the data, and ``state.epoch`` is the number of passes done.
    Training ends with the last; ``max_steps``, where it is given, counts updates instead.

    **Schedules.** Where ``num_train_epochs`` says when training ends, the learning rate is stepped as often as plain
    training would have stepped it for the same data, so that it ends where it was planned to.

    **Checkpoints.** The state is the file ``edba.pt`` in each checkpoint's folder. A resumed run goes on with what was
    left of the pass.

    Args:
        edba: settings by name, see :mod:`composer_edba.settings`; ``start`` and ``end`` are fractions of
            ``num_train_epochs``, or of ``max_steps`` where that is given. None: the defaults.
        args, kwargs: the Trainer's.

    Raises:
        ValueError: if a setting is out of its range; when training begins, if the named last layer is none of the
            model's, if batches are dispatched from one process, or split over several GPUs by one (DataParallel).
        TypeError: if a setting has a wrong type, or there is no such setting.

    Example:
        >>> trainer = EDBATrainer(model, args, train_dataset=data, edba={"left_out": 0.1})
        >>> trainer.train()
    """

    def __init__(self, *args: Any, edba: Mapping[str, Any] | None = None, **kwargs: Any):
        self._edba = SteppingLoop(checked({} if edba is None else edba, "transformers"))
        self._passes: Passes | None = None
        self._pass_number = -1  # of the present one, from 0; -1: none has begun
        self._edba_state: dict[str, Any] | None = None  # of the checkpoint to go on with
        super().__init__(*args, **kwargs)
        self.add_callback(_KeepsTime(self))

    @property
    def edba_figures(self) -> dict[str, float]:
        """What is known of EDBA's last step, by name."""
        return self._edba.engine.figures

    def edba_summary(self) -> str:
        """What the run came to so far, as a table in plain text: samples drawn, trained on, left out; the overhead."""
        return summary_of(self._edba.engine)

    # ---- a training

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As the Trainer's."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)
        file = Path(folder) / STATE_NAME if folder else None
        self._edba_state, skip = None, self.args.ignore_data_skip
        if file is not None and file.is_file():
            self._edba_state = torch.load(file, map_location="cpu", weights_only=True)
            self.args.ignore_data_skip = True  # what was taken of the pass is skipped here
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args.ignore_data_skip = skip
            self._edba.end_run()

    def get_train_dataloader(self) -> Any:
        """The loader that pools are drawn from."""
        if self.args.n_gpu > 1:
            raise ValueError("one process trains on several GPUs (DataParallel): start one a GPU, say by torchrun")
        loader = own_loader(super().get_train_dataloader(), self.accelerator)
        self._edba.begin_run(self.model, self._loss, torch.device(self.args.device))
        self._pass_number = -1
        if (state := self._edba_state) is not None:
            self._pass_number = state["passes"] - 1
            self._edba.engine.load_state_dict(state["engine"])
        self._passes = _EpochPasses(self, loader)
        return self._passes

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """For as many steps as plain training has, however many smaller batches might make."""
        if self._counts_passes():
            num_training_steps = math.ceil(self._epochs * self._updates_per_pass)
        return super().create_scheduler(num_training_steps, optimizer)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Choose, and train on what is chosen."""
        if self._passes is None:
            return super().training_step(model, inputs, num_items_in_batch)
        self._edba.optimizers = [] if self.optimizer is None else [self.optimizer]
        self._note()
        inputs = self._prepare_inputs(inputs)
        items = _items(inputs)
        inputs = self._edba.choose(inputs)
        if num_items_in_batch is not None and (left := _items(inputs)) != items:
            num_items_in_batch = num_items_in_batch * (left / items)  # the mean over the subset, not the pool
        with replaced(self.accelerator, backward=self._watched(self.accelerator.backward)):
            loss = super().training_step(model, inputs, num_items_in_batch)
        self._edba.end_step()  # not after an error, which is the user's to see: memory may have run out
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """With EDBA's figures beside the loss."""
        if "loss" in logs and self._passes is not None:
            engine = self._edba.engine
            figures = {**engine.figures, "left_out": engine.left_out}
            logs.update({f"edba/{name}": float(value) for name, value in figures.items()})
        super().log(logs, *args, **kwargs)

    # ---- their parts

    def _loss(self, batch: Any) -> Any:
        with self.compute_loss_context_manager():
            return self.compute_loss(self.model, self._prepare_inputs(batch))

    def _watched(self, backward: Callable[..., None]) -> Callable[..., None]:
        """The Accelerator's ``backward``, which shows the loss on its way into it."""
        accelerator, scaler = self.accelerator, self.accelerator.scaler

        @functools.wraps(backward)
        def watched(loss: Tensor, **kwargs: Any) -> None:
            # Divided by that already, or a sum over the batch divided by the items of all batches that accumulate.
            shown = 1 / self.args.gradient_accumulation_steps
            scale = shown / accelerator.gradient_accumulation_steps * (1.0 if scaler is None else scaler.get_scale())
            self._edba.before_backward(loss, shown, scale)
            backward(loss, **kwargs)

        return watched

    @property
    def _passed(self) -> float:
        """Passes over the data that are done."""
        pools = self._edba.engine.pools
        return max(0, self._pass_number) + (1.0 if pools.is_over else self._edba.engine.part_of_pass)

    def _note(self) -> None:
        """Take in how much of training is over before the batch that comes next."""
        by_steps = self.args.max_steps > 0
        done, whole = (self.state.global_step, self.args.max_steps) if by_steps else (self._passed, self._epochs)
        self._edba.done = done / whole

    @property
    def _epochs(self) -> float:
        return float(self.args.num_train_epochs)

    @property
    def _updates_per_pass(self) -> int:
        """Of plain training."""
        assert self._passes is not None
        return max(1, math.ceil(self._passes.given_batches / self.args.gradient_accumulation_steps))

    def _counts_passes(self) -> bool:
        return self._passes is not None and self._passes.resizes and self.args.max_steps <= 0


class _EpochPasses(Passes):
    """Tells the sampler the number of the pass, whatever the Trainer takes it for."""

    def __init__(self, trainer: EDBAMixin, loader: Any):
        self._trainer = trainer
        super().__init__(trainer._edba, loader, trainer._note)

    def __len__(self) -> int:
        if self._trainer.args.max_steps > 0 and self.resizes:
            raise TypeError("as many batches as max_steps takes")  # else the Trainer would make too few passes
        policy, shortest = self._engine.settings["batch_size_policy"], self._engine.pools.shortest
        if policy == "fixed" or shortest is None:
            return len(self._given)
        return -(-shortest // self._engine.pools.bounds(self._engine.settings["min_batch_size"], shortest)[0])

    def __iter__(self) -> Iterator[Any]:
        self._trainer._pass_number += 1
        self._engine.pools.set_epoch(self._trainer._pass_number)
        return super().__iter__()

    def set_epoch(self, epoch: int) -> None:
        """The Trainer counts epochs of a fixed length, which passes are not."""


class _KeepsTime(TrainerCallback):
    """Ends training with the last pass, has the schedule keep up with the data, and saves the state."""

    def __init__(self, trainer: EDBAMixin):
        self._trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        if trainer._passes is None or not trainer._passes.resizes:
            return
        state.epoch = passed = trainer._passed
        if not trainer._counts_passes():
            return
        if passed >= trainer._epochs - 1e-9:
            control.should_training_stop = True
        schedule = trainer.lr_scheduler
        if schedule is not None and not isinstance(schedule, torch.optim.lr_scheduler.ReduceLROnPlateau):
            for _ in range(planned_updates(passed, trainer._updates_per_pass) - schedule.last_epoch):
                schedule.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        trainer = self._trainer
        folder = Path(trainer._get_output_dir(trial=None)) / f"checkpoint-{state.global_step}"
        if trainer._passes is not None and args.should_save and folder.is_dir():
            engine = trainer._edba.engine
            saved = {"engine": engine.state_dict(), "passes": trainer._pass_number + engine.pools.is_over}
            torch.save(saved, folder / STATE_NAME)


class EDBATrainer(EDBAMixin, Trainer):
    """The Trainer with :class:`EDBAMixin`, ready to use."""


def _items(inputs: Any) -> int:
    """What a batch's loss is a mean over: labels that count, or else samples."""
    labels = inputs.get("labels") if isinstance(inputs, Mapping) else None
    return max(1, int((labels != -100).sum())) if isinstance(labels, Tensor) else 1
